"""Columns and schemas: which are asked for, and how schemas are packed."""

from __future__ import annotations

import difflib
from typing import Any

import pyarrow as pa

from dask_loader.errors import ColumnError


def check_columns(columns: Any) -> tuple[str, ...] | None:
    """Check what the user gave for columns=, before any file is read.

    Raises:
        ColumnError: Not a list of text, empty, or with a name twice.
    """
    if columns is None:
        return None
    if isinstance(columns, str) or not isinstance(columns, list | tuple):
        raise ColumnError(
            f"columns={columns!r} must be a list of names, such as "
            f"columns={[columns] if isinstance(columns, str) else ['x', 'y']!r}"
        )
    if not columns:
        raise ColumnError("columns=[] asks for no column; name one, or leave it out")
    for name in columns:
        if not isinstance(name, str):
            raise ColumnError(f"columns={columns!r} holds {name!r}, which is not text")
        if columns.count(name) > 1:
            raise ColumnError(
                f"column {name!r} stands twice in columns={columns!r}; a batch is a dict "
                "and can hold it once",
                column=name,
            )
    return tuple(columns)


def choose_columns(
    schema: pa.Schema, columns: tuple[str, ...] | None, *, path: str
) -> tuple[str, ...]:
    """Return the columns to deliver, in order.

    Args:
        schema: The first file's.
        columns: From check_columns; None for all.
        path: The first file.

    Raises:
        ColumnError: One is not in the file, or is in it twice.
    """
    for name in schema.names if columns is None else columns:
        require_column(schema, name, "columns", path=path)
    return tuple(schema.names) if columns is None else columns


def require_column(schema: pa.Schema, name: str, argument: str, *, path: str) -> None:
    """Raise unless the file has exactly one column of this name.

    Raises:
        ColumnError: It has none (near names are offered) or several.
    """
    count = schema.names.count(name)
    if count > 1:
        raise ColumnError(
            f"{path!r} has {count} columns called {name!r}; rename them, or leave them "
            "out with columns=[...]",
            path=path,
            column=name,
        )
    if count == 0:
        near = difflib.get_close_matches(name, schema.names, n=3, cutoff=0.5)
        offer = " or ".join(repr(n) for n in near)
        known = ", ".join(repr(n) for n in schema.names[:8])
        more = len(schema.names) - 8
        hint = (
            f"did you mean {offer}?"
            if near
            else f"it has {known}" + (f" and {more} more" if more > 0 else "")
        )
        raise ColumnError(
            f"{argument} names {name!r}, which {path!r} does not have; {hint}",
            path=path,
            column=name,
        )


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return a type with all its inner fields nullable and of the same names."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(pa.field("item", plain_type(kind.value_type)), kind.list_size)
    return kind


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema of plain types, all nullable, without metadata."""
    return pa.schema([(field.name, plain_type(field.type)) for field in schema])


def pack_schema(schema: pa.Schema) -> bytes:
    """Write a schema without its metadata as bytes."""
    return bytes(schema.remove_metadata().serialize())


def unpack_schema(packed: bytes) -> pa.Schema:
    """Read what pack_schema wrote."""
    return pa.ipc.read_schema(pa.py_buffer(packed))
