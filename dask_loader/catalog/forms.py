"""Which tensor form each column has: decided once, from the schema alone. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dask_loader.errors import UnsupportedTypeError


@dataclass(frozen=True, slots=True)
class Form:
    """How a column is delivered.

    Attributes:
        name: The column.
        dtype: NumPy dtype of the elements, as text; "" for Python objects (text, bytes).
        shape: Shape of one row: () or, for fixed-size lists, their lengths.
        feature: The feature that the column is a part of; "" where it is delivered alone.
        exact: Whether a cast to dtype must keep each integer exactly.
        made: Whether the column is in no file, but made where rows are decoded.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    feature: str = ""
    exact: bool = True
    made: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether each row takes the same number of bytes."""
        return bool(self.dtype)

    @property
    def row_items(self) -> int:
        """Elements in one row."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as delivered; 0 where rows differ."""
        return np.dtype(self.dtype).itemsize * self.row_items if self.is_fixed else 0


def form_of(field: pa.Field, *, path: str | None = None) -> Form:
    """Return the column's form.

    Integers, floats and bool keep their width. Dates, times, timestamps and durations
    become int64 in their own unit. A fixed-size list of these becomes one tensor with one
    more dimension. Text and binary become lists of str and bytes.

    Args:
        field: From the files' schema.
        path: A file that has it, for the error.

    Raises:
        UnsupportedTypeError: The type has no tensor form.
    """
    kind, shape = field.type, []
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    dtype = _dtype_of(kind)
    if dtype is None and not shape and _is_text(kind):
        dtype = ""
    if dtype is None:
        raise UnsupportedTypeError(
            f"column {field.name!r} has type {field.type}, which has no tensor form yet; "
            "leave it out with columns=[...], or write it as numbers, text or fixed-size "
            "lists",
            path=path,
            column=field.name,
        )
    return Form(field.name, dtype, tuple(shape))


def _dtype_of(kind: pa.DataType) -> str | None:
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return str(np.dtype(kind.to_pandas_dtype()))
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return "int64"
    return None


def _is_text(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(test(kind) for test in tests)
