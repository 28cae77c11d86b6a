"""Columns that no file has: where each row of a row group came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from dask_loader.catalog.forms import Form
from dask_loader.catalog.provenance import FILE, ROW, ROW_GROUP
from dask_loader.read.task import SliceTask


def add_origin(
    table: pa.Table, task: SliceTask, forms: Sequence[Form], first: int
) -> pa.Table:
    """Append columns to a table of consecutive rows of a row group, before filtering.

    Args:
        table: Columns of the file.
        task: The row group.
        forms: The columns to make.
        first: The row of the row group that the table begins with.
    """
    for form in forms:
        values = _values(task, form, first, table.num_rows)
        table = table.append_column(form.name, values)
    return table


def origin_tables(
    task: SliceTask, forms: Sequence[Form], max_rows: int
) -> Iterator[pa.Table]:
    """Yield these columns alone for all rows of a row group: nothing is decoded."""
    for first in range(0, task.group_rows, max_rows):
        num_rows = min(max_rows, task.group_rows - first)
        columns = [_values(task, form, first, num_rows) for form in forms]
        yield pa.table(columns, names=[form.name for form in forms])


def _values(task: SliceTask, form: Form, first: int, num_rows: int) -> pa.Array:
    if form.name == ROW:
        return pa.array(np.arange(first, first + num_rows, dtype=form.dtype))
    value = {FILE: task.file_index, ROW_GROUP: task.row_group}[form.name]
    return pa.array(np.full(num_rows, value, dtype=form.dtype))
