"""A cluster whose workers stop or die in the middle of writing a window."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

_DEADLINE_S = 120.0
_POLL_S = 0.02
_HOST = "127.0.0.1"

NUM_ROWS = 40_000
ROW_GROUP_ROWS = 1000
WINDOW_ROWS = 1000
BATCH_ROWS = 500


def until(condition: Callable[[], object], what: str) -> None:
    """Poll a condition of other processes, with a deadline."""
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {_DEADLINE_S:g} s: {what}"
        time.sleep(_POLL_S)


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object], str], None]:
    return until


@pytest.fixture(scope="session")
def wide_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbers, a fixed-size list and texts; 40 windows of more than 100 kB."""
    rng = np.random.default_rng(7)
    columns: dict[str, Any] = {"id": np.arange(NUM_ROWS)}
    for number in range(12):
        columns[f"x{number}"] = rng.standard_normal(NUM_ROWS)
    columns["name"] = [f"row {i}" for i in range(NUM_ROWS)]
    vectors = pa.array(rng.random(NUM_ROWS * 4, dtype=np.float32))
    columns["vec"] = pa.FixedSizeListArray.from_arrays(vectors, 4)
    path = tmp_path_factory.mktemp("wide") / "wide.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=ROW_GROUP_ROWS)
    return path


@contextmanager
def _process(log: Path, *command: str, **environ: str) -> Iterator[Any]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=file,
            stderr=file,
            env={**os.environ, **environ},
        )
    try:
        yield process
    finally:
        process.kill()  # a stopped one too
        process.wait(_DEADLINE_S)


@dataclass
class Faulty:
    """A scheduler and workers without nannies; client is this process's own."""

    address: str
    client: distributed.Client
    folder: Path
    num_workers: int

    def arm(
        self, what: signal.Signals, *, after: int = 0, when_whole: bool = False
    ) -> None:
        """Make the worker that writes a piece of a window next do this to itself.

        Args:
            what: SIGSTOP or SIGKILL.
            after: Pieces that each worker writes before.
            when_whole: Not in the middle of a piece, but after a window that is whole.
        """
        arguments = (str(self.folder), int(what), after, when_whole)
        until(lambda: self._all_ran(_arm, *arguments), "all workers to be armed")
        (self.folder / "armed").touch()

    def _all_ran(self, function: Callable[..., None], *arguments: Any) -> bool:
        # A machine that is busy may lose a connection, which Dask then makes anew.
        found = self.client.run(function, *arguments, on_error="return")
        failed = [r for r in found.values() if isinstance(r, BaseException)]
        for error in failed:
            if not isinstance(error, OSError):
                raise error
        return len(found) == self.num_workers and not failed

    @property
    def victim(self) -> int | None:
        """The process that it happened to, once it has."""
        file = self.folder / "victim"
        return int(file.read_text()) if file.exists() else None

    @property
    def went_on(self) -> bool:
        """Whether a process that was stopped has done the rest of its window."""
        return (self.folder / "went on").exists()


def _arm(folder: str, what: int, after: int, when_whole: bool) -> None:
    # Runs on a worker: what it breaks it breaks there.
    from dask_loader.engine import worker
    from dask_loader.read import window

    own = Path(folder) / f"pid {os.getpid()}"
    if own.exists():
        return  # asked a second time
    real, real_write = window.copy_fixed, worker._write
    victim, armed = Path(folder) / "victim", Path(folder) / "armed"
    own.write_text(str(os.getpid()))
    left = after

    def fall() -> None:
        with contextlib.suppress(FileExistsError):
            os.link(own, victim)  # one worker only
            # To this thread: it does nothing more before it is stopped.
            signal.pthread_kill(threading.get_ident(), what)

    def copy_and_fall(array: Any, out: Any, fill: Any, **options: Any) -> int:
        nonlocal left
        left -= 1
        if left < 0 and len(array) > 1 and armed.exists() and not victim.exists():
            half = len(array) // 2
            real(array.slice(0, half), out[:half], fill, **options)
            fall()
        return real(array, out, fill, **options)

    def write(*arguments: Any) -> Any:
        result = real_write(*arguments)
        if victim.exists() and victim.read_text() == str(os.getpid()):
            (Path(folder) / "went on").touch()
        return result

    def sweep(resources: Any) -> None:  # what a task does last
        if armed.exists() and not victim.exists():
            fall()
            (Path(folder) / "went on").touch()
        real_sweep(resources)

    if when_whole:
        real_sweep, worker._Resources.sweep_later = (
            worker._Resources.sweep_later,
            sweep,
        )
    else:
        window.copy_fixed, worker._write = copy_and_fall, write


class Parts:
    """Programs of a cluster, each of which may be killed and started again."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._number = 0
        self.address = ""

    def start_scheduler(self, *, port: str = "0", ttl: str = "5 minutes") -> Any:
        file = self.folder / f"scheduler-{self._count()}.json"
        process = self._stack.enter_context(
            _process(
                file.with_suffix(".log"),
                "distributed.cli.dask_scheduler",
                *("--host", _HOST, "--port", port, "--no-show", "--no-dashboard"),
                *("--scheduler-file", str(file)),
                DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=ttl,
            )
        )
        until(lambda: _address_in(file), "a scheduler file")
        self.address = _address_in(file)
        return process

    def start_worker(self, *options: str) -> Any:
        options = options if "--nanny" in options else ("--no-nanny", *options)
        return self._stack.enter_context(
            _process(
                self.folder / f"worker-{self._count()}.log",
                "distributed.cli.dask_worker",
                *(self.address, "--nthreads", "1"),
                *("--no-dashboard", "--host", _HOST),
                *("--local-directory", str(self.folder), *options),
            )
        )

    def client(self, num_workers: int) -> distributed.Client:
        client = self._stack.enter_context(
            distributed.Client(self.address, set_as_default=False)
        )
        client.wait_for_workers(num_workers, timeout=_DEADLINE_S)
        return client

    def _count(self) -> int:
        self._number += 1
        return self._number


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    """A scheduler and workers that are started, killed and ended one by one."""
    with ExitStack() as stack:
        yield Parts(tmp_path, stack)


@pytest.fixture
def start_faulty(parts: Parts) -> Callable[..., Faulty]:
    """start_faulty(num_workers=, ttl=) -> Faulty, ended after the test."""

    def start(*, num_workers: int = 2, ttl: str = "5 minutes") -> Faulty:
        parts.start_scheduler(ttl=ttl)
        for _ in range(num_workers):
            parts.start_worker()
        client = parts.client(num_workers)
        return Faulty(parts.address, client, parts.folder, num_workers)

    return start


def _address_in(file: Path) -> str:
    try:
        return str(json.loads(file.read_text())["address"])
    except (FileNotFoundError, json.JSONDecodeError):  # not there, or half written
        return ""


def same(got: dict[str, Any], want: dict[str, Any]) -> bool:
    """Whether two batches are equal, bit for bit."""
    if list(got) != list(want):
        return False
    for name, column in want.items():
        if isinstance(column, torch.Tensor):
            if got[name].dtype != column.dtype or not torch.equal(got[name], column):
                return False
        elif got[name] != column:
            return False
    return True


@pytest.fixture
def assert_same() -> Callable[[list[Any], list[Any]], None]:
    def check(got: list[Any], want: list[Any]) -> None:
        assert len(got) == len(want)
        wrong = [
            i for i, pair in enumerate(zip(got, want, strict=True)) if not same(*pair)
        ]
        assert not wrong, f"batches {wrong} differ"

    return check
