"""Arrow arrays into fixed-layout NumPy columns, by copying: never a view on Arrow's memory.

Tensors are the user's to write into, and Arrow's buffers may be shared, cached or mapped
read-only. The copy into a warm block costs about a tenth of decoding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dask_loader.read.cast import cast_into


class Flat(NamedTuple):
    """The elements of an array without their nesting.

    Attributes:
        values: All elements, undefined where null; a view on Arrow's memory or a copy.
        valid: Which elements are no nulls, bool, same length; None if all.
        null_count: Null elements, and null lists counted as one each.
    """

    values: NDArray[np.generic]
    valid: NDArray[np.bool_] | None
    null_count: int


def flatten(array: pa.Array, dtype: str = "") -> Flat:
    """Return the elements of an array.

    Not by Array.flatten(), which drops null lists, and not by Array.to_numpy(), which turns
    integers with nulls into floats.

    Args:
        array: Of numbers, bool, time-like, or fixed-size lists of them.
        dtype: Decimals are rounded to it if it is a float's; else they come as int64
            without their point.
    """
    kind = array.type
    if pa.types.is_decimal(kind):
        return flatten(_plain_decimals(array, dtype))
    if not pa.types.is_fixed_size_list(kind):
        valid = _valid(array) if array.null_count else None
        return Flat(_values(array), valid, array.null_count)
    width = kind.list_size
    inner = flatten(array.values.slice(array.offset * width, len(array) * width), dtype)
    if not array.null_count:
        return inner
    items = len(inner.values) // max(1, len(array))
    valid = np.repeat(_bits(array.buffers()[0], array), items)
    if inner.valid is not None:
        valid &= inner.valid
    return Flat(inner.values, valid, array.null_count + inner.null_count)


def copy_fixed(
    array: pa.Array, out: NDArray[np.generic], fill: Any | None, *, exact: bool = True
) -> int:
    """Copy an array into out, casting it to out's dtype, with fill in place of nulls.

    Args:
        array: Numbers, bool, time-like, or fixed-size lists of them.
        out: One row for each of the array's, shape (rows, *row shape), contiguous.
        fill: Value for nulls; None where they are not allowed.
        exact: Refuse integers that out's dtype can only hold rounded.

    Returns:
        Nulls found; if there are any and fill is None, out is undefined.

    Raises:
        MisfitError: A number does not fit out's dtype; the text says which.
    """
    flat = flatten(array, str(out.dtype))
    if flat.null_count and fill is None:
        return flat.null_count
    flat_out = out.reshape(-1)
    cast_into(flat.values, flat_out, valid=flat.valid, exact=exact)
    if flat.valid is not None:
        np.copyto(flat_out, np.array(fill).astype(out.dtype), where=~flat.valid)
    return flat.null_count


def fill_text(array: pa.Array, fill: str | bytes | None) -> pa.Array:
    """Replace nulls of a text column; None keeps them."""
    if fill is None or not array.null_count:
        return array
    if not fill and pa.types.is_fixed_size_binary(array.type):
        fill = bytes(array.type.byte_width)
    return pc.fill_null(array, pa.scalar(fill).cast(array.type))


def _plain_decimals(array: pa.Array, dtype: str) -> pa.Array:
    kind = array.type
    if dtype and np.dtype(dtype).kind == "f":
        return array.cast(pa.float64())
    # The point is moved behind the last digit, which changes the type and no bit.
    whole = pa.decimal128(kind.precision, 0)
    if kind.bit_width != whole.bit_width:
        array = array.cast(pa.decimal128(kind.precision, kind.scale))
    moved = pa.Array.from_buffers(
        whole, len(array), array.buffers(), array.null_count, array.offset
    )
    return moved.cast(pa.int64())


def _values(array: pa.Array) -> NDArray[np.generic]:
    if pa.types.is_null(array.type):
        return np.zeros(len(array), dtype=np.float32)
    kind, data = array.type, array.buffers()[1]
    if pa.types.is_boolean(kind):
        return _bits(data, array)
    bits = kind.bit_width
    if pa.types.is_temporal(kind):
        dtype = np.dtype(f"i{bits // 8}")
    else:
        dtype = np.dtype(kind.to_pandas_dtype())
    if data is None:
        return np.zeros(len(array), dtype=dtype)
    start = array.offset * dtype.itemsize
    return np.frombuffer(data, dtype=dtype, count=len(array), offset=start)


def _valid(array: pa.Array) -> NDArray[np.bool_]:
    if pa.types.is_null(array.type):
        return np.zeros(len(array), dtype=np.bool_)
    return _bits(array.buffers()[0], array)


def _bits(bitmap: pa.Buffer | None, array: pa.Array) -> NDArray[np.bool_]:
    if bitmap is None:
        return np.ones(len(array), dtype=np.bool_)
    first, skip = divmod(array.offset, 8)
    num_bytes = -(-(skip + len(array)) // 8)
    packed = np.frombuffer(bitmap, dtype=np.uint8, count=num_bytes, offset=first)
    bits = np.unpackbits(packed, count=skip + len(array), bitorder="little")
    return bits[skip:].view(np.bool_)
