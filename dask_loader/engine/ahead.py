"""Windows that are begun before it is known that they will be wanted.

While most footers of a large dataset are still being read, the first files may already
say what its first windows are, if the rows come in the files' order. These are submitted
here, and the first stream takes them over if they are the very tasks it begins with,
compared as values. Else they are given up. So they can save time and change nothing: no
other rows, no other order. One that failed is asked for again when its turn comes: what
was wrong so early (no worker, say) may be mended by then, or is raised then.

They are few, they are counted in the engine's held_bytes, and they are given up where
nobody could take them over: at the first stream that wants others, when the dataset is
closed or pickled, and before the process forks.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain, islice
from typing import ClassVar

from dask_loader.engine.base import Engine, Pending, new_serial
from dask_loader.errors import DaskLoaderError
from dask_loader.read.task import WindowTask
from dask_loader.transfer.window import WindowData

Begun = list[tuple[WindowTask, Pending]]

_open: weakref.WeakSet[Ahead] = weakref.WeakSet()


class Ahead:
    """The first windows of one dataset, until a stream takes them over.

    Made and used by the thread that uses the engine; only drop() may be called by others.
    """

    MAX_WINDOWS: ClassVar[int] = 2

    def __init__(self, engine: Engine, *, max_bytes: int) -> None:
        """Begin nothing.

        Args:
            engine: Reads the windows.
            max_bytes: Of all windows, as the engine reckons their cost.
        """
        self.serial = new_serial()
        self._engine = engine
        self._max_bytes = max_bytes
        # At most one list. Taken out by pop(), which is atomic: a fork in another thread
        # and a stream cannot both have it, and no lock can be held while forking.
        self._box: deque[Begun] = deque()

    @property
    def is_empty(self) -> bool:
        """Whether no window is under way."""
        return not self._box

    def start(self, tasks: Sequence[WindowTask]) -> None:
        """Submit the first of these tasks, if there is somebody to run them now.

        Raises:
            EngineError: The cluster does not answer.
        """
        if not tasks or not self._engine.slots(wait=False):
            return
        begun: Begun = []
        room = self._max_bytes
        try:
            for number, task in enumerate(tasks[: self.MAX_WINDOWS]):
                room -= self._engine.cost(task)
                if room < 0:
                    break
                pending = self._engine.submit(task, stream=self.serial, number=number)
                begun.append((task, pending))
        except BaseException:
            self._give_up(begun)
            raise
        if begun:
            self._box.append(begun)
            _open.add(self)
            _watch_forks()

    def adopt(self, tasks: Iterator[WindowTask]) -> tuple[Begun, Iterator[WindowTask]]:
        """Hand over the windows if a stream begins with them; else give them up.

        Args:
            tasks: All tasks of the stream.

        Returns:
            The windows, whose stream is this one's serial, and the tasks that are left.
        """
        begun = self._take()
        first = list(islice(tasks, len(begun)))
        if first == [task for task, _ in begun]:
            handed = enumerate(begun)
            return [(t, _Early(self._engine, i, t, p)) for i, (t, p) in handed], tasks
        self._give_up(begun)
        return [], chain(first, tasks)

    def drop(self, *, wait: bool = False) -> None:
        """Give up all windows. Safe twice, and after they were handed over.

        Args:
            wait: Until no thread of this process decodes one any more.
        """
        self._give_up(self._take(), wait=wait)

    def _take(self) -> Begun:
        try:
            return self._box.pop()
        except IndexError:
            return []

    def _give_up(self, begun: Begun, *, wait: bool = False) -> None:
        for _, pending in reversed(begun):  # else a thread takes the next one up
            pending.cancel(wait=wait)
        if begun:
            self._engine.end(self.serial)


class _Early:
    """A window that was begun early, and once more if that came to nothing."""

    def __init__(
        self, engine: Engine, number: int, task: WindowTask, pending: Pending
    ) -> None:
        self._engine = engine
        self._number = number
        self._task = task
        self._pending = pending

    def result(self) -> WindowData:
        try:
            return self._pending.result()
        except DaskLoaderError:
            # A stream of its own: on a cluster, the first one's tasks may not be
            # forgotten yet, and an equal name would give the old answer.
            serial = new_serial()
            self._pending = self._engine.submit(
                self._task, stream=serial, number=self._number
            )
            try:
                return self._pending.result()
            finally:
                self._engine.end(serial)

    def cancel(self, *, wait: bool = False) -> None:
        self._pending.cancel(wait=wait)


@cache
def _watch_forks() -> None:
    # A forked process has no thread that could finish a window, and for ever locks that
    # one of its parent's held.
    os.register_at_fork(before=_drop_all)


def _drop_all() -> None:
    for ahead in list(_open):
        ahead.drop(wait=True)
