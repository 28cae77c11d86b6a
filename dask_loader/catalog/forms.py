"""Which tensor form each column has: decided once, from the schema alone. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dask_loader.errors import UnsupportedTypeError

_OTHER_WAYS = (
    "leave it out with columns=[...], make numbers, text or lists of these of it with "
    'transform=..., or take Arrow\'s own values with output_format="arrow"'
)
# All numbers of so many decimal digits fit int64.
MAX_INT64_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Padding:
    """A length for all lists of a column.

    Attributes:
        length: Elements of each row.
        fill: Stands after the elements of a shorter list.
        cut: Whether longer lists lose their ends; else they are an error.
    """

    length: int
    fill: int | float | bool
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """How a column is delivered.

    Attributes:
        name: The column.
        dtype: NumPy dtype of the elements, as text; "" for Python objects (text, bytes)
            and for lists of any length.
        shape: Shape of one row: () or, for fixed-size lists, their lengths. For lists of
            any length, that of one of their elements.
        depth: How deep lists of any length are nested; 0 for none.
        items: NumPy dtype of the numbers in such lists; "" for text and bytes.
        feature: The feature that the column is a part of; "" where it is delivered alone.
        exact: Whether a cast to dtype must keep each integer exactly.
        made: Whether the column is in no file, but made where rows are decoded.
        pad: Lists of any length that are given one, which shape begins with.
        nested: Whether lists of any length become a torch.nested tensor.
        coded: Whether values are delivered as their places in a vocabulary.
        whole: Whether the column is delivered in Arrow's own type, nulls included.
        mask_of: The column that this one tells the nulls of, or "".
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    feature: str = ""
    exact: bool = True
    depth: int = 0
    items: str = ""
    made: bool = False
    pad: Padding | None = None
    nested: bool = False
    coded: bool = False
    whole: bool = False
    mask_of: str = ""

    @property
    def is_fixed(self) -> bool:
        """Whether each row takes the same number of bytes."""
        return bool(self.dtype)

    @property
    def has_stored_width(self) -> bool:
        """Whether a row takes row_bytes where it is decoded, too."""
        return self.is_fixed and self.pad is None and not self.coded

    @property
    def number(self) -> str:
        """NumPy dtype of the column's numbers, in lists or not; "" for text and bytes."""
        return self.dtype or self.items

    @property
    def row_items(self) -> int:
        """Elements in one row."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as delivered; 0 where rows differ."""
        return np.dtype(self.dtype).itemsize * self.row_items if self.is_fixed else 0


def form_of(
    field: pa.Field,
    *,
    path: str | None = None,
    dtype: str | None = None,
    any_type: bool = False,
) -> Form:
    """Return the column's form.

    Integers, floats and bool keep their width. Dates, times, timestamps and durations
    become int64 in their own unit, decimals of up to 18 digits int64 without their point
    (the schema has the scale). A fixed-size list of these becomes one tensor with one
    more dimension. Text and binary become lists of str and bytes. Lists of any length
    keep their lengths; their elements may have a shape.

    Args:
        field: Of a flat schema, see dask_loader.catalog.flat.
        path: A file that has it, for the error.
        dtype: NumPy dtype that the user wants it delivered in, or None.
        any_type: The column is not delivered as it is: one without a tensor form is told
            like text.

    Raises:
        UnsupportedTypeError: The type has no tensor form.
    """
    kind, depth, shape = field.type, 0, []
    while pa.types.is_large_list(kind):
        depth += 1
        kind = kind.value_type
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    found = _dtype_of(kind)
    if (
        found is None
        and pa.types.is_decimal(kind)
        and np.dtype(dtype or "O").kind == "f"
    ):
        found = dtype  # as many digits as there may be
    if found is None and not shape and _is_text(kind):
        found = ""
    if found is None and any_type:
        return Form(field.name, "")
    if found is None:
        raise UnsupportedTypeError(
            f"column {field.name!r} has type {field.type}, which has no tensor form; "
            + _way_out(field.name, kind),
            path=path,
            column=field.name,
        )
    if depth:
        return Form(field.name, "", tuple(shape), depth=depth, items=found)
    return Form(field.name, found, tuple(shape))


def _way_out(name: str, kind: pa.DataType) -> str:
    if pa.types.is_decimal(kind):
        return (
            f"{kind.precision} digits do not fit int64: round them with "
            f"dtypes={{{name!r}: torch.float64}}, {_OTHER_WAYS}"
        )
    return _OTHER_WAYS


def _dtype_of(kind: pa.DataType) -> str | None:
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return str(np.dtype(kind.to_pandas_dtype()))
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return "int64"
    if pa.types.is_decimal(kind) and kind.precision <= MAX_INT64_DIGITS:
        return "int64"
    if pa.types.is_null(kind):
        return "float32"  # nulls only: what they become is the user's to say
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
