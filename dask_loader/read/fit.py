"""A file's columns made the dataset's: keys of directories, nulls, wider types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from dask_loader.catalog.fit import Fit
from dask_loader.catalog.keys import key_scalar
from dask_loader.errors import CastError
from dask_loader.read.task import SliceTask


def fitted(
    table: pa.Table, task: SliceTask, fit: Fit, names: Sequence[str]
) -> pa.Table:
    """Return a table with all columns that are asked for, in the dataset's types.

    Args:
        table: Rows of the slice's row group, as the file has them.
        task: Has the values of the keys.
        fit: What to do.
        names: The columns that are needed.

    Raises:
        CastError: A value does not fit the type that schema= gives the column.
    """
    for (name, kind), text in zip(fit.keys, task.keys, strict=True):
        if name in names:
            values = pa.repeat(key_scalar(text, kind), table.num_rows)
            place = table.schema.get_field_index(name)
            table = (
                table.append_column(name, values)
                if place < 0
                else table.set_column(place, name, values)
            )
    for name, kind in fit.columns:
        if name not in names:
            continue
        place = table.schema.get_field_index(name)
        if place < 0:
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
        elif table.schema.field(place).type != kind:
            column = _cast(table.column(place), name, kind, task)
            table = table.set_column(place, name, column)
    return table


def rows_alone(num_rows: int, at_most: int) -> Iterator[pa.Table]:
    """Yield tables of a row group's rows without a column of the file's.

    Their one column, of nulls, takes no memory and has no name.
    """
    for first in range(0, num_rows, at_most):
        yield pa.table([pa.nulls(min(at_most, num_rows - first))], names=[""])


def _cast(
    column: pa.ChunkedArray, name: str, kind: pa.DataType, task: SliceTask
) -> pa.ChunkedArray:
    if pa.types.is_null(column.type):
        return pa.chunked_array([pa.nulls(len(column), kind)])
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        raise CastError(
            f"column {name!r} has type {column.type} in {task.path!r}, row group "
            f"{task.row_group}, and does not fit {kind}, the type of schema=: {error}; "
            "give another type",
            path=task.path,
            row_group=task.row_group,
            column=name,
        ) from error
