"""Values of the structures in a footer, and where they lie; how lists are written. Pure.

Unlike thrift.py, which walks to a few things quickly and takes what Arrow takes, this reads
all there is and believes nothing: whatever the bytes are, the answer is values or a
ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dask_loader.catalog.thrift import (
    BINARY,
    BOOLEANS,
    BYTE,
    DOUBLE,
    I16,
    I32,
    I64,
    LIST,
    MAP,
    SET,
    STRUCT,
    UUID,
    list_head,
    varint,
    write_varint,
)

# Field number -> value: int, bool, bytes (also of a double), list, or such a dict.
Struct = dict[int, Any]

_TRUE = 1
# Parquet's own structures are six deep.
_MAX_DEPTH = 32


def read_fields(
    data: bytes, of_list: int, take: Callable[[int, int, Struct], None]
) -> dict[int, tuple[int, int, int]]:
    """Read the struct that bytes begin with, and one field of it item by item.

    Args:
        data: The bytes.
        of_list: The number of the field, a list of structs.
        take: Given start, stop and values of each of its items, which may be many.

    Returns:
        Kind, start and stop of each field.

    Raises:
        ValueError: There is no such struct.
    """
    fields: dict[int, tuple[int, int, int]] = {}
    at, number = 0, 0
    try:
        while data[at]:
            kind, number, at = _header(data, at, number)
            start = at
            if number == of_list and kind == LIST:
                count, kind_of_items, at = list_head(data, at)
                if kind_of_items != STRUCT and count:
                    raise ValueError("a list holds other things than structures")
                for _ in range(count):
                    first = at
                    values, at = _struct(data, at, 1)
                    take(first, at, values)
            else:
                _, at = _value(data, at, kind, 0)
            fields[number] = kind, start, at
    except IndexError:
        raise ValueError("it ends within a structure") from None
    return fields


def read_structs(data: bytes, at: int) -> list[Struct]:
    """Return the items of the list that begins at a byte.

    Raises:
        ValueError: There is no list of structs.
    """
    try:
        items, _ = _list(data, at, 0)
    except IndexError:
        raise ValueError("it ends within a list") from None
    if not all(isinstance(item, dict) for item in items):
        raise ValueError("a list holds other things than structures")
    return items


def write_list_head(count: int) -> bytes:
    """Write the beginning of a list of structs."""
    if count < 15:
        return bytes([count << 4 | STRUCT])
    return bytes([0xF0 | STRUCT]) + write_varint(count)


def write_header(kind: int, step: int) -> bytes:
    """Write the beginning of a field, so many numbers after the one before."""
    return bytes([step << 4 | kind])


def _header(data: bytes, at: int, before: int) -> tuple[int, int, int]:
    byte = data[at]
    at += 1
    if byte > 0x0F:
        return byte & 0x0F, before + (byte >> 4), at
    number, at = varint(data, at)
    return byte, (number >> 1) ^ -(number & 1), at


def _struct(data: bytes, at: int, depth: int) -> tuple[Struct, int]:
    # Nine tenths of the time are spent here, so numbers are read in place.
    if depth > _MAX_DEPTH:
        raise ValueError("structures are nested too deeply")
    found: Struct = {}
    number = 0
    while True:
        byte = data[at]
        if not byte:
            return found, at + 1
        kind = byte & 0x0F
        if byte > 0x0F:
            number += byte >> 4
            at += 1
        else:
            kind, number, at = _header(data, at, number)
        if kind in (I32, I64):
            value = data[at]
            at += 1
            if value > 0x7F:
                value, at = varint(data, at - 1)
            found[number] = (value >> 1) ^ -(value & 1)
        elif kind == BINARY:
            size = data[at]
            at += 1
            if size > 0x7F:
                size, at = varint(data, at - 1)
            text = data[at : at + size]
            if len(text) != size:
                raise ValueError("a text ends beyond the end")
            found[number] = text
            at += size
        elif kind == STRUCT:
            found[number], at = _struct(data, at, depth + 1)
        elif kind in BOOLEANS:
            found[number] = kind == _TRUE
        elif kind == LIST:
            found[number], at = _list(data, at, depth)
        else:
            found[number], at = _value(data, at, kind, depth)


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (I16, I32, I64):
        value, at = varint(data, at)
        return (value >> 1) ^ -(value & 1), at
    if kind == BINARY:
        size, at = varint(data, at)
        return _bytes(data, at, size)
    if kind == STRUCT:
        return _struct(data, at, depth + 1)
    if kind in (LIST, SET):
        return _list(data, at, depth)
    if kind in BOOLEANS:
        return kind == _TRUE, at
    if kind == BYTE:
        return data[at], at + 1
    if kind in (DOUBLE, UUID):
        return _bytes(data, at, 8 if kind == DOUBLE else 16)
    if kind == MAP:  # Parquet has none
        raise ValueError("it holds a map")
    raise ValueError(f"there is no kind {kind} of values")


def _list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    count, kind, at = list_head(data, at)
    items: list[Any] = []
    item: Any
    if kind == STRUCT:
        for _ in range(count):
            item, at = _struct(data, at, depth + 1)
            items.append(item)
        return items, at
    if kind in (I32, I64):
        for _ in range(count):
            value = data[at]
            at += 1
            if value > 0x7F:
                value, at = varint(data, at - 1)
            items.append((value >> 1) ^ -(value & 1))
        return items, at
    for _ in range(count):
        if kind in BOOLEANS:  # in lists, a byte each
            item, at = data[at] == _TRUE, at + 1
        else:
            if depth > _MAX_DEPTH:
                raise ValueError("structures are nested too deeply")
            item, at = _value(data, at, kind, depth + 1)
        items.append(item)
    return items, at


def _bytes(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    value = data[at : at + size]
    if len(value) != size:
        raise ValueError("a text ends beyond the end")
    return value, at + size
