"""A window in hand: columns of one length, and how they are laid out in one block.

Layout of a block: the fixed-width columns one after the other, each [rows, *row shape] in
C order and starting at a multiple of 64 bytes (a cache line, and what Arrow aligns to).
Text and binary stay Arrow arrays beside the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dask_loader.catalog.forms import Form

_ALIGNMENT = 64

Block = NDArray[np.uint8]


@dataclass(slots=True)
class WindowData:
    """The rows of one window.

    Attributes:
        num_rows: Rows in each column.
        arrays: Fixed-width columns, shape (rows, *row shape), writable, each aligned. They
            belong to whoever holds the window: nobody else reads or writes them.
        texts: Text and binary columns, immutable.
    """

    num_rows: int
    arrays: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    texts: dict[str, pa.Array] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Decoded bytes held."""
        fixed = sum(array.nbytes for array in self.arrays.values())
        return fixed + sum(int(text.nbytes) for text in self.texts.values())

    def __sizeof__(self) -> int:
        """Tell Dask what this holds; the default would be some 60 bytes."""
        return 64 + self.num_bytes


def block_bytes(forms: Sequence[Form], num_rows: int) -> int:
    """Return the length of the block that holds these columns."""
    return sum(_padded(form.row_bytes * num_rows) for form in forms)


def lay_out(
    forms: Sequence[Form], num_rows: int, block: Block
) -> dict[str, NDArray[np.generic]]:
    """Cut a block into columns.

    Args:
        forms: The columns in order; text takes no place.
        num_rows: Rows of each.
        block: uint8, at least block_bytes long, aligned, writable.

    Returns:
        Views on the block, by name, shape (rows, *row shape).
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    start = 0
    for form in forms:
        if not form.is_fixed:
            continue
        length = form.row_bytes * num_rows
        column = block[start : start + length].view(form.dtype)
        arrays[form.name] = column.reshape(num_rows, *form.shape)
        start += _padded(length)
    return arrays


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
