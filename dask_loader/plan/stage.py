"""Re-cuts: from a position on, the rows left are dealt over another number of splits. Pure.

What is left of each split, end to end, is cut anew, as the row line was. Windows of the
first cut stay as they are, and so does the order of the rows in them: a split of a later
stage is a run of pieces of the first stage's splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dask_loader.plan.order import Ints
from dask_loader.plan.window import split_bounds


@dataclass(frozen=True, slots=True)
class Stage:
    """From position `start` of the epoch on, rows are dealt over `num_splits`.

    Attributes:
        start: The position, counted from the epoch's begin; 0 for the first stage.
        num_splits: The splits: position p is row (p - start) // num_splits of split
            (p - start) mod num_splits.
    """

    start: int
    num_splits: int


class Segment(NamedTuple):
    """Rows [start, stop) of a split of the first stage."""

    split: int
    start: int
    stop: int


class Cut(NamedTuple):
    """A split as windows of the first stage, or parts of them, in order.

    Attributes:
        bounds: First split row of each and, last, the split's length; int64, shape
            (windows + 1,).
        splits: The first stage's split that each lies in, int64, shape (windows,).
        indices: Its window there, same shape.
        firsts: The row of the window that the part begins with, same shape.
    """

    bounds: Ints
    splits: Ints
    indices: Ints
    firsts: Ints


def next_stages(stages: Sequence[Stage], rows: int, num_splits: int) -> list[Stage]:
    """Return the stages of a run that goes on at position `rows` over `num_splits`."""
    if stages[-1].num_splits == num_splits:
        return list(stages)
    return [*(s for s in stages if s.start < rows), Stage(rows, num_splits)]


def segments(num_rows: int, stages: Sequence[Stage]) -> list[list[Segment]]:
    """Return each split of the last stage as segments of the first stage's splits.

    Args:
        num_rows: Rows of the epoch.
        stages: The first begins at 0; each later one where the run before it stood.
    """
    first = stages[0]
    ends = split_bounds(num_rows, first.num_splits)
    lengths = np.diff(ends).tolist()
    splits = [[Segment(s, 0, length)] for s, length in enumerate(lengths)]
    for old, new in pairwise(stages):
        done = new.start - old.start
        line = [
            piece
            for s, rows in enumerate(splits)
            for piece in _drop(rows, (done + old.num_splits - 1 - s) // old.num_splits)
        ]
        splits = _deal(line, split_bounds(num_rows - new.start, new.num_splits))
    return splits


def cut_segments(parts: Sequence[Segment], bounds_of: dict[int, Ints]) -> Cut:
    """Return the windows that segments lie in.

    Args:
        parts: A split, from segments().
        bounds_of: For each first-stage split in them, where its windows begin, and its
            end: int64, shape (windows + 1,).
    """
    none = np.zeros(0, dtype=np.int64)
    lengths, splits, indices, firsts = [none], [none], [none], [none]
    for split, start, stop in parts:
        bounds = bounds_of[split]
        index = int(np.searchsorted(bounds, start, side="right")) - 1
        last = int(np.searchsorted(bounds, stop, side="left"))
        begins, ends = bounds[index:last], bounds[index + 1 : last + 1]
        cut_begins, cut_ends = np.maximum(begins, start), np.minimum(ends, stop)
        lengths.append(cut_ends - cut_begins)
        splits.append(np.full(last - index, split, dtype=np.int64))
        indices.append(np.arange(index, last, dtype=np.int64))
        firsts.append(cut_begins - begins)
    sums = np.cumsum(np.concatenate(lengths))
    return Cut(
        np.concatenate(([0], sums)).astype(np.int64),
        np.concatenate(splits),
        np.concatenate(indices),
        np.concatenate(firsts),
    )


def _drop(parts: Sequence[Segment], num_rows: int) -> list[Segment]:
    """Return segments without their first `num_rows` rows."""
    left: list[Segment] = []
    for split, start, stop in parts:
        taken = min(num_rows, stop - start)
        num_rows -= taken
        if start + taken < stop:
            left.append(Segment(split, start + taken, stop))
    return left


def _deal(line: Sequence[Segment], bounds: Ints) -> list[list[Segment]]:
    """Cut a line of segments where the deal says."""
    cut: list[list[Segment]] = []
    rest = list(reversed(line))
    for length in np.diff(bounds).tolist():
        parts: list[Segment] = []
        while length:
            split, start, stop = rest.pop()
            taken = min(length, stop - start)
            parts.append(Segment(split, start, start + taken))
            if start + taken < stop:
                rest.append(Segment(split, start + taken, stop))
            length -= taken
        cut.append(parts)
    return cut
