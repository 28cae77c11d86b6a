"""Lists of any length in one plain layout: large lists of numbers or texts, without nulls.

Or padded to one length, as an array.

Arrow's lists may be slices of longer arrays, and may hold values under null lists; what is
made here holds its own values only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dask_loader.catalog.flat import nested_lists
from dask_loader.catalog.forms import Form
from dask_loader.catalog.vocabulary import Vocabulary
from dask_loader.read.cast import MisfitError, cast_into
from dask_loader.read.codes import encode
from dask_loader.read.columns import copy_fixed, fill_text, flatten

_WIDE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}


def plain_lists(
    array: pa.Array,
    form: Form,
    *,
    allowed: bool,
    fill: Any,
    vocabulary: Vocabulary | None = None,
) -> tuple[pa.Array, int]:
    """Return large lists whose numbers have the form's dtype.

    Args:
        array: (Nested) large lists.
        form: Has the dtype.
        allowed: Whether nulls may be replaced.
        fill: What null elements become; null lists become empty ones. None for texts
            keeps None.
        vocabulary: The column's, where it is delivered as codes.

    Returns:
        The lists, and the nulls found in all levels. If there are any and they are not
        allowed, the lists are undefined.

    Raises:
        MisfitError: A number does not fit the form's dtype.
    """
    if not pa.types.is_large_list(array.type):
        if vocabulary is not None:
            array = encode(array, form, vocabulary)
        return _leaves(array, form, allowed=allowed, fill=fill)
    offsets = np.zeros(len(array) + 1, dtype=np.int64)
    np.cumsum(_lengths(array), out=offsets[1:])
    # Not .values: these would be the whole array's, and those under null lists.
    values, nulls = plain_lists(
        pc.list_flatten(array),
        form,
        allowed=allowed,
        fill=fill,
        vocabulary=vocabulary,
    )
    kind = pa.large_list(pa.field("item", values.type))
    plain = pa.LargeListArray.from_arrays(pa.array(offsets), values, type=kind)
    return plain, nulls + array.null_count


def copy_padded(
    array: pa.Array,
    out: NDArray[np.generic],
    form: Form,
    fill: Any | None,
    vocabulary: Vocabulary | None = None,
) -> int:
    """Copy lists of numbers into rows of one length.

    Args:
        array: Large lists of numbers, or of fixed-size lists of them.
        out: One row for each list, shape (rows, length, *element shape).
        form: Says how they are padded.
        fill: What null elements become; null lists become empty ones. None where nulls
            are not allowed.
        vocabulary: The column's, where it is delivered as codes.

    Returns:
        Nulls found; if there are any and fill is None, out is undefined.

    Raises:
        MisfitError: A list is too long, or a number does not fit out's dtype.
    """
    pad = form.pad
    assert pad is not None
    lengths = _lengths(array)
    longest = int(lengths.max(initial=0))
    if longest > pad.length:
        if not pad.cut:
            raise MisfitError(
                f"the longest list has {longest} elements, more than the {pad.length} of "
                f"ragged={{{form.name!r}: ({pad.length}, {pad.fill!r})}}",
                f'give a greater length, or ({pad.length}, {pad.fill!r}, "cut") to lose '
                "the ends of longer lists",
            )
        array = pc.list_slice(array, 0, pad.length)
        lengths = np.minimum(lengths, pad.length)
    values = pc.list_flatten(array)
    if vocabulary is not None:
        values = encode(values, form, vocabulary)
    items = np.empty((len(values), *out.shape[2:]), dtype=out.dtype)
    nulls = copy_fixed(values, items, fill, exact=form.exact) + int(array.null_count)
    if nulls and fill is None:
        return nulls
    out[...] = pad.fill
    out[np.arange(pad.length) < lengths[:, None]] = items
    return nulls


def _lengths(array: pa.Array) -> NDArray[np.int64]:
    """Return the lengths of large lists, 0 for null ones."""
    lengths = pc.list_value_length(array)
    if array.null_count:
        lengths = pc.fill_null(lengths, 0)
    found: NDArray[np.int64] = lengths.to_numpy(zero_copy_only=False)
    return found


def _leaves(
    array: pa.Array, form: Form, *, allowed: bool, fill: Any
) -> tuple[pa.Array, int]:
    if not form.items:
        filled = fill_text(array, fill) if allowed else array
        return filled.cast(_WIDE.get(filled.type, filled.type)), array.null_count
    flat = flatten(array, form.items)
    out = np.zeros(len(flat.values), dtype=form.items)
    if allowed or not flat.null_count:
        cast_into(flat.values, out, valid=flat.valid, exact=form.exact)
        if flat.valid is not None:
            np.copyto(out, np.array(fill).astype(out.dtype), where=~flat.valid)
    return nested_lists(pa.array(out), form.shape, len(array)), flat.null_count
