"""Columns as they are delivered, out of columns as files nest them. Pure.

A field of a struct is a column "a.b" of its own, with the struct's nulls in it. A map is
two columns of lists, "m.key" and "m.value", and so is a list of structs. Dictionaries and
run-end encoded columns are their values, Arrow's extension types what they store.
Fixed-size lists of what has no fixed size, text or lists, are lists. So each delivered
column is a number, a text, or (fixed-size) lists of these, and has one leaf in Parquet.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_WIDE = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
# Begins the names of columns that stand beside their flat selves. Parquet's own names
# hardly ever have it.
_OWN = "\0own "


class FlatColumn(NamedTuple):
    """A column that can be delivered.

    Attributes:
        name: Its own name, with those of the structs around it before it: "a.b".
        type: Its type without dictionaries, structs, maps and extensions. Lists are large
            lists.
        leaf: The index of its Parquet leaf.
        nullable: Whether the file says that it may hold nulls.
    """

    name: str
    type: pa.DataType
    leaf: int
    nullable: bool


def flat_columns(schema: pa.Schema) -> list[FlatColumn]:
    """Return what a file's columns are delivered as, in the order of their leaves."""
    found: list[FlatColumn] = []
    for field in schema:
        for name, kind in _flat_types(field.name, field.type):
            nullable = field.nullable or not _is_flat(field.type)
            found.append(FlatColumn(name, kind, len(found), nullable))
    return found


def flat_schema(schema: pa.Schema) -> pa.Schema:
    """Return the delivered columns' schema; names may come twice."""
    columns = flat_columns(schema)
    return pa.schema([pa.field(c.name, c.type, c.nullable) for c in columns])


def arrow_schema(schema: pa.Schema) -> pa.Schema:
    """Return what is delivered in Arrow's own types: columns as files have them.

    Fields of structs may be named too, by their flat names.
    """
    names = set(schema.names)
    return pa.schema(
        [*schema, *(f for f in flat_schema(schema) if f.name not in names)]
    )


def filter_schema(schema: pa.Schema) -> pa.Schema:
    """Return what filters may name: flat columns, and nested ones as files have them."""
    flat = flat_schema(schema)
    nested = [field for field in schema if field.name not in flat.names]
    return pa.schema([*flat, *nested])


def leaves_of(schema: pa.Schema) -> dict[str, range]:
    """Return, for each field of filter_schema(), the indices of its Parquet leaves.

    Leaves stand in the order of the schema. Their dotted paths are not used: a column
    called "a.b" could not be told from field b of a struct a.
    """
    columns = flat_columns(schema)
    found = {c.name: range(c.leaf, c.leaf + 1) for c in columns}
    start = 0
    for field in schema:
        stop = start + len(list(_flat_types(field.name, field.type)))
        found.setdefault(field.name, range(start, stop))
        start = stop
    return found


def flatten_table(
    table: pa.Table, nested: Sequence[str] = (), encoded: Sequence[str] = ()
) -> pa.Table:
    """Return a table's columns as flat_columns() says; plain ones as they are.

    Args:
        table: As Arrow reads it.
        nested: Nested columns that are appended as they are, for filters.
        encoded: Columns whose dictionaries are kept.
    """
    if all(_is_flat(field.type) for field in table.schema):
        return table
    names: list[str] = []
    columns: list[pa.ChunkedArray] = []
    for field, column in zip(table.schema, table.columns, strict=True):
        if _is_flat(field.type):
            names.append(field.name)
            columns.append(column)
            continue
        kinds = list(_flat_types(field.name, field.type))
        keep = any(name in encoded for name, _ in kinds)
        chunks = [_flat_arrays(chunk, keep=keep) for chunk in column.chunks]
        for place, (name, kind) in enumerate(kinds):
            names.append(name)
            arrays = [chunk[place] for chunk in chunks]
            if keep and arrays and name in encoded:
                kind = arrays[0].type
            elif keep:
                arrays = [_flat_arrays(array)[0] for array in arrays]
            columns.append(pa.chunked_array(arrays, kind))
    for name in nested:  # keys of directories, and what a file lacks, are in no table
        if name not in names and name in table.column_names:
            names.append(name)
            columns.append(table.column(name))
    return pa.table(columns, names=names)


