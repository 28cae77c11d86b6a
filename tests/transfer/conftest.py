"""Windows made by hand, and processes that write slabs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dask_loader.catalog.forms import Form
from dask_loader.transfer.places import FolderPlace, MemfdPlace, Place
from dask_loader.transfer.shared import SlabName
from dask_loader.transfer.window import WindowData, block_bytes, lay_out
from dask_loader.transfer.writer import Outcome

_PROGRAM = Path(__file__).with_name("writer_process.py")


@pytest.fixture
def make_window() -> Callable[..., WindowData]:
    """make_window({"x": array}, {"s": pa.array}) -> WindowData with memory of its own."""

    def make(
        arrays: dict[str, Any], texts: dict[str, pa.Array] | None = None
    ) -> WindowData:
        columns = {name: np.asarray(array) for name, array in arrays.items()}
        lengths = {len(c) for c in (*columns.values(), *(texts or {}).values())}
        (num_rows,) = lengths
        forms = [Form(n, str(c.dtype), c.shape[1:]) for n, c in columns.items()]
        block = np.full(block_bytes(forms, num_rows), 0xA5, dtype=np.uint8)
        window = WindowData(
            num_rows, lay_out(forms, num_rows, block), dict(texts or {})
        )
        for name, array in window.arrays.items():
            array[...] = columns[name]
        return window

    return make


@pytest.fixture(params=["memory", "files"])
def place(request, tmp_path: Path) -> Iterator[Place]:
    """Each kind of place."""
    made = MemfdPlace() if request.param == "memory" else FolderPlace(str(tmp_path))
    yield made
    made.close()


def _targets() -> list[str]:
    """What this process's descriptors are open on."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the listing's own
            continue
    return found


@pytest.fixture
def num_memfds() -> Callable[[], int]:
    """How many memfds of ours this process has open."""
    return lambda: sum("memfd:dask-loader" in target for target in _targets())


@pytest.fixture
def num_files(tmp_path: Path) -> Callable[[], int]:
    """How many files of ours this process has open, whether they have a name or not.

    Other descriptors are not counted: a cluster of other tests opens and closes some.
    """
    ours = (str(tmp_path), "/memfd:dask-loader")
    return lambda: sum(target.startswith(ours) for target in _targets())


class WriterProcess:
    """Another process that writes slabs, step by step; see writer_process.py."""

    def __init__(self, *launcher: str) -> None:
        self._process = subprocess.Popen(
            [*launcher, sys.executable, str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def tell(self, command: str, *arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, command: str, *arguments: Any) -> Any:
        self.tell(command, *arguments)
        return self.hear()

    def begin(self, name: SlabName) -> Outcome:
        """Open and lock a slab; it stays locked until leave()."""
        return Outcome(
            self.ask("begin", name.path, name.nonce, name.generation, name.num_bytes)
        )

    def write_all(self, name: SlabName, num_bytes: int, value: int) -> Outcome:
        outcome = self.begin(name)
        if outcome is Outcome.READY:
            self.ask("fill", 0, num_bytes, value)
            self.ask("finish", name.generation)
        self.ask("leave")
        return outcome

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def start_writer() -> Iterator[Callable[..., WriterProcess]]:
    """start_writer(*launcher) -> WriterProcess, ended after the test."""
    started: list[WriterProcess] = []

    def start(*launcher: str) -> WriterProcess:
        started.append(WriterProcess(*launcher))
        return started[-1]

    yield start
    for writer in started:
        writer.close()
