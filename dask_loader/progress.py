"""A progress bar over an epoch's batches, by rich, an optional package."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from dask_loader.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")

# Drawing takes about a millisecond, and the thread that trains draws.
_MIN_DRAW_S = 0.2


def require_rich() -> None:
    """Look for rich.

    Raises:
        ConfigError: It is not installed.
    """
    if find_spec("rich") is None:
        raise ConfigError(
            "progress=True needs the package rich, which is not installed: "
            "pip install rich, or leave progress out"
        )


def show_progress(
    batches: Generator[Item, None, None],
    *,
    title: str,
    num_batches: int,
    stats: Callable[[], dict[str, float]],
    console: Console | None = None,
) -> Generator[Item, None, None]:
    """Hand on batches and draw how far they have come; closes them when it is closed.

    Args:
        batches: An epoch's, or the rest of one.
        title: What it is.
        num_batches: How many there are.
        stats: Returns the dataset's stats(); only their growth counts.
        console: Where to draw; stderr where left out. Nothing moves unless it is a
            terminal.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    console = console or Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeLeft(),
        console=console,
        auto_refresh=False,  # no thread
        # What the user prints goes above the bar only if it would be on that screen.
        redirect_stdout=sys.stdout.isatty(),
    )
    before, began = stats(), time.perf_counter()
    with closing(batches), bar:
        task = bar.add_task(title, total=num_batches, speed="")
        drawn = began
        for number, batch in enumerate(batches):
            now = time.perf_counter()
            if now - drawn >= _MIN_DRAW_S:
                drawn = now
                speed = describe_speed(before, stats(), now - began)
                bar.update(task, completed=number, speed=speed, refresh=True)
            yield batch
        speed = describe_speed(before, stats(), time.perf_counter() - began)
        bar.update(task, completed=num_batches, speed=speed, refresh=True)


def describe_speed(
    before: dict[str, float], now: dict[str, float], seconds: float
) -> str:
    """Say rows per second and the share of time that was spent waiting for data.

    Args:
        before: The dataset's stats() when the epoch began.
        now: And now.
        seconds: Time in between.
    """
    if seconds <= 0:
        return ""
    rows = now["rows"] - before["rows"]
    waited = (now["wait_s"] - before["wait_s"]) / seconds
    return f"{rows / seconds:,.0f} rows/s, waiting {min(waited, 1):.0%}"
