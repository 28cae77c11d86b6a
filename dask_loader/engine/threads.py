"""The engine without a cluster: threads of this process, blocks from a pool of slabs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor

from dask_loader.engine.base import (
    Item,
    Result,
    chain_name,
    chain_prefix,
    describe_slices,
)
from dask_loader.engine.reach import Sample
from dask_loader.errors import ClosedError, DaskLoaderError, WindowError
from dask_loader.read.chains import Chain, Chains
from dask_loader.read.files import OpenFiles
from dask_loader.read.task import WindowTask
from dask_loader.read.window import read_window, scratch_bytes
from dask_loader.transfer.shared import SharedPool
from dask_loader.transfer.slabs import SlabPool
from dask_loader.transfer.window import Block, WindowData

# Decoding scales with cores, but the trainer's process needs some and each thread holds
# a window.
_MAX_THREADS = 16


class ThreadsEngine:
    """Decodes with Arrow in threads, which leave the GIL while they decode."""

    def __init__(
        self,
        *,
        memory_limit: int,
        local_world_size: int,
        window_timeout_s: float | None = None,
        shared: SharedPool | None = None,
    ) -> None:
        """Make the threads; they start with the first task.

        Args:
            memory_limit: Bytes of slabs that may be kept for use again.
            local_world_size: Ranks on this host, which share its cores.
            window_timeout_s: Longest wait for the window that is next; None for any.
            shared: Where windows lie that another process is to see; closed with this.
        """
        cores = len(os.sched_getaffinity(0)) // local_world_size
        self._num_threads = max(1, min(cores, _MAX_THREADS))
        self._pool = SlabPool(memory_limit)
        self._shared = shared
        self._window_timeout_s = window_timeout_s
        self._files = OpenFiles()
        self._chains = Chains(self._files)
        self._closed = False
        self._executor = ThreadPoolExecutor(
            self._num_threads, thread_name_prefix="dask-loader-read"
        )

    @property
    def name(self) -> str:
        """For people."""
        return f"{self._num_threads} threads in this process"

    @property
    def held_bytes(self) -> int:
        """Bytes of slabs that somebody looks at or writes."""
        shared = 0 if self._shared is None else self._shared.used_bytes
        return self._pool.leased_bytes + shared

    def cost(self, task: WindowTask) -> int:
        """Return the window's bytes and those that wait to be mixed."""
        return task.num_bytes + scratch_bytes(task)

    def slots(self, *, wait: bool = True) -> int:
        """Return the number of threads."""
        del wait
        return self._num_threads

    def will_read(self, sample: Sample) -> None:
        """Threads see what this process sees."""

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        names: Sequence[str] | None = None,
    ) -> list[Result]:
        """Run a function over items in the threads, which no other process asks."""
        del names
        try:
            return list(self._executor.map(function, items))
        except DaskLoaderError:
            raise
        except Exception as error:
            # Of a partial, whose repr() is long, the function that it calls.
            name = getattr(getattr(function, "func", function), "__name__", "map")
            raise WindowError(
                f"{name!r} failed: {type(error).__name__}: {error}"
            ) from error

    def submit(self, task: WindowTask, *, stream: int, number: int) -> _Pending:
        """Queue a window; threads take them in order."""
        del number
        if self._closed:
            raise ClosedError("the dataset was closed while it was being read")
        task = chain_name("", stream, task)
        chain = self._chains.enter(task)
        future = self._executor.submit(self._read, task, chain)
        return _Pending(task, future, self._chains, self._window_timeout_s)

    def end(self, stream: int) -> None:
        """Close the row groups that the stream was in the middle of."""
        self._chains.end(chain_prefix("", stream))

    def close(self) -> None:
        """Stop the threads, after the window each of them is at."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._chains.close()
        self._files.close()
        if self._shared is not None:
            self._shared.close()

    def _read(self, task: WindowTask, chain: Chain | None) -> WindowData:
        shared = self._shared
        try:
            if shared is None:
                return read_window(task, self._files, self._pool.lease, chain)
            home = None

            def allocate(num_bytes: int) -> Block:
                nonlocal home
                block, home = shared.lease_new(num_bytes)
                return block

            window = read_window(task, self._files, allocate, chain)
            window.home = home
            return window
        finally:
            self._chains.leave(task)


class _Pending:
    def __init__(
        self,
        task: WindowTask,
        future: Future[WindowData],
        chains: Chains,
        timeout_s: float | None,
    ) -> None:
        self._task = task
        self._timeout_s = timeout_s
        self._future = future
        self._chains = chains

    def result(self) -> WindowData:
        try:
            return self._future.result(timeout=self._timeout_s)
        except DaskLoaderError:
            raise
        except Exception as error:
            if not self._future.done():
                raise WindowError(
                    f"{describe_slices(self._task)} was not read within "
                    f"{self._timeout_s:g} s by a thread of this process; look at what it "
                    "waits for (py-spy dump), a file system or a transform, or allow more "
                    "with window_timeout="
                ) from None
            raise WindowError(
                f"reading {describe_slices(self._task)} failed: "
                f"{type(error).__name__}: {error}"
            ) from error

    def cancel(self, *, wait: bool = False) -> None:
        if self._future.cancel():  # else its thread leaves the chain
            self._chains.leave(self._task)
        elif wait:
            futures.wait([self._future])
