"""Arrow arrays, sliced anyhow, into NumPy columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_loader.catalog.forms import form_of
from dask_loader.read.columns import copy_fixed, fill_text, flatten

KINDS = (
    pa.int8(),
    pa.uint16(),
    pa.int64(),
    pa.uint64(),
    pa.float16(),
    pa.float64(),
    pa.bool_(),
    pa.date32(),
    pa.timestamp("us"),
)


@st.composite
def nested(draw: st.DrawFn) -> tuple[pa.Array, list[Any], Any]:
    """A sliced array, the same as a list with integers for times, and a fill."""
    kind = draw(st.sampled_from(KINDS))
    lengths = draw(st.lists(st.integers(1, 3), max_size=2))
    item: st.SearchStrategy[Any] = st.integers(
        0, 1 if pa.types.is_boolean(kind) else 100
    )
    holes = draw(st.booleans())
    for depth, length in enumerate((None, *lengths)):
        if length is not None:
            item = st.lists(item, min_size=length, max_size=length)
        item = st.none() | item if holes and depth < 2 else item
    items = draw(st.lists(item, max_size=30))
    ints = pa.int32() if pa.types.is_date32(kind) else pa.int64()
    source, target = (ints if pa.types.is_temporal(kind) else pa.int64()), kind
    for length in lengths:
        source, target = pa.list_(source, length), pa.list_(target, length)
    array = _cast(pa.array(items, source), target)
    low = draw(st.integers(0, len(items)))
    high = draw(st.integers(low, len(items)))
    fill = draw(st.sampled_from([0, 1]))
    return array.slice(low, high - low), items[low:high], fill


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast, keeping nulls at every level (Arrow's own cast of lists needs no help)."""
    if not pa.types.is_fixed_size_list(kind):
        if pa.types.is_float16(kind):
            array = array.cast(pa.float32())
        return array.cast(kind)
    values = _cast(array.values, kind.value_type)
    mask = array.is_null() if array.null_count else None
    return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=mask)


def filled(items: Any, fill: Any, shape: tuple[int, ...]) -> Any:
    if items is None:
        return np.full(shape, fill).tolist()
    return [filled(i, fill, shape[1:]) for i in items] if shape else items


def count_nulls(items: Any) -> int:
    if isinstance(items, list):
        return sum(count_nulls(item) for item in items)
    return int(items is None)


@settings(max_examples=150, deadline=None)
@given(case=nested())
def test_a_sliced_array_is_copied_with_its_nulls_filled(case: Any) -> None:
    array, items, fill = case
    form = form_of(pa.field("x", array.type))
    out = np.full((len(items), *form.shape), 77).astype(form.dtype)
    assert (copy_fixed(array, out, fill) > 0) == (count_nulls(items) > 0)
    expected = [filled(item, fill, form.shape) for item in items]
    assert out.tolist() == expected


@settings(max_examples=100, deadline=None)
@given(case=nested())
def test_nulls_without_a_fill_are_only_counted(case: Any) -> None:
    array, items, _ = case
    form = form_of(pa.field("x", array.type))
    out = np.zeros((len(items), *form.shape), dtype=form.dtype)
    nulls = copy_fixed(array, out, None)
    assert (nulls > 0) == (count_nulls(items) > 0)
    if not nulls:
        assert out.tolist() == items


@settings(max_examples=100, deadline=None)
@given(case=nested())
def test_flat_elements_are_valid_where_neither_they_nor_their_lists_are_null(
    case: Any,
) -> None:
    array, items, _ = case
    flat = flatten(array)
    shape = form_of(pa.field("x", array.type)).shape
    marks = np.array(
        [filled(item, None, shape) for item in items], dtype=object
    ).reshape(-1)
    expected = [mark is not None for mark in marks]
    assert len(flat.values) == len(expected)
    found = [True] * len(expected) if flat.valid is None else flat.valid.tolist()
    assert found == expected
    if not shape:
        assert flat.null_count == array.null_count == count_nulls(items)


def test_a_list_over_sliced_values_is_read_from_its_own_place() -> None:
    values = pa.array(range(20)).slice(3, 12)
    array = pa.FixedSizeListArray.from_arrays(values, 4)
    out = np.zeros((2, 4), dtype=np.int64)
    assert copy_fixed(array.slice(1), out, None) == 0
    assert out.tolist() == [[7, 8, 9, 10], [11, 12, 13, 14]]


def test_integers_with_nulls_stay_exact() -> None:
    array = pa.array([2**63 - 1, None, 2**53 + 1])
    out = np.zeros(3, dtype=np.int64)
    assert copy_fixed(array, out, -(2**63)) == 1
    assert out.tolist() == [2**63 - 1, -(2**63), 2**53 + 1]


def test_only_nulls_are_all_fill() -> None:
    for kind, fill in ((pa.int32(), 5), (pa.bool_(), True), (pa.float32(), 0.5)):
        form = form_of(pa.field("x", kind))
        out = np.zeros(9, dtype=form.dtype)
        assert copy_fixed(pa.nulls(9, kind), out, fill) == 9
        assert out.tolist() == [fill] * 9


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.binary(1)]
)
def test_nulls_of_text_are_filled_or_kept(kind: pa.DataType) -> None:
    array = pa.array(["a", None, "c"]).cast(
        kind if kind != pa.binary(1) else pa.binary()
    )
    array = array.cast(kind)
    fill: Any = (
        "z" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else b"z"
    )
    assert fill_text(array, fill).equals(
        pa.array([*"azc"]).cast(pa.binary()).cast(kind)
    )
    assert fill_text(array, None) is array
    whole = array.drop_null()
    assert fill_text(whole, fill) is whole
