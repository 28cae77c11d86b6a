"""Re-cuts: what is left of an epoch, dealt anew over another number of splits."""

from __future__ import annotations

import numpy as np
import pytest

from dask_loader.plan.epoch import Epoch, Groups, Order
from dask_loader.plan.schedule import walk
from dask_loader.plan.share import Deal
from dask_loader.plan.stage import Segment, Stage, cut_segments, next_stages, segments


def epoch_of(rows: list[int], stages: list[Stage], *, window: int) -> Epoch:
    num_rows = np.array(rows, dtype=np.int64)
    groups = Groups(num_rows=num_rows, num_bytes=num_rows * 8, num_kept=num_rows)
    order = Order(
        shuffle=False,
        seed=0,
        num_splits=stages[0].num_splits,
        window=window,
        window_in_bytes=False,
    )
    return Epoch(groups, order, 0, stages)


def rows_of(epoch: Epoch, *, world_size: int, batch_size: int, first: int) -> list[int]:
    """Return line rows (unshuffled, one row group) of all ranks, step by step."""
    deal = Deal(
        num_rows=epoch.num_rows,
        num_splits=epoch.stages[-1].num_splits,
        world_size=world_size,
        batch_size=batch_size,
        first=first,
        uneven="exact",
        stage_start=epoch.stages[-1].start,
    )
    found = []
    for rank in range(world_size):
        windows = {}
        for step in walk(epoch, deal, rank):
            for request in step.opened:
                (piece,) = request.window.slices
                windows[request.number] = piece.start
            for piece in step.pieces:
                start = windows[piece.request]
                found += range(start + piece.start, start + piece.stop)
    return found


def test_what_is_left_of_each_split_end_to_end_is_cut_anew() -> None:
    # 10 rows over 2 splits of 5; after 3 positions split 0 has 3 rows left, split 1 four.
    assert segments(10, [Stage(0, 2), Stage(3, 3)]) == [
        [Segment(0, 2, 5)],
        [Segment(1, 1, 3)],
        [Segment(1, 3, 5)],
    ]


def test_a_recut_of_a_recut_deals_what_the_first_left() -> None:
    stages = [Stage(0, 2), Stage(3, 3), Stage(5, 1)]
    # Positions 3 and 4 were the first rows of splits 0 and 1 of the second stage.
    assert segments(10, stages) == [
        [Segment(0, 3, 5), Segment(1, 2, 3), Segment(1, 3, 5)]
    ]


def test_a_recut_at_the_end_leaves_splits_without_rows() -> None:
    assert segments(4, [Stage(0, 2), Stage(4, 3)]) == [[], [], []]


def test_a_segment_lies_in_windows_and_in_parts_of_them() -> None:
    cut = cut_segments(
        [Segment(4, 3, 9), Segment(5, 0, 2)],
        {4: np.array([0, 4, 8, 12]), 5: np.array([0, 2])},
    )
    assert cut.bounds.tolist() == [0, 1, 5, 6, 8]
    assert cut.splits.tolist() == [4, 4, 4, 5]
    assert cut.indices.tolist() == [0, 1, 2, 0]
    assert cut.firsts.tolist() == [3, 0, 0, 0]


def test_no_segments_are_no_windows() -> None:
    assert cut_segments([], {}).bounds.tolist() == [0]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_splits", [1, 2, 3, 5])
@pytest.mark.parametrize("start", [0, 1, 7, 16, 23])
def test_the_rows_left_come_once_each_whatever_the_new_number_of_splits(
    start: int, num_splits: int, world_size: int
) -> None:
    before = epoch_of([23], [Stage(0, 4)], window=4)
    whole = Deal(num_rows=23, num_splits=4, world_size=1, batch_size=max(start, 1))
    done = set()
    for piece in next(walk(before, whole, 0)).pieces if start else ():
        base = [0, 6, 12, 18][piece.split]
        done |= {base + piece.split_row + i for i in range(piece.stop - piece.start)}
    assert len(done) == start
    after = epoch_of([23], [Stage(0, 4), Stage(start, num_splits)], window=4)
    left = rows_of(after, world_size=world_size, batch_size=2, first=start)
    assert sorted(left) == sorted(set(range(23)) - done)


def test_a_run_may_begin_later_than_its_last_stage() -> None:
    stages = [Stage(0, 4), Stage(7, 3)]
    epoch = epoch_of([23], stages, window=4)
    at_once = rows_of(epoch, world_size=1, batch_size=16, first=7)
    first = sorted(rows_of(epoch, world_size=1, batch_size=16, first=13))
    assert len(at_once) == 16
    assert len(first) == 10
    assert set(first) < set(at_once)


def test_the_same_number_of_splits_is_no_new_stage() -> None:
    stages = [Stage(0, 4)]
    assert next_stages(stages, 9, 4) == stages


def test_a_stage_that_nothing_was_read_of_is_replaced() -> None:
    assert next_stages([Stage(0, 4)], 0, 5) == [Stage(0, 5)]
    stages = [Stage(0, 4), Stage(9, 5)]
    assert next_stages(stages, 9, 6) == [Stage(0, 4), Stage(9, 6)]
    assert next_stages(stages, 10, 6) == [*stages, Stage(10, 6)]
