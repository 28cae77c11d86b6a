"""The catalog: every row group of a dataset as numbers, made once from all footers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dask_loader.catalog.filters import (
    filter_columns,
    filter_text,
    make_filter,
    may_prune,
)
from dask_loader.catalog.footers import (
    ColumnStats,
    Footer,
    FooterQuery,
    read_footers,
    read_schema,
)
from dask_loader.catalog.forms import Form, form_of
from dask_loader.catalog.schema import choose_columns, compare_schemas, unpack_schema
from dask_loader.catalog.storage import Stamp, Storage

# A task of 50 footers keeps Dask's cost per task small against the reading.
_FILES_PER_TASK = 50

Ints = NDArray[np.int64]
# Runs a function over items, in order: here, in threads, or on a cluster.
MapFunction = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file and the version of it that the catalog speaks of."""

    path: str
    stamp: Stamp
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """All row groups of a dataset, in the files' order.

    Attributes:
        storage: Where the files lie.
        files: In the dataset's order.
        schema: The first file's; all agree with it in the columns that are read.
        forms: The columns that are delivered, in order.
        expression: The filters, or None.
        filter_text: The filters as text, for fingerprints.
        filter_columns: The columns that the filters read.
        file_index: File of each row group, int64, shape (row groups,).
        row_group: Its index in that file, int64, same shape.
        num_rows: Its rows before filtering, int64, same shape.
        num_bytes: Its decoded bytes before filtering, int64, same shape.
        num_kept: Its rows after filtering, int64, same shape.
        null_counts: For each delivered column that has nulls or does not say: int64, same
            shape, -1 where the footer does not say.
        stats: For each column the filters read: its statistics, one for each row group.
    """

    storage: Storage
    files: tuple[FileEntry, ...]
    schema: pa.Schema
    forms: tuple[Form, ...]
    expression: Any
    filter_text: str
    filter_columns: tuple[str, ...]
    file_index: Ints
    row_group: Ints
    num_rows: Ints
    num_bytes: Ints
    num_kept: Ints
    null_counts: dict[str, Ints]
    stats: dict[str, tuple[ColumnStats, ...]]

    @property
    def total_rows(self) -> int:
        """Rows of the dataset after filtering."""
        return int(self.num_kept.sum())

    @property
    def delivered_schema(self) -> pa.Schema:
        """The delivered columns in Arrow's types, units and time zones included."""
        return pa.schema([self.schema.field(form.name) for form in self.forms])

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the files' content as far as footers tell, and of what is read.

        Paths and times are left out, so that a copy of the same files elsewhere is the
        same data.
        """
        parts = {
            "files": [(f.digest, f.stamp.num_bytes) for f in self.files],
            "columns": [(form.name, form.dtype, form.shape) for form in self.forms],
            "filters": self.filter_text,
        }
        return {name: _hash(part) for name, part in parts.items()}

    def place(self, group: int) -> tuple[str, int]:
        """Return the file and index of a row group, for texts."""
        return self.files[int(self.file_index[group])].path, int(self.row_group[group])

    def with_kept(self, num_kept: Ints) -> Catalog:
        """Return the catalog with other counts of rows after filtering."""
        return replace(self, num_kept=num_kept)


def read_catalog(
    storage: Storage,
    paths: Sequence[str],
    *,
    columns: tuple[str, ...] | None,
    filters: Any,
    run: MapFunction,
) -> Catalog:
    """Read all footers and check them against each other.

    The first file decides the columns and their types, so that a wrong name costs one
    footer, not ten thousand. Rows after filtering are not counted here: num_kept is what
    statistics leave over.

    Args:
        storage: Where the files lie.
        paths: In the dataset's order, at least one.
        columns: From check_columns.
        filters: As the user gave them.
        run: Runs the reading of many footers.

    Raises:
        ColumnError: A column is not there.
        ConfigError: The filters do not fit.
        UnsupportedTypeError: A column has no tensor form.
        BadFileError: A file is not readable Parquet.
        SchemaError: Two files disagree.
        DataChangedError: A file vanished meanwhile.
    """
    schema = read_schema(storage, paths[0])
    names = choose_columns(schema, columns, path=paths[0])
    expression = make_filter(filters, schema, path=paths[0])
    query = FooterQuery(
        storage=storage,
        forms=tuple(form_of(schema.field(name), path=paths[0]) for name in names),
        expression=expression,
        filter_columns=filter_columns(expression, schema),
    )
    prunes = may_prune(filters, schema, query.filter_columns)
    query = replace(query, may_prune=prunes)
    starts = range(0, len(paths), _FILES_PER_TASK)
    chunks = [list(paths[i : i + _FILES_PER_TASK]) for i in starts]
    footers = [f for part in run(partial(read_footers, query), chunks) for f in part]
    _check_schemas(schema, footers, names, query.filter_columns, columns is None)
    return _merge(query, schema, footers, filter_text(filters, expression, schema))


def _check_schemas(
    schema: pa.Schema,
    footers: Sequence[Footer],
    names: Sequence[str],
    filter_names: Sequence[str],
    all_columns: bool,
) -> None:
    agreed = {footers[0].schema}  # thousands of files have few different schemas
    for footer in footers[1:]:
        if footer.schema in agreed:
            continue
        compare_schemas(
            schema,
            unpack_schema(footer.schema),
            names=dict.fromkeys((*names, *filter_names)),
            all_columns=all_columns,
            first_path=footers[0].path,
            path=footer.path,
        )
        agreed.add(footer.schema)


def _merge(
    query: FooterQuery, schema: pa.Schema, footers: list[Footer], text: str
) -> Catalog:
    counts = [len(f.num_rows) for f in footers]
    num_rows = _flat(f.num_rows for f in footers)
    kept = np.zeros_like(num_rows)
    start = 0
    for footer, count in zip(footers, counts, strict=True):
        alive = start + np.array(footer.survivors, dtype=np.int64)
        kept[alive] = num_rows[alive]
        start += count
    nullable = {name for f in footers for name in f.null_counts}
    return Catalog(
        storage=query.storage,
        files=tuple(FileEntry(f.path, f.stamp, f.digest) for f in footers),
        schema=schema.remove_metadata(),
        forms=query.forms,
        expression=query.expression,
        filter_text=text,
        filter_columns=query.filter_columns,
        file_index=np.repeat(np.arange(len(footers), dtype=np.int64), counts),
        row_group=_flat(range(count) for count in counts),
        num_rows=num_rows,
        num_bytes=_flat(f.num_bytes for f in footers),
        num_kept=kept,
        null_counts={
            form.name: _flat(
                f.null_counts.get(form.name, (0,) * len(f.num_rows)) for f in footers
            )
            for form in query.forms
            if form.name in nullable
        },
        stats={
            name: tuple(s for f in footers for s in f.stats.get(name, ()))
            for name in query.filter_columns
        },
    )


def _hash(facts: Any) -> str:
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _flat(parts: Any) -> Ints:
    return np.array([item for part in parts for item in part], dtype=np.int64)
