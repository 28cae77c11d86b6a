"""A window in hand: columns of one length, laid out side by side in few blocks.

Columns of one dtype and row shape lie in one array [columns, rows, *row shape], so that
the pieces of a batch are cut and joined for many columns at once: with 40 columns that is
most of the consumer's work. A group is kept below a size that Dask's comm sends in one
frame. Each column begins at a multiple of 64 bytes (a cache line, and what Arrow aligns
to). Text and binary stay Arrow arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dask_loader.catalog.forms import Form

_ALIGNMENT = 64
# A group takes at most this part of a row, so that a group of a 64 MiB window stays far
# below the 64 MiB at which distributed splits a frame and joins the parts by a copy. It
# must not depend on the window: pieces of several windows are joined group by group.
_MAX_GROUP_SHARE = 1 / 4

Block = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ColumnGroup:
    """Columns of one dtype and row shape.

    Attributes:
        names: The columns.
        dtype: Theirs, as text.
        shape: Shape of one row.
        feature: Under which they are delivered together; "" for each alone.
        block: uint8, aligned, writable; the columns one after the other, each padded. It
            belongs to whoever holds the window: nobody else reads or writes it.
        data: View on the block, shape (columns, rows, *row shape); each column contiguous.
    """

    names: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    feature: str
    block: Block
    data: NDArray[np.generic]


@dataclass(slots=True)
class WindowData:
    """The rows of one window.

    Attributes:
        num_rows: Rows in each column.
        groups: The fixed-width columns.
        texts: Text and binary columns, immutable.
        home: Names the shared slab that the groups lie in; None for private memory.
        stands_for: What it was read in place of, in words; "" if it is what was asked for.
        unchecked_rows: Rows from pages without a checksum; see read/checksums.py.
    """

    num_rows: int
    groups: list[ColumnGroup] = field(default_factory=list)
    texts: dict[str, pa.Array] = field(default_factory=dict)
    home: Any = None
    stands_for: str = ""
    unchecked_rows: int = 0

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The fixed-width columns by name, shape (rows, *row shape); views."""
        return {n: c for g in self.groups for n, c in zip(g.names, g.data, strict=True)}

    @property
    def num_bytes(self) -> int:
        """Decoded bytes held."""
        fixed = sum(group.data.nbytes for group in self.groups)
        return fixed + sum(int(text.nbytes) for text in self.texts.values())

    def __sizeof__(self) -> int:
        """Tell Dask what this holds; the default would be some 60 bytes."""
        return 64 + self.num_bytes


def block_bytes(forms: Sequence[Form], num_rows: int) -> int:
    """Return the length of the block that holds these columns."""
    return sum(_padded(form.row_bytes * num_rows) for form in forms)


def lay_out(forms: Sequence[Form], num_rows: int, block: Block) -> list[ColumnGroup]:
    """Cut a block into groups of columns.

    Args:
        forms: The columns; text takes no place.
        num_rows: Rows of each.
        block: uint8, at least block_bytes long, aligned, writable.
    """
    groups, start = [], 0
    for members in _grouped(forms):
        form = members[0]
        stop = start + len(members) * _padded(form.row_bytes * num_rows)
        names = tuple(member.name for member in members)
        kind = GroupKind(names, form.dtype, form.shape, form.feature)
        groups.append(make_group(kind, num_rows, block[start:stop]))
        start = stop
    return groups


class GroupKind(NamedTuple):
    """What tells how a group's block is to be read; see ColumnGroup."""

    names: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    feature: str


def kind_of(group: ColumnGroup) -> GroupKind:
    """Return a group's kind."""
    return GroupKind(group.names, group.dtype, group.shape, group.feature)


def make_group(kind: GroupKind, num_rows: int, block: Block) -> ColumnGroup:
    """Put a group over its block."""
    columns = block.view(kind.dtype).reshape(len(kind.names), -1)
    items = num_rows * math.prod(kind.shape)
    data = columns[:, :items].reshape(len(kind.names), num_rows, *kind.shape)
    return ColumnGroup(*kind, block, data)


def _grouped(forms: Sequence[Form]) -> Iterator[list[Form]]:
    # sorted() is stable: columns of one kind keep their order.
    fixed = sorted((f for f in forms if f.is_fixed), key=_kind)
    row_bytes = sum(form.row_bytes for form in fixed)
    for _, members in groupby(fixed, key=_kind):
        alike = list(members)
        share = int(row_bytes * _MAX_GROUP_SHARE) // max(1, alike[0].row_bytes)
        if alike[0].feature:
            share = len(alike)  # a feature is one array, whatever its size
        for i in range(0, len(alike), max(1, share)):
            yield alike[i : i + max(1, share)]


def _kind(form: Form) -> tuple[str, str, tuple[int, ...]]:
    return form.feature, form.dtype, form.shape


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
