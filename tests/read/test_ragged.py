"""Lists in one plain layout, whatever Arrow's arrays look like inside."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from dask_loader.catalog.forms import Form
from dask_loader.read.cast import MisfitError
from dask_loader.read.ragged import plain_lists

NUMBERS = Form("x", "", depth=1, items="int16")
TEXTS = Form("x", "", depth=1)


def lists(values: object, kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.large_list(kind))


def test_a_slice_becomes_lists_of_its_own_values_only() -> None:
    array = lists([[1, 2], [], [3], [4, 5, 6]], pa.int64()).slice(1, 2)
    plain, nulls = plain_lists(array, NUMBERS, allowed=False, fill=None)
    plain.validate(full=True)
    assert plain.to_pylist() == [[], [3]]
    assert (len(plain.values), plain.values.type, nulls) == (1, pa.int16(), 0)


def test_values_under_a_null_list_are_left_out() -> None:
    values = pa.array([1, 2, 99, 99, 3], pa.int64())
    offsets = pa.array([0, 2, 4, 5], pa.int64())
    mask = pa.array([False, True, False])
    array = pa.LargeListArray.from_arrays(offsets, values, mask=mask)
    assert len(array.values) == 5
    plain, nulls = plain_lists(array, NUMBERS, allowed=True, fill=0)
    assert plain.to_pylist() == [[1, 2], [], [3]]
    assert (plain.values.to_pylist(), nulls) == ([1, 2, 3], 1)


def test_nulls_of_all_levels_are_counted() -> None:
    kind = pa.large_list(pa.large_list(pa.int8()))
    array = pa.array([[[1, None], None], None, [[None]]], kind)
    form = Form("x", "", depth=2, items="int8")
    assert plain_lists(array, form, allowed=False, fill=None)[1] == 4
    plain, nulls = plain_lists(array, form, allowed=True, fill=7)
    assert (plain.to_pylist(), nulls) == ([[[1, 7], []], [], [[7]]], 4)


def test_no_lists_at_all_stay_none() -> None:
    plain, nulls = plain_lists(lists([], pa.int8()), NUMBERS, allowed=False, fill=None)
    assert (plain.to_pylist(), plain.type.value_type, nulls) == ([], pa.int16(), 0)


def test_texts_keep_none_or_take_the_fill() -> None:
    array = lists([["a", None], None], pa.string())
    kept, nulls = plain_lists(array, TEXTS, allowed=True, fill=None)
    assert (kept.to_pylist(), nulls) == ([["a", None], []], 2)
    filled, _ = plain_lists(array, TEXTS, allowed=True, fill="z")
    assert filled.to_pylist() == [["a", "z"], []]
    assert filled.type.value_type == pa.large_string()


def test_bits_of_bool_are_taken_from_where_a_slice_begins() -> None:
    rng = np.random.default_rng(0)
    rows = [(rng.random(n) < 0.5).tolist() for n in rng.integers(0, 7, 40)]
    form = Form("x", "", depth=1, items="bool")
    for start in range(0, 40, 3):
        part = lists(rows, pa.bool_()).slice(start)
        plain, _ = plain_lists(part, form, allowed=False, fill=None)
        assert plain.to_pylist() == rows[start:]


def test_a_number_that_does_not_fit_is_told_but_not_one_under_a_null() -> None:
    array = lists([[1, 70_000]], pa.int64())
    with pytest.raises(MisfitError, match="70000 does not fit int16"):
        plain_lists(array, NUMBERS, allowed=False, fill=None)
    hidden = pa.LargeListArray.from_arrays(
        pa.array([0, 1, 2], pa.int64()),
        pa.array([70_000, 1], pa.int64()),
        mask=pa.array([True, False]),
    )
    plain, _ = plain_lists(hidden, NUMBERS, allowed=True, fill=0)
    assert plain.to_pylist() == [[], [1]]
