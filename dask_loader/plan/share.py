"""Divide each global batch among the ranks, and count steps. Pure.

With g = gcd(num_splits, world_size), rank r belongs to the class of positions p with
(p - first) mod g = r mod g, which are all rows of every g-th split. Those of one step,
sorted by (split, row), are cut into world_size / g even chunks, and r takes chunk r // g.
Where world_size divides num_splits a rank has splits of its own, and each row of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal, NamedTuple

import numpy as np

from dask_loader.plan.order import Ints

Uneven = Literal["pad", "drop", "exact"]


class Pieces(NamedTuple):
    """What a rank takes from its splits in consecutive steps.

    Attributes:
        splits: The splits of the rank's class, ascending, int64, shape (splits,).
        starts: First split row taken, int64, shape (steps, splits).
        stops: One past the last split row taken, same shape; equal to starts where the
            rank takes nothing.
    """

    splits: Ints
    starts: Ints
    stops: Ints


@dataclass(frozen=True, kw_only=True, slots=True)
class Deal:
    """How positions become steps and shares.

    Attributes:
        num_rows: Rows of the epoch after the filters.
        num_splits: Splits they are dealt over, of the last stage.
        world_size: Ranks.
        batch_size: Rows per rank and step.
        first: The position at which this run began; 0 unless resumed.
        uneven: What becomes of a last global batch that world_size does not divide.
        drop_last: Leave off the last global batch unless it is whole.
        stage_start: The position at which the last stage begins, not after `first`.
    """

    num_rows: int
    num_splits: int
    world_size: int
    batch_size: int
    first: int = 0
    uneven: Uneven = "pad"
    drop_last: bool = False
    stage_start: int = 0

    @property
    def step_rows(self) -> int:
        """Rows of a whole global batch."""
        return self.batch_size * self.world_size

    @property
    def num_classes(self) -> int:
        """Classes of positions that ranks are divided into (g above)."""
        return gcd(self.num_splits, self.world_size)

    @property
    def tail_rows(self) -> int:
        """Rows of the last global batch if it is not whole, else 0."""
        return max(self.num_rows - self.first, 0) % self.step_rows

    def num_steps(self, rank: int) -> int:
        """Batches that this rank gets, exactly."""
        whole = max(self.num_rows - self.first, 0) // self.step_rows
        if self.drop_last:
            return whole
        needed = {"pad": 1, "drop": self.world_size, "exact": rank + 1}[self.uneven]
        return whole + (self.tail_rows >= needed)

    def num_rank_rows(self, rank: int) -> int:
        """Rows that this rank gets over all its steps, pads included."""
        whole = max(self.num_rows - self.first, 0) // self.step_rows
        tail = 0 if self.drop_last else self.tail_rows
        each, over = divmod(tail, self.world_size)
        if self.uneven == "pad":
            each += over > 0
        elif self.uneven == "exact":
            each += rank < over
        return whole * self.batch_size + each

    def rank_splits(self, rank: int) -> Ints:
        """Return the splits whose rows this rank may get, ascending."""
        g = self.num_classes
        start = (rank + self.first - self.stage_start) % g
        return np.arange(start, self.num_splits, g, dtype=np.int64)

    def splits_in_hand(self, rank: int) -> int:
        """How many splits a rank reads side by side, at most.

        Where ranks share splits, the borders between them move from step to step, and
        come round after a period.
        """
        splits = len(self.rank_splits(rank))
        if self.world_size == self.num_classes:
            return splits
        touched = np.zeros(splits, dtype=np.bool_)
        whole = max(self.num_rows - self.first, 0) // self.step_rows
        period = self.num_splits // gcd(self.num_splits, self.step_rows)
        spans = [(i, i + 1) for i in range(min(whole, period))]
        for start, stop in [*spans, (whole, whole + (self.tail_rows > 0))]:
            pieces = self.pieces(rank, start, stop)
            touched |= (pieces.starts < pieces.stops).any(axis=0)
        return max(1, int(touched.sum()))

    def pieces(self, rank: int, start: int, stop: int) -> Pieces:
        """Return the rank's rows of steps [start, stop), pads not included.

        Args:
            rank: 0 <= rank < world_size.
            start: First step.
            stop: One past the last step; not beyond the epoch.
        """
        splits = self.rank_splits(rank)
        begin = self.first + np.arange(start, stop, dtype=np.int64) * self.step_rows
        end = np.minimum(begin + self.step_rows, self.num_rows)
        if self.uneven == "drop":
            end -= (end - begin) % self.world_size
        # low, high, length, before: (steps, splits)
        low, high = self._dealt(begin, splits), self._dealt(end, splits)
        length = high - low
        before = np.cumsum(length, axis=1) - length
        # The rank's chunk of the class's rows, counted over its splits: (steps, 1)
        chunks = self.world_size // self.num_classes
        chunk = rank // self.num_classes
        each, over = np.divmod(length.sum(axis=1, keepdims=True), chunks)
        chunk_start = chunk * each + np.minimum(chunk, over)
        chunk_stop = chunk_start + each + (chunk < over)
        starts = low + np.clip(chunk_start - before, 0, length)
        stops = low + np.clip(chunk_stop - before, 0, length)
        return Pieces(splits, starts, stops)

    def pad(self, rank: int) -> tuple[int, int] | None:
        """Return the (split, split row) that this rank gets a second time, or None.

        Fewer than world_size ranks have one, in the last step, so that all have a batch of
        the same size.
        """
        tail = self.tail_rows
        short = tail % self.world_size
        if self.uneven != "pad" or self.drop_last or short == 0 or rank < short:
            return None
        position = self.num_rows - tail + rank % tail - self.stage_start
        return position % self.num_splits, position // self.num_splits

    def _dealt(self, positions: Ints, splits: Ints) -> Ints:
        # How many of the stage's positions before these belong to each split.
        counts = positions[:, None] - self.stage_start
        counts = counts + (self.num_splits - 1) - splits[None, :]
        return counts // self.num_splits
