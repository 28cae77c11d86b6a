"""Cutting the line into splits, and splits into windows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_loader.plan.window import (
    READ_FACTOR,
    Slice,
    Slices,
    Split,
    cut_windows,
    planned_reads,
    split_bounds,
    split_slices,
)

# Row groups of 4, 0, 6, 1 and 5 rows, in the order 2, 0, 4, 3: ends at 6, 10, 15, 16.
KEPT = np.array([4, 0, 6, 1, 5])
LINE = np.array([2, 0, 4, 3])
LINE_ENDS = np.array([6, 10, 15, 16])


@pytest.mark.parametrize(
    ("num_rows", "num_splits", "bounds"),
    [
        (12, 3, [0, 4, 8, 12]),
        (13, 3, [0, 5, 9, 13]),  # the longer ones come first
        (14, 3, [0, 5, 10, 14]),
        (2, 4, [0, 1, 2, 2, 2]),  # fewer rows than splits
        (0, 2, [0, 0, 0]),
        (5, 1, [0, 5]),
    ],
)
def test_the_line_is_cut_where_the_deal_says(
    num_rows: int, num_splits: int, bounds: list[int]
) -> None:
    found = split_bounds(num_rows, num_splits)
    assert found.dtype == np.int64
    assert found.tolist() == bounds


def test_splits_differ_by_one_row_at_most() -> None:
    for num_rows in range(60):
        for num_splits in range(1, 20):
            lengths = np.diff(split_bounds(num_rows, num_splits))
            assert lengths.sum() == num_rows
            assert lengths.max() - lengths.min() <= 1
            assert (np.diff(lengths) <= 0).all()


@pytest.mark.parametrize(
    ("start", "stop", "slices"),
    [
        (0, 16, [(2, 0, 6), (0, 0, 4), (4, 0, 5), (3, 0, 1)]),
        (0, 6, [(2, 0, 6)]),  # on borders: no empty slice before or after
        (6, 10, [(0, 0, 4)]),
        (2, 5, [(2, 2, 5)]),  # within one row group
        (5, 7, [(2, 5, 6), (0, 0, 1)]),
        (8, 16, [(0, 2, 4), (4, 0, 5), (3, 0, 1)]),
        (15, 16, [(3, 0, 1)]),
        (0, 0, []),
        (16, 16, []),
    ],
)
def test_a_run_of_the_line_becomes_slices(
    start: int, stop: int, slices: list[tuple[int, int, int]]
) -> None:
    found = split_slices(LINE, LINE_ENDS, KEPT, start=start, stop=stop)
    taken = found.take(0, len(found.groups))
    assert taken == tuple(Slice(*s) for s in slices)
    assert sum(s.num_rows for s in taken) == stop - start


def cut(
    slices: list[tuple[int, int, int]],
    *,
    window: int,
    in_bytes: bool = False,
    rows: list[int] | None = None,
    num_bytes: list[int] | None = None,
) -> Split:
    """Cut slices of row groups that have 100 rows of 10 bytes where nothing is said."""
    groups = 1 + max((s[0] for s in slices), default=0)
    return cut_windows(
        Slices(*np.array(slices, dtype=np.int64).reshape(-1, 3).T),
        group_rows=np.array(rows or [100] * groups),
        group_bytes=np.array(num_bytes or [1000] * groups),
        window=window,
        in_bytes=in_bytes,
    )


def windows_of(split: Split) -> list[list[tuple[int, int, int]]]:
    return [[(s.group, s.start, s.stop) for s in window] for window in split.windows]


def test_no_slices_make_no_window() -> None:
    split = cut([], window=5)
    assert split.windows == ()
    assert split.bounds.tolist() == [0]
    assert split.bounds.dtype == np.int64


def test_whole_slices_are_taken_while_they_fit() -> None:
    split = cut([(0, 0, 3), (1, 0, 4), (2, 0, 1), (3, 0, 8)], window=8)
    assert windows_of(split) == [[(0, 0, 3), (1, 0, 4), (2, 0, 1)], [(3, 0, 8)]]
    assert split.bounds.tolist() == [0, 8, 16]


def test_a_slice_that_does_not_fit_begins_the_next_window() -> None:
    split = cut([(0, 0, 5), (1, 0, 4), (2, 0, 4)], window=8)
    assert windows_of(split) == [[(0, 0, 5)], [(1, 0, 4), (2, 0, 4)]]
    assert split.bounds.tolist() == [0, 5, 13]


def test_an_oversize_slice_is_cut_in_equal_parts_that_stand_alone() -> None:
    # 20 rows in windows of 8: three parts. The slices beside it join none of them.
    split = cut([(0, 0, 2), (1, 3, 23), (2, 0, 2), (3, 0, 2)], window=8)
    assert windows_of(split) == [
        [(0, 0, 2)],
        [(1, 3, 9)],
        [(1, 9, 16)],
        [(1, 16, 23)],
        [(2, 0, 2), (3, 0, 2)],
    ]
    assert split.bounds.tolist() == [0, 2, 8, 15, 22, 26]


def test_a_slice_as_large_as_a_window_is_not_cut() -> None:
    assert windows_of(cut([(0, 0, 8)], window=8)) == [[(0, 0, 8)]]
    assert windows_of(cut([(0, 0, 9)], window=8)) == [[(0, 0, 4)], [(0, 4, 9)]]


def test_bytes_are_counted_by_the_rows_taken() -> None:
    # 30 of 100 rows of a 1,000-byte row group are 300 bytes.
    slices = [(0, 70, 100), (1, 0, 30), (2, 0, 50)]
    split = cut(slices, window=600, in_bytes=True)
    assert windows_of(split) == [[(0, 70, 100), (1, 0, 30)], [(2, 0, 50)]]


def test_an_oversize_slice_in_bytes_is_cut_by_its_bytes() -> None:
    split = cut([(0, 0, 100)], window=300, in_bytes=True)
    assert split.bounds.tolist() == [0, 25, 50, 75, 100]


def test_a_row_larger_than_a_window_is_a_window() -> None:
    split = cut([(0, 0, 3)], window=4, in_bytes=True, rows=[3], num_bytes=[300])
    assert windows_of(split) == [[(0, 0, 1)], [(0, 1, 2)], [(0, 2, 3)]]


def test_a_byte_window_reads_at_most_sixteen_times_its_size() -> None:
    # A filter left one row of each 1,000-byte row group: 10 bytes in a window of 500,
    # so 50 of them would fit, but reading more than 8,000 bytes for it is too much.
    slices = [(g, 0, 1) for g in range(20)]
    split = cut(slices, window=500, in_bytes=True)
    assert READ_FACTOR == 16
    assert split.bounds.tolist() == [0, 8, 16, 20]


def test_a_row_group_beyond_the_read_bound_is_read_alone() -> None:
    split = cut(
        [(0, 0, 1), (1, 0, 1), (2, 0, 1)],
        window=10,
        in_bytes=True,
        rows=[100, 1000, 100],
        num_bytes=[100, 1000, 100],
    )
    assert windows_of(split) == [[(0, 0, 1)], [(1, 0, 1)], [(2, 0, 1)]]


def test_a_window_of_rows_has_no_read_bound() -> None:
    split = cut([(g, 0, 1) for g in range(20)], window=20)
    assert split.bounds.tolist() == [0, 20]


def test_sizes_beyond_32_and_64_bits_of_product_are_counted_right() -> None:
    rows, num_bytes = 3_000_000_000, 24_000_000_000
    split = cut(
        [(0, 0, rows)],
        window=8_000_000_000,
        in_bytes=True,
        rows=[rows],
        num_bytes=[num_bytes],
    )
    assert split.bounds.tolist() == [0, 10**9, 2 * 10**9, 3 * 10**9]


def test_a_window_beyond_64_bits_holds_everything() -> None:
    for in_bytes in (False, True):
        split = cut([(0, 0, 9), (1, 0, 9)], window=10**30, in_bytes=in_bytes)
        assert split.bounds.tolist() == [0, 18]


def test_a_window_is_told_by_its_number_alone() -> None:
    split = cut([(0, 0, 2), (1, 3, 23), (2, 0, 2), (3, 0, 2)], window=8)
    assert split.num_windows == 5
    assert split.window(3) == (Slice(1, 16, 23),)
    assert split.window(4) == (Slice(2, 0, 2), Slice(3, 0, 2))
    assert split.window(0) == (Slice(0, 0, 2),)


def naive_windows(
    slices: list[tuple[int, int, int]],
    *,
    rows: list[int],
    num_bytes: list[int],
    window: int,
    in_bytes: bool,
) -> list[list[tuple[int, int, int]]]:
    """Put slice after slice into a bag, and begin another where it is full."""
    done: list[list[tuple[int, int, int]]] = []
    bag: list[tuple[int, int, int]] = []
    size = read = 0
    for group, start, stop in slices:
        length = stop - start
        own = length * num_bytes[group] // rows[group] if in_bytes else length
        too_much = in_bytes and read + num_bytes[group] > READ_FACTOR * window
        if size + own > window or too_much:
            done += [bag] if bag else []
            bag, size, read = [], 0, 0
        if own <= window:
            bag.append((group, start, stop))
            size, read = size + own, read + num_bytes[group]
            continue
        parts = min(length, -(-own // window))
        cuts = [start + length * i // parts for i in range(parts + 1)]
        done += [[(group, *part)] for part in pairwise(cuts)]
    return done + ([bag] if bag else [])


@st.composite
def runs_of_slices(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """(rows, bytes, start, stop) of a few row groups."""
    found = []
    for _ in range(draw(st.integers(0, 9))):
        rows = draw(st.sampled_from([1, 2, 5, 40]))
        width = draw(st.sampled_from([0, 1, 8, 100]))
        start = draw(st.integers(0, rows - 1))
        stop = draw(st.integers(start + 1, rows))
        found.append((rows, rows * width + draw(st.integers(0, 3)), start, stop))
    return found


@settings(max_examples=400, deadline=None, derandomize=True)
@given(groups=runs_of_slices(), window=st.integers(1, 300), in_bytes=st.booleans())
def test_windows_equal_those_of_one_slice_after_the_other(
    groups: list[tuple[int, int, int, int]], window: int, in_bytes: bool
) -> None:
    slices = [(i, start, stop) for i, (_, _, start, stop) in enumerate(groups)]
    rows, num_bytes = [g[0] for g in groups], [g[1] for g in groups]
    split = cut(
        slices, window=window, in_bytes=in_bytes, rows=rows, num_bytes=num_bytes
    )
    expected = naive_windows(
        slices, rows=rows, num_bytes=num_bytes, window=window, in_bytes=in_bytes
    )
    assert windows_of(split) == expected
    lengths = [sum(stop - start for _, start, stop in w) for w in expected]
    assert np.diff(split.bounds).tolist() == lengths


def naive_reads(rows: list[int], num_splits: int) -> int:
    """Deal the line out row by row and add up the row groups that each split sees."""
    line = [group for group, count in enumerate(rows) for _ in range(count)]
    total, begin = 0, 0
    for split in range(num_splits):
        length = len(range(split, len(line), num_splits))
        total += sum(rows[group] for group in set(line[begin : begin + length]))
        begin += length
    return total


@pytest.mark.parametrize(
    ("rows", "num_splits", "reads"),
    [
        ([4, 4, 4, 4], 4, 16),  # borders between row groups: nothing twice
        ([4, 4, 4, 4], 1, 16),
        ([5, 6, 5], 2, 22),  # the middle one twice
        ([16], 4, 64),
        ([13, 1, 1, 1], 4, 55),  # four times 13 rows, and 3
        ([1, 1], 5, 2),  # splits without rows read nothing
        ([], 3, 0),
    ],
)
def test_planned_reads_count_row_groups_on_borders_again(
    rows: list[int], num_splits: int, reads: int
) -> None:
    line_ends = np.cumsum(np.array(rows, dtype=np.int64))
    assert planned_reads(line_ends, num_splits=num_splits) == reads
    assert naive_reads(rows, num_splits) == reads


def test_planned_reads_equal_a_naive_count() -> None:
    layouts = [
        [1],
        [2, 3],
        [1] * 9,
        [40, 1, 1, 7],
        [3, 5, 8, 13, 21],
        [10] * 7,
        [1, 60],
    ]
    for rows in layouts:
        for num_splits in range(1, 25):
            found = planned_reads(np.cumsum(rows), num_splits=num_splits)
            assert found == naive_reads(rows, num_splits), (rows, num_splits)
