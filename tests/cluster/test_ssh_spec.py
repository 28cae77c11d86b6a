"""SshSpec, as a table of what it takes and what it refuses."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

import cluster
from cluster import SpecError, SshSpec


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hosts": ["a", "b", "a"]},
        {"hosts": ("node-1.example.org", "10.0.0.7", "fe80::1%eth0", "my_alias")},
        {"workers": 8},
        {"workers_per_host": 2, "scheduler_host": "c", "scheduler_port": 8786},
        {"worker_ports": "9000:9100", "ssh_port": 2222, "username": "me"},
        {"key_file": "/dev/null", "known_hosts": Path("/dev/null")},
        {"check_host_keys": False, "remote_python": "/opt/a b/bin/python"},
        {"environment": {"A": "1"}, "certificates": "/tmp", "lease_s": 5},
        {"insecure": True},
    ],
)
def test_what_is_taken(options: dict[str, object]) -> None:
    spec = SshSpec(**{"hosts": ["a"], **options})  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert isinstance(spec.hosts, tuple)


_PORT = "must be a port,"
_TEXT = "must be text, not empty"
_OTHER = "exclude each other; give one of them"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"hosts": []}, "hosts=() is empty; name at least one host"),
        ({"hosts": "ab"}, "hosts='ab' must be a list of host names"),
        (
            {"hosts": ["me@a"]},
            "host 'me@a' is not the name or address of one; user and",
        ),
        ({"hosts": ["a", ""]}, "host '' is not the name"),
        ({"hosts": ["a", None]}, "host None is not the name"),
        ({"hosts": ["-oProxyCommand=x"]}, "host '-oProxyCommand=x' is not the name"),
        ({"hosts": ["-o"]}, "host '-o' is not a name: it begins with a dash"),
        ({"hosts": [3]}, "host 3 is not the name"),
        ({"scheduler_host": "a b"}, "host 'a b' is not the name"),
        ({"workers": -1}, "workers=-1 must be a whole number"),
        ({"workers_per_host": -1}, "workers_per_host=-1 must be a whole number"),
        (
            {"workers_per_host": 2, "workers": 3},
            f"workers=3 and workers_per_host=2 {_OTHER}",
        ),
        ({"scheduler_port": -1}, f"scheduler_port=-1 {_PORT} 0 to 65535"),
        ({"scheduler_port": 65536}, f"scheduler_port=65536 {_PORT}"),
        ({"scheduler_port": "1"}, f"scheduler_port='1' {_PORT}"),
        ({"ssh_port": 0}, f"ssh_port=0 {_PORT} 1 to 65535"),
        ({"ssh_port": True}, f"ssh_port=True {_PORT}"),
        (
            {"worker_ports": "9000"},
            "worker_ports='9000' must be a range of ports, such",
        ),
        ({"worker_ports": "9:8"}, "worker_ports='9:8' must be a range"),
        ({"worker_ports": 9000}, "worker_ports=9000 must be a range"),
        ({"username": ""}, f"username='' {_TEXT}"),
        ({"remote_python": "a\nb"}, f"remote_python='a\\nb' {_TEXT}"),
        ({"key_file": "/no/such"}, "key_file='/no/such' does not exist"),
        ({"known_hosts": 3}, "known_hosts=3 must be a path"),
        ({"certificates": ""}, "certificates='' must be a path"),
        ({"check_host_keys": None}, "check_host_keys=None must be True or False"),
        ({"insecure": "yes"}, "insecure='yes' must be True or False"),
        (
            {"check_host_keys": False, "known_hosts": "/dev/null"},
            f"known_hosts='/dev/null' and check_host_keys=False {_OTHER}",
        ),
        (
            {"insecure": True, "certificates": "/tmp"},
            f"certificates='/tmp' and insecure=True {_OTHER}",
        ),
        ({"environment": {"A": 1}}, "environment={'A': 1} must be a dict of text"),
        ({"environment": ["A"]}, "environment=['A'] must be a dict of text"),
        ({"lease_s": "5"}, "lease_s='5' must be a number of seconds"),
        ({"lease_s": 4.5}, "lease_s=4.5 must be at least 5: a program that is busy"),
    ],
)
def test_what_is_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError, match=re.escape(text)):
        cluster.launch("ssh", **{"hosts": ["a"], **options})


def test_workers_are_counted_in_all_or_for_each_host() -> None:
    assert SshSpec(hosts=("a", "b"), workers=3).num_workers == 3
    assert SshSpec(hosts=("a", "b"), workers_per_host=3).num_workers == 6


def test_a_spec_of_another_kind_is_refused() -> None:
    spec = cluster.ClusterSpec()
    with pytest.raises(SpecError, match=r"spec=ClusterSpec\(.*\) must be a SshSpec; "):
        cluster.launch("ssh", spec)
    with pytest.raises(
        SpecError, match=r"unknown option for launch\('local'\) 'hosts'"
    ):
        cluster.launch("local", hosts=["a"])
