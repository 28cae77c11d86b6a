"""Walks a footer without Arrow: just enough of Thrift's compact protocol for statistics.

Fields and lists are taken as Arrow takes them: a field of another kind than Parquet's is
passed over, what a list says of its items is not looked at where Parquet says it, and of
a field that comes twice the later wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

# Kinds of the compact protocol. Both booleans hold their value in the field's header.
BOOLEANS = (1, 2)
BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT, UUID = range(3, 14)
_INTEGERS = (I16, I32, I64)
# As Thrift's own reader.
_MAX_DEPTH = 64
_MAX_VARINT_BYTES = 10

# What takes a field's value, and returns where it ends.
_Take = Callable[[bytes, int, Any], int]
# By the number of the field; the kind that it must be of.
_Takers = Mapping[int, tuple[int, _Take]]


class ThriftError(ValueError):
    """These bytes are not what a footer consists of."""


@dataclass(slots=True)
class Chunk:
    """What a footer says of a column chunk.

    Attributes:
        physical: Parquet's number of its type, or None.
        path: The names that lead to it, as they lie in the footer.
        lengths: Bytes of each bound in its statistics, by the number of its field.
    """

    physical: int | None = None
    path: bytes = b""
    lengths: dict[int, int] = field(default_factory=dict)

    def shortest(self, *, is_ordered: bool) -> int | None:
        """Return the bytes of the shorter bound, or None where Arrow decodes none.

        Args:
            is_ordered: Whether the footer tells how the column's values are ordered.
        """
        # min_value and max_value; before orders were told, min and max.
        bounds = [self.lengths.get(n) for n in ((5, 6) if is_ordered else (1, 2))]
        found = [n for n in bounds if n is not None]
        return min(found) if len(found) == len(bounds) else None


@dataclass(slots=True)
class Footer:
    """What a walk found.

    Attributes:
        groups: The chunks of each row group; None for one whose metadata lie elsewhere.
        orders: For each column, whether its order is told.
        schema_end: Where the list that is the schema ends.
        groups_end: Where the list of row groups ends.
    """

    groups: list[list[Chunk | None]] = field(default_factory=list)
    orders: list[bool] = field(default_factory=list)
    schema_end: int = 0
    groups_end: int = 0


def walk(data: bytes) -> Footer:
    """Walk a footer: 15 us for each column chunk.

    Args:
        data: Begins with a FileMetaData; what comes behind it is not looked at.

    Raises:
        ThriftError: It is none.
    """
    found = Footer()
    try:
        _struct(data, 0, _FOOTER, found)
    except IndexError:
        raise ThriftError("it ends within a field") from None
    return found


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number, and where it ends.

    Raises:
        ThriftError: It is longer than any.
        IndexError: The data end before.
    """
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    number, shift = byte & 127, 7
    for next_at in range(at + 1, at + _MAX_VARINT_BYTES):
        byte = data[next_at]
        number |= (byte & 127) << shift
        if byte < 128:
            return number, next_at + 1
        shift += 7
    raise ThriftError("a number is too long")


