"""Batches and rows cut out of windows made by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dask_loader.batch.rebatch import Rebatcher
from dask_loader.plan.epoch import Epoch, Groups, Order
from dask_loader.plan.schedule import Piece, Request, Step, requests, walk
from dask_loader.plan.share import Deal
from dask_loader.transfer.window import WindowData

Make = Callable[..., WindowData]
NAMES = ("s", "x", "l", "h", "y")


class Source:
    """Gives windows in order and remembers what was taken and released."""

    def __init__(self, windows: list[WindowData], *, must_copy: bool = False) -> None:
        self.windows = windows
        self.taken = 0
        self.released: list[int] = []
        self.must_copy = must_copy

    def take(self) -> WindowData:
        self.taken += 1
        return self.windows[self.taken - 1]

    def batcher(self, names: tuple[str, ...] = NAMES) -> Rebatcher:
        return Rebatcher(
            names,
            take=self.take,
            release=self.released.append,
            must_copy=lambda: self.must_copy,
        )


@pytest.fixture
def windows(make_window: Make) -> list[WindowData]:
    """Three windows of 10 rows; column x counts 0..9, 100..109, 200..209."""
    found = []
    for base in (0, 100, 200):
        rows = np.arange(base, base + 10)
        arrays = {
            "x": rows,
            "y": rows * 2,
            "h": (rows / 8).astype(np.float16),
            "l": np.stack([rows, -rows], axis=1).astype(np.float32),
        }
        texts = {
            "s": pa.array([None if r % 10 == 3 else f"r{r}" for r in rows.tolist()])
        }
        found.append(make_window(arrays, texts))
    return found


def step(
    pieces: list[tuple[int, int, int]],
    *,
    opened: list[int] | None = None,
    finished: tuple[int, ...] = (),
    pad: tuple[int, int] | None = None,
    splits: list[tuple[int, int]] | None = None,
) -> Step:
    """A step; pieces are (request, start, stop), splits (split, split_row)."""
    places = splits or [(request, start) for request, start, _ in pieces]
    return Step(
        0,
        tuple(
            Piece(*piece, *place) for piece, place in zip(pieces, places, strict=True)
        ),
        None if pad is None else Piece(pad[0], pad[1], pad[1] + 1, 0, 0),
        tuple(Request(number, 0, None) for number in opened or []),  # type: ignore[arg-type]
        finished,
    )


def lists(batch: dict[str, Any]) -> dict[str, list[Any]]:
    return {n: c if isinstance(c, list) else c.tolist() for n, c in batch.items()}


def expected(numbers: list[int]) -> dict[str, list[Any]]:
    return {
        "s": [None if n % 10 == 3 else f"r{n}" for n in numbers],
        "x": numbers,
        "l": [[float(n), float(-n)] for n in numbers],
        "h": [n / 8 for n in numbers],
        "y": [2 * n for n in numbers],
    }


def test_a_batch_has_its_columns_in_order_with_their_dtypes(
    windows: list[WindowData],
) -> None:
    batch = Source(windows).batcher().batch(step([(0, 2, 6)], opened=[0]))
    assert tuple(batch) == NAMES
    assert lists(batch) == expected([2, 3, 4, 5])
    dtypes = {n: c.dtype for n, c in batch.items() if isinstance(c, torch.Tensor)}
    assert dtypes == {
        "x": torch.int64,
        "l": torch.float32,
        "h": torch.float16,
        "y": torch.int64,
    }
    assert all(c.is_contiguous() for c in batch.values() if isinstance(c, torch.Tensor))


def test_one_piece_is_a_view_and_several_are_a_copy(windows: list[WindowData]) -> None:
    source = Source(windows)
    batcher = source.batcher()
    one = batcher.batch(step([(0, 0, 4)], opened=[0]))
    both = batcher.batch(step([(0, 4, 10), (1, 0, 2)], opened=[1], finished=(0,)))
    assert lists(both) == expected([4, 5, 6, 7, 8, 9, 100, 101])
    for name in ("x", "l", "h", "y"):
        assert np.shares_memory(one[name].numpy(), windows[0].arrays[name])
        for window in windows:
            assert not np.shares_memory(both[name].numpy(), window.arrays[name])


def test_a_single_piece_is_copied_where_windows_run_short(
    windows: list[WindowData],
) -> None:
    source = Source(windows, must_copy=True)
    batch = source.batcher().batch(step([(0, 0, 4)], opened=[0]))
    assert lists(batch) == expected([0, 1, 2, 3])
    for name in ("x", "l", "h", "y"):
        assert not np.shares_memory(batch[name].numpy(), windows[0].arrays[name])


def test_a_pad_is_the_last_row_and_all_is_copied(windows: list[WindowData]) -> None:
    source = Source(windows)
    last = step([(0, 8, 10)], opened=[0, 1], pad=(1, 5), finished=(0, 1))
    batch = source.batcher().batch(last)
    assert lists(batch) == expected([8, 9, 105])
    for name in ("x", "l", "h", "y"):
        for window in windows[:2]:
            assert not np.shares_memory(batch[name].numpy(), window.arrays[name])
    assert source.released == [0, 1]


def test_a_pad_alone_makes_a_batch_of_one(windows: list[WindowData]) -> None:
    batch = Source(windows).batcher().batch(step([], opened=[0], pad=(0, 7)))
    assert lists(batch) == expected([7])


def test_writing_into_a_batch_changes_no_other(windows: list[WindowData]) -> None:
    source = Source(windows)
    batcher = source.batcher()
    steps = [
        step([(0, 0, 4)], opened=[0]),
        step([(0, 4, 8)]),
        step([(0, 8, 10), (1, 0, 2)], opened=[1], finished=(0,)),
        step([(1, 2, 6)]),
        step([(1, 6, 10)], pad=(1, 0), finished=(1,)),
    ]
    batches = [batcher.batch(each) for each in steps]
    rows = [range(4), range(4, 8), [8, 9, 100, 101], range(102, 106)]
    numbers = [*map(list, rows), [106, 107, 108, 109, 100]]
    for index, batch in enumerate(batches):
        assert lists(batch) == expected(numbers[index])
        for column in batch.values():
            if isinstance(column, torch.Tensor):
                column.fill_(77)
            else:
                column.clear()


def test_windows_are_taken_when_opened_and_released_when_finished(
    windows: list[WindowData],
) -> None:
    source = Source(windows)
    batcher = source.batcher()
    assert source.taken == 0
    batcher.batch(step([(0, 0, 2), (1, 0, 2)], opened=[0, 1]))
    assert (source.taken, source.released) == (2, [])
    batcher.batch(step([(0, 2, 10), (1, 2, 3)], finished=(0,)))
    assert source.released == [0]
    batcher.batch(step([(1, 3, 10), (2, 0, 10)], opened=[2], finished=(1, 2)))
    assert (source.taken, source.released) == (3, [0, 1, 2])


class CountingSource(Source):
    """Knows how many windows are in hand."""

    def __init__(self, windows: list[WindowData]) -> None:
        super().__init__(windows)
        self.most_in_hand = 0

    def take(self) -> WindowData:
        window = super().take()
        self.most_in_hand = max(self.most_in_hand, self.taken - len(self.released))
        return window


@pytest.mark.parametrize("num_splits", [1, 2, 3])
@pytest.mark.parametrize("batch_rows", [1, 4, 7, 13, 1000])
def test_no_more_windows_are_in_hand_than_there_are_splits(
    make_window: Make, num_splits: int, batch_rows: int
) -> None:
    # 45 windows of three rows; the steps are those of a real plan.
    rows_of_window, num_rows = 3, 135
    groups = Groups(
        num_rows=np.full(45, rows_of_window),
        num_bytes=np.full(45, rows_of_window * 8),
        num_kept=np.full(45, rows_of_window),
    )
    order = Order(
        shuffle=False,
        seed=0,
        num_splits=num_splits,
        window=rows_of_window,
        window_in_bytes=False,
    )
    epoch = Epoch(groups, order, 0)
    for world_size in range(1, num_splits + 1):
        deal = Deal(
            num_rows=num_rows,
            num_splits=num_splits,
            world_size=world_size,
            batch_size=batch_rows,
            first=0,
            uneven="pad",
            drop_last=False,
        )
        for rank in range(world_size):
            source = CountingSource(
                [
                    make_window({"x": _rows_of(request)})
                    for request in requests(epoch, deal, rank)
                ]
            )
            batcher = source.batcher(("x",))
            for each in walk(epoch, deal, rank):
                assert lists(batcher.batch(each))["x"]
            assert source.taken == len(source.windows)
            assert sorted(source.released) == list(range(source.taken))
            # A pad is a row of the last global batch, of any split.
            padded = deal.pad(rank) is not None
            assert source.most_in_hand <= deal.splits_in_hand(rank) + padded


def _rows_of(request: Request) -> list[int]:
    return [
        piece.group * 3 + row
        for piece in request.window.slices
        for row in range(piece.start, piece.stop)
    ]


def test_a_window_that_ends_in_a_step_goes_before_the_next_is_taken(
    windows: list[WindowData],
) -> None:
    source = CountingSource(windows)
    batcher = source.batcher()
    batch = batcher.batch(
        step([(0, 0, 10), (1, 0, 10), (2, 0, 10)], opened=[0, 1, 2], finished=(0, 1, 2))
    )
    numbers = [base + row for base in (0, 100, 200) for row in range(10)]
    assert lists(batch) == expected(numbers)
    assert (source.released, source.most_in_hand) == ([0, 1, 2], 1)


def test_a_window_whose_row_is_the_pad_stays_until_the_pad_is_made(
    windows: list[WindowData],
) -> None:
    source = CountingSource(windows)
    last = step([(0, 0, 10), (1, 0, 4)], opened=[0, 1], finished=(0, 1), pad=(0, 3))
    batch = source.batcher().batch(last)
    assert lists(batch) == expected([*range(10), 100, 101, 102, 103, 3])
    assert (sorted(source.released), source.most_in_hand) == ([0, 1], 2)


@pytest.mark.parametrize("pieces", [[(1, 5, 8)], [(1, 5, 8), (2, 0, 2)]])
def test_a_window_whose_rest_is_another_ranks_goes_before_the_next_is_taken(
    windows: list[WindowData], pieces: list[tuple[int, int, int]]
) -> None:
    source = CountingSource(windows)
    batcher = source.batcher()
    batcher.batch(step([(0, 0, 4)], opened=[0]))
    assert source.released == []
    batcher.batch(step(pieces, opened=[1, 2], finished=(0,)))
    assert source.released[0] == 0
    assert source.taken - source.most_in_hand == 1


def test_a_batch_outlives_its_window(windows: list[WindowData]) -> None:
    source = Source(windows)
    batch = source.batcher().batch(step([(0, 0, 10)], opened=[0], finished=(0,)))
    source.windows.clear()
    windows.clear()
    assert lists(batch) == expected(list(range(10)))


def test_windows_out_of_turn_are_a_fault_of_ours(windows: list[WindowData]) -> None:
    with pytest.raises(AssertionError, match="window 0 is next, the step uses 1"):
        Source(windows).batcher().batch(step([(1, 0, 1)], opened=[1]))


def test_texts_alone_or_numbers_alone_make_a_batch(make_window: Make) -> None:
    text = make_window({}, {"s": pa.array([b"a", b"b"])})
    batch = Source([text]).batcher(("s",)).batch(step([(0, 0, 2)], opened=[0]))
    assert batch == {"s": [b"a", b"b"]}
    numbers = make_window({"x": [1, 2]})
    batch = Source([numbers]).batcher(("x",)).batch(step([(0, 1, 2)], opened=[0]))
    assert lists(batch) == {"x": [2]}


def rows(source: Source, each: Step, num_splits: int) -> list[dict[str, Any]]:
    found: Iterator[dict[str, Any]] = source.batcher().rows(each, num_splits=num_splits)
    return list(found)


def test_rows_come_by_position_across_splits_with_the_pad_last(
    windows: list[WindowData],
) -> None:
    # Position of row i of a piece: (split_row + i) * num_splits + split.
    each = step(
        [(0, 0, 3), (1, 4, 6), (2, 1, 4)],
        splits=[(0, 7), (1, 7), (2, 6)],
        opened=[0, 1, 2],
        pad=(0, 9),
        finished=(0, 1, 2),
    )
    source = Source(windows)
    found = rows(source, each, 3)
    numbers = [201, 0, 104, 202, 1, 105, 203, 2, 9]
    assert [int(row["x"]) for row in found] == numbers
    assert [row["s"] for row in found] == expected(numbers)["s"]
    assert sorted(source.released) == [0, 1, 2]


def test_rows_of_one_split_keep_the_windows_order(windows: list[WindowData]) -> None:
    each = step([(0, 8, 10), (1, 0, 2)], splits=[(4, 8), (4, 10)], opened=[0, 1])
    assert [int(r["x"]) for r in rows(Source(windows), each, 8)] == [8, 9, 100, 101]


def test_single_rows_are_numpy_scalars_arrays_and_text(
    windows: list[WindowData],
) -> None:
    row = rows(Source(windows[1:]), step([(0, 2, 3)], opened=[0]), 1)[0]
    assert tuple(row) == NAMES
    assert type(row["x"]) is np.int64
    assert type(row["h"]) is np.float16
    assert type(row["l"]) is np.ndarray
    assert row["l"].dtype == np.float32
    assert row["s"] == "r102"


def test_torch_batches_single_rows_without_changing_their_types(
    make_window: Make,
) -> None:
    kinds = ("int8", "uint8", "int16", "int32", "float32", "float64", "bool")
    window = make_window({k: np.ones(4, dtype=k) for k in kinds})
    found = rows_of_all(window, kinds)
    batch = torch.utils.data.default_collate(found)
    assert {n: str(c.dtype).removeprefix("torch.") for n, c in batch.items()} == {
        kind: kind for kind in kinds
    }


def rows_of_all(window: WindowData, names: tuple[str, ...]) -> list[dict[str, Any]]:
    batcher = Source([window]).batcher(names)
    return list(batcher.rows(step([(0, 0, window.num_rows)], opened=[0]), num_splits=1))


def test_writing_into_a_row_changes_no_other(windows: list[WindowData]) -> None:
    batcher = Source(windows).batcher()
    first = list(batcher.rows(step([(0, 0, 3)], opened=[0]), num_splits=1))
    first[0]["l"][:] = 77
    second = list(batcher.rows(step([(0, 0, 3)]), num_splits=1))
    assert first[1]["l"].tolist() == [1.0, -1.0]
    assert second[0]["l"].tolist() == [0.0, 0.0]
