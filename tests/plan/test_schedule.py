"""Steps, the windows they use, and DataLoader workers' turns; worked out by hand."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from dask_loader.plan.epoch import Epoch, Groups, Order
from dask_loader.plan.schedule import Piece, Request, Step, Turn, requests, walk
from dask_loader.plan.share import Deal


def epoch_of(
    rows: list[int], *, num_splits: int, window: int, shuffle: bool = False
) -> Epoch:
    counts = np.array(rows, dtype=np.int64)
    return Epoch(
        Groups(num_rows=counts, num_bytes=8 * counts, num_kept=counts),
        Order(
            shuffle=shuffle,
            seed=0,
            num_splits=num_splits,
            window=window,
            window_in_bytes=False,
        ),
        epoch=0,
    )


def deal_of(epoch: Epoch, *, world_size: int, batch_size: int, **rest) -> Deal:
    return Deal(
        num_rows=epoch.num_rows,
        num_splits=epoch.order.num_splits,
        world_size=world_size,
        batch_size=batch_size,
        **rest,
    )


def request(epoch: Epoch, number: int, split: int, index: int) -> Request:
    return Request(number, split, epoch.window(split, index))


def test_one_split_is_cut_into_batches_across_windows() -> None:
    epoch = epoch_of([4, 4], num_splits=1, window=4)
    assert list(walk(epoch, deal_of(epoch, world_size=1, batch_size=3), 0)) == [
        Step(0, (Piece(0, 0, 3, 0, 0),), None, (request(epoch, 0, 0, 0),), ()),
        Step(
            1,
            (Piece(0, 3, 4, 0, 3), Piece(1, 0, 2, 0, 4)),
            None,
            (request(epoch, 1, 0, 1),),
            (0,),
        ),
        Step(2, (Piece(1, 2, 4, 0, 6),), None, (), (1,)),
    ]


def test_a_step_may_span_many_windows() -> None:
    epoch = epoch_of([2, 2, 2, 2], num_splits=1, window=2)
    first, second = walk(epoch, deal_of(epoch, world_size=1, batch_size=7), 0)
    assert [piece[:3] for piece in first.pieces] == [
        (0, 0, 2),
        (1, 0, 2),
        (2, 0, 2),
        (3, 0, 1),
    ]
    assert first.finished == (0, 1, 2)
    assert [piece[:3] for piece in second.pieces] == [(3, 1, 2)]
    assert second.finished == (3,)


def test_a_batch_has_a_piece_of_each_split() -> None:
    # Splits: rows 0-3 and 4-7 of the line; two ranks, a split each.
    epoch = epoch_of([4, 4], num_splits=2, window=4)
    dealt = deal_of(epoch, world_size=1, batch_size=4)
    first, second = walk(epoch, dealt, 0)
    assert first.pieces == (Piece(0, 0, 2, 0, 0), Piece(1, 0, 2, 1, 0))
    assert second.pieces == (Piece(0, 2, 4, 0, 2), Piece(1, 2, 4, 1, 2))
    assert (first.finished, second.finished) == ((), (0, 1))
    dealt = deal_of(epoch, world_size=2, batch_size=2)
    first, second = walk(epoch, dealt, 1)
    assert first.pieces == (Piece(0, 0, 2, 1, 0),)
    assert second.pieces == (Piece(0, 2, 4, 1, 2),)


def test_a_pad_of_an_open_window_reads_nothing_again() -> None:
    # Three rows, two ranks of one split each: rank 1 lacks one and gets its own again.
    epoch = epoch_of([3], num_splits=2, window=9)
    (step,) = walk(epoch, deal_of(epoch, world_size=2, batch_size=4), 1)
    assert step.pieces == (Piece(0, 0, 1, 1, 0),)
    assert step.pad == Piece(0, 0, 1, 1, 0)
    assert [r.number for r in step.opened] == [0]


def test_a_pad_alone_makes_a_batch_and_opens_its_window() -> None:
    # One row for two ranks: rank 1 reads rank 0's.
    epoch = epoch_of([1], num_splits=2, window=9)
    (step,) = walk(epoch, deal_of(epoch, world_size=2, batch_size=4), 1)
    assert step.pieces == ()
    assert step.pad == Piece(0, 0, 1, 0, 0)
    assert step.opened == (request(epoch, 0, 0, 0),)
    assert step.finished == (0,)


def test_only_the_last_step_has_a_pad() -> None:
    epoch = epoch_of([7], num_splits=2, window=9)
    steps = list(walk(epoch, deal_of(epoch, world_size=2, batch_size=2), 1))
    assert [step.pad is None for step in steps] == [True, False]


def test_a_resumed_walk_begins_within_a_window() -> None:
    epoch = epoch_of([4, 4], num_splits=1, window=4)
    dealt = deal_of(epoch, world_size=1, batch_size=3, first=5)
    (step,) = walk(epoch, dealt, 0)
    assert step == Step(
        0, (Piece(0, 1, 4, 0, 5),), None, (request(epoch, 0, 0, 1),), (0,)
    )


def test_no_rows_make_no_step() -> None:
    for rows in ([], [0, 0]):
        epoch = epoch_of(rows, num_splits=3, window=4)
        dealt = deal_of(epoch, world_size=2, batch_size=3)
        assert list(walk(epoch, dealt, 0)) == []
        assert list(requests(epoch, dealt, 1)) == []


def test_workers_take_steps_in_turn_and_pass_what_others_use() -> None:
    epoch = epoch_of([2, 2, 2, 2], num_splits=1, window=2)
    dealt = deal_of(epoch, world_size=1, batch_size=2)
    steps = list(walk(epoch, dealt, 0, Turn(worker=1, num_workers=2)))
    assert steps == [
        Step(1, (Piece(0, 0, 2, 0, 2),), None, (request(epoch, 0, 0, 1),), (0,)),
        Step(3, (Piece(1, 0, 2, 0, 6),), None, (request(epoch, 1, 0, 3),), (1,)),
    ]


def test_a_window_that_others_use_up_is_finished_at_a_workers_next_step() -> None:
    # Windows of 5 rows; the worker takes rows 0-1 and 6-7, another one 2-5.
    epoch = epoch_of([5, 5], num_splits=1, window=5)
    dealt = deal_of(epoch, world_size=1, batch_size=2)
    steps = list(walk(epoch, dealt, 0, Turn(worker=0, num_workers=3)))
    assert [(s.number, [p[:3] for p in s.pieces], s.finished) for s in steps] == [
        (0, [(0, 0, 2)], ()),
        (3, [(1, 1, 3)], (0, 1)),
    ]


def test_the_last_step_finishes_windows_with_rows_left_to_others() -> None:
    epoch = epoch_of([8], num_splits=1, window=8)
    dealt = deal_of(epoch, world_size=1, batch_size=2)
    steps = list(walk(epoch, dealt, 0, Turn(worker=0, num_workers=2)))
    assert [(step.number, step.finished) for step in steps] == [(0, ()), (2, (0,))]


def test_a_worker_without_a_step_asks_for_nothing() -> None:
    epoch = epoch_of([4], num_splits=1, window=4)
    dealt = deal_of(epoch, world_size=1, batch_size=4)
    turn = Turn(worker=1, num_workers=2)
    assert list(walk(epoch, dealt, 0, turn)) == []
    assert list(requests(epoch, dealt, 0, turn)) == []


def test_requests_are_what_the_walk_opens() -> None:
    epoch = epoch_of([3, 9, 1, 4, 4], num_splits=2, window=4, shuffle=True)
    dealt = deal_of(epoch, world_size=1, batch_size=3)
    opened = [r for step in walk(epoch, dealt, 0) for r in step.opened]
    assert list(requests(epoch, dealt, 0)) == opened
    assert [r.number for r in opened] == list(range(len(opened)))
    assert all(r.window == epoch.window(r.split, r.window.index) for r in opened)


def test_many_steps_go_on_as_the_first_ones_do() -> None:
    # Shares are computed for 1,024 steps at a time.
    epoch = epoch_of([1000] * 3, num_splits=1, window=1000)
    rows = [
        (step.number, step.pieces[0].split_row)
        for step in walk(epoch, deal_of(epoch, world_size=1, batch_size=1), 0)
    ]
    assert rows == [(row, row) for row in range(3000)]


def test_splits_are_cut_only_when_a_step_reaches_them() -> None:
    epoch = epoch_of([10] * 4, num_splits=4, window=10)
    asked: set[int] = set()
    cut = epoch.split

    def split(index: int):
        asked.add(index)
        return cut(index)

    epoch.split = split
    list(islice(walk(epoch, deal_of(epoch, world_size=2, batch_size=2), 1), 3))
    assert asked == {1, 3}


# (worker, workers, steps in a turn) -> its steps of 0-10
TURNS = [
    ((0, 1, 1), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ((0, 1, 4), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ((0, 2, 1), [0, 2, 4, 6, 8, 10]),
    ((1, 2, 1), [1, 3, 5, 7, 9]),
    ((0, 2, 3), [0, 1, 2, 6, 7, 8]),
    ((1, 2, 3), [3, 4, 5, 9, 10]),
    ((2, 3, 4), [8, 9, 10]),
    ((3, 4, 4), []),
]


@pytest.mark.parametrize(("turn", "steps"), TURNS)
def test_a_turn_is_length_steps_of_each_worker(
    turn: tuple[int, int, int], steps: list[int]
) -> None:
    worker, num_workers, length = turn
    found = Turn(worker=worker, num_workers=num_workers, length=length)
    assert np.flatnonzero(found.mine(np.arange(11))).tolist() == steps
    assert found.last(11) == (steps[-1] if steps else -1)


def test_a_workers_last_step_is_the_last_that_is_its_own() -> None:
    for num_workers in range(1, 5):
        for length in range(1, 5):
            for worker in range(num_workers):
                turn = Turn(worker=worker, num_workers=num_workers, length=length)
                for num_steps in range(30):
                    mine = np.flatnonzero(turn.mine(np.arange(num_steps)))
                    assert turn.last(num_steps) == (mine[-1] if len(mine) else -1)
