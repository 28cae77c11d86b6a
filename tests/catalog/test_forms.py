"""Which types have a tensor form, and which."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dask_loader.catalog.forms import Form, form_of
from dask_loader.errors import UnsupportedTypeError

SAME = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
TIMES = (
    pa.date32(),
    pa.date64(),
    pa.time32("s"),
    pa.time32("ms"),
    pa.time64("us"),
    pa.time64("ns"),
    pa.timestamp("s"),
    pa.timestamp("ns", "Europe/Berlin"),
    pa.duration("ms"),
)
TEXTS = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.binary(16),
)
FORMS = [
    *((pa.type_for_alias(name), name, ()) for name in SAME),
    (pa.float16(), "float16", ()),
    (pa.float32(), "float32", ()),
    (pa.float64(), "float64", ()),
    (pa.bool_(), "bool", ()),
    *((kind, "int64", ()) for kind in TIMES),
    *((kind, "", ()) for kind in TEXTS),
    (pa.list_(pa.float32(), 3), "float32", (3,)),
    (pa.list_(pa.list_(pa.bool_(), 2), 5), "bool", (5, 2)),
    (pa.list_(pa.timestamp("us"), 1), "int64", (1,)),
    (pa.decimal32(5, 2), "int64", ()),
    (pa.decimal128(18, 4), "int64", ()),
    (pa.list_(pa.decimal128(7, 2), 3), "int64", (3,)),
    (pa.null(), "float32", ()),
]
LISTS = [
    (pa.large_list(pa.float16()), 1, "float16"),
    (pa.large_list(pa.date32()), 1, "int64"),
    (pa.large_list(pa.decimal128(9, 2)), 1, "int64"),
    (pa.large_list(pa.string()), 1, ""),
    (pa.large_list(pa.large_list(pa.bool_())), 2, "bool"),
    (pa.large_list(pa.large_list(pa.binary())), 2, ""),
]
REFUSED = (
    pa.decimal128(19, 2),
    pa.decimal256(50, 2),
    pa.large_list(pa.decimal128(19, 0)),
    pa.month_day_nano_interval(),
)


@pytest.mark.parametrize(
    ("kind", "dtype", "shape"), FORMS, ids=lambda v: str(v) or "text"
)
def test_every_supported_type_has_its_form(
    kind: pa.DataType, dtype: str, shape: tuple[int, ...]
) -> None:
    form = form_of(pa.field("x", kind))
    assert form == Form("x", dtype, shape)
    assert form.is_fixed == (dtype != "")


@pytest.mark.parametrize(("kind", "depth", "items"), LISTS, ids=str)
def test_lists_of_any_length_have_a_depth_and_the_form_of_their_items(
    kind: pa.DataType, depth: int, items: str
) -> None:
    form = form_of(pa.field("x", kind))
    assert form == Form("x", "", depth=depth, items=items)
    assert (form.is_fixed, form.row_bytes, form.number) == (False, 0, items)


@pytest.mark.parametrize(
    "kind", [pa.decimal128(38, 2), pa.decimal256(50, 2), pa.decimal128(5, 2)], ids=str
)
def test_decimals_of_any_length_become_floats_where_they_are_asked_for(
    kind: pa.DataType,
) -> None:
    dtype = form_of(pa.field("x", kind), dtype="float32").dtype
    assert dtype == ("int64" if kind.precision == 5 else "float32")


def test_elements_of_lists_may_have_a_shape() -> None:
    kind = pa.large_list(pa.list_(pa.list_(pa.int8(), 2), 3))
    assert form_of(pa.field("x", kind)) == Form("x", "", (3, 2), depth=1, items="int8")


def test_every_other_type_is_refused_by_name_with_a_way_out() -> None:
    for kind in REFUSED:
        with pytest.raises(
            UnsupportedTypeError, match="has no tensor form; "
        ) as caught:
            form_of(pa.field("x", kind), path="/f.parquet")
        assert f"column 'x' has type {kind}" in str(caught.value)
        for way in (
            "leave it out with columns=[...]",
            "transform=...",
            "output_format=",
        ):
            assert way in str(caught.value)
        rounds = "round them with dtypes={'x': torch.float64}" in str(caught.value)
        assert rounds == ("decimal" in str(kind))
        assert (caught.value.path, caught.value.column) == ("/f.parquet", "x")


def test_a_row_has_as_many_bytes_as_items_of_its_dtype() -> None:
    assert Form("x", "float16", (3, 5)).row_items == 15
    assert Form("x", "float16", (3, 5)).row_bytes == 30
    assert Form("x", "bool").row_bytes == 1
    assert Form("x", "").row_bytes == 0
    assert Form("x", "int64", (0,)).row_bytes == 0
