"""Read footers into plain values. Runs in this process and on Dask workers alike."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from dask_loader.catalog.bounds import BoundsCheck, Kinds, SilentGroup, kinds_of
from dask_loader.catalog.encryption import ENCRYPTED_MAGIC, decryption_error
from dask_loader.catalog.fit import same_pruning
from dask_loader.catalog.flat import filter_schema, leaves_of
from dask_loader.catalog.forms import Form
from dask_loader.catalog.keys import Keys, key_scalar
from dask_loader.catalog.sanity import (
    ChunkError,
    Look,
    check_codecs,
    check_numbers,
    check_sizes,
)
from dask_loader.catalog.schema import pack_schema
from dask_loader.catalog.storage import Storage, gone_error, open_error
from dask_loader.errors import (
    BadFileError,
    DaskLoaderError,
    DataError,
    DecryptionError,
    SchemaError,
)

# Spark's old timestamps. In nanoseconds, Arrow's default, they wrap beyond the year 2262.
INT96_UNIT = "us"
# Arrow's offsets beside text and binary: 4 bytes a row.
_OFFSET_BYTES = 4
# One read of this many bytes has nearly every footer whole.
_TAIL_BYTES = 64 << 10
# A footer's length and the magic, at the end of the file.
_ENDING_BYTES = 8
# Remote footers that are asked for at once.
_ROUND_TRIPS = 32

_INTS = pa.list_(pa.int64())
_FIXED = pa.schema(
    {
        "digest": pa.string(),
        "schema": pa.binary(),
        "num_rows": _INTS,
        "num_bytes": _INTS,
        "survives": pa.list_(pa.bool_()),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FooterQuery:
    """What to take from each footer.

    Attributes:
        storage: Where the files lie.
        forms: The columns that are delivered.
        expression: The filters, or None.
        filter_columns: The columns that the filters read.
        may_prune: Whether statistics may rule out row groups.
        filter_fields: The columns that the filters read, as the dataset has them.
        keys: Those of directories.
        may_lack: Whether files may lack columns, which are then null.
    """

    storage: Storage
    forms: tuple[Form, ...] = ()
    expression: pc.Expression | None = None
    filter_columns: tuple[str, ...] = ()
    may_prune: bool = True
    filter_fields: pa.Schema | None = None
    keys: Keys | None = None
    may_lack: bool = False


def read_tails(storage: Storage, files: Sequence[tuple[str, int]]) -> Iterator[bytes]:
    """Yield files' footers as they lie in the files, each with its length and magic.

    Several are asked for at once where files are remote: a footer costs a round trip.

    Args:
        storage: Where the files lie.
        files: Path and length of each.

    Raises:
        BadFileError: A file cannot be read, or is shorter than its footer.
    """
    if storage.is_local or len(files) < 2:
        yield from (_read_tail(storage, file) for file in files)
        return
    with ThreadPoolExecutor(
        _ROUND_TRIPS, thread_name_prefix="dask-loader-tail"
    ) as pool:
        try:
            yield from pool.map(partial(_read_tail, storage), files)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def read_footers(query: FooterQuery, files: Sequence[tuple[str, int]]) -> pa.Table:
    """Read several footers, in order. Runs in this process or on a Dask worker.

    Args:
        query: What to take from them.
        files: Path and length of each.

    Returns:
        What parse_footers returns.

    Raises:
        BadFileError: A file is not readable Parquet.
    """
    return parse_footers(query, files, read_tails(query.storage, files))


def parse_footers(
    query: FooterQuery, files: Sequence[tuple[str, int]], tails: Iterable[bytes]
) -> pa.Table:
    """Take from footers what a query asks for.

    Args:
        query: What to take.
        files: Path and length of each.
        tails: From read_tails, for each file.

    Returns:
        A row for each file. "digest": hash of the footer's bytes, statistics included.
        "schema": from pack_schema. Lists with an item for each row group: "num_rows";
        "num_bytes", decoded, of the columns that are read; "survives": not ruled out by
        the filters' statistics. And null_column(name) for a column that has nulls in one
        of the files, or does not say: the count for each row group, -1 where the footer
        does not say; or null for a file that has none.

    Raises:
        BadFileError: One is no Parquet footer.
        SchemaError: A column contradicts the directory's key of its name.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _FIXED.names}
    nulls: dict[str, dict[int, list[int]]] = {}
    row_bytes = sum(form.row_bytes for form in query.forms)
    loose = [form for form in query.forms if not form.is_fixed]
    schemas, look = _Schemas(), Look(max((size for _, size in files), default=0))
    bounds = BoundsCheck()
    before: _Read | None = None
    for row, ((path, num_bytes), tail) in enumerate(zip(files, tails, strict=True)):
        try:
            with _parse(query.storage, path, tail) as file:
                metadata, read = file.metadata, schemas.of(file)
                leaves = _needed(query, read.leaves)
                look.check(metadata, leaves, num_bytes)
                groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
                check_numbers(path, groups, _checked(query.forms, read.leaves))
                can_tell = bounds.check(path, tail, read.kinds, leaves, read.names)
                if not can_tell:
                    groups = [SilentGroup(group) for group in groups]
                # Files of one schema are hardly ever compressed in different codecs.
                if read is not before:
                    check_codecs(metadata, leaves, num_bytes)
                before = read
                found = {
                    "digest": tail_digest(tail),
                    "schema": read.packed,
                    "num_rows": [group.num_rows for group in groups],
                    "num_bytes": _decoded_bytes(row_bytes, loose, read.leaves, groups),
                    "survives": _survive(query, path, tail, read.schema, len(groups))
                    if can_tell
                    else [True] * len(groups),
                }
                check_sizes(path, found["num_bytes"])
                for name, counts in _null_counts(query.forms, read.leaves, groups):
                    nulls.setdefault(name, {})[row] = counts
        except ChunkError as error:
            raise _chunk_error(query.storage, path, error, read.names) from error
        except DataError:
            raise
        except Exception as error:  # Arrow has no common class, see open_error
            raise parse_error(query.storage, path, error) from error
        if query.keys is not None and can_tell:
            _check_keys(query.keys, path, tail, read.schema)
        for name, value in found.items():
            columns[name].append(value)
    table = pa.table(columns, schema=_FIXED)
    for name, by_row in nulls.items():
        by_file = pa.array([by_row.get(row) for row in range(len(table))], _INTS)
        table = table.append_column(null_column(name), by_file)
    return table