def with_own_types(
    flat: pa.Table,
    table: pa.Table,
    names: Sequence[str],
    fitted: Collection[str] = (),
) -> pa.Table:
    """Append columns in the types that files have them in, to be found by own_columns().

    Args:
        flat: From flatten_table().
        table: As Arrow reads it.
        names: The columns of the table that are to be delivered so.
        fitted: Columns whose flat form will be given the dataset's type.
    """
    for name in names:
        if name not in table.column_names:
            continue
        column = table.column(name)
        flattened = name in flat.column_names
        if not flattened or (
            name not in fitted and flat.column(name).type != column.type
        ):
            flat = flat.append_column(_OWN + name, column)
    return flat


def own_columns(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Select columns, in their own types where with_own_types() appended them."""
    there = set(table.column_names)
    own = [_OWN + name if _OWN + name in there else name for name in names]
    return table.select(own).rename_columns(list(names))


def _is_flat(kind: pa.DataType) -> bool:
    return next(_flat_types("", kind)) == ("", kind)


def _flat_types(name: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Yield names and types of the columns that a type becomes, as its leaves follow."""
    if isinstance(kind, pa.BaseExtensionType):
        yield from _flat_types(name, _storage_type(kind))
    elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        yield from _flat_types(name, kind.value_type)
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _flat_types(f"{name}.{field.name}", field.type)
    elif pa.types.is_map(kind):
        for part, item in (("key", kind.key_type), ("value", kind.item_type)):
            for inner, flat in _flat_types(f"{name}.{part}", item):
                yield inner, pa.large_list(flat)
    elif _is_list(kind):
        for inner, flat in _flat_types(name, kind.value_type):
            yield inner, pa.large_list(flat)
    elif pa.types.is_fixed_size_list(kind):
        for inner, flat in _flat_types(name, kind.value_type):
            if _is_loose(flat):
                yield inner, pa.large_list(flat)
            else:
                yield inner, pa.list_(pa.field("item", flat), kind.list_size)
    else:
        yield name, _WIDE.get(kind, kind)


def _flat_arrays(array: pa.Array, *, keep: bool = False) -> list[pa.Array]:
    """Return the arrays that an array becomes, in the order of _flat_types.

    With `keep`, dictionaries stay what they are.
    """
    flat = partial(_flat_arrays, keep=keep)
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return flat(_stored(array))
    if pa.types.is_dictionary(kind):
        return [array] if keep else _flat_arrays(array.cast(kind.value_type))
    if pa.types.is_run_end_encoded(kind):
        return flat(pc.run_end_decode(array))
    if pa.types.is_struct(kind):
        return [part for field in array.flatten() for part in flat(field)]
    if pa.types.is_map(kind):
        parts = [*flat(array.keys), *flat(array.items)]
        return [_as_lists(array, part) for part in parts]
    if _is_list(kind):
        if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
            array = _without_views(array)
        return [_as_lists(array, part) for part in flat(array.values)]
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size
        values = array.values.slice(array.offset * width, len(array) * width)
        return [
            _as_even_lists(array, part, width)
            if _is_loose(part.type)
            else _as_fixed_lists(array, part, width)
            for part in flat(values)
        ]
    wide = _WIDE.get(kind)
    return [array if wide is None else array.cast(wide)]


def _as_lists(lists: pa.Array, values: pa.Array) -> pa.Array:
    """Return large lists of other values, where and as long as `lists` has them."""
    # Of a slice, .offsets are the slice's and .values the whole array's.
    offsets = lists.offsets.cast(pa.int64())
    mask = lists.is_null() if lists.null_count else None
    return pa.LargeListArray.from_arrays(
        offsets, values, type=pa.large_list(values.type), mask=mask
    )


def _without_views(views: pa.Array) -> pa.Array:
    """Return list views as large lists; Arrow's cast of large ones is broken (26.0)."""
    ends = np.zeros(len(views) + 1, dtype=np.int64)
    lengths = pc.fill_null(pc.list_value_length(views), 0)
    np.cumsum(lengths.to_numpy(zero_copy_only=False), out=ends[1:])
    mask = views.is_null() if views.null_count else None
    kind = pa.large_list(views.type.value_field)
    values = pc.list_flatten(views)
    return pa.LargeListArray.from_arrays(pa.array(ends), values, type=kind, mask=mask)


def _as_even_lists(lists: pa.Array, values: pa.Array, width: int) -> pa.Array:
    """Return large lists of `width` values each, null where `lists` are."""
    mask = lists.is_null() if lists.null_count else None
    ends = pa.array(np.arange(len(lists) + 1, dtype=np.int64) * width)
    return pa.LargeListArray.from_arrays(
        ends, values, type=pa.large_list(values.type), mask=mask
    )


def fixed_lists(
    values: pa.Array, width: int, num_rows: int, mask: pa.Array | None = None
) -> pa.Array:
    """Return fixed-size lists of values, null where the mask is.

    Without width there is nothing to tell the rows by; Arrow would divide by it.
    """
    kind = pa.list_(pa.field("item", values.type), width)
    if width:
        return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=mask)
    nulls = [False] * num_rows if mask is None else mask.to_pylist()
    return pa.array([None if null else [] for null in nulls], kind)


