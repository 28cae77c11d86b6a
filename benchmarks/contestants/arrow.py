"""Arrow tables to batches of tensors, for contestants that leave this to their user.

Columns become NumPy arrays once for each table and are cut as views, which is the
cheapest way known; nothing is copied but bools, which Arrow keeps as bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

# Arrow's memory is read-only. The benchmark never writes into a batch.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def batches(
    table: pa.Table, batch_rows: int, order: Any = None
) -> Iterator[dict[str, Any]]:
    """Cut a table into batches.

    Args:
        table: Of numbers, lists of fixed size, and texts.
        batch_rows: Rows of each batch but the last.
        order: Row numbers, int64 of shape (rows,); None keeps the table's order.

    Yields:
        For each column a tensor of shape (rows, ...), or a list of str.
    """
    columns = {name: _column(table[name]) for name in table.column_names}
    if order is not None:
        columns = {name: _take(column, order) for name, column in columns.items()}
    for start in range(0, table.num_rows, batch_rows):
        yield {
            name: column[start : start + batch_rows]
            if isinstance(column, torch.Tensor)
            else column.slice(start, batch_rows).to_pylist()
            for name, column in columns.items()
        }


def _column(column: pa.ChunkedArray) -> Any:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_fixed_size_list(kind):
        flat = array.flatten().to_numpy(zero_copy_only=False)
        return torch.from_numpy(flat.reshape(len(array), kind.list_size))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):  # all of one length
        flat = array.flatten().to_numpy(zero_copy_only=False)
        return torch.from_numpy(flat.reshape(len(array), -1))
    return torch.from_numpy(array.to_numpy(zero_copy_only=False))


def _take(column: Any, order: Any) -> Any:
    if isinstance(column, torch.Tensor):
        return torch.from_numpy(np.take(column.numpy(), order, axis=0))
    return column.take(pa.array(order))