def parse_schema(storage: Storage, path: str, tail: bytes) -> pa.Schema:
    """Return a file's Arrow schema, without its metadata.

    Args:
        storage: Has the keys of encrypted files.
        path: The file.
        tail: From read_tails.

    Raises:
        BadFileError: It is no Parquet footer.
    """
    try:
        with _parse(storage, path, tail) as file:
            return file.schema_arrow.remove_metadata()
    except DataError:
        raise
    except Exception as error:  # Arrow has no common class, see open_error
        raise parse_error(storage, path, error) from error


def parse_error(
    storage: Storage, path: str, error: Exception, column: str | None = None
) -> DaskLoaderError:
    """Describe a file that cannot be opened: encrypted, or not Parquet."""
    has_keys = storage.decryption is not None
    found = decryption_error(path, error, has_keys=has_keys, column=column)
    return found or open_error(path, error)


def null_column(name: str) -> str:
    """Return the name under which parse_footers has a column's counts of nulls."""
    return f"nulls of {name}"


def footer_digest(storage: Storage, path: str) -> str:
    """Hash a file's footer as it lies in the file.

    It holds where each column chunk lies, its sizes and statistics: a file written anew
    hardly ever has the same.
    """
    if storage.is_local:  # a third of the time, which small files are read in
        with open(path, "rb", buffering=0) as local:
            size = local.seek(0, os.SEEK_END)
            local.seek(size - 8)
            length = int.from_bytes(local.read(4), "little")
            local.seek(max(0, size - 8 - length))
            return hashlib.blake2b(local.read(length), digest_size=16).hexdigest()
    return tail_digest(read_tail(storage, path, storage.stamp(path).num_bytes))


def tail_digest(tail: bytes) -> str:
    """Hash the footer in a tail; see footer_digest."""
    footer = memoryview(tail)[:-_ENDING_BYTES]
    return hashlib.blake2b(footer, digest_size=16).hexdigest()


def read_tail(storage: Storage, path: str, num_bytes: int) -> bytes:
    """Return a file's footer as it lies in the file, with its length and magic.

    Raises:
        BadFileError: It cannot be read, or is shorter than its footer.
        DataChangedError: It is gone.
        StorageError: The store denies access, or fails again and again.
    """
    return _read_tail(storage, (path, num_bytes))