def nested_lists(values: pa.Array, shape: Sequence[int], num_rows: int) -> pa.Array:
    """Return rows of a shape as nested fixed-size lists of values."""
    for depth in reversed(range(len(shape))):
        outer = math.prod(shape[:depth]) * num_rows
        values = fixed_lists(values, shape[depth], outer)
    return values


def _as_fixed_lists(lists: pa.Array, values: pa.Array, width: int) -> pa.Array:
    """Return fixed-size lists of other values, null where `lists` are."""
    mask = lists.is_null() if lists.null_count else None
    return fixed_lists(values, width, len(lists), mask)


def _stored(array: pa.Array) -> pa.Array:
    """Return what an array of an extension type stores; see _storage_type."""
    kind, storage = array.type, array.storage
    if not _is_shaped(kind):
        return storage.cast(_storage_type(kind))
    items = storage.type.list_size
    values = storage.values.slice(storage.offset * items, len(storage) * items)
    inner = nested_lists(values, kind.shape[1:], len(storage) * kind.shape[0])
    return _as_fixed_lists(storage, inner, kind.shape[0])


def _is_shaped(kind: pa.BaseExtensionType) -> bool:
    """Whether a type is a tensor of fixed shape, whose axes are in their order."""
    if not isinstance(kind, pa.FixedShapeTensorType):
        return False
    return not kind.permutation or list(kind.permutation) == sorted(kind.permutation)


def _storage_type(kind: pa.BaseExtensionType) -> pa.DataType:
    """Return what an extension type stores, a tensor of fixed shape as nested lists."""
    if _is_shaped(kind):
        nested = kind.value_type
        for length in reversed(kind.shape):
            nested = pa.list_(pa.field("item", nested), length)
        return nested
    if isinstance(kind, pa.Bool8Type):
        return pa.bool_()
    return kind.storage_type


def _is_loose(kind: pa.DataType) -> bool:
    """Whether values of a flat type differ in length."""
    while pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    tests = (pa.types.is_primitive, pa.types.is_decimal, pa.types.is_null)
    return not any(test(kind) for test in tests)


def _is_list(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(test(kind) for test in tests)