def write_varint(number: int) -> bytes:
    """Write a number that is not negative."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def list_head(data: bytes, at: int) -> tuple[int, int, int]:
    """Return how many items a list has, their kind, and where they begin."""
    head = data[at]
    size, at = (head >> 4, at + 1) if head < 0xF0 else varint(data, at + 1)
    if size > len(data) - at:  # an item has a byte at least
        raise ThriftError(f"a list has {size} items, and fewer bytes follow")
    return size, head & 15, at


def _struct(data: bytes, at: int, takers: _Takers, into: Any) -> int:
    last = 0
    while kind := (head := data[at]) & 15:
        at += 1
        if head >> 4:
            last += head >> 4
        else:
            number, at = varint(data, at)
            last = (number >> 1) ^ -(number & 1)
        taker = takers.get(last)
        if taker is not None and taker[0] == kind:
            at = taker[1](data, at, into)
        else:
            at = skip(data, at, kind)
    return at + 1


def skip(data: bytes, at: int, kind: int, depth: int = 0) -> int:
    """Return where a value of any kind ends.

    Raises:
        ThriftError: It is none.
        IndexError: The data end before.
    """
    if kind in _INTEGERS:
        return varint(data, at)[1]
    if kind == BINARY:
        size, at = varint(data, at)
        if size > len(data) - at:
            raise ThriftError(f"a text has {size} bytes")
        return at + size
    if kind in BOOLEANS:
        return at
    if depth > _MAX_DEPTH:
        raise ThriftError("structs lie too deep in each other")
    if kind == STRUCT:
        while kind := (head := data[at]) & 15:
            at = at + 1 if head >> 4 else varint(data, at + 1)[1]
            at = skip(data, at, kind, depth + 1)
        return at + 1
    if kind in (LIST, SET):
        size, item, at = list_head(data, at)
        return _skip_items(data, at, size, (item,), depth + 1)
    if kind == MAP:
        size, at = varint(data, at)
        if not size:
            return at
        if size > len(data):
            raise ThriftError(f"a map has {size} items")
        kinds = data[at] >> 4, data[at] & 15
        return _skip_items(data, at + 1, size, kinds, depth + 1)
    return at + _size_of(kind)


def _skip_items(
    data: bytes, at: int, size: int, kinds: tuple[int, ...], depth: int
) -> int:
    for _ in range(size):
        for kind in kinds:
            # A boolean that is an item has a byte.
            at = at + 1 if kind in BOOLEANS else skip(data, at, kind, depth)
    return at


def _size_of(kind: int) -> int:
    sizes = {BYTE: 1, DOUBLE: 8, UUID: 16}
    if kind not in sizes:
        raise ThriftError(f"there is no kind {kind}")
    return sizes[kind]


def _items(kind: int, data: bytes, at: int, into: Any) -> int:
    del into
    size, _, at = list_head(data, at)
    return _skip_items(data, at, size, (kind,), 0)


def _sizes(data: bytes, at: int, chunk: Chunk) -> int:
    return _struct(data, at, _SIZES, chunk)


def _type(data: bytes, at: int, chunk: Chunk) -> int:
    number, at = varint(data, at)
    chunk.physical = (number >> 1) ^ -(number & 1)
    return at


def _path(data: bytes, at: int, chunk: Chunk) -> int:
    size, _, stop = list_head(data, at)
    stop = _skip_items(data, stop, size, (BINARY,), 0)
    chunk.path = data[at:stop]
    return stop


def _bound(name: int, data: bytes, at: int, chunk: Chunk) -> int:
    stop = skip(data, at, BINARY)
    chunk.lengths[name] = varint(data, at)[0]
    return stop


def _statistics(data: bytes, at: int, chunk: Chunk) -> int:
    return _struct(data, at, _STATISTICS, chunk)


def _meta_data(data: bytes, at: int, group: list[Chunk | None]) -> int:
    chunk = group[-1] = group[-1] or Chunk()
    return _struct(data, at, _META_DATA, chunk)


def _columns(data: bytes, at: int, group: list[Chunk | None]) -> int:
    size, _, at = list_head(data, at)
    group.clear()
    for _ in range(size):
        group.append(None)
        at = _struct(data, at, _COLUMN, group)
    return at


def _schema(data: bytes, at: int, footer: Footer) -> int:
    footer.schema_end = at = _items(STRUCT, data, at, footer)
    return at


def _row_groups(data: bytes, at: int, footer: Footer) -> int:
    size, _, at = list_head(data, at)
    footer.groups = []
    for _ in range(size):
        footer.groups.append([])
        at = _struct(data, at, _ROW_GROUP, footer.groups[-1])
    footer.groups_end = at
    return at


def _type_order(data: bytes, at: int, orders: list[bool]) -> int:
    orders[-1] = True
    return skip(data, at, STRUCT)


def _orders(data: bytes, at: int, footer: Footer) -> int:
    size, _, at = list_head(data, at)
    footer.orders = []
    for _ in range(size):
        footer.orders.append(False)
        at = _struct(data, at, _ORDER, footer.orders)
    return at


# What is taken, by the numbers of the fields.
_STATISTICS = {name: (BINARY, partial(_bound, name)) for name in (1, 2, 5, 6)}
_INTS, _LONGS, _STRUCTS = ((LIST, partial(_items, kind)) for kind in (I32, I64, STRUCT))
_SIZES = {2: _LONGS, 3: _LONGS}
_META_DATA: _Takers = {
    1: (I32, _type),
    2: _INTS,
    3: (LIST, _path),
    8: _STRUCTS,
    12: (STRUCT, _statistics),
    13: _STRUCTS,
    16: (STRUCT, _sizes),
}
_COLUMN = {3: (STRUCT, _meta_data)}
_ROW_GROUP: _Takers = {1: (LIST, _columns), 4: _STRUCTS}
_ORDER = {1: (STRUCT, _type_order)}
_FOOTER: _Takers = {
    2: (LIST, _schema),
    4: (LIST, _row_groups),
    5: _STRUCTS,
    7: (LIST, _orders),
}
