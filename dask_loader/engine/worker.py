"""What runs on a Dask worker. Loads neither torch nor, by itself, distributed."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa

from dask_loader.errors import DataChangedError, StorageError
from dask_loader.read.chains import Chains
from dask_loader.read.files import OpenFiles
from dask_loader.read.task import WindowTask
from dask_loader.read.window import Allocate, read_table, read_window
from dask_loader.transfer.parcel import Parcel
from dask_loader.transfer.shared import SlabName
from dask_loader.transfer.slabs import SlabPool
from dask_loader.transfer.texts import pack_texts
from dask_loader.transfer.window import Block, WindowData, kind_of, make_group
from dask_loader.transfer.writer import Mappings, Outcome, Writing

# Windows of 64 MiB that leave as parcels: one being read and two on their way out.
_POOL_BYTES = 192 << 20
_TEXT_ALIGNMENT = 64
# What nobody used for so long is let go. A chain's next window may wait for a slow
# training loop; its end is told by end_chains(), unless the consumer was killed.
_SWEEP_EVERY_S = 1.0
_IDLE_MAPPING_S = 5.0
_IDLE_POOL_S = 5.0
_IDLE_CHAIN_S = 1800.0


class _Resources:
    """One for each process: open files, where row groups are at, and blocks."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.files = OpenFiles()
        self.chains = Chains(self.files)
        self.pool = SlabPool(_POOL_BYTES)
        self.mappings = Mappings()
        self._lock = threading.Lock()
        self._sweeping = False

    def sweep_later(self) -> None:
        """See that what is idle is let go, also if no task comes any more."""
        with self._lock:
            if self._sweeping:
                return
            self._sweeping = True
        threading.Thread(
            target=self._sweep, name="dask-loader-sweep", daemon=True
        ).start()

    def _sweep(self) -> None:
        never = threading.Event()
        while True:
            never.wait(_SWEEP_EVERY_S)
            self.mappings.drop_idle(_IDLE_MAPPING_S)
            self.chains.drop_idle(_IDLE_CHAIN_S)
            self.pool.drop_idle(_IDLE_POOL_S)
            with self._lock:
                if not (self.mappings or self.chains or self.pool.owned_bytes):
                    self._sweeping = False
                    return


_lock = threading.Lock()
_resources: _Resources | None = None


def resources() -> _Resources:
    """Return this process's resources, made at the first call."""
    global _resources
    with _lock:
        if _resources is None or _resources.pid != os.getpid():
            _resources = _Resources()
        return _resources


def run_window(
    task: WindowTask,
    slab: SlabName | None,
    function: Callable[[pa.Table], Any] | None = None,
) -> Parcel | Outcome:
    """Read a window and hand it over.

    Args:
        task: What to read.
        slab: Where to write it, if this process shares memory with the consumer.
        function: What a transform calls that came without.

    Returns:
        What became of the slab, or the window itself where there is no slab, this
        process cannot open it, or the window's texts are too long for it.

    Raises:
        DaskLoaderError: See read_window; it names this worker if it is of the files.
    """
    own = resources()
    if function is not None and task.options.transform is not None:
        task.options.transform.function.bind(function)
    try:
        if slab is not None:
            with own.mappings.writing(slab) as writing:
                if writing.outcome is Outcome.READY:
                    return _write(task, slab, writing, own)
                if writing.outcome is not Outcome.ABSENT:
                    return writing.outcome
        return Parcel(_read(task, own, own.pool.lease))
    except (DataChangedError, StorageError) as error:
        # What others may see differently: see reach.py, which looks at few files.
        error.args = (f"{error}{_where_it_runs()}",)
        raise
    finally:
        own.sweep_later()


def probe(slab: SlabName) -> bool:
    """Return whether this process shares memory with the slab's owner."""
    own = resources()
    shares = own.mappings.can_open(slab)
    own.sweep_later()
    return shares


def end_chains(prefix: str) -> None:
    """Close the files of row groups that nobody goes on with."""
    resources().chains.end(prefix)


def run_table(task: WindowTask, rows: tuple[tuple[int, int], ...]) -> pa.Table:
    """Read rows of a window as a table; what to_delayed() is made of.

    Any process may compute it, the user's own too, so no file stays open after it.
    """
    with closing(OpenFiles()) as files:
        return read_table(task, files, rows)


def _where_it_runs() -> str:
    try:
        address = sys.modules["distributed"].get_worker().address
    except (KeyError, ValueError):  # in no Dask worker
        return ""
    return f" (seen by the Dask worker {address} on host {socket.gethostname()!r})"


def _write(
    task: WindowTask, slab: SlabName, writing: Writing, own: _Resources
) -> Parcel | Outcome:
    used = 0

    def allocate(num_bytes: int) -> Block:
        nonlocal used
        used = num_bytes
        return writing.block[:num_bytes]

    window = _read(task, own, allocate)
    if not window.texts:
        writing.finish(slab.generation, 0, window.unchecked_rows)
        return Outcome.DONE
    packed = pack_texts(window.texts)
    length = -(-packed.size // _TEXT_ALIGNMENT) * _TEXT_ALIGNMENT
    if length > len(writing.block) - used:
        # Out of the slab, which the owner may lend again as soon as it is told.
        for i, group in enumerate(window.groups):
            block = own.pool.lease(group.block.nbytes)
            np.copyto(block, group.block)
            window.groups[i] = make_group(kind_of(group), window.num_rows, block)
        return Parcel(window)
    start = len(writing.block) - length
    writing.block[start : start + packed.size] = memoryview(packed)
    writing.finish(slab.generation, length, window.unchecked_rows)
    return Outcome.DONE


def _read(task: WindowTask, own: _Resources, allocate: Allocate) -> WindowData:
    chain = own.chains.enter(task)
    try:
        return read_window(task, own.files, allocate, chain)
    finally:
        own.chains.leave(task)
