"""Open a window's remote files ahead of decoding, several at once.

A small remote file costs three round trips: its footer, its columns and a look whether it
still is the same. One after the other they would make a window of many files wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pyarrow.parquet as pq

from dask_loader.catalog.forms import Form
from dask_loader.read.files import OpenFiles, trim
from dask_loader.read.pieces import fetch_ahead, open_slice
from dask_loader.read.ranges import AHEAD_BYTES
from dask_loader.read.task import ReadOptions, SliceTask

# Files of one window that are opened or looked at at once.
_AT_ONCE = 8

_Opened = tuple[ExitStack, pq.ParquetFile]
_Lent = AbstractContextManager[pq.ParquetFile]


def open_slices(
    files: OpenFiles,
    options: ReadOptions,
    slices: Sequence[SliceTask],
    forms: Sequence[Form],
) -> Iterator[tuple[SliceTask, _Lent]]:
    """Yield slices, in order, each with what opens its file for the time of a block.

    Of remote files the next are opened meanwhile and their columns fetched, as long as
    they are shorter than AHEAD_BYTES together. Only the iterator's end tells that all
    files were the same after reading as before.

    Args:
        files: Lends the files.
        options: Same for all slices.
        slices: In order.
        forms: The columns that will be read.

    Raises:
        DataChangedError: A file is not the one that was planned.
        StorageError: The store denies access, or fails again and again.
    """
    if options.storage.is_local or len(slices) < 2:
        for piece in slices:
            yield piece, open_slice(files, options, piece)
        return
    todo = deque(slices)
    waiting = deque[tuple[SliceTask, Future[_Opened]]]()
    looks: list[Future[None]] = []
    num_bytes = 0  # of the files that wait, which what is fetched of them never exceeds
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="dask-loader-ahead") as pool:
        try:
            while todo or waiting:
                while todo and len(waiting) < _AT_ONCE:
                    piece = todo[0]
                    if waiting and num_bytes + piece.stamp.num_bytes > AHEAD_BYTES:
                        break
                    num_bytes += piece.stamp.num_bytes
                    future = pool.submit(_open, files, options, piece, forms)
                    waiting.append((todo.popleft(), future))
                piece, future = waiting.popleft()
                yield piece, _lend(pool, future, looks)
                num_bytes -= piece.stamp.num_bytes
            for look in looks:
                look.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for _, future in waiting:
                _discard(future)


def _open(
    files: OpenFiles, options: ReadOptions, piece: SliceTask, forms: Sequence[Form]
) -> _Opened:
    with ExitStack() as stack:
        file = stack.enter_context(open_slice(files, options, piece))
        fetch_ahead(file, piece, options, forms)
        return stack.pop_all(), file


@contextmanager
def _lend(
    pool: ThreadPoolExecutor, future: Future[_Opened], looks: list[Future[None]]
) -> Iterator[pq.ParquetFile]:
    stack, file = future.result()
    with stack:
        yield file
        trim(file)
        # The look is a round trip too.
        looks.append(pool.submit(stack.pop_all().close))


def _discard(future: Future[_Opened]) -> None:
    """Close a file that nobody will read; no look is needed."""
    if not future.cancelled() and future.exception() is None:
        unread = GeneratorExit()
        future.result()[0].__exit__(GeneratorExit, unread, None)
