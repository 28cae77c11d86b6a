"""The stages put together; the only file that knows all of them.

    catalog -> run (epoch, deal, schedule) -> engine (stream of windows) -> batch

A pipeline belongs to one process. It is made from values that any process has (the
catalog and the options), so a DataLoader worker makes its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import count, islice

from dask_loader.batch.rebatch import Rebatcher, Row
from dask_loader.batch.tensors import Batch, keep_arrow
from dask_loader.catalog.catalog import Catalog
from dask_loader.catalog.forms import Form
from dask_loader.catalog.provenance import public_path
from dask_loader.engine.ahead import Ahead
from dask_loader.engine.base import Engine
from dask_loader.engine.reach import sample_of
from dask_loader.engine.stream import WindowStream
from dask_loader.engine.threads import ThreadsEngine
from dask_loader.engine.where import Where
from dask_loader.metrics import Meter
from dask_loader.options import DatasetOptions
from dask_loader.plan.schedule import Request, Step, Turn, requests, walk
from dask_loader.prepare import window_task
from dask_loader.read.task import ReadOptions, WindowTask
from dask_loader.run import Run
from dask_loader.transfer.places import MemfdPlace
from dask_loader.transfer.shared import SharedPool
from dask_loader.transfer.slabs import Registry, SlabPool
from dask_loader.transfer.window import WindowData
from dask_loader.world import local_world_size

# Beyond this part of memory_limit in slabs that only the user still holds, batches are
# copies.
_MAX_KEPT_SHARE = 1 / 4


def make_engine(
    where: Where, options: DatasetOptions, *, sends_windows: bool = False
) -> Engine:
    """Make this process's engine.

    Args:
        where: Threads or a cluster.
        options: Have the limits.
        sends_windows: Whether another process is to see the windows.

    Raises:
        SchedulerUnreachableError: The cluster does not answer.
    """
    if where.address is None:
        limit = options.memory_bytes
        return ThreadsEngine(
            memory_limit=limit,
            window_timeout_s=options.window_timeout_s,
            local_world_size=local_world_size(),
            shared=SharedPool(MemfdPlace(), limit) if sends_windows else None,
        )
    # Imported here: threads need no distributed, and it takes half a second to load.
    from dask_loader.engine.dask import DaskEngine

    return DaskEngine(
        where,
        worker_timeout_s=options.worker_timeout_s,
        memory_limit=options.memory_bytes,
        window_timeout_s=options.window_timeout_s,
    )


def _forget_window(window: WindowData) -> None:
    del window


class Pipeline:
    """Reads one dataset in one process. close() is safe twice."""

    def __init__(
        self,
        catalog: Catalog,
        options: DatasetOptions,
        read_options: ReadOptions,
        engine: Engine,
        meter: Meter,
        ahead: Ahead | None = None,
        skipped: Callable[[WindowData], None] = _forget_window,
    ) -> None:
        """Read nothing yet.

        Args:
            catalog: What there is.
            options: Of the dataset.
            read_options: Of all windows.
            engine: Reads; closed with this.
            meter: Counts.
            ahead: Windows of this engine for the first iteration to begin with.
            skipped: Told of each window that stands for one that could not be read.
        """
        self._skipped = skipped
        self.engine = engine
        engine.will_read(sample_of(catalog))
        self._ahead = ahead
        self._catalog = catalog
        self._options = options
        self._read_options = read_options
        self._meter = meter
        self._names = tuple(dict.fromkeys(f.feature or f.name for f in self._forms))
        self._files: list[str] | None = None
        if options.provenance:
            self._files = [public_path(file.path) for file in catalog.files]
        self._loosen = keep_arrow if read_options.own_types else None
        # Joined batches: one in the user's hand, one being made, and some to spare.
        self._batch_pool = SlabPool(options.memory_bytes // 8)
        self._registered_pool: SlabPool | None = None

    @property
    def _forms(self) -> tuple[Form, ...]:
        return self._read_options.forms

    def close(self) -> None:
        """Stop the engine."""
        self.drop_ahead()
        self.engine.close()

    def drop_ahead(self) -> None:
        """Give up the windows that were begun for a first iteration."""
        if self._ahead is not None:
            self._ahead.drop()

    def batches(
        self, run: Run, turn: Turn, registry: Registry | None = None
    ) -> Generator[Batch, None, None]:
        """Yield a rank's batches in order, or those of one DataLoader worker.

        Closing the iterator gives up what is under way.

        Args:
            run: The plan.
            turn: Which steps.
            registry: Is told of the memory that batches are joined in. Such batches are
                not to reach the user.
        """
        with closing(self._stream(run, turn)) as stream:
            batcher = self._batcher(stream, self._pool_for(registry))
            yield from self._cut(run, batcher, turn)

    def rows(
        self, run: Run, turn: Turn, *, skip: int = 0
    ) -> Generator[Row, None, None]:
        """Yield a rank's rows one by one, in the order of their positions.

        Args:
            run: The plan.
            turn: Which steps.
            skip: Rows of the first of them that were handed out before.
        """
        with closing(self._stream(run, turn)) as stream:
            batcher = self._batcher(stream, self._batch_pool)
            for step in walk(run.epoch, run.deal, run.world.rank, turn):
                self._count(step)
                rows = batcher.rows(step, num_splits=run.deal.num_splits)
                yield from islice(rows, skip, None)
                skip = 0

    def windows(self, run: Run, turn: Turn) -> Iterator[WindowData]:
        """Yield every num_workers-th window of a rank, whole, for cut()."""
        with closing(self._stream(run, turn, whole_windows=True)) as stream:
            for number in count():
                if stream.exhausted:
                    return
                # What becomes of it is seen in the engine's held_bytes.
                window = stream.take()
                stream.release(number)
                yield window
                del window

    def cut(
        self,
        run: Run,
        take: Callable[[], WindowData],
        registry: Registry | None = None,
    ) -> Generator[Batch, None, None]:
        """Yield a rank's batches from windows that DataLoader workers read.

        Args:
            run: The same as the workers'.
            take: Returns the next window in the order of requests.
            registry: See batches().
        """
        self.drop_ahead()  # others read
        batcher = Rebatcher(
            self._names,
            take=take,
            release=_forget,
            must_copy=lambda: False,
            allocate=self._pool_for(registry).lease,
            files=self._files,
            loosen=self._loosen,
            arrived=self._note_arrived,
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
                tasks[request.number] = self._task(run, request)
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
            self._task(run, request)
            for request in requests(run.epoch, run.deal, run.world.rank, steps)
            if not whole_windows or request.number % turn.num_workers == turn.worker
        )
        return WindowStream(
            self.engine,
            tasks,
            num_sharing=run.world.world_size * turn.num_workers,
            max_bytes=max(1, self._options.memory_bytes // turn.num_workers),
            meter=self._meter,
            kept_bytes=self._kept_bytes,
            ahead=self._ahead,
            skip=self._options.on_error == "skip-window",
        )

    def _task(self, run: Run, request: Request) -> WindowTask:
        return window_task(self._catalog, self._read_options, run, request)

    def _kept_bytes(self, num_bytes: int) -> int:
        # Memory of windows that are no longer in hand is kept alive by batches that the
        # user keeps, or by the process that they were sent to.
        held = self.engine.held_bytes + self._batch_pool.leased_bytes
        if self._registered_pool is not None:
            held += self._registered_pool.leased_bytes
        return max(0, held - num_bytes)

    def _pool_for(self, registry: Registry | None) -> SlabPool:
        if registry is None:
            return self._batch_pool
        if self._registered_pool is None or self._registered_pool.registry != registry:
            size = self._batch_pool.max_bytes
            self._registered_pool = SlabPool(size, registry)
        return self._registered_pool

    def _batcher(self, stream: WindowStream, pool: SlabPool) -> Rebatcher:
        def must_copy() -> bool:
            # A column of each batch would keep all windows whole.
            kept = self._kept_bytes(stream.num_bytes)
            return kept > self._options.memory_bytes * _MAX_KEPT_SHARE

        return Rebatcher(
            self._names,
            take=stream.take,
            release=stream.release,
            must_copy=must_copy,
            allocate=pool.lease,
            files=self._files,
            loosen=self._loosen,
            arrived=self._note_arrived,
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

    def _note_arrived(self, window: WindowData) -> None:
        if window.unchecked_rows:
            self._meter.add("unchecked_rows", window.unchecked_rows)
        if window.stands_for:
            self._meter.add("skipped_windows", 1)
            self._meter.add("skipped_rows", window.num_rows)
            self._skipped(window)

    def _count(self, step: Step) -> None:
        rows = sum(piece.stop - piece.start for piece in step.pieces)
        self._meter.add("batches", 1)
        self._meter.add("rows", rows + (step.pad is not None))


def _forget(number: int) -> None:
    del number  # the memory of a received window is counted by nobody
