"""A cluster that someone else runs, certificates for one, and what every test checks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import pytest
from distributed import Security

from tests.cluster.slurm import serve_slurm
from tests.cluster.sshd import Sshd, serve

_DEADLINE_S = 180.0
_POLL_S = 0.02
_HOST = "127.0.0.1"
_ROOT = Path(__file__).parents[2]

WaitUntil = Callable[[Callable[[], object], str], None]


@dataclass
class Foreign:
    """A scheduler and its workers, each a process of its own."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)


StartForeign = Callable[..., AbstractContextManager[Foreign]]


def _wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {_DEADLINE_S:g} s: {what}"
        time.sleep(_POLL_S)  # polling a condition, with a deadline


@pytest.fixture
def wait_until() -> WaitUntil:
    return _wait_until


@contextmanager
def _process(log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=file, stderr=file
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(_DEADLINE_S)


def _address_in(file: Path) -> str:
    try:
        return str(json.loads(file.read_text())["address"])
    except (FileNotFoundError, json.JSONDecodeError):  # not there, or half written
        return ""


@contextmanager
def _foreign(
    folder: Path, *, num_workers: int = 0, options: tuple[str, ...] = ()
) -> Iterator[Foreign]:
    file = folder / "scheduler.json"
    serve = (*options, "--host", _HOST, "--port", "0", "--dashboard-address")
    with ExitStack() as stack:
        scheduler = stack.enter_context(
            _process(
                folder / "scheduler.log",
                "distributed.cli.dask_scheduler",
                *(*serve, f"{_HOST}:0", "--scheduler-file", str(file), "--no-show"),
            )
        )
        _wait_until(lambda: _address_in(file), "a scheduler file")
        address = _address_in(file)
        workers = [
            stack.enter_context(
                _process(
                    folder / f"worker-{i}.log",
                    "distributed.cli.dask_worker",
                    *(address, "--no-nanny", "--nthreads", "1", "--no-dashboard"),
                    *("--host", _HOST, "--local-directory", str(folder), *options),
                )
            )
            for i in range(num_workers)
        ]
        yield Foreign(address, scheduler, workers)


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    """Two workers that serve all the tests; none may harm it."""
    with _foreign(tmp_path_factory.mktemp("foreign"), num_workers=2) as running:
        yield running


@pytest.fixture
def start_foreign(tmp_path: Path) -> StartForeign:
    """One of the test's own, to be harmed."""

    return partial(_foreign, tmp_path)


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A host to log in to: this one."""
    with serve(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    """A queue, which the programs of this process find."""
    with serve_slurm():
        yield


@pytest.fixture
def make_certificate(tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """Make a self-signed certificate: the paths of it and of its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")

    def make(name: str) -> tuple[str, str]:
        cert, key = str(tmp_path / f"{name}.pem"), str(tmp_path / f"{name}.key")
        request = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1")
        subprocess.run(
            ["openssl", *request, "-subj", f"/CN={name}", "-out", cert, "-keyout", key],
            check=True,
            capture_output=True,
        )
        return cert, key

    return make


@pytest.fixture
def make_security() -> Callable[[str, str], Security]:
    def make(cert: str, key: str) -> Security:
        return Security(
            tls_ca_file=cert,
            tls_client_cert=cert,
            tls_client_key=key,
            require_encryption=True,
        )

    return make


@dataclass
class Ran:
    """What a script did: its exit code, what it wrote, who survived it."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., Ran]:
    """Run a user's script in a process of its own, in an empty folder."""

    def run(text: str, *launcher: str, name: str = "script.py") -> Ran:
        script = tmp_path / name
        script.write_text(text)
        done = subprocess.run(
            [sys.executable, *launcher, str(script)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            timeout=_DEADLINE_S,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def children() -> Callable[[], set[int]]:
    """The processes below this one, without Python's own helpers."""

    def find() -> set[int]:
        found = set()
        for child in psutil.Process().children(recursive=True):
            try:
                if "resource_tracker" not in " ".join(child.cmdline()):
                    found.add(child.pid)
            except psutil.NoSuchProcess:
                continue
        return found

    return find


@pytest.fixture(autouse=True)
def _no_loop_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())  # a cluster that several files use may be up
    yield
    new = set(threading.enumerate()) - before
    names = [t.name for t in new if t.name.startswith("cluster-")]
    assert not names, f"left behind: {names}"
