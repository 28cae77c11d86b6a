"""What an engine is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from dask_loader.engine.reach import Sample
from dask_loader.errors import hide_secrets
from dask_loader.read.task import WindowTask
from dask_loader.transfer.window import WindowData

Item = TypeVar("Item")
Result = TypeVar("Result")

# Tells the streams of this process apart in the names of their tasks.
_serials = itertools.count()


class Pending(Protocol):
    """A window that was asked for.

    Both methods are called by the thread that reads the stream. After either of them the
    engine holds nothing for this window any more.
    """

    def result(self) -> WindowData:
        """Wait for the window and take it; once.

        Raises:
            DaskLoaderError: The window cannot be read, with the file and the reason. Every
                wait inside has a deadline.
        """
        ...

    def cancel(self, *, wait: bool = False) -> None:
        """Give the window up. Safe after result(), and twice.

        Args:
            wait: Until no thread of this process decodes it any more.
        """
        ...


class Engine(Protocol):
    """Runs tasks somewhere.

    One thread of one process uses an engine. It is made in the process that uses it, and
    never crosses a fork or a pickle.
    """

    @property
    def name(self) -> str:
        """For people: what it is and where."""
        ...

    @property
    def held_bytes(self) -> int:
        """Bytes of this process that windows lie in, on their way, in hand or kept."""
        ...

    def cost(self, task: WindowTask) -> int:
        """Return the bytes of this process that a task takes until it has arrived."""
        ...

    def slots(self, *, wait: bool = True) -> int:
        """Return how many tasks run side by side, at least 1.

        Args:
            wait: For somebody to run them; without it 0 says that there is nobody now.

        Raises:
            EngineError: There is nobody to run them, and nobody came in time.
        """
        ...

    def will_read(self, sample: Sample) -> None:
        """Say which files stand for those of all tasks to come.

        Who runs tasks must see them as this process does; what is not so is raised by
        slots() and map().
        """
        ...

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        names: Sequence[str] | None = None,
    ) -> list[Result]:
        """Run a function over small items and return the results in order.

        Args:
            function: What to run.
            items: Given to it.
            names: Text for each item, another where the function's result is another.
                Where other processes ask the same cluster for items of the same function
                and names, these are run once for all that ask at the same time.

        Raises:
            DaskLoaderError: Whatever the function raised of ours, else WindowError.
        """
        ...

    def submit(self, task: WindowTask, *, stream: int, number: int) -> Pending:
        """Ask for window `number` of a stream. Lower numbers are more urgent."""
        ...

    def end(self, stream: int) -> None:
        """Say that a stream asks for no more windows: its open files may be closed."""
        ...

    def close(self) -> None:
        """Give up all windows and stop. Safe twice."""
        ...


def new_serial() -> int:
    """Return a number for a stream that no other in this process has."""
    return next(_serials)


def chain_name(token: str, stream: int, task: WindowTask) -> WindowTask:
    """Give a task's chain a name that no other stream has."""
    if task.chain is None:
        return task
    return replace(task, chain=f"{chain_prefix(token, stream)}{task.chain}")


def chain_prefix(token: str, stream: int) -> str:
    """Return how the names of a stream's chains begin."""
    return f"{token}/{stream}/"


def describe_slices(task: WindowTask) -> str:
    """Name the row groups of a task, for errors, logs and the state."""
    named = [f"row group {s.row_group} of {s.path!r}" for s in task.slices[:2]]
    more = len(task.slices) - len(named)
    return hide_secrets(" and ".join(named) + (f" and {more} more" if more else ""))
