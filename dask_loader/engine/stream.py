"""Windows in order, with a bounded number of tasks ahead."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator

from dask_loader.engine.ahead import Ahead, Begun
from dask_loader.engine.base import Engine, Pending, new_serial
from dask_loader.engine.flow import Flow
from dask_loader.engine.skip import SKIPPABLE, stand_in
from dask_loader.metrics import Meter
from dask_loader.read.task import WindowTask
from dask_loader.transfer.window import WindowData

# Finished windows wait for the consumer while as many are being made; more than one queued
# task for each slot was measured to gain nothing.
_TASKS_PER_SLOT = 2
_MIN_TASKS = 3
# After a wait that a person would not call short, the slots are counted again: a question
# to the scheduler of a few milliseconds.
_STALL_S = 0.02
_ASK_EVERY_S = 1.0


def _nothing_kept(num_bytes: int) -> int:
    del num_bytes
    return 0


class WindowStream:
    """Hands over the windows of a sequence of tasks, in order.

    The consumer takes windows with take() and says release() when it has used one up; new
    tasks are submitted at both. Close it, also after an error: close() gives up what is
    under way. Used by one thread.
    """

    def __init__(
        self,
        engine: Engine,
        tasks: Iterator[WindowTask],
        *,
        num_sharing: int,
        max_bytes: int,
        meter: Meter,
        kept_bytes: Callable[[int], int] = _nothing_kept,
        ahead: Ahead | None = None,
        skip: bool = False,
    ) -> None:
        """Start reading.

        Args:
            engine: Runs the tasks.
            tasks: In order of need; drawn lazily.
            num_sharing: Consumers that share the engine's slots.
            max_bytes: Decoded bytes on the way, in hand, and kept.
            meter: Counts.
            kept_bytes: Told the bytes on the way and in hand, returns those of released
                windows that somebody still looks at.
            ahead: Windows that may be this stream's first ones.
            skip: Whether rows of another window take the place of one that cannot be read.
        """
        self._engine = engine
        self._meter = meter
        self._kept_bytes = kept_bytes
        self._num_sharing = num_sharing
        self._asked = time.perf_counter()
        self._skip = skip
        self._good: list[WindowTask] = []  # the last that could be read
        self._pending: deque[tuple[int, WindowTask, Pending]] = deque()
        # With no task at all, no Dask worker need exist.
        first = list(itertools.islice(tasks, 1))
        slots = engine.slots() if first else 1
        self._flow = Flow(max_bytes=max_bytes, max_tasks=self._max_tasks(slots))
        tasks = itertools.chain(first, tasks)
        begun: Begun = []
        if ahead is not None:
            begun, tasks = ahead.adopt(tasks)
        self._serial = ahead.serial if ahead is not None and begun else new_serial()
        for number, (task, pending) in enumerate(begun):
            self._count(number, task, pending)
        self._tasks = enumerate(tasks, len(begun))
        self._next = next(self._tasks, None)
        self._submit()

    @property
    def num_bytes(self) -> int:
        """Bytes of the windows on their way and in hand."""
        return self._flow.num_bytes

    @property
    def exhausted(self) -> bool:
        """Whether all windows were taken."""
        return not self._pending and self._next is None

    def take(self) -> WindowData:
        """Return the next window; waits for it. There must be one: see exhausted.

        Raises:
            DaskLoaderError: It cannot be read.
        """
        if not self._pending:
            self._submit_next()
        number, task, pending = self._pending.popleft()
        began = time.perf_counter()
        try:
            window = self._result(number, task, pending)
        finally:
            self._meter.add("wait_s", time.perf_counter() - began)
        self._follow_slots(began)
        self._flow.arrived(number, window.num_bytes)
        self._meter.add("windows", 1)
        self._meter.add("bytes", window.num_bytes)
        self._submit()
        return window

    def _result(self, number: int, task: WindowTask, pending: Pending) -> WindowData:
        if not self._skip:
            return pending.result()
        try:
            window = pending.result()
        except SKIPPABLE as error:
            donors = self._good or [later for _, later, _ in self._pending]
            return stand_in(self._engine, task, error, donors, number=number)
        self._good = [task]
        return window

    def release(self, number: int) -> None:
        """Say that window `number` (counted from 0) is used up."""
        self._flow.released(number)
        self._submit()

    def close(self) -> None:
        """Give up everything under way."""
        while self._pending:
            self._pending.popleft()[2].cancel()
        self._next = None
        self._engine.end(self._serial)

    def _max_tasks(self, slots: int) -> int:
        return max(_MIN_TASKS, _TASKS_PER_SLOT * -(-slots // self._num_sharing))

    def _follow_slots(self, began: float) -> None:
        """Ask for more where workers have come; only if windows are waited for."""
        now = time.perf_counter()
        if now - began < _STALL_S or now - self._asked < _ASK_EVERY_S:
            return
        self._asked = now
        slots = self._engine.slots(wait=False)
        if slots:
            self._flow.max_tasks = self._max_tasks(slots)

    def _submit(self) -> None:
        while self._next is not None:
            num_bytes = self._flow.num_bytes
            kept = self._kept_bytes(num_bytes)
            task = self._next[1]
            besides = self._engine.cost(task) - task.num_bytes
            if not self._flow.may_submit(
                task.num_bytes, besides_bytes=besides, kept_bytes=kept
            ):
                return
            self._submit_next()

    def _submit_next(self) -> None:
        assert self._next is not None
        number, task = self._next
        pending = self._engine.submit(task, stream=self._serial, number=number)
        self._count(number, task, pending)
        self._next = next(self._tasks, None)

    def _count(self, number: int, task: WindowTask, pending: Pending) -> None:
        besides = self._engine.cost(task) - task.num_bytes
        self._pending.append((number, task, pending))
        self._flow.submitted(number, task.num_bytes, besides_bytes=besides)
