"""Which rows of each global batch a rank gets, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dask_loader.plan.share import Deal, Uneven

Range = tuple[int, int, int]  # split, first split row, one past the last


def deal(
    num_rows: int, num_splits: int, world_size: int, batch_size: int, **rest
) -> Deal:
    return Deal(
        num_rows=num_rows,
        num_splits=num_splits,
        world_size=world_size,
        batch_size=batch_size,
        **rest,
    )


def steps_of(dealt: Deal, rank: int) -> list[list[Range]]:
    """All steps of a rank, without what is empty."""
    pieces = dealt.pieces(rank, 0, dealt.num_steps(rank))
    return [
        [
            (split, start, stop)
            for split, start, stop in zip(
                pieces.splits.tolist(), starts, stops, strict=True
            )
            if start < stop
        ]
        for starts, stops in zip(
            pieces.starts.tolist(), pieces.stops.tolist(), strict=True
        )
    ]


def test_one_rank_takes_each_split_in_turn() -> None:
    # Positions 0-3 are rows 0, 0, 0, 1 of splits 0, 1, 2, 0; and so on.
    assert steps_of(deal(10, 3, 1, 4), 0) == [
        [(0, 0, 2), (1, 0, 1), (2, 0, 1)],
        [(0, 2, 3), (1, 1, 3), (2, 1, 2)],
        [(0, 3, 4), (2, 2, 3)],
    ]


def test_ranks_have_splits_of_their_own_where_they_divide_num_splits() -> None:
    # A step is 6 positions, 3 for each rank: rows 0, 1 of its first split, 0 of the next.
    dealt = deal(12, 4, 2, 3)
    assert steps_of(dealt, 0) == [[(0, 0, 2), (2, 0, 1)], [(0, 2, 3), (2, 1, 3)]]
    assert steps_of(dealt, 1) == [[(1, 0, 2), (3, 0, 1)], [(1, 2, 3), (3, 1, 3)]]
    assert [dealt.rank_splits(rank).tolist() for rank in (0, 1)] == [[0, 2], [1, 3]]


def test_ranks_that_do_not_divide_num_splits_cut_the_sorted_rows_in_chunks() -> None:
    # Six positions, sorted by split: 0, 2, 4 of split 0, then 1, 3, 5 of split 1.
    dealt = deal(6, 2, 3, 2)
    assert [steps_of(dealt, rank) for rank in range(3)] == [
        [[(0, 0, 2)]],
        [[(0, 2, 3), (1, 0, 1)]],
        [[(1, 1, 3)]],
    ]


def test_ranks_of_one_class_share_its_splits() -> None:
    # gcd(2, 4) = 2 classes of two ranks: even positions and odd ones.
    dealt = deal(8, 2, 4, 2)
    assert [steps_of(dealt, rank) for rank in range(4)] == [
        [[(0, 0, 2)]],
        [[(1, 0, 2)]],
        [[(0, 2, 4)]],
        [[(1, 2, 4)]],
    ]


def test_a_run_that_begins_later_takes_the_positions_from_there() -> None:
    # Positions 5-8 are rows 1, 2, 2, 2 of splits 2, 0, 1, 2; then 9.
    assert steps_of(deal(10, 3, 1, 4, first=5), 0) == [
        [(0, 2, 3), (1, 2, 3), (2, 1, 3)],
        [(0, 3, 4)],
    ]


def test_classes_are_counted_from_where_the_run_began() -> None:
    # From position 1 on, rank 0 has 1, 3, 5 and rank 1 has 2, 4.
    dealt = deal(6, 2, 2, 8, first=1, uneven="exact")
    assert steps_of(dealt, 0) == [[(1, 0, 3)]]
    assert steps_of(dealt, 1) == [[(0, 1, 3)]]
    assert [dealt.rank_splits(rank).tolist() for rank in (0, 1)] == [[1], [0]]


def test_pieces_of_some_steps_are_those_of_all_steps() -> None:
    dealt = deal(100, 6, 4, 3, first=7)
    whole = dealt.pieces(2, 0, 7)
    part = dealt.pieces(2, 3, 6)
    assert np.array_equal(part.starts, whole.starts[3:6])
    assert np.array_equal(part.stops, whole.stops[3:6])
    assert whole.starts.dtype == whole.splits.dtype == np.int64


# Seven rows, two splits, three ranks, batches of two: position 6 is left, row 3 of split 0.


def test_pad_gives_the_last_rows_to_those_who_lack_one() -> None:
    dealt = deal(7, 2, 3, 2, uneven="pad")
    assert [steps_of(dealt, rank)[1] for rank in range(3)] == [[(0, 3, 4)], [], []]
    assert [dealt.pad(rank) for rank in range(3)] == [None, (0, 3), (0, 3)]


def test_drop_leaves_off_the_last_positions() -> None:
    dealt = deal(7, 2, 3, 2, uneven="drop")
    assert [dealt.num_steps(rank) for rank in range(3)] == [1, 1, 1]
    assert [dealt.pad(rank) for rank in range(3)] == [None, None, None]
    # Of 11 rows 5 are left, and 2 of them dropped: positions 9 and 10, before sharing.
    dealt = deal(11, 2, 3, 2, uneven="drop")
    assert [steps_of(dealt, rank)[1] for rank in range(3)] == [
        [(0, 3, 4)],
        [(0, 4, 5)],
        [(1, 3, 4)],
    ]


def test_exact_gives_the_first_ranks_one_more() -> None:
    dealt = deal(7, 2, 3, 2, uneven="exact")
    assert [dealt.num_steps(rank) for rank in range(3)] == [2, 1, 1]
    assert steps_of(dealt, 0)[1] == [(0, 3, 4)]


def test_pads_are_rows_of_the_last_global_batch() -> None:
    # 17 rows, 4 ranks of 3: positions 12-16 are left, 5 rows; ranks 1, 2, 3 lack one.
    dealt = deal(17, 4, 4, 3)
    assert [dealt.pad(rank) for rank in range(4)] == [None, (1, 3), (2, 3), (3, 3)]
    # 14 rows: 2 are left (12 and 13), for rank 2 and 3 again.
    dealt = deal(14, 4, 4, 3)
    assert [dealt.pad(rank) for rank in range(4)] == [None, None, (0, 3), (1, 3)]


@pytest.mark.parametrize("uneven", ["drop", "exact"])
def test_only_pad_pads(uneven: Uneven) -> None:
    assert deal(17, 4, 4, 3, uneven=uneven).pad(3) is None


def test_drop_last_pads_nothing() -> None:
    dealt = deal(17, 4, 4, 3, drop_last=True)
    assert dealt.pad(3) is None
    assert dealt.num_steps(3) == 1


def test_nothing_is_padded_where_the_ranks_divide_what_is_left() -> None:
    assert [deal(20, 4, 4, 3).pad(rank) for rank in range(4)] == [None] * 4


# rows, splits, ranks, batch, first -> for pad, drop, exact: steps and rows of each rank
COUNTS = [
    ((24, 4, 2, 4, 0), ([3, 3], [12, 12]), ([3, 3], [12, 12]), ([3, 3], [12, 12])),
    ((25, 4, 2, 4, 0), ([4, 4], [13, 13]), ([3, 3], [12, 12]), ([4, 3], [13, 12])),
    ((27, 4, 2, 4, 0), ([4, 4], [14, 14]), ([4, 4], [13, 13]), ([4, 4], [14, 13])),
    ((0, 4, 2, 4, 0), ([0, 0], [0, 0]), ([0, 0], [0, 0]), ([0, 0], [0, 0])),
    ((1, 4, 2, 4, 0), ([1, 1], [1, 1]), ([0, 0], [0, 0]), ([1, 0], [1, 0])),
    (
        (2, 1, 4, 5, 0),  # fewer rows than ranks
        ([1, 1, 1, 1], [1, 1, 1, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([1, 1, 0, 0], [1, 1, 0, 0]),
    ),
    (
        (23, 3, 3, 2, 7),  # 16 rows from position 7 on: two steps of 6, and 4 rows
        ([3, 3, 3], [6, 6, 6]),
        ([3, 3, 3], [5, 5, 5]),
        ([3, 3, 3], [6, 5, 5]),
    ),
    ((9, 3, 2, 2, 9), ([0, 0], [0, 0]), ([0, 0], [0, 0]), ([0, 0], [0, 0])),
    ((9, 3, 2, 2, 12), ([0, 0], [0, 0]), ([0, 0], [0, 0]), ([0, 0], [0, 0])),
]


@pytest.mark.parametrize(("sizes", "pad", "drop", "exact"), COUNTS)
def test_steps_and_rows_are_known_in_advance(sizes, pad, drop, exact) -> None:
    num_rows, num_splits, world_size, batch_size, first = sizes
    for uneven, expected in (("pad", pad), ("drop", drop), ("exact", exact)):
        dealt = deal(
            num_rows, num_splits, world_size, batch_size, first=first, uneven=uneven
        )
        ranks = range(world_size)
        assert [dealt.num_steps(rank) for rank in ranks] == expected[0], uneven
        assert [dealt.num_rank_rows(rank) for rank in ranks] == expected[1], uneven


@pytest.mark.parametrize("uneven", ["pad", "drop", "exact"])
def test_drop_last_keeps_whole_global_batches(uneven: Uneven) -> None:
    dealt = deal(27, 4, 2, 4, uneven=uneven, drop_last=True)
    assert [dealt.num_steps(rank) for rank in range(2)] == [3, 3]
    assert [dealt.num_rank_rows(rank) for rank in range(2)] == [12, 12]


def test_a_global_batch_is_batch_size_rows_of_each_rank() -> None:
    dealt = deal(27, 6, 4, 5, first=2)
    assert dealt.step_rows == 20
    assert dealt.tail_rows == 5
    assert dealt.num_classes == 2


@pytest.mark.parametrize(
    ("num_splits", "world_size", "in_hand"),
    [
        (8, 1, 8),
        (8, 2, 4),
        (8, 8, 1),
        (1, 8, 1),  # one split, eight ranks: all read it
        (8, 3, 4),  # 2.67 splits each, so up to 4 with the borders
        (64, 6, 12),  # 32 splits of a class among 3 ranks: 10.67
        (2, 4, 1),
    ],
)
def test_splits_in_hand_are_a_ranks_share_and_a_border(
    num_splits: int, world_size: int, in_hand: int
) -> None:
    dealt = deal(10**6, num_splits, world_size, 1024)
    assert max(dealt.splits_in_hand(rank) for rank in range(world_size)) == in_hand


def test_positions_beyond_32_bits_are_dealt_right() -> None:
    num_rows = 10**13
    dealt = deal(num_rows, 64, 8, 4096, uneven="exact")
    last = dealt.num_steps(0) - 1
    pieces = dealt.pieces(0, last, last + 1)
    assert pieces.stops.max() == -(-num_rows // 64)
    assert sum(dealt.num_rank_rows(rank) for rank in range(8)) == num_rows
