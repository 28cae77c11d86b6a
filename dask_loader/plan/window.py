"""Cut the row line into splits, and a split into windows. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dask_loader.plan.order import Ints

# A byte window reads at most this many times its size before filtering, so that a filter
# which keeps few rows cannot make one task read the whole table.
READ_FACTOR = 16


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


@dataclass(frozen=True, slots=True)
class Split:
    """One split's windows, in order.

    Attributes:
        windows: The slices of each window.
        bounds: First split row of each window and, last, the split's length; int64,
            shape (windows + 1,).
    """

    windows: tuple[tuple[Slice, ...], ...]
    bounds: Ints


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
) -> list[Slice]:
    """Return the slices of rows [start, stop) of the row line.

    Args:
        line: Row groups in the epoch's order, from row_line.
        line_ends: Row of the line at which each of them ends, int64, same shape.
        num_kept: Rows left after the filters, one for each row group of the catalog.
        start: First row of the line.
        stop: One past the last row.
    """
    if start >= stop:
        return []
    first = int(np.searchsorted(line_ends, start, side="right"))
    last = int(np.searchsorted(line_ends, stop, side="left"))
    groups, ends = line[first : last + 1], line_ends[first : last + 1]
    begins = ends - num_kept[groups]
    low = np.maximum(start - begins, 0)
    high = np.minimum(stop, ends) - begins
    return [
        Slice(g, a, b)
        for g, a, b in zip(groups.tolist(), low.tolist(), high.tolist(), strict=True)
    ]


def cut_windows(
    slices: Sequence[Slice],
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
    windows: list[tuple[Slice, ...]] = []
    bounds = [0]
    run: list[Slice] = []
    run_size = run_read = run_rows = 0

    def close_run() -> None:
        nonlocal run, run_size, run_read, run_rows
        if run:
            windows.append(tuple(run))
            bounds.append(bounds[-1] + run_rows)
            run, run_size, run_read, run_rows = [], 0, 0, 0

    for piece in slices:
        rows = piece.num_rows
        read = int(group_bytes[piece.group])
        size = rows * read // int(group_rows[piece.group]) if in_bytes else rows
        too_much_read = in_bytes and run_read + read > READ_FACTOR * window
        if run_size + size > window or too_much_read:
            close_run()
        if size > window:
            parts = min(rows, -(-size // window))
            cuts = [piece.start + rows * i // parts for i in range(parts + 1)]
            for start, stop in itertools.pairwise(cuts):
                windows.append((Slice(piece.group, start, stop),))
                bounds.append(bounds[-1] + stop - start)
        else:
            run.append(piece)
            run_size, run_read, run_rows = (
                run_size + size,
                run_read + read,
                run_rows + rows,
            )
    close_run()
    return Split(tuple(windows), np.array(bounds, dtype=np.int64))


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
