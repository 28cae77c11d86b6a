"""How well a plan mixes: how many row groups a batch is made of, in effect. Pure.

Rows of one row group are often alike: files are written by date, by user, by label. The
worst case, all rows of a row group alike, needs nothing but the plan: a batch with shares
q of its rows from each row group is then worth 1 / sum(q ** 2) row groups mixed evenly
(the inverse Simpson index). One row group gives 1, k even shares give k, and rows drawn
one by one from the whole dataset give the most that any order can.

Nothing is permuted for it. A piece of k rows of a shuffled window of n rows, m of them of
one row group, holds a hypergeometric number of these: k * m / n in the mean, with variance
k * (m / n) * (1 - m / n) * (n - k) / (n - 1). Windows are permuted apart from each other,
so means and variances of a batch's pieces add up, and the mean of a square is the square
of the mean plus the variance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_loader.plan.epoch import Epoch
from dask_loader.plan.order import Ints
from dask_loader.plan.share import Deal

Floats = NDArray[np.float64]

# Steps that are looked at, evenly over the run: windows end at different steps in
# different splits, so single steps differ.
_STEPS = 16
# And fewer where a step has pieces of very many windows: several steps of a plan of
# millions of row groups would take longer than the plan, and say the same.
_PIECES = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Row groups that batches are worth, if all rows of a row group are alike.

    Attributes:
        rank: A batch of one rank.
        all_ranks: A step's batches together.
        rank_at_best: A batch of one rank, if rows were drawn from the whole dataset.
        all_at_best: A step's batches together, if they were.
    """

    rank: float
    all_ranks: float
    rank_at_best: float
    all_at_best: float


def quality_of(epoch: Epoch, deal: Deal, rank: int, num_kept: Ints) -> Quality:
    """Tell how well a rank's batches are mixed in an epoch.

    Args:
        epoch: Splits and windows.
        deal: Shares.
        rank: 0 <= rank < deal.world_size.
        num_kept: Rows after the filters of each row group, int64, shape (row groups,).
    """
    together = replace(deal, world_size=1, batch_size=deal.step_rows)
    return Quality(
        rank=mixed_groups(epoch, deal, rank),
        all_ranks=mixed_groups(epoch, together, 0),
        rank_at_best=fully_mixed_groups(num_kept, deal.batch_size),
        all_at_best=fully_mixed_groups(num_kept, deal.step_rows),
    )


def mixed_groups(epoch: Epoch, deal: Deal, rank: int) -> float:
    """Return how many row groups a rank's batches are worth, the mean of some steps.

    Strictly it is 1 over the mean of sum(q ** 2), which is less than the mean of
    1 / sum(q ** 2) by a part in the number of rows.

    Args:
        epoch: Splits and windows.
        deal: Shares.
        rank: 0 <= rank < deal.world_size.

    Returns:
        At least 1; 0 for a rank without batches.
    """
    num_steps = deal.num_steps(rank)
    windows = _Windows(epoch)
    found = []
    for step in _sampled(num_steps, max(1, len(deal.rank_splits(rank)))):
        splits, starts, stops = deal.pieces(rank, step, step + 1)
        taken = windows.take(splits.tolist(), starts[0].tolist(), stops[0].tolist())
        if taken:  # nothing where all that the rank gets is a copy
            found.append(_worth([_part(*piece) for piece in taken]))
    return float(np.mean(found)) if found else 0.0


def fully_mixed_groups(num_kept: Ints, batch_rows: int) -> float:
    """Return how many row groups a batch of rows of the whole dataset is worth.

    Args:
        num_kept: Rows after the filters of each row group, int64, shape (row groups,).
        batch_rows: Rows of the batch.
    """
    total = int(num_kept.sum())
    if not total:
        return 0.0
    groups = np.flatnonzero(num_kept)
    content = _Content(groups, num_kept[groups])
    return _worth([_drawn(content, min(batch_rows, total))])


