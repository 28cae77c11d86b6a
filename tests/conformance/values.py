"""A file's values as pyarrow alone reads them, in the forms that docs/types.md promises.

Written apart from the package, over Arrow's arrays and Python's lists: what is compared
must not come from the code that is tested.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_EXACT_DIGITS = 18
_TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


def is_text(kind: pa.DataType) -> bool:
    """Whether a leaf is delivered as str or bytes."""
    return any(test(kind) for test in _TEXTS)


def leaves(name: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Yield name and type of each column that a column is delivered as."""
    if isinstance(kind, pa.BaseExtensionType):
        yield from leaves(name, kind.storage_type)
    elif pa.types.is_dictionary(kind):
        yield from leaves(name, kind.value_type)
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from leaves(f"{name}.{field.name}", field.type)
    elif pa.types.is_map(kind):
        yield from leaves(f"{name}.key", kind.key_type)
        yield from leaves(f"{name}.value", kind.item_type)
    elif pa.types.is_nested(kind):
        yield from leaves(name, kind.value_type)
    else:
        yield name, kind


def choices(schema: pa.Schema) -> dict[str, Any]:
    """Return nulls= and dtypes= with which any file of this schema can be read."""
    flat = [leaf for field in schema for leaf in leaves(field.name, field.type)]
    wide = [name for name, kind in flat if _is_wide(kind)]
    return {
        "nulls": {name: None if is_text(kind) else 0 for name, kind in flat},
        "dtypes": dict.fromkeys(wide, "float64") or None,
    }


def expected(file: pq.ParquetFile) -> dict[str, list[Any]]:
    """Return every value of a file by delivered column, nulls as choices() fills them."""
    found: dict[str, list[Any]] = {}
    schema = file.schema_arrow
    flat = [name for field in schema for name, _ in leaves(field.name, field.type)]
    for name in flat:
        found[name] = []
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, use_threads=False)
        for field, column in zip(table.schema, table.columns, strict=True):
            for chunk in column.chunks:
                for name, values in _flat(field.name, chunk):
                    found[name] += values
    return found


def _is_wide(kind: pa.DataType) -> bool:
    return pa.types.is_decimal(kind) and kind.precision > _EXACT_DIGITS


def _flat(name: str, array: pa.Array) -> list[tuple[str, list[Any]]]:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _flat(name, array.storage)
    if pa.types.is_dictionary(kind):
        return _flat(name, array.dictionary_decode())
    if pa.types.is_struct(kind):
        parts = zip(kind, array.flatten(), strict=True)
        return [leaf for f, part in parts for leaf in _flat(f"{name}.{f.name}", part)]
    if pa.types.is_map(kind):
        items = _flat(f"{name}.key", array.keys) + _flat(f"{name}.value", array.items)
        return [(leaf, _rows(array, values)) for leaf, values in items]
    if pa.types.is_fixed_size_list(kind):
        assert not array.null_count
        assert not array.offset
        size = kind.list_size
        return [
            (leaf, [values[i * size : (i + 1) * size] for i in range(len(array))])
            for leaf, values in _flat(name, array.values)
        ]
    if pa.types.is_nested(kind):
        return [(leaf, _rows(array, v)) for leaf, v in _flat(name, array.values)]
    return [(name, _leaf(array))]


def _rows(lists: pa.Array, values: list[Any]) -> list[Any]:
    ends = lists.offsets.to_pylist()
    there = lists.is_valid().to_pylist()
    return [
        values[ends[i] : ends[i + 1]] if there[i] else [] for i in range(len(there))
    ]


def _leaf(array: pa.Array) -> list[Any]:
    kind = array.type
    if pa.types.is_null(kind):
        return [0] * len(array)
    if pa.types.is_temporal(kind):
        array = array.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    values = array.to_pylist()
    if is_text(kind):
        return values
    if pa.types.is_decimal(kind):
        return [0 if v is None else _decimal(v, kind) for v in values]
    return [0 if v is None else v for v in values]


def _decimal(value: Decimal, kind: pa.DataType) -> int | float:
    return float(value) if _is_wide(kind) else int(value.scaleb(kind.scale))


def same(got: Any, want: Any) -> bool:
    """Whether two values are equal, NaN being equal to itself."""
    if isinstance(want, list):
        return (
            isinstance(got, list)
            and len(got) == len(want)
            and all(map(same, got, want))
        )
    if isinstance(want, float) and math.isnan(want):
        return isinstance(got, float) and math.isnan(got)
    return bool(got == want) and isinstance(got, str | bytes) == isinstance(
        want, str | bytes
    )
