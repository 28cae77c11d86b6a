"""Permutations that never change, and the row line."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dask_loader.plan.order import permutation, row_line


def test_a_permutation_holds_each_item_once() -> None:
    for num_items in [*range(70), 1000, 1024, 1025]:
        items = permutation(num_items, "line", 7, 0)
        assert items.dtype == np.int64
        assert sorted(items.tolist()) == list(range(num_items))


@pytest.mark.parametrize(
    ("num_items", "key", "expected"),
    [
        (5, ("line", 7, 0), [2, 3, 1, 0, 4]),
        (8, ("line", 0, 0), [4, 1, 3, 0, 6, 2, 5, 7]),
        (10, ("window", 7, 3, 2, 1), [3, 1, 9, 8, 0, 5, 6, 4, 7, 2]),
    ],
)
def test_permutations_are_those_of_the_first_release(
    num_items: int, key: tuple[object, ...], expected: list[int]
) -> None:
    # If this fails, every saved position of a shuffled epoch has lost its meaning.
    assert permutation(num_items, *key).tolist() == expected


def test_each_part_of_the_key_matters() -> None:
    keys = [
        (kind, seed, epoch, split)
        for kind in ("line", "window")
        for seed in (0, 1, -1, 2**70)
        for epoch in (0, 1)
        for split in (0, 1, "1")
    ]
    orders = {tuple(permutation(52, *key).tolist()) for key in keys}
    assert len(orders) == len(keys)


def test_the_same_key_gives_the_same_order_whatever_the_global_random_state() -> None:
    before = permutation(100, "line", 3, 1)
    np.random.seed(1)
    np.random.random(10)
    assert np.array_equal(permutation(100, "line", 3, 1), before)


def test_all_orders_of_three_items_are_about_equally_frequent() -> None:
    counts = Counter(tuple(permutation(3, "line", s, 0).tolist()) for s in range(1200))
    assert len(counts) == 6
    # 200 each are expected; 13 is the standard deviation.
    assert all(140 < count < 260 for count in counts.values())


def test_each_item_of_a_hundred_comes_first_sometimes() -> None:
    firsts = Counter(int(permutation(100, "line", s, 0)[0]) for s in range(2000))
    assert len(firsts) == 100
    assert max(firsts.values()) < 50


def test_the_row_line_is_the_catalogs_order_without_empty_row_groups() -> None:
    kept = np.array([3, 0, 1, 0, 0, 9])
    line = row_line(kept, shuffle=False, seed=5, epoch=5)
    assert line.dtype == np.int64
    assert line.tolist() == [0, 2, 5]


def test_a_shuffled_row_line_permutes_the_row_groups_that_have_rows() -> None:
    kept = np.array([3, 0, 1, 4, 2, 9])
    line = row_line(kept, shuffle=True, seed=7, epoch=0)
    # permutation(5, "line", 7, 0) is [2, 3, 1, 0, 4], of row groups 0, 2, 3, 4, 5
    assert line.dtype == np.int64
    assert line.tolist() == [3, 4, 2, 0, 5]


def test_a_shuffled_row_line_depends_on_seed_and_epoch() -> None:
    kept = np.ones(50, dtype=np.int64)
    lines = [
        row_line(kept, shuffle=True, seed=seed, epoch=epoch).tolist()
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]
    assert all(sorted(line) == list(range(50)) for line in lines)
    assert len({tuple(line) for line in lines}) == 4


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kept", [[], [0], [0, 0, 0]])
def test_the_row_line_of_no_rows_is_empty(kept: list[int], shuffle: bool) -> None:
    line = row_line(np.array(kept, dtype=np.int64), shuffle=shuffle, seed=0, epoch=0)
    assert line.tolist() == []
