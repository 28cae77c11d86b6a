"""Lists of any length in one plain layout: large lists of numbers or texts, without nulls.

Arrow's lists may be slices of longer arrays, and may hold values under null lists; what is
made here holds its own values only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dask_loader.catalog.forms import Form
from dask_loader.read.cast import cast_into
from dask_loader.read.columns import fill_text, flatten

_WIDE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}


def plain_lists(
    array: pa.Array, form: Form, *, allowed: bool, fill: Any
) -> tuple[pa.Array, int]:
    """Return large lists whose numbers have the form's dtype.

    Args:
        array: (Nested) large lists.
        form: Has the dtype.
        allowed: Whether nulls may be replaced.
        fill: What null elements become; null lists become empty ones. None for texts
            keeps None.

    Returns:
        The lists, and the nulls found in all levels. If there are any and they are not
        allowed, the lists are undefined.

    Raises:
        MisfitError: A number does not fit the form's dtype.
    """
    if not pa.types.is_large_list(array.type):
        return _leaves(array, form, allowed=allowed, fill=fill)
    lengths = pc.list_value_length(array)
    if array.null_count:
        lengths = pc.fill_null(lengths, 0)
    offsets = np.zeros(len(array) + 1, dtype=np.int64)
    np.cumsum(lengths.to_numpy(zero_copy_only=False), out=offsets[1:])
    # Not .values: these would be the whole array's, and those under null lists.
    values, nulls = plain_lists(
        pc.list_flatten(array), form, allowed=allowed, fill=fill
    )
    kind = pa.large_list(pa.field("item", values.type))
    plain = pa.LargeListArray.from_arrays(pa.array(offsets), values, type=kind)
    return plain, nulls + array.null_count


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
    items = pa.array(out)
    for length in reversed(form.shape):
        kind = pa.list_(pa.field("item", items.type), length)
        items = pa.FixedSizeListArray.from_arrays(items, type=kind)
    return items, flat.null_count
