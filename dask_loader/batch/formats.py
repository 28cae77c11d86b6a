"""Batches of tensors made batches of NumPy arrays, or Arrow tables.

The last thing that is done to a batch: what comes before knows tensors.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

import pyarrow as pa
import torch

from dask_loader.batch.ragged import Ragged
from dask_loader.batch.tensors import Batch
from dask_loader.transfer.texts import pack_texts


def numpy_each(
    batches: Generator[Batch, None, None],
) -> Generator[dict[str, Any], None, None]:
    """Yield batches with NumPy arrays in place of tensors, on the same memory."""
    with closing(batches):
        for batch in batches:
            yield {name: _as_numpy(column) for name, column in batch.items()}


def arrow_each(
    batches: Generator[Batch, None, None], schema: pa.Schema
) -> Generator[pa.Table, None, None]:
    """Yield batches as tables of a schema.

    Each has memory of its own: a slice of a window would keep the whole of it, and ship it
    where it is pickled.
    """
    with closing(batches):
        for batch in batches:
            columns = [_as_arrow(batch[field.name], field.type) for field in schema]
            table = pa.table(columns, schema=schema)
            yield _compact(table) if table.num_rows else table


def _as_numpy(column: Any) -> Any:
    if isinstance(column, Ragged):
        return Ragged(_as_numpy(column.values), _as_numpy(column.offsets))
    return column.numpy() if isinstance(column, torch.Tensor) else column


def _as_arrow(column: Any, kind: pa.DataType) -> Any:
    if isinstance(column, pa.ChunkedArray):
        return column if column.type == kind else column.cast(kind)
    return pa.array(_as_numpy(column), kind)


def _compact(table: pa.Table) -> pa.Table:
    """Copy a table's rows, and nothing else that its buffers hold."""
    columns = [column.combine_chunks() for column in table.columns]
    packed = pack_texts(dict(zip(table.column_names, columns, strict=True)))
    found: pa.Table = pa.ipc.open_stream(packed).read_all()
    return found.cast(table.schema)
