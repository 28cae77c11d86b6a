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
]
REFUSED = (
    pa.null(),
    pa.decimal32(5, 2),
    pa.decimal128(20, 2),
    pa.list_(pa.int64()),
    pa.large_list(pa.float32()),
    pa.list_view(pa.int64()),
    pa.list_(pa.string(), 2),
    pa.list_(pa.list_(pa.int8()), 2),
    pa.struct([("a", pa.int64())]),
    pa.map_(pa.string(), pa.int64()),
    pa.dictionary(pa.int32(), pa.string()),
    pa.month_day_nano_interval(),
    pa.uuid(),
    pa.bool8(),
    pa.fixed_shape_tensor(pa.float32(), [2]),
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


def test_every_other_type_is_refused_by_name_with_a_way_out() -> None:
    for kind in REFUSED:
        with pytest.raises(
            UnsupportedTypeError, match="has no tensor form yet"
        ) as caught:
            form_of(pa.field("x", kind), path="/f.parquet")
        assert f"column 'x' has type {kind}" in str(caught.value)
        assert "leave it out with columns=[...]" in str(caught.value)
        assert (caught.value.path, caught.value.column) == ("/f.parquet", "x")


def test_a_row_has_as_many_bytes_as_items_of_its_dtype() -> None:
    assert Form("x", "float16", (3, 5)).row_items == 15
    assert Form("x", "float16", (3, 5)).row_bytes == 30
    assert Form("x", "bool").row_bytes == 1
    assert Form("x", "").row_bytes == 0
    assert Form("x", "int64", (0,)).row_bytes == 0
