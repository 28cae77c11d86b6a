"""Rows that take the place of those of a window that cannot be read.

Only where the user asked for it. They are rows of another window, as often as it takes, so
that each batch keeps its size and each rank its number of steps, without a word between
the ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from dask_loader.engine.base import Engine, describe_slices, new_serial
from dask_loader.errors import DaskLoaderError, DataError, WindowError
from dask_loader.read.task import SliceTask, WindowTask
from dask_loader.transfer.window import WindowData

log = logging.getLogger(__name__)

# What another try does not mend. A scheduler that is gone, or workers that do not come,
# are no fault of a window's.
SKIPPABLE = (DataError, WindowError)
# Where the first windows cannot be read, so many later ones are tried.
_MAX_DONORS = 8


def stand_in(
    engine: Engine,
    task: WindowTask,
    error: DaskLoaderError,
    donors: Iterable[WindowTask],
    *,
    number: int,
) -> WindowData:
    """Read rows of another window in place of one that cannot be read.

    Args:
        engine: Reads.
        task: What cannot be read.
        error: Why; raised if nothing else can be read either.
        donors: Windows whose rows may be used, the best first.
        number: The window's.
    """
    serial = new_serial()
    try:
        for tries, donor in enumerate(donors):
            if tries == _MAX_DONORS or donor.num_rows == 0:
                break
            asked = replace(
                task,
                slices=_repeated(donor.slices, task.num_rows),
                chain=None,
                continues=False,
            )
            pending = engine.submit(asked, stream=serial, number=number + tries)
            try:
                window = pending.result()
            except SKIPPABLE as another:
                log.debug("nor can %s be read: %s", describe_slices(donor), another)
                continue
            what = describe_slices(task)
            log.warning(
                "skipped %d rows: %s; rows of %s come in their place",
                task.num_rows,
                str(error),  # whoever keeps the record must not keep windows
                describe_slices(donor),
            )
            window.stands_for = what
            return window
    finally:
        engine.end(serial)
    raise error


def _repeated(slices: tuple[SliceTask, ...], num_rows: int) -> tuple[SliceTask, ...]:
    """Return slices of so many rows, from the begin again as often as it takes."""
    found: list[SliceTask] = []
    while num_rows:
        for part in slices:
            stop = min(part.stop, part.start + num_rows)
            if stop > part.start:
                found.append(replace(part, stop=stop))
            num_rows -= stop - part.start
    return tuple(found)
