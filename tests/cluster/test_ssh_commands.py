"""What is said to a host, as text: no secret in an argument, nothing but what is needed."""

from __future__ import annotations

import json
from pathlib import Path

import dask
import pytest

from cluster import SshSpec
from cluster.security import Certificates
from cluster.ssh_commands import (
    connect_keywords,
    hello,
    scheduler_arguments,
    worker_arguments,
)

_SPEC = SshSpec(hosts=["a"])
_TLS = ("--protocol", "tls", "--tls-ca-file", "{folder}/ca.pem", "--tls-cert")


def _roles(text: str) -> dict[str, str]:
    return {role: f"{role} {text}" for role in ("scheduler", "worker", "client")}


_CERTIFICATES = Certificates(ca="CA", certs=_roles("CERT"), keys=_roles("KEY"))


def test_the_arguments_of_a_scheduler() -> None:
    assert scheduler_arguments(_SPEC, "10.0.0.1", "0") == [
        *("--scheduler", "--host", "10.0.0.1", "--port", "0"),
        *("--scheduler-file", "{folder}/scheduler.json", "--no-show"),
        *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),
        *(*_TLS, "{folder}/scheduler.pem", "--tls-key", "{folder}/scheduler-key.pem"),
    ]
    spec = SshSpec(hosts=["a"], dashboard=True, insecure=True)
    assert scheduler_arguments(spec, "::1", "8786")[-5:] == [
        *("--dashboard", "--dashboard-address", "127.0.0.1:0", "--protocol", "tcp")
    ]


def test_the_arguments_of_a_worker() -> None:
    assert worker_arguments(_SPEC, "tls://10.0.0.1:8786", "10.0.0.2", "3") == [
        *("tls://10.0.0.1:8786", "--host", "10.0.0.2"),
        *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),
        *("--nworkers", "1", "--nthreads", "1", "--name", "3"),
        *("--memory-limit", "auto", "--death-timeout", "60"),
        *(*_TLS, "{folder}/worker.pem", "--tls-key", "{folder}/worker-key.pem"),
        *("--local-directory", "{folder}"),
    ]


@pytest.mark.parametrize(
    ("option", "value", "end"),
    [
        ("worker_ports", "9:10", ["--worker-port", "9:10", "--nanny-port", "9:10"]),
        ("local_directory", Path("/scratch"), ["--local-directory", "/scratch"]),
    ],
)
def test_options_of_a_worker(option: str, value: object, end: list[str]) -> None:
    spec = SshSpec(hosts=["a"], **{option: value})  # type: ignore[arg-type]
    assert worker_arguments(spec, "tls://a:1", "b", "0")[-len(end) :] == end


def test_the_configuration_decides_on_scratch_and_preloads() -> None:
    config = {"temporary-directory": "/fast", "distributed.nanny.preload": ["module"]}
    with dask.config.set(config):
        arguments = worker_arguments(_SPEC, "tls://a:1", "b", "0")
    assert arguments[-2:] == ["--preload-nanny", "module"]
    assert "--local-directory" not in arguments


@pytest.mark.parametrize("serves", [True, False])
def test_a_host_gets_the_keys_of_what_runs_there(serves: bool) -> None:
    said = hello(_SPEC, _CERTIFICATES, serves=serves)
    names = {"nanny.py", "ca.pem", "worker.pem", "worker-key.pem"}
    assert set(said["files"]) == names | (
        {"scheduler.pem", "scheduler-key.pem"} if serves else set()
    )
    assert "client KEY" not in json.dumps(said)
    assert "KEY" not in json.dumps(said["environment"])


def test_without_tls_there_are_no_keys() -> None:
    said = hello(SshSpec(hosts=["a"], insecure=True), None, serves=True)
    assert set(said["files"]) == {"nanny.py"}


def test_what_is_left_out_is_left_to_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connect_keywords(_SPEC) == {}
    trusting = SshSpec(hosts=["a"], check_host_keys=False)
    assert connect_keywords(trusting) == {"known_hosts": None}
    monkeypatch.setenv("HOME", "/dev")
    spec = SshSpec(
        hosts=["a"],
        username="me",
        ssh_port=2222,
        key_file="~/null",
        known_hosts="~/null",
    )
    assert connect_keywords(spec) == {
        "username": "me",
        "port": 2222,
        "client_keys": ["/dev/null"],
        "known_hosts": "/dev/null",
    }
