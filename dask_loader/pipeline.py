"""The stages put together; the only file that knows all of them.

    catalog -> run (epoch, deal, schedule) -> engine (stream of windows) -> batch

A pipeline belongs to one process. It is made from values that any process has (the
catalog and the options), so a DataLoader worker makes its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from dask_loader.batch.rebatch import Rebatcher, Row
from dask_loader.batch.tensors import Batch
from dask_loader.catalog.cache import open_cache
from dask_loader.catalog.catalog import Catalog, read_catalog
from dask_loader.catalog.discover import Found
from dask_loader.engine.base import Engine
from dask_loader.engine.stream import WindowStream
from dask_loader.engine.threads import ThreadsEngine
from dask_loader.engine.where import Where
from dask_loader.errors import NullError
from dask_loader.metrics import Meter
from dask_loader.options import DatasetOptions
from dask_loader.plan.epoch import Window
from dask_loader.plan.schedule import Step, Turn, requests, walk
from dask_loader.read.count import count_rows
from dask_loader.read.nulls import make_null_policy, null_error
from dask_loader.read.task import ReadOptions, SliceTask, WindowTask
from dask_loader.run import Run
from dask_loader.transfer.window import WindowData
from dask_loader.world import local_world_size

# Row groups are counted in tasks of about the decoding of one window.
_COUNT_BYTES = 64 << 20
# Beyond this part of memory_limit in slabs that only the user still holds, batches are
# copies.
_MAX_KEPT_SHARE = 1 / 4


def make_engine(where: Where, options: DatasetOptions) -> Engine:
    """Make this process's engine.

    Raises:
        SchedulerUnreachableError: The cluster does not answer.
    """
    if where.address is None:
        return ThreadsEngine(
            memory_limit=options.memory_bytes, local_world_size=local_world_size()
        )
    # Imported here: threads need no distributed, and it takes half a second to load.
    from dask_loader.engine.dask import DaskEngine

    return DaskEngine(where, worker_timeout_s=options.worker_timeout_s)


def load_catalog(
    found: Found,
    options: DatasetOptions,
    engine: Engine,
    *,
    columns: tuple[str, ...] | None,
    filters: Any,
    nulls: Any,
) -> tuple[Catalog, ReadOptions]:
    """Read the catalog, check the nulls, and count what the filters keep.

    Raises:
        DaskLoaderError: An argument or a file is wrong.
    """
    catalog = read_catalog(
        found.storage,
        found.paths,
        columns=columns,
        filters=filters,
        run=engine.map,
        listed=found.listed,
        cache=open_cache(options.footer_cache, os.environ),
    )
    read_options = ReadOptions(
        storage=catalog.storage,
        forms=catalog.forms,
        nulls=make_null_policy(nulls, catalog.forms, catalog.schema),
        expression=catalog.expression,
        filter_columns=catalog.filter_columns,
        verify_checksums=options.verify_checksums,
    )
    if catalog.expression is None:
        _check_nulls(catalog, read_options)
    else:
        catalog = _count_kept(catalog, read_options, engine)
    return catalog, read_options


class Pipeline:
    """Reads one dataset in one process. close() is safe twice."""

    def __init__(
        self,
        catalog: Catalog,
        options: DatasetOptions,
        read_options: ReadOptions,
        engine: Engine,
        meter: Meter,
    ) -> None:
        self.engine = engine
        self._catalog = catalog
        self._options = options
        self._read_options = read_options
        self._meter = meter

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()

    def batches(self, run: Run, turn: Turn) -> Generator[Batch, None, None]:
        """Yield a rank's batches in order, or those of one DataLoader worker.

        Closing the iterator gives up what is under way.
        """
        with closing(self._stream(run, turn)) as stream:
            batcher = self._batcher(stream)
            yield from self._cut(run, batcher, turn)

    def rows(self, run: Run, turn: Turn) -> Generator[Row, None, None]:
        """Yield a rank's rows one by one, in the order of their positions."""
        with closing(self._stream(run, turn)) as stream:
            batcher = self._batcher(stream)
            for step in walk(run.epoch, run.deal, run.world.rank, turn):
                self._count(step)
                yield from batcher.rows(step, num_splits=run.deal.num_splits)

    def windows(self, run: Run, turn: Turn) -> Iterator[WindowData]:
        """Yield every num_workers-th window of a rank, whole, for cut()."""
        with closing(self._stream(run, turn, whole_windows=True)) as stream:
            for number in count():
                if stream.exhausted:
                    return
                yield stream.take()
                stream.release(number)

    def cut(
        self, run: Run, take: Callable[[], WindowData]
    ) -> Generator[Batch, None, None]:
        """Yield a rank's batches from windows that DataLoader workers read.

        Args:
            run: The same as the workers'.
            take: Returns the next window in the order of requests.
        """
        batcher = Rebatcher(
            [form.name for form in self._catalog.forms],
            take=take,
            release=_forget,
            must_copy=lambda: False,
        )
        return self._cut(run, batcher, Turn())

    def partitions(
        self, run: Run
    ) -> list[tuple[WindowTask, tuple[tuple[int, int], ...]]]:
        """Return a rank's windows and the rows of each that it delivers, without pads."""
        tasks: dict[int, WindowTask] = {}
        rows: dict[int, list[tuple[int, int]]] = {}
        for step in walk(run.epoch, run.deal, run.world.rank):
            for request in step.opened:
                tasks[request.number] = self._task(request.window)
            for piece in step.pieces:
                spans = rows.setdefault(piece.request, [])
                if spans and spans[-1][1] == piece.start:
                    spans[-1] = (spans[-1][0], piece.stop)
                else:
                    spans.append((piece.start, piece.stop))
        return [(tasks[number], tuple(spans)) for number, spans in rows.items()]

    def _stream(
        self, run: Run, turn: Turn, *, whole_windows: bool = False
    ) -> WindowStream:
        steps = None if whole_windows else turn
        tasks = (
            self._task(request.window)
            for request in requests(run.epoch, run.deal, run.world.rank, steps)
            if not whole_windows or request.number % turn.num_workers == turn.worker
        )
        return WindowStream(
            self.engine,
            tasks,
            num_sharing=run.world.world_size * turn.num_workers,
            max_bytes=max(1, self._options.memory_bytes // turn.num_workers),
            meter=self._meter,
        )

    def _batcher(self, stream: WindowStream) -> Rebatcher:
        pool = self.engine.pool

        def must_copy() -> bool:
            # Slabs that are leased and no longer in hand are kept alive by batches that
            # the user keeps. A column of each batch would keep all windows whole.
            kept = 0 if pool is None else pool.leased_bytes - stream.num_bytes
            return kept > self._options.memory_bytes * _MAX_KEPT_SHARE

        return Rebatcher(
            [form.name for form in self._catalog.forms],
            take=stream.take,
            release=stream.release,
            must_copy=must_copy,
        )

    def _cut(
        self, run: Run, batcher: Rebatcher, turn: Turn
    ) -> Generator[Batch, None, None]:
        mark = time.perf_counter()
        for step in walk(run.epoch, run.deal, run.world.rank, turn):
            batch = batcher.batch(step)
            self._count(step)
            yield batch
            now = time.perf_counter()
            self._meter.add("total_s", now - mark)
            mark = now

    def _count(self, step: Step) -> None:
        rows = sum(piece.stop - piece.start for piece in step.pieces)
        self._meter.add("batches", 1)
        self._meter.add("rows", rows + (step.pad is not None))

    def _task(self, window: Window) -> WindowTask:
        catalog = self._catalog
        slices = tuple(
            _slice_task(catalog, piece.group, piece.start, piece.stop)
            for piece in window.slices
        )
        num_bytes = sum(
            piece.num_rows
            * int(catalog.num_bytes[piece.group])
            // int(catalog.num_rows[piece.group])
            for piece in window.slices
        )
        return WindowTask(
            options=self._read_options,
            slices=slices,
            num_rows=window.num_rows,
            key=window.key,
            num_bytes=num_bytes,
        )


def _forget(number: int) -> None:
    del number  # the memory of a received window is counted by nobody


def _slice_task(catalog: Catalog, group: int, start: int, stop: int) -> SliceTask:
    file = catalog.files[int(catalog.file_index[group])]
    return SliceTask(
        file.path,
        file.stamp,
        int(catalog.row_group[group]),
        int(catalog.num_rows[group]),
        start,
        stop,
        file.digest,
    )


def _check_nulls(catalog: Catalog, read_options: ReadOptions) -> None:
    """Refuse nulls that the footers tell of, before anything is decoded."""
    for form in catalog.forms:
        allowed, _ = read_options.nulls.fill_for(form)
        counts = catalog.null_counts.get(form.name)
        if allowed or counts is None or not (counts > 0).any():
            continue
        group = int(np.argmax(counts > 0))
        path, row_group = catalog.place(group)
        total = int(counts[counts > 0].sum())
        error: NullError = null_error(
            form,
            int(counts[group]),
            path=path,
            row_group=row_group,
            where=f" ({total} in the whole dataset)",
        )
        raise error


def _count_kept(catalog: Catalog, read_options: ReadOptions, engine: Engine) -> Catalog:
    chunks: list[list[int]] = []
    room = 0
    for group in np.flatnonzero(catalog.num_kept).tolist():
        if room <= 0:
            chunks.append([])
            room = _COUNT_BYTES
        chunks[-1].append(group)
        room -= int(catalog.num_bytes[group])
    items = [
        [_slice_task(catalog, g, 0, int(catalog.num_rows[g])) for g in chunk]
        for chunk in chunks
    ]
    counts = engine.map(partial(count_rows, read_options), items)
    kept = np.zeros_like(catalog.num_kept)
    for chunk, part in zip(chunks, counts, strict=True):
        kept[chunk] = part
    return catalog.with_kept(kept)
