"""Ragged columns: cut out of Arrow's memory, joined, and taken row by row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_loader import Ragged
from dask_loader.batch.pinned import map_tensors, tensors_of
from dask_loader.batch.ragged import cut_lists, join_lists

NUMBERS = pa.large_list(pa.int16())
DEEP = pa.large_list(pa.large_list(pa.float32()))
TEXTS = pa.large_list(pa.large_string())


def rows_of(column: Any) -> list[Any]:
    if isinstance(column, torch.Tensor):
        return list(column.tolist())
    if not isinstance(column, Ragged):
        return list(column)
    return [rows_of(column.row(i)) for i in range(len(column.offsets) - 1)]


lists_of = {
    NUMBERS: st.lists(st.lists(st.integers(-9, 9), max_size=4), max_size=6),
    DEEP: st.lists(
        st.lists(st.lists(st.sampled_from([0.5, 2.0]), max_size=3), max_size=3),
        max_size=5,
    ),
    TEXTS: st.lists(st.lists(st.sampled_from(["", "a", "bc"]), max_size=3), max_size=5),
}


@pytest.mark.parametrize("kind", lists_of, ids=str)
def test_pieces_of_columns_joined_are_their_rows_one_after_the_other(
    kind: pa.DataType,
) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(columns=st.lists(lists_of[kind], min_size=1, max_size=4), data=st.data())
    def check(columns: list[list[Any]], data: st.DataObject) -> None:
        parts, wanted = [], []
        for rows in columns:
            start = data.draw(st.integers(0, len(rows)))
            stop = data.draw(st.integers(start, len(rows)))
            parts.append(cut_lists(pa.array(rows, kind).slice(start, stop - start)))
            wanted += rows[start:stop]
        assert [row for part in parts for row in rows_of(part)] == wanted
        joined = join_lists(parts)
        assert rows_of(joined) == wanted
        assert joined.offsets.dtype == torch.int64
        assert joined.offsets[0] == 0

    check()


def test_what_is_cut_is_a_copy_in_the_lists_own_dtype() -> None:
    array = pa.array([[1, 2], [3]], NUMBERS)
    cut = cut_lists(array)
    assert cut.values.dtype == torch.int16
    cut.values.zero_()
    assert array.to_pylist() == [[1, 2], [3]]


def test_tensors_within_are_found_and_replaced_at_any_depth() -> None:
    batch = {
        "a": torch.ones(2),
        "r": cut_lists(pa.array([[[1.0], []]], DEEP)),
        "t": ["x"],
    }
    assert len(list(tensors_of(batch))) == 4
    doubled = map_tensors(batch, lambda tensor: tensor * 2)
    assert isinstance(doubled["r"], Ragged)
    assert doubled["r"].values.values.tolist() == [2.0]
    assert doubled["t"] is batch["t"]
