"""Where values are null, as columns of bool."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dask_loader.catalog.flat import nested_lists
from dask_loader.catalog.forms import Form
from dask_loader.catalog.masks import ITEMS_VALID
from dask_loader.errors import NullError
from dask_loader.read.columns import flatten
from dask_loader.read.task import SliceTask


def add_masks(table: pa.Table, forms: Sequence[Form], piece: SliceTask) -> pa.Table:
    """Append the masks among some forms to a table that has their columns.

    Args:
        table: Flat columns.
        forms: The columns asked for.
        piece: The row group, for errors.

    Raises:
        NullError: A list within a list is null, which no mask tells.
    """
    for form in forms:
        if not form.mask_of:
            continue
        chunks = table.column(form.mask_of).chunks
        if form.name.endswith(ITEMS_VALID):
            found = [
                _items_valid(chunk, form, piece, outermost=True) for chunk in chunks
            ]
        else:
            found = [_valid(chunk, form) for chunk in chunks]
        table = table.append_column(form.name, pa.chunked_array(found))
    return table


def _valid(array: pa.Array, form: Form) -> pa.Array:
    """Return which rows are valid, or which of their elements for fixed-size lists."""
    if not form.shape:
        return pc.is_valid(array)
    return _shaped(array)


def _items_valid(
    array: pa.Array, form: Form, piece: SliceTask, *, outermost: bool
) -> pa.Array:
    if not pa.types.is_large_list(array.type):
        return _shaped(array)
    if array.null_count and not outermost:
        raise NullError(
            f"column {form.mask_of!r} has {array.null_count} null lists within lists in "
            f'{piece.path!r}, row group {piece.row_group}, which nulls="mask" does not '
            f"tell from empty ones; choose nulls={{{form.mask_of!r}: value}}, or "
            'output_format="arrow"',
            path=piece.path,
            row_group=piece.row_group,
            column=form.mask_of,
        )
    lengths = pc.fill_null(pc.list_value_length(array), 0)
    ends = np.zeros(len(array) + 1, dtype=np.int64)
    np.cumsum(lengths.to_numpy(zero_copy_only=False), out=ends[1:])
    # Not .values: these would be the whole array's, and those under null lists.
    values = _items_valid(pc.list_flatten(array), form, piece, outermost=False)
    return pa.LargeListArray.from_arrays(
        pa.array(ends), values, type=pa.large_list(values.type)
    )


def _shaped(array: pa.Array) -> pa.Array:
    """Return which elements of fixed-size lists are valid, in the same shape."""
    kind, widths = array.type, []
    while pa.types.is_fixed_size_list(kind):
        widths.append(kind.list_size)
        kind = kind.value_type
    if not widths:
        return pc.is_valid(array)
    flat = flatten(array)
    num_items = len(flat.values)
    found = pa.array(flat.valid) if flat.valid is not None else _all_true(num_items)
    return nested_lists(found, widths, len(array))


def _all_true(num_items: int) -> pa.Array:
    return pa.repeat(pa.scalar(True), num_items)
