"""What runs on a Dask worker. Loads neither torch nor, by itself, distributed."""

from __future__ import annotations

import os
import threading
from contextlib import closing

import pyarrow as pa

from dask_loader.read.files import OpenFiles
from dask_loader.read.task import WindowTask
from dask_loader.read.window import read_table, read_window
from dask_loader.transfer.parcel import Parcel
from dask_loader.transfer.slabs import SlabPool

# Windows of 64 MiB: one being read, its scratch, and two on their way out.
_POOL_BYTES = 256 << 20


class _Resources:
    """One for each process: open files and a pool of blocks."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.files = OpenFiles()
        self.pool = SlabPool(_POOL_BYTES)


_lock = threading.Lock()
_resources: _Resources | None = None


def resources() -> _Resources:
    """Return this process's resources, made at the first call."""
    global _resources
    with _lock:
        if _resources is None or _resources.pid != os.getpid():
            _resources = _Resources()
        return _resources


def run_window(task: WindowTask) -> Parcel:
    """Read a window and pack it for the journey to the consumer."""
    own = resources()
    return Parcel(read_window(task, own.files, own.pool.lease))


def run_table(task: WindowTask, rows: tuple[tuple[int, int], ...]) -> pa.Table:
    """Read rows of a window as a table; what to_delayed() is made of.

    Any process may compute it, the user's own too, so no file stays open after it.
    """
    with closing(OpenFiles()) as files:
        return read_table(task, files, rows)
