"""How a worker's program is called: the command line and the environment, as text."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import replace

import dask
import pytest

from cluster.worker import WorkerOptions, command, environment

_OPTIONS = WorkerOptions(
    name=3,
    num_threads=2,
    memory_limit="1 GiB",
    local_directory=None,
    start_timeout_s=60.0,
)


def test_the_command_line_of_a_worker() -> None:
    assert command("tcp://127.0.0.1:1", _OPTIONS) == [
        *(sys.executable, "-P", "-W", "ignore:resource_:UserWarning"),
        *("-m", "cluster.nanny", str(os.getpid()), "tcp://127.0.0.1:1"),
        *("--host", "127.0.0.1"),
        *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),
        *("--nworkers", "1", "--nthreads", "2", "--name", "3"),
        *("--memory-limit", "1 GiB", "--death-timeout", "60"),
    ]


@pytest.mark.parametrize(
    ("change", "written"),
    [
        ({"memory_limit": None}, ("--memory-limit", "0")),
        ({"memory_limit": 2**30}, ("--memory-limit", "1073741824")),
        ({"local_directory": "/scratch"}, ("--local-directory", "/scratch")),
        ({"start_timeout_s": 90.5}, ("--death-timeout", "90.5")),
    ],
)
def test_options_on_the_command_line(
    change: dict[str, object], written: tuple[str, str]
) -> None:
    line = command("tcp://127.0.0.1:1", replace(_OPTIONS, **change))  # type: ignore[arg-type]
    assert written in itertools.pairwise(line)


def test_configured_nanny_preloads_are_passed_on() -> None:
    with dask.config.set({"distributed.nanny.preload": ["a", "b"]}):
        line = command("tcp://127.0.0.1:1", _OPTIONS)
    assert line[-4:] == ["--preload-nanny", "a", "--preload-nanny", "b"]


def test_the_environment_holds_path_and_configuration() -> None:
    config = {"a": {"b": 1, "pool": object()}, "c": [1, "two", None], "d": min}
    environ = {"HOME": "/home", "PYTHONPATH": "/old", "DASK_A__B": "2"}
    written = environment(environ, ["", "/lib", os, "relative"], config)
    sent = dask.config.deserialize(written.pop("DASK_INTERNAL_INHERIT_CONFIG"))
    assert sent == {"a": {"b": 1}, "c": [1, "two", None]}
    here = os.getcwd()
    assert written == {
        "HOME": "/home",
        "PYTHONPATH": f"{here}:/lib:{here}/relative",
        "DASK_LOGGING__DISTRIBUTED": "error",
    }
    assert environ["PYTHONPATH"] == "/old"
