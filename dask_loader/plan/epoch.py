"""One epoch's line, splits and windows, evaluated only where they are asked for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dask_loader.plan.order import Ints, row_line
from dask_loader.plan.stage import Cut, Segment, Stage, cut_segments, segments
from dask_loader.plan.window import (
    Slice,
    Split,
    cut_windows,
    planned_reads,
    split_bounds,
    split_slices,
)

# Splits per rank that a shuffled dataset tries, best mixing first.
_SPLITS_PER_RANK = (8, 4, 2, 1)
# Decoding a shuffled epoch may cost this many times its rows before fewer splits are
# taken. A row group on a split's border is decoded twice.
_MAX_READ_RATIO = 1.125


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """The catalog as numbers, one entry for each row group.

    Attributes:
        num_rows: Rows before filtering, int64, shape (row groups,).
        num_bytes: Decoded bytes before filtering, from the footers, int64, same shape.
        num_kept: Rows after filtering, int64, same shape.
    """

    num_rows: Ints
    num_bytes: Ints
    num_kept: Ints

    @property
    def total_kept(self) -> int:
        """Rows of an epoch."""
        return int(self.num_kept.sum())

    @property
    def kept_bytes(self) -> int:
        """Decoded bytes of an epoch's rows, about."""
        share = self.num_kept / np.maximum(self.num_rows, 1)
        return int((share * self.num_bytes).sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """All that decides the order of an epoch, besides the data and the epoch's number.

    Attributes:
        shuffle: Permute row groups, and rows within windows.
        seed: The user's seed.
        num_splits: Splits that positions are dealt over from the epoch's begin on.
        window: Size of a window, in rows or bytes.
        window_in_bytes: Which of the two.
    """

    shuffle: bool
    seed: int
    num_splits: int
    window: int
    window_in_bytes: bool


@dataclass(frozen=True, slots=True)
class Window:
    """What one task reads.

    Attributes:
        slices: In the order of the row line.
        num_rows: Their rows.
        key: Key of the permutation that mixes the rows, or None.
        split: The split of the first stage that it was cut from.
        index: Its place there.
    """

    slices: tuple[Slice, ...]
    num_rows: int
    key: tuple[object, ...] | None
    split: int
    index: int


class Epoch:
    """The splits of one epoch. Splits are cut when asked for, and kept."""

    def __init__(
        self,
        groups: Groups,
        order: Order,
        epoch: int,
        stages: Sequence[Stage] | None = None,
    ) -> None:
        """Lay out the row line.

        Args:
            groups: The catalog.
            order: What decides the order.
            epoch: From 0.
            stages: Where the user had the rest of the epoch cut anew; the first one is
                order's. None for no re-cut.
        """
        self.number = epoch
        self.order = order
        self._groups = groups
        self._line = row_line(
            groups.num_kept, shuffle=order.shuffle, seed=order.seed, epoch=epoch
        )
        self._line_ends = np.cumsum(groups.num_kept[self._line])
        self.num_rows = int(self._line_ends[-1]) if len(self._line_ends) else 0
        self._bounds = split_bounds(self.num_rows, order.num_splits)
        self._splits: dict[int, Split] = {}
        self.stages = tuple(stages or (Stage(0, order.num_splits),))
        self._parts: list[list[Segment]] | None = None
        self._cuts: dict[int, Cut] = {}
        if len(self.stages) > 1:
            self._parts = segments(self.num_rows, self.stages)

    def split(self, index: int) -> Split:
        """Return a split of the first stage, cut into windows."""
        found = self._splits.get(index)
        if found is None:
            slices = split_slices(
                self._line,
                self._line_ends,
                self._groups.num_kept,
                start=int(self._bounds[index]),
                stop=int(self._bounds[index + 1]),
            )
            found = self._splits[index] = cut_windows(
                slices,
                group_rows=self._groups.num_rows,
                group_bytes=self._groups.num_bytes,
                window=self.order.window,
                in_bytes=self.order.window_in_bytes,
            )
        return found

    def bounds(self, split: int) -> Ints:
        """Return where the windows of a split of the last stage begin, and its end.

        Returns:
            Split rows, int64, shape (windows + 1,).
        """
        if self._parts is None:
            return self.split(split).bounds
        return self._cut(split).bounds

    def first_row(self, split: int, index: int) -> int:
        """Return the row of a window that the last stage's split begins to use it with.

        Not 0 only where a re-cut fell into the window.
        """
        return 0 if self._parts is None else int(self._cut(split).firsts[index])

    def window(self, split: int, index: int) -> Window:
        """Return a window of a split of the last stage, with the key that mixes its rows.

        It is whole also where the split has a part of its rows.
        """
        if self._parts is not None:
            cut = self._cut(split)
            split, index = int(cut.splits[index]), int(cut.indices[index])
        source = self.split(split)
        key = ("window", self.order.seed, self.number, split, index)
        return Window(
            source.window(index),
            int(source.bounds[index + 1] - source.bounds[index]),
            key if self.order.shuffle else None,
            split,
            index,
        )

    def _cut(self, split: int) -> Cut:
        found = self._cuts.get(split)
        if found is None:
            assert self._parts is not None
            parts = self._parts[split]
            bounds_of = {part.split: self.split(part.split).bounds for part in parts}
            found = self._cuts[split] = cut_segments(parts, bounds_of)
        return found


def default_num_splits(
    groups: Groups,
    *,
    shuffle: bool,
    world_size: int,
    window_bytes: int,
    memory_limit: int,
) -> int:
    """Choose num_splits for a user who did not.

    In order: one split for each rank, so that one rank alone sees the files' order.
    Shuffled: as many splits for each rank, up to 8, as mix without much more decoding and
    leave room for two windows of each in memory_limit. The catalog's order is asked, not
    an epoch's, so that the answer is the same in every epoch.

    Args:
        groups: The catalog.
        shuffle: As in Order.
        world_size: Ranks.
        window_bytes: Decoded bytes of a window.
        memory_limit: Decoded bytes that one rank may hold.
    """
    if not shuffle:
        return world_size
    kept = groups.num_kept
    line_ends = np.cumsum(kept[row_line(kept, shuffle=False, seed=0, epoch=0)])
    for each in _SPLITS_PER_RANK:
        reads = planned_reads(line_ends, num_splits=each * world_size)
        cheap = reads <= _MAX_READ_RATIO * groups.total_kept
        if each == 1 or (cheap and 2 * each * window_bytes <= memory_limit):
            return each * world_size
    raise AssertionError("1 is the last of _SPLITS_PER_RANK")
