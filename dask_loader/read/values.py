"""Find the values that columns hold, reading only these columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dask_loader.catalog.vocabulary import leaf_type, require_few, wide_type
from dask_loader.read.files import OpenFiles
from dask_loader.read.pieces import column_tables, open_slice
from dask_loader.read.task import ReadOptions, SliceTask


class Scan(NamedTuple):
    """What one task scans: row groups, and the columns whose values are wanted."""

    slices: tuple[SliceTask, ...]
    columns: tuple[str, ...]


def distinct_values(options: ReadOptions, scan: Scan) -> list[list[pa.Array]]:
    """Return the values in each column of each (whole) row group, nulls left out.

    Dictionaries of Parquet are read as such, so that most rows are numbers only.

    Args:
        options: Say where and how; its vocabularies name the columns.
        scan: What to read.

    Returns:
        For each row group an array for each column; wide types, each value once.

    Raises:
        DataChangedError: A file is not the one that was planned.
        BadFileError: A file cannot be decoded.
        ConfigError: A column has too many values.
    """
    files = OpenFiles()
    found = []
    try:
        for piece in scan.slices:
            with open_slice(files, options, piece) as file:
                found.append(
                    [
                        _distinct(column_tables(file, piece, n), n, piece)
                        for n in scan.columns
                    ]
                )
    finally:
        files.close()
    return found


def _distinct(tables: Iterable[pa.Table], name: str, piece: SliceTask) -> pa.Array:
    known = pa.array([], pa.null())  # a row group without rows, or the column
    for table in tables:
        for chunk in table.column(name).chunks:
            found = _values(chunk)
            parts = [known, found] if len(known) else [found]
            known = pa.chunked_array(parts).unique()
        where = f" (in {piece.path!r}, row group {piece.row_group}, alone)"
        require_few(name, known.nbytes, where=where)
    return known


def _values(array: pa.Array) -> pa.Array:
    """Return the values in an array, each once."""
    while pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        array = pc.list_flatten(array)
    kind = array.type
    if pa.types.is_null(kind):
        return pa.array([], pa.null())
    unique = array.unique()
    if pa.types.is_dictionary(kind):
        # Not the whole dictionary: it may hold what no row has.
        unique, kind = unique.dictionary_decode(), kind.value_type
    return unique.drop_null().cast(wide_type(leaf_type(kind)))
