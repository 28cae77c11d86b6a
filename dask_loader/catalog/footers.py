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

# Spark's old timestamps. In nanoseconds, Arrow's default, they wrap beyond the year 2262.
INT96_UNIT = "us"
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
        digest: Hash of the footer's bytes, statistics included.
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
        may_prune: Whether statistics may rule out row groups.
    """

    storage: Storage
    forms: tuple[Form, ...] = ()
    expression: pc.Expression | None = None
    filter_columns: tuple[str, ...] = ()
    may_prune: bool = True


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


def footer_digest(storage: Storage, path: str) -> str:
    """Hash a file's footer as it lies in the file.

    It holds where each column chunk lies, its sizes and statistics: a file written anew
    hardly ever has the same.
    """
    with storage.arrow().open_input_file(path) as file:
        size = file.size()
        length = int.from_bytes(file.read_at(4, size - 8), "little")
        footer = file.read_at(length, size - 8 - length)
    return hashlib.blake2b(footer, digest_size=16).hexdigest()


def _open(storage: Storage, path: str) -> pq.ParquetFile:
    return pq.ParquetFile(
        path,
        filesystem=storage.arrow(),
        pre_buffer=False,
        coerce_int96_timestamp_unit=INT96_UNIT,
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
                digest=footer_digest(query.storage, path),
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
        + sum(_text_bytes(g.column(leaf), g.num_rows) for leaf in text)
        for g in groups
    )


def _text_bytes(chunk: Any, num_rows: int) -> int:
    # A dictionary holds each text once. The footer does not say how long the texts are
    # together; the shortest fair guess is between the least and the greatest of them.
    size = int(chunk.total_uncompressed_size)
    stats = chunk.statistics if chunk.is_stats_set else None
    if stats is None or not stats.has_min_max or not chunk.has_dictionary_page:
        return size
    lengths = [len(text) for text in (stats.min, stats.max)]
    return max(size, num_rows * sum(lengths) // 2)


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
    everything = tuple(range(num_groups))
    if query.expression is None or not query.may_prune:
        return everything
    fragment = pads.ParquetFileFormat().make_fragment(
        path, filesystem=query.storage.arrow()
    )
    try:
        kept = fragment.subset(filter=query.expression, schema=schema)
    except (pa.ArrowException, TypeError, ValueError, KeyError):
        # Arrow cannot reason about every filter that it can evaluate. Ruling out is a
        # saving; and where the file's schema is at fault, comparing schemas will say so.
        return everything
    return tuple(group.id for group in kept.row_groups)