class _Content(NamedTuple):
    """The rows of a window by row group: int64, shape (slices,) each, in order."""

    groups: Ints
    rows: Ints


class _Window(NamedTuple):
    """A window, and the row of it that its split begins to use it with."""

    name: tuple[int, int]
    content: _Content
    mixed: bool
    first_row: int


class _Windows:
    """The windows of an epoch, each looked at once."""

    def __init__(self, epoch: Epoch) -> None:
        self._epoch = epoch
        self._known: dict[tuple[int, int], _Window] = {}

    def take(
        self, splits: list[int], starts: list[int], stops: list[int]
    ) -> list[tuple[_Window, list[tuple[int, int]]]]:
        """Return windows with the rows [start, stop) of each that lie in ranges of splits.

        After a re-cut, parts of one window may be in several splits.
        """
        taken: dict[tuple[int, int], tuple[_Window, list[tuple[int, int]]]] = {}
        for split, low, high in zip(splits, starts, stops, strict=True):
            if low >= high:
                continue
            bounds = self._epoch.bounds(split)
            first = int(np.searchsorted(bounds, low, side="right")) - 1
            last = int(np.searchsorted(bounds, high, side="left"))
            ends = bounds[first : last + 1].tolist()
            for index, (begin, end) in enumerate(pairwise(ends), first):
                window = self._look(split, index)
                shift = window.first_row - begin
                _, spans = taken.setdefault(window.name, (window, []))
                spans.append((max(low, begin) + shift, min(high, end) + shift))
        return list(taken.values())

    def _look(self, split: int, index: int) -> _Window:
        found = self._known.get((split, index))
        if found is None:
            window = self._epoch.window(split, index)
            content = _Content(
                np.array([piece.group for piece in window.slices], dtype=np.int64),
                np.array([piece.num_rows for piece in window.slices], dtype=np.int64),
            )
            found = self._known[split, index] = _Window(
                (window.split, window.index),
                content,
                window.key is not None,
                self._epoch.first_row(split, index),
            )
        return found


class _Part(NamedTuple):
    """What a piece is expected to hold of each row group; shape (slices,) each."""

    groups: Ints
    means: Floats
    variances: Floats


def _sampled(num_steps: int, splits: int) -> list[int]:
    """Return steps in the middle of equal parts of the run."""
    parts = min(num_steps, _STEPS, max(2, _PIECES // splits))
    return [(2 * part + 1) * num_steps // (2 * parts) for part in range(parts)]


def _part(window: _Window, spans: list[tuple[int, int]]) -> _Part:
    """Return what some rows of a window are expected to hold."""
    if window.mixed:
        return _drawn(window.content, sum(stop - start for start, stop in spans))
    parts = [_cut(window.content, start, stop) for start, stop in spans]
    return parts[0] if len(parts) == 1 else _joined(parts)


def _drawn(content: _Content, num_taken: int) -> _Part:
    """Return what num_taken rows of a permuted window are expected to hold."""
    num_rows = int(content.rows.sum())
    shares = content.rows / num_rows
    spread = num_taken * (num_rows - num_taken) / max(1, num_rows - 1)
    return _Part(content.groups, num_taken * shares, spread * shares * (1 - shares))


def _cut(content: _Content, start: int, stop: int) -> _Part:
    """Return what rows [start, stop) of a window in its own order hold."""
    ends = np.cumsum(content.rows)
    held = np.minimum(stop, ends) - np.maximum(start, ends - content.rows)
    means = np.maximum(held, 0).astype(np.float64)
    return _Part(content.groups, means, np.zeros_like(means))


def _joined(parts: list[_Part]) -> _Part:
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Part(*columns)


def _worth(parts: list[_Part]) -> float:
    """Return how many row groups the parts together are worth."""
    groups, means, variances = _joined(parts)
    # A row group on the border of two windows has a part in both.
    _, places = np.unique(groups, return_inverse=True)
    sums = np.bincount(places, weights=means)
    squares = float((sums**2).sum() + variances.sum())
    return float(sums.sum()) ** 2 / squares
