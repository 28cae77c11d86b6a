"""Which rows must come, found out with pyarrow alone.

Nothing of the loader's reading, counting, pruning or caching is used: each row group is
read in a straightforward and slow way, and of it only the columns of the filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dask_loader.catalog.footers import INT96_UNIT, parse_error
from dask_loader.catalog.keys import Keys
from dask_loader.catalog.provenance import FILE, PADDED, ROW, ROW_GROUP, public_path
from dask_loader.catalog.storage import Storage
from dask_loader.read.ranges import open_plain

Ints = NDArray[np.int64]
# A row that no file has.
UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row lies; the row is counted in its row group, before filtering."""

    file: str
    row_group: int
    row: int

    def __str__(self) -> str:
        return f"row {self.row} of row group {self.row_group} of {self.file!r}"


class Inventory:
    """All rows, numbered from 0 in the order of files, row groups and rows.

    Attributes:
        files: Their names, as provenance gives them.
        first_groups: First row group of each file and, last, their number: int64, shape
            (files + 1,).
        starts: First row of each row group and, last, the number of rows: int64, shape
            (row groups + 1,).
        expected: Which rows the filters keep, bool, shape (rows,).
    """

    def __init__(
        self,
        files: Sequence[str],
        *,
        first_groups: Ints,
        starts: Ints,
        expected: NDArray[np.bool_],
    ) -> None:
        self.files = tuple(files)
        self.first_groups = first_groups
        self.starts = starts
        self.expected = expected
        self._index = {name: i for i, name in enumerate(self.files)}

    @property
    def num_expected(self) -> int:
        """Rows that the filters keep."""
        return int(np.count_nonzero(self.expected))

    def place(self, number: int) -> Place:
        """Return where a row lies."""
        group = int(np.searchsorted(self.starts, number, side="right")) - 1
        file = int(np.searchsorted(self.first_groups, group, side="right")) - 1
        return Place(
            self.files[file],
            group - int(self.first_groups[file]),
            number - int(self.starts[group]),
        )

    def numbers(self, batch: dict[str, Any]) -> tuple[Ints, NDArray[np.bool_]]:
        """Return the numbers of a batch's rows, UNKNOWN where no file has them.

        Args:
            batch: With provenance.

        Returns:
            int64, shape (rows,), and which rows are flagged as copies, bool, same shape.
        """
        found = [self._index.get(name, -1) for name in batch[FILE]]
        files = np.array(found, dtype=np.int64)
        groups = np.asarray(batch[ROW_GROUP], dtype=np.int64)
        rows = np.asarray(batch[ROW], dtype=np.int64)
        groups, known = self._within(self.first_groups, files, groups, files >= 0)
        numbers, known = self._within(self.starts, groups, rows, known)
        padded = np.asarray(batch[PADDED], dtype=np.bool_)
        return np.where(known, numbers, UNKNOWN), padded

    @staticmethod
    def _within(
        bounds: Ints, index: Ints, number: Ints, known: NDArray[np.bool_]
    ) -> tuple[Ints, NDArray[np.bool_]]:
        """Count on from bounds[index]; only numbers below bounds[index + 1] are known."""
        index = np.where(known, index, 0)
        found = bounds[index] + number
        known = known & (number >= 0) & (found < bounds[index + 1])
        return found, known


def take_inventory(
    storage: Storage,
    paths: Sequence[str],
    filters: Any,
    keys: Keys | None = None,
    schema: pa.Schema | None = None,
) -> Inventory:
    """Read which rows the filters keep. Takes a byte of memory for each row.

    Args:
        storage: Where the files lie.
        paths: The files, in the dataset's order.
        filters: DNF lists, or None.
        keys: Names and types of the directories' keys; Arrow finds the values.
        schema: The columns that the user gave; what a file lacks of them is null there.

    Raises:
        BadFileError: A file cannot be read.
    """
    expression = None if filters is None else pq.filters_to_expression(filters)
    named = _columns_of(filters)
    group_counts, row_counts, kept = [0], [0], [np.zeros(0, dtype=np.bool_)]
    for path in paths:
        told = {} if keys is None else _told(keys, path)
        columns = sorted(named - told.keys())
        try:
            with pq.ParquetFile(
                open_plain(storage, path),
                coerce_int96_timestamp_unit=INT96_UNIT,
            ) as file:
                group_counts.append(file.num_row_groups)
                for group in range(file.num_row_groups):
                    num_rows = file.metadata.row_group(group).num_rows
                    row_counts.append(num_rows)
                    if expression is None:
                        kept.append(np.ones(num_rows, dtype=np.bool_))
                        continue
                    table = file.read_row_group(group, columns=columns or None)
                    if schema is not None:
                        table = _fitted(table, schema, columns, num_rows)
                    for name in named & told.keys():
                        value = pa.repeat(told[name], table.num_rows)
                        table = table.append_column(name, value)
                    kept.append(_mask(table, expression))
        except Exception as error:  # Arrow has no common class, see open_error
            raise parse_error(storage, path, error) from error
    return Inventory(
        [public_path(path) for path in paths],
        first_groups=np.cumsum(group_counts, dtype=np.int64),
        starts=np.cumsum(row_counts, dtype=np.int64),
        expected=np.concatenate(kept),
    )


def _fitted(
    table: pa.Table, schema: pa.Schema, columns: Sequence[str], num_rows: int
) -> pa.Table:
    """Give a file's columns the types of the user's, and those that it lacks."""
    for name in set(columns).intersection(schema.names):
        kind, place = schema.field(name).type, table.schema.get_field_index(name)
        if place >= 0:
            table = table.set_column(place, name, table[name].cast(kind))
        elif table.num_columns:
            table = table.append_column(name, pa.nulls(num_rows, kind))
        else:
            table = pa.table({name: pa.nulls(num_rows, kind)})
    return table


def _told(keys: Keys, path: str) -> dict[str, pa.Scalar]:
    schema = pa.schema(keys.fields)
    below = path[len(keys.base) :].strip("/")
    flavor = None if keys.in_order else "hive"
    expression = ds.partitioning(schema, flavor=flavor).parse(below)
    found = ds.get_partition_keys(expression)
    return {f.name: pa.scalar(found.get(f.name), f.type) for f in schema}


def _mask(table: pa.Table, expression: Any) -> NDArray[np.bool_]:
    # As a column of its own, not by filtering: what is neither true nor false is null.
    kept = ds.dataset(table).to_table(columns={"kept": expression})["kept"]
    mask = kept.fill_null(False).to_numpy()
    return np.asarray(mask, dtype=np.bool_)


def _columns_of(filters: Any) -> set[str]:
    """Return the columns that DNF lists name."""
    names = set()
    for item in filters or ():
        terms = item if isinstance(item, list) else [item]
        names |= {name for name, _, _ in terms}
    return names