def _read_tail(storage: Storage, file: tuple[str, int]) -> bytes:
    path, num_bytes = file
    read = _read_local if storage.is_local else storage.fetch
    try:
        tail = read(path, max(0, num_bytes - _TAIL_BYTES), num_bytes)
        needed = int.from_bytes(tail[-8:-4], "little") + _ENDING_BYTES
        if tail[-4:] not in (b"PAR1", ENCRYPTED_MAGIC) or len(tail) < _ENDING_BYTES:
            return bytes(tail)  # the parser says what is wrong
        if needed > num_bytes:
            raise ValueError(
                f"the footer should have {needed} bytes, the whole file has {num_bytes}"
            )
        if needed > len(tail):
            tail = read(path, num_bytes - needed, num_bytes)
        return bytes(tail[-needed:])
    except DaskLoaderError:
        raise
    except FileNotFoundError as error:
        raise gone_error(path, error) from None
    except Exception as error:  # each file system has its own
        raise open_error(path, error) from error


def _read_local(path: str, start: int, stop: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        return file.read(stop - start)


def _parse(storage: Storage, path: str, tail: bytes) -> pq.ParquetFile:
    # A footer needs nothing of what stands before it.
    return pq.ParquetFile(
        pa.BufferReader(tail),
        pre_buffer=False,
        coerce_int96_timestamp_unit=INT96_UNIT,
        decryption_properties=storage.decryption_of(path),
    )


def _needed(query: FooterQuery, leaves: dict[str, range]) -> list[int]:
    # All that is asked of chunks below; filters may name a whole struct.
    keys = () if query.keys is None else query.keys.names
    asked = {*(form.name for form in query.forms), *query.filter_columns, *keys}
    whole = tuple(f"{name}." for name in query.filter_columns)
    names = (n for n in leaves if n in asked or n.startswith(whole))
    return sorted({leaf for name in names for leaf in leaves[name]})


def _checked(
    forms: Sequence[Form], leaves: dict[str, range]
) -> list[tuple[str, int, bool]]:
    return [
        (form.name, leaf, len(leaves[form.name]) > 1 or bool(form.depth or form.shape))
        for form in forms
        for leaf in leaves.get(form.name, ())
    ]


def _chunk_error(
    storage: Storage, path: str, error: ChunkError, names: dict[int, str]
) -> DataError:
    name = names.get(error.leaf, "")
    found = parse_error(storage, path, error.cause, name)
    if isinstance(found, DecryptionError):
        return found
    return BadFileError(
        f"column {name!r} of row group {error.row_group} of {path!r} cannot be read: "
        f"{error}; rewrite the file (in a codec that pyarrow has, such as zstd), or leave "
        "it out of the path, or the column with columns=[...]",
        path=path,
        row_group=error.row_group,
        column=name,
    )


@dataclass(frozen=True, slots=True)
class _Read:
    schema: pa.Schema
    packed: bytes
    leaves: dict[str, range]
    names: dict[int, str]
    kinds: Kinds


class _Schemas:
    """Turns files' schemas into Arrow's; thousands of files have few different ones."""

    def __init__(self) -> None:
        self._parquet: Any = None
        self._arrow: bytes | None = None
        self._read: _Read

    def of(self, file: pq.ParquetFile) -> _Read:
        metadata = file.metadata
        parquet = metadata.schema
        arrow = (metadata.metadata or {}).get(b"ARROW:schema")
        same = self._parquet is not None and parquet.equals(self._parquet)
        if not same or arrow != self._arrow:
            schema = file.schema_arrow
            self._parquet, self._arrow = parquet, arrow
            leaves = leaves_of(schema)
            # A struct's fields, which come after it, have names of their own.
            each = sorted(leaves.items(), key=lambda item: -len(item[1]))
            names = {leaf: name for name, its in each for leaf in its}
            packed, kinds = pack_schema(schema), kinds_of(parquet)
            self._read = _Read(schema, packed, leaves, names, kinds)
        return self._read


def _decoded_bytes(
    row_bytes: int, loose: list[Form], leaves: dict[str, range], groups: list[Any]
) -> list[int]:
    # Fixed-width columns from the schema, text from the encoded size, lists from the number
    # of their elements: never from decoded samples, which would differ between ranks.
    there = [(form, leaf) for form in loose for leaf in leaves.get(form.name, ())]
    row_bytes += _OFFSET_BYTES * sum(form.name not in leaves for form in loose)  # nulls
    return [
        g.num_rows * row_bytes
        + sum(_loose_bytes(form, g.column(leaf), g.num_rows) for form, leaf in there)
        for g in groups
    ]


def _loose_bytes(form: Form, chunk: Any, num_rows: int) -> int:
    if not form.depth:
        return num_rows * _OFFSET_BYTES + _text_bytes(chunk, num_rows)
    items = int(chunk.num_values)
    offsets = 2 * _OFFSET_BYTES * (num_rows + (form.depth - 1) * items)
    if form.items:
        return offsets + np.dtype(form.items).itemsize * items
    return offsets + 2 * _OFFSET_BYTES * items + _text_bytes(chunk, items)


def _text_bytes(chunk: Any, num_rows: int) -> int:
    # A dictionary holds each text once. The footer does not say how long the texts are
    # together; the shortest fair guess is between the least and the greatest of them.
    size = int(chunk.total_uncompressed_size)
    stats = chunk.statistics
    if stats is None or not stats.has_min_max or not chunk.has_dictionary_page:
        return size
    if not isinstance(stats.min, str | bytes):
        return size  # a number that is not delivered as one
    lengths = [len(text) for text in (stats.min, stats.max)]
    return max(size, num_rows * sum(lengths) // 2)


def _null_counts(
    forms: Sequence[Form], leaves: dict[str, range], groups: list[Any]
) -> Iterator[tuple[str, list[int]]]:
    # The one loop over all chunks of all footers: half the cost of a cold start.
    for form in forms:
        # Of lists a footer counts the empty ones too.
        if len(leaves.get(form.name, ())) != 1 or form.depth:
            continue
        leaf, counts, said = leaves[form.name][0], [], False
        for group in groups:
            stats = group.column(leaf).statistics
            known = stats is not None and stats.has_null_count
            count = stats.null_count if known else -1
            said = said or count != 0
            counts.append(count)
        if said:
            yield form.name, counts


def _survive(
    query: FooterQuery, path: str, tail: bytes, schema: pa.Schema, num_groups: int
) -> list[bool]:
    everything = [True] * num_groups
    if query.expression is None or not query.may_prune:
        return everything
    if query.storage.decryption is not None:
        return everything  # Arrow's fragments would need the keys in another form
    known, schema, prunes = _known(query, path, schema)
    if not prunes:
        return everything
    fragment = pads.ParquetFileFormat().make_fragment(
        pa.BufferReader(tail), partition_expression=known
    )
    try:
        kept = fragment.subset(filter=query.expression, schema=schema)
    except (pa.ArrowException, TypeError, ValueError, KeyError):
        # Arrow cannot reason about every filter that it can evaluate. Ruling out is a
        # saving; and where the file's schema is at fault, comparing schemas will say so.
        return everything
    alive = {group.id for group in kept.row_groups}
    return [group in alive for group in range(num_groups)]


def _known(
    query: FooterQuery, path: str, schema: pa.Schema
) -> tuple[pc.Expression | None, pa.Schema, bool]:
    """Return what is true of all rows of a file, and whether its statistics can be used.

    Of keys and of columns that it lacks; they are added to the schema. A file whose column
    has a narrower type than the dataset's may compare otherwise.
    """
    known = None
    if query.keys is not None:
        known = query.keys.guarantee(path)
        schema = query.keys.add_to(schema)
    own = filter_schema(schema)
    for field in query.filter_fields or ():
        if query.keys is not None and field.name in query.keys.names:
            continue
        count = own.names.count(field.name)
        if count == 0 and query.may_lack:
            schema = schema.append(field)
            null = pc.field(field.name).is_null()
            known = null if known is None else known & null
        elif count and not same_pruning(own.field(field.name).type, field.type):
            return None, schema, False
    return known, schema, True


def _check_keys(keys: Keys, path: str, tail: bytes, schema: pa.Schema) -> None:
    """Raise where statistics say that a column has other values than the key of its name.

    The directory's value is delivered, so what a column says otherwise would be lost.
    """
    for (name, _), text in zip(keys.fields, keys.texts(path), strict=True):
        if schema.names.count(name) != 1 or text is None:
            continue
        fragment = pads.ParquetFileFormat().make_fragment(pa.BufferReader(tail))
        try:
            value = key_scalar(text, schema.field(name).type)
            kept = fragment.subset(filter=pc.field(name) == value, schema=schema)
        except (pa.ArrowException, TypeError, ValueError, KeyError):
            continue  # Arrow cannot say
        alive = {group.id for group in kept.row_groups}
        others = [g.id for g in fragment.row_groups if g.num_rows and g.id not in alive]
        if others:
            raise SchemaError(
                f"column {name!r} of {path!r} has other values in row group {others[0]} "
                f"than the directory, which says {text!r}; correct one of them, or ignore "
                "directories with partitioning=None",
                path=path,
                row_group=others[0],
                column=name,
            )
