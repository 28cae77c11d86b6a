"""Read footers into plain values. Runs in this process and on Dask workers alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from dask_loader.catalog.forms import Form
from dask_loader.catalog.schema import leaf_ranges, pack_schema
from dask_loader.catalog.storage import Stamp, Storage, open_error

# Arrow's offsets beside text and binary: 4 bytes a row.
_OFFSET_BYTES = 4


@dataclass(frozen=True, slots=True)
class ColumnStats:
    """What a footer says of one column of one row group; None where it does not."""

    minimum: Any
    maximum: Any
    null_count: int | None


@dataclass(frozen=True, slots=True)
class Footer:
    """One file's footer as plain values.

    Attributes:
        path: The file.
        stamp: Its version when the footer was read.
        digest: Hash of the schema and of the row groups' places and sizes.
        schema: From pack_schema.
        num_rows: One for each row group.
        num_bytes: Decoded bytes of the columns that are read, one for each row group.
        null_counts: For each column read that has nulls or does not say: one number for
            each row group, -1 where the footer does not say.
        stats: For each column that the filters read: one for each row group.
        survivors: Row groups that the filters' statistics do not rule out.
    """

    path: str
    stamp: Stamp
    digest: str
    schema: bytes
    num_rows: tuple[int, ...]
    num_bytes: tuple[int, ...]
    null_counts: dict[str, tuple[int, ...]]
    stats: dict[str, tuple[ColumnStats, ...]]
    survivors: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FooterQuery:
    """What to take from each footer.

    Attributes:
        storage: Where the files lie.
        forms: The columns that are delivered.
        expression: The filters, or None.
        filter_columns: The columns that the filters read.
    """

    storage: Storage
    forms: tuple[Form, ...] = ()
    expression: pc.Expression | None = None
    filter_columns: tuple[str, ...] = ()


def read_schema(storage: Storage, path: str) -> pa.Schema:
    """Return a file's Arrow schema.

    Raises:
        BadFileError: The file is not readable Parquet.
    """
    storage.stamp(path)
    try:
        with _open(storage, path) as file:
            return file.schema_arrow
    except Exception as error:  # Arrow has no common class, see open_error
        raise open_error(path, error) from error


def read_footers(query: FooterQuery, paths: Sequence[str]) -> list[Footer]:
    """Read several footers, in order.

    Raises:
        BadFileError: A file is not readable Parquet.
        DataChangedError: A file is gone.
    """
    return [_read_footer(query, path) for path in paths]


def _open(storage: Storage, path: str) -> pq.ParquetFile:
    return pq.ParquetFile(
        path,
        filesystem=storage.arrow(),
        memory_map=storage.is_local,
        pre_buffer=False,
    )


def _read_footer(query: FooterQuery, path: str) -> Footer:
    stamp = query.storage.stamp(path)
    try:
        with _open(query.storage, path) as file:
            metadata, schema = file.metadata, file.schema_arrow
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            footer = Footer(
                path=path,
                stamp=stamp,
                digest=_digest(schema, groups),
                schema=pack_schema(schema),
                num_rows=tuple(g.num_rows for g in groups),
                num_bytes=_decoded_bytes(query.forms, schema, groups),
                null_counts=_null_counts(query.forms, schema, groups),
                stats=_stats(query.filter_columns, schema, groups),
                survivors=_survivors(query, path, schema, len(groups)),
            )
    except Exception as error:  # Arrow has no common class, see open_error
        raise open_error(path, error) from error
    return footer


def _digest(schema: pa.Schema, groups: list[Any]) -> str:
    facts = [
        (g.num_rows, g.total_byte_size, g.column(0).data_page_offset)
        for g in groups
        if g.num_columns
    ]
    text = repr(facts).encode() + pack_schema(schema)
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _decoded_bytes(
    forms: Sequence[Form], schema: pa.Schema, groups: list[Any]
) -> tuple[int, ...]:
    # Fixed-width columns from the schema, text from the encoded size: never from decoded
    # samples, which would differ between ranks.
    row_bytes = sum(form.row_bytes for form in forms)
    leaves = leaf_ranges(schema)
    text = [leaves[f.name][0] for f in forms if not f.is_fixed and f.name in leaves]
    return tuple(
        g.num_rows * (row_bytes + _OFFSET_BYTES * len(text))
        + sum(g.column(leaf).total_uncompressed_size for leaf in text)
        for g in groups
    )


def _null_counts(
    forms: Sequence[Form], schema: pa.Schema, groups: list[Any]
) -> dict[str, tuple[int, ...]]:
    leaves, found = leaf_ranges(schema), {}
    for form in forms:
        if form.name not in leaves:
            continue
        leaf = leaves[form.name][0]
        counts = tuple(_null_count(g.column(leaf)) for g in groups)
        if any(counts):
            found[form.name] = counts
    return found


def _null_count(chunk: Any) -> int:
    stats = chunk.statistics if chunk.is_stats_set else None
    return stats.null_count if stats is not None and stats.has_null_count else -1


def _stats(
    names: Sequence[str], schema: pa.Schema, groups: list[Any]
) -> dict[str, tuple[ColumnStats, ...]]:
    leaves, found = leaf_ranges(schema), {}
    for name in names:
        if len(leaves.get(name, ())) == 1:
            chunks = [g.column(leaves[name][0]) for g in groups]
            found[name] = tuple(_column_stats(chunk) for chunk in chunks)
    return found


def _column_stats(chunk: Any) -> ColumnStats:
    stats = chunk.statistics if chunk.is_stats_set else None
    if stats is None:
        return ColumnStats(None, None, None)
    low, high = (stats.min, stats.max) if stats.has_min_max else (None, None)
    return ColumnStats(low, high, stats.null_count if stats.has_null_count else None)


def _survivors(
    query: FooterQuery, path: str, schema: pa.Schema, num_groups: int
) -> tuple[int, ...]:
    if query.expression is None:
        return tuple(range(num_groups))
    if any(name not in schema.names for name in query.filter_columns):
        return ()  # the schemas are compared later and say what is missing
    fragment = pads.ParquetFileFormat().make_fragment(
        path, filesystem=query.storage.arrow()
    )
    kept = fragment.subset(filter=query.expression, schema=schema)
    return tuple(group.id for group in kept.row_groups)
