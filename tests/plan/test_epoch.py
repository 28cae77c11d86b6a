"""An epoch's splits and windows, and the default number of splits."""

from __future__ import annotations

import numpy as np
import pytest

from dask_loader.plan.epoch import Epoch, Groups, Order, Window, default_num_splits
from dask_loader.plan.order import permutation
from dask_loader.plan.window import Slice

MIB = 2**20


def groups_of(
    rows: list[int], *, kept: list[int] | None = None, row_bytes: int = 8
) -> Groups:
    counts = np.array(rows, dtype=np.int64)
    return Groups(
        num_rows=counts,
        num_bytes=row_bytes * counts,
        num_kept=counts if kept is None else np.array(kept, dtype=np.int64),
    )


def order_of(
    *,
    shuffle: bool = False,
    num_splits: int = 2,
    window: int = 4,
    in_bytes: bool = False,
) -> Order:
    return Order(
        shuffle=shuffle,
        seed=7,
        num_splits=num_splits,
        window=window,
        window_in_bytes=in_bytes,
    )


def test_groups_count_rows_and_bytes_after_filtering() -> None:
    groups = groups_of([100, 0, 50], kept=[25, 0, 50], row_bytes=8)
    assert groups.total_kept == 75
    assert groups.kept_bytes == 25 * 8 + 50 * 8
    assert groups_of([]).total_kept == 0
    assert groups_of([]).kept_bytes == 0


def test_splits_are_consecutive_runs_of_the_line() -> None:
    epoch = Epoch(groups_of([3, 9, 4], kept=[3, 2, 4]), order_of(), 0)
    assert epoch.num_rows == 9
    assert epoch.split(0).windows == ((Slice(0, 0, 3),), (Slice(1, 0, 2),))
    assert epoch.split(0).bounds.tolist() == [0, 3, 5]
    assert epoch.split(1).windows == ((Slice(2, 0, 4),),)
    assert epoch.split(1).bounds.tolist() == [0, 4]


def test_a_split_is_cut_once() -> None:
    epoch = Epoch(groups_of([3, 9, 4]), order_of(), 0)
    assert epoch.split(1) is epoch.split(1)


def test_windows_of_bytes_are_cut_by_bytes() -> None:
    groups = groups_of([2, 2, 2], row_bytes=10)
    epoch = Epoch(groups, order_of(num_splits=1, window=40, in_bytes=True), 0)
    assert epoch.split(0).bounds.tolist() == [0, 4, 6]


def test_windows_in_order_have_no_key() -> None:
    epoch = Epoch(groups_of([3, 9, 4], kept=[3, 2, 4]), order_of(), 3)
    assert epoch.window(0, 1) == Window((Slice(1, 0, 2),), 2, None, 0, 1)


def test_a_shuffled_window_has_a_key_of_seed_epoch_split_and_place() -> None:
    # permutation(3, "line", 7, 2) decides the order of the row groups.
    epoch = Epoch(groups_of([4, 4, 4]), order_of(shuffle=True, num_splits=3), 2)
    line = permutation(3, "line", 7, 2).tolist()
    for split, group in enumerate(line):
        window = epoch.window(split, 0)
        key = ("window", 7, 2, split, 0)
        assert window == Window((Slice(group, 0, 4),), 4, key, split, 0)
    epoch = Epoch(groups_of([4, 4, 4]), order_of(shuffle=True, num_splits=1), 2)
    assert epoch.window(0, 2).key == ("window", 7, 2, 0, 2)


def test_an_epoch_without_rows_has_empty_splits() -> None:
    for rows in ([], [0, 0]):
        for shuffle in (False, True):
            epoch = Epoch(groups_of(rows), order_of(shuffle=shuffle), 0)
            assert epoch.num_rows == 0
            assert epoch.split(1).windows == ()
            assert epoch.split(1).bounds.tolist() == [0]


def test_splits_without_rows_are_empty() -> None:
    epoch = Epoch(groups_of([1, 1]), order_of(num_splits=5), 0)
    assert [len(epoch.split(i).windows) for i in range(5)] == [1, 1, 0, 0, 0]


def default(
    rows: list[int],
    *,
    shuffle: bool = True,
    world_size: int = 1,
    window_bytes: int = 64 * MIB,
    memory_limit: int = 1024 * MIB,
) -> int:
    return default_num_splits(
        groups_of(rows),
        shuffle=shuffle,
        world_size=world_size,
        window_bytes=window_bytes,
        memory_limit=memory_limit,
    )


@pytest.mark.parametrize("world_size", [1, 2, 7])
def test_unshuffled_each_rank_has_one_split(world_size: int) -> None:
    assert default([10] * 64, shuffle=False, world_size=world_size) == world_size


@pytest.mark.parametrize(
    ("rows", "world_size", "num_splits"),
    [
        ([100] * 64, 1, 8),  # borders between row groups: nothing is decoded twice
        ([100] * 64, 2, 16),
        ([100] * 8, 1, 8),
        ([100] * 9, 1, 2),  # 8: 16/9 of the rows, 4: 12/9, 2: 10/9
        ([100] * 9, 2, 2),  # 16 to 4 splits are dear, and 2 is the least
        ([100] * 7, 1, 1),  # 2: 8/7 is above 1.125
        ([7, 2, 7], 1, 2),  # 2: 18/16 is 1.125, just not too much
        ([6, 3, 6], 1, 1),  # 2: 18/15
        ([10_000_000] + [1000] * 99, 1, 1),  # one large row group in each split
        ([5], 4, 4),
        ([], 3, 24),  # no rows, no cost
    ],
)
def test_shuffled_there_are_as_many_splits_as_cost_an_eighth_more(
    rows: list[int], world_size: int, num_splits: int
) -> None:
    assert default(rows, world_size=world_size) == num_splits


@pytest.mark.parametrize(
    ("memory_limit", "num_splits"),
    [
        (1024 * MIB, 8),  # room for two windows of each of 8 splits
        (1024 * MIB - 1, 4),
        (512 * MIB, 4),
        (512 * MIB - 1, 2),
        (256 * MIB, 2),
        (256 * MIB - 1, 1),
        (1, 1),
    ],
)
def test_two_windows_of_each_split_fit_in_memory(
    memory_limit: int, num_splits: int
) -> None:
    assert default([100] * 64, memory_limit=memory_limit) == num_splits
    assert (
        default([100] * 64, memory_limit=memory_limit, world_size=4) == 4 * num_splits
    )


def test_filtered_rows_are_what_counts() -> None:
    # Nine equal row groups, one of which the filter empties: borders fall between eight.
    groups = groups_of([100] * 9, kept=[100] * 4 + [0] + [100] * 4)
    assert (
        default_num_splits(
            groups, shuffle=True, world_size=1, window_bytes=1, memory_limit=MIB
        )
        == 8
    )
