"""The rows of a slice as a few Arrow arrays or tables, never more than a bound at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dask_loader.catalog.schema import leaf_ranges
from dask_loader.errors import BadFileError
from dask_loader.read.files import decode_error
from dask_loader.read.task import ReadOptions, SliceTask

# Larger column chunks are decoded in parts: beyond this, Arrow's allocator gives memory
# back between chunks and touching it anew costs more than decoding.
_PIECE_BYTES = 16 << 20
_MIN_PIECE_ROWS = 4096
# Where the width of a row is not known (text), as pyarrow's own default.
_TEXT_ROW_BYTES = 256


def piece_rows(row_bytes: int) -> int:
    """Return how many rows of this width make a piece."""
    return max(_MIN_PIECE_ROWS, _PIECE_BYTES // max(row_bytes, 1))


def check_group(file: pq.ParquetFile, task: SliceTask) -> None:
    """Raise unless the row group has the rows that the plan reckons with.

    Raises:
        BadFileError: It has not.
    """
    groups = file.metadata.num_row_groups
    rows = (
        file.metadata.row_group(task.row_group).num_rows
        if task.row_group < groups
        else None
    )
    if rows != task.group_rows:
        raise BadFileError(
            f"row group {task.row_group} of {task.path!r} should have "
            f"{task.group_rows} rows and has {rows}; the file was rewritten: make the "
            "dataset again",
            path=task.path,
            row_group=task.row_group,
        )


def column_pieces(
    file: pq.ParquetFile, task: SliceTask, leaves: range, row_bytes: int
) -> Iterator[pa.Array]:
    """Yield one column's rows of a slice that is not filtered, in order.

    Raises:
        BadFileError: It cannot be decoded, or rows are missing.
    """
    limit = piece_rows(row_bytes)
    whole = task.start == 0 and task.stop == task.group_rows
    if whole and task.group_rows <= limit:
        tables: Iterator[Any] = iter([_read_group(file, task, leaves)])
    else:
        tables = _batches(file, task, leaves, limit)
    position = 0
    for table in tables:
        column = table.column(0)
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        for chunk in chunks:
            low = max(task.start - position, 0)
            high = min(task.stop - position, len(chunk))
            if low < high:
                yield chunk.slice(low, high - low)
            position += len(chunk)
        if position >= task.stop:
            return
    _require_rows(task, position)


def table_pieces(
    file: pq.ParquetFile, task: SliceTask, options: ReadOptions, names: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield the kept rows of a slice as tables with the columns asked for, in order.

    Raises:
        BadFileError: They cannot be decoded, or rows are missing.
    """
    ranges = leaf_ranges(file.schema_arrow)
    wanted = [
        n for n in file.schema_arrow.names if n in {*names, *options.filter_columns}
    ]
    leaves = [leaf for name in wanted for leaf in ranges[name]]
    widths = [form.row_bytes or _TEXT_ROW_BYTES for form in options.forms]
    position = 0
    for batch in _batches(file, task, leaves, piece_rows(sum(widths))):
        table = pa.Table.from_batches([batch])
        if options.expression is not None:
            table = table.filter(options.expression)
        low = max(task.start - position, 0)
        high = min(task.stop - position, table.num_rows)
        if low < high:
            yield table.select(names).slice(low, high - low)
        position += table.num_rows
        if position >= task.stop:
            return
    _require_rows(task, position)


def count_kept(file: pq.ParquetFile, task: SliceTask, options: ReadOptions) -> int:
    """Count the rows of a whole row group that the filters keep.

    Raises:
        BadFileError: It cannot be decoded.
    """
    ranges = leaf_ranges(file.schema_arrow)
    leaves = [leaf for name in options.filter_columns for leaf in ranges[name]]
    limit = piece_rows(_TEXT_ROW_BYTES)
    return sum(
        pa.Table.from_batches([batch]).filter(options.expression).num_rows
        for batch in _batches(file, task, leaves, limit)
    )


def _read_group(file: pq.ParquetFile, task: SliceTask, leaves: range) -> pa.Table:
    try:
        return file.reader.read_row_groups(
            [task.row_group], column_indices=list(leaves), use_threads=False
        )
    except Exception as error:  # Arrow has no common class, see open_error
        raise decode_error(task.path, task.row_group, error) from error


def _batches(
    file: pq.ParquetFile, task: SliceTask, leaves: Sequence[int], num_rows: int
) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.reader.iter_batches(
            num_rows,
            row_groups=[task.row_group],
            column_indices=list(leaves),
            use_threads=False,
        )
    except Exception as error:  # Arrow has no common class, see open_error
        raise decode_error(task.path, task.row_group, error) from error


def _require_rows(task: SliceTask, position: int) -> None:
    if position < task.stop:
        raise BadFileError(
            f"row group {task.row_group} of {task.path!r} gave {position} rows where "
            f"{task.stop} were planned; the footer does not tell the truth: rewrite the "
            "file, or leave it out of the path",
            path=task.path,
            row_group=task.row_group,
        )
