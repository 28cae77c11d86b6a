"""Cut the row line into splits, and a split into windows. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dask_loader.plan.order import Ints

# A byte window reads at most this many times its size before filtering, so that a filter
# which keeps few rows cannot make one task read the whole table.
READ_FACTOR = 16
# Larger than any dataset, in rows or bytes; twice this still is an int64.
_LARGEST = 1 << 61


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows [start, stop) of one row group, counted after the filters.

    Attributes:
        group: Index into the catalog's row groups.
        start: First kept row.
        stop: One past the last kept row.
    """

    group: int
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Rows in the slice."""
        return self.stop - self.start


class Slices(NamedTuple):
    """Consecutive slices as columns: int64, shape (slices,) each."""

    groups: Ints
    starts: Ints
    stops: Ints

    def take(self, first: int, last: int) -> tuple[Slice, ...]:
        """Return slices [first, last)."""
        columns = (column[first:last].tolist() for column in self)
        return tuple(Slice(*numbers) for numbers in zip(*columns, strict=True))


@dataclass(frozen=True, slots=True)
class Split:
    """One split's windows, in order; the slices of a window are made when asked for.

    A split may hold millions of row groups, of which a rank that resumes, or a DataLoader
    worker, looks at few.

    Attributes:
        slices: Of all windows.
        runs: First slice of each run of slices that is a window, or that is one slice cut
            into several; and, last, the number of slices. int64, shape (runs + 1,).
        first_windows: First window of each run and, last, the number of windows, int64,
            shape (runs + 1,).
        bounds: First split row of each window and, last, the split's length; int64,
            shape (windows + 1,).
    """

    slices: Slices
    runs: Ints
    first_windows: Ints
    bounds: Ints

    @property
    def num_windows(self) -> int:
        """Windows of the split."""
        return len(self.bounds) - 1

    @property
    def windows(self) -> tuple[tuple[Slice, ...], ...]:
        """The slices of all windows."""
        return tuple(self.window(index) for index in range(self.num_windows))

    def window(self, index: int) -> tuple[Slice, ...]:
        """Return the slices of a window.

        Args:
            index: 0 <= index < num_windows.
        """
        run = int(np.searchsorted(self.first_windows, index, side="right")) - 1
        first, last = int(self.runs[run]), int(self.runs[run + 1])
        if int(self.first_windows[run + 1] - self.first_windows[run]) == 1:
            return self.slices.take(first, last)
        (whole,) = self.slices.take(first, last)
        # The run's first window begins where its slice does.
        before = int(self.bounds[self.first_windows[run]])
        start, stop = self.bounds[index : index + 2].tolist()
        return (
            Slice(
                whole.group, whole.start + start - before, whole.start + stop - before
            ),
        )


def split_bounds(num_rows: int, num_splits: int) -> Ints:
    """Return where the splits begin on the row line, and its end.

    Dealing row by row gives split s the rows s, s + num_splits, ..., so lengths differ by
    one at most and the longer ones come first.

    Returns:
        int64, shape (num_splits + 1,).
    """
    splits = np.arange(num_splits, dtype=np.int64)
    lengths = (num_rows + num_splits - 1 - splits) // num_splits
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def split_slices(
    line: Ints, line_ends: Ints, num_kept: Ints, *, start: int, stop: int
) -> Slices:
    """Return the slices of rows [start, stop) of the row line.

    Args:
        line: Row groups in the epoch's order, from row_line.
        line_ends: Row of the line at which each of them ends, int64, same shape.
        num_kept: Rows left after the filters, one for each row group of the catalog.
        start: First row of the line.
        stop: One past the last row.
    """
    if start >= stop:
        nothing = np.zeros(0, dtype=np.int64)
        return Slices(nothing, nothing, nothing)
    first = int(np.searchsorted(line_ends, start, side="right"))
    last = int(np.searchsorted(line_ends, stop, side="left"))
    groups, ends = line[first : last + 1], line_ends[first : last + 1]
    begins = ends - num_kept[groups]
    low = np.maximum(start - begins, 0)
    high = np.minimum(stop, ends) - begins
    return Slices(groups, low, high)


def cut_windows(
    slices: Slices,
    *,
    group_rows: Ints,
    group_bytes: Ints,
    window: int,
    in_bytes: bool,
) -> Split:
    """Cut a split into windows of about `window` rows or decoded bytes.

    Whole slices are taken greedily while they fit. A slice that is larger than a window
    is cut into equal parts, each a window of its own.

    Args:
        slices: The split's slices in order.
        group_rows: Rows of each row group before filtering, int64.
        group_bytes: Decoded bytes of each row group before filtering, int64.
        window: The size, in rows or bytes.
        in_bytes: Which of the two.
    """
    window = min(window, _LARGEST)
    rows = slices.stops - slices.starts
    sizes = rows
    if in_bytes:
        reads = group_bytes[slices.groups]
        sizes = _share(reads, rows, group_rows[slices.groups])
    # after[i]: one past the last slice that fits into a window which begins with slice i.
    after = _reach(sizes, window)
    if in_bytes:
        after = np.minimum(after, _reach(reads, READ_FACTOR * window))
    runs = _follow(np.maximum(after, np.arange(1, len(rows) + 1)))
    # One slice larger than a window is a run; no other run is larger than a window.
    run_rows = np.add.reduceat(rows, runs[:-1]) if len(rows) else rows
    run_sizes = np.add.reduceat(sizes, runs[:-1]) if len(rows) else rows
    parts = np.clip(-(-run_sizes // window), 1, run_rows)
    first_windows = _sums(parts)
    # Part i of n takes the rows from i * rows // n on: (windows,)
    part = np.arange(first_windows[-1]) - np.repeat(first_windows[:-1], parts)
    whole, over = np.divmod(run_rows, parts)
    cuts = part * np.repeat(whole, parts)
    cuts += part * np.repeat(over, parts) // np.repeat(parts, parts)
    split_rows = _sums(run_rows)
    bounds = np.append(np.repeat(split_rows[:-1], parts) + cuts, split_rows[-1])
    return Split(slices, runs, first_windows, bounds)


def _share(amounts: Ints, parts: Ints, wholes: Ints) -> Ints:
    """Return amounts * parts // wholes, whose products may pass 64 bits."""
    each, over = np.divmod(amounts, wholes)
    if int(wholes.max(initial=1)) < 1 << 31:
        return each * parts + over * parts // wholes
    products = over.astype(object) * parts
    return each * parts + (products // wholes).astype(np.int64)


def _reach(sizes: Ints, limit: int) -> Ints:
    """Return, for each item, how far items from it on add up to at most `limit`."""
    sums = _sums(sizes)
    ends = sums[:-1] + min(limit, _LARGEST)
    reach = np.searchsorted(sums, ends, side="right") - 1
    return reach.astype(np.int64, copy=False)


def _follow(after: Ints) -> Ints:
    """Return 0, after[0], after[after[0]], ... up to len(after)."""
    steps, place, end = after.tolist(), 0, len(after)
    places = [0]
    while place < end:
        place = steps[place]
        places.append(place)
    return np.array(places, dtype=np.int64)


def _sums(numbers: Ints) -> Ints:
    """Return running sums that begin with 0, int64, shape (numbers + 1,)."""
    sums = np.zeros(len(numbers) + 1, dtype=np.int64)
    np.cumsum(numbers, out=sums[1:])
    return sums


def planned_reads(line_ends: Ints, *, num_splits: int) -> int:
    """Count the rows that an epoch decodes if each split decodes its row groups whole.

    A row group on a border between splits is decoded by each of them. (One that is larger
    than a window may cost more; that depends on the engine.)

    Args:
        line_ends: Row of the line at which each row group ends, int64.
        num_splits: How many splits.
    """
    if not len(line_ends):
        return 0
    bounds = split_bounds(int(line_ends[-1]), num_splits)
    rows = np.diff(line_ends, prepend=0)
    first = np.searchsorted(line_ends, bounds[:-1], side="right")
    last = np.searchsorted(line_ends, bounds[1:], side="left")
    running = np.concatenate(([0], np.cumsum(rows)))
    filled = bounds[1:] > bounds[:-1]
    return (
        int((running[last + 1] - running[first])[filled].sum()) if filled.any() else 0
    )
