"""The rows of a slice as a few Arrow tables, never more than a bound at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import pyarrow as pa
import pyarrow.parquet as pq

from dask_loader.catalog.flat import (
    flatten_table,
    leaves_of,
    own_columns,
    with_own_types,
)
from dask_loader.catalog.forms import Form
from dask_loader.errors import BadFileError, StorageError
from dask_loader.read.files import OpenFiles, decode_error, expect
from dask_loader.read.fit import fitted, rows_alone
from dask_loader.read.masks import add_masks
from dask_loader.read.origin import add_origin, origin_tables
from dask_loader.read.task import ReadOptions, SliceTask
from dask_loader.read.transform import Transform

# Larger column chunks are decoded in parts: beyond this, Arrow's allocator gives memory
# back between chunks and touching it anew costs more than decoding.
PIECE_BYTES = 16 << 20
_MAX_PIECE_ROWS = 1 << 20
# Columns that are decoded by one call together take about this much.
DECODING_BYTES = 8 << 20
# What waits to be mixed takes at most about this much, whatever the size of row groups.
_MIXED_BYTES = 24 << 20
# Where the width of a row is not known (text), as pyarrow's own default.
_TEXT_ROW_BYTES = 256


_leaves: WeakKeyDictionary[pq.ParquetFile, dict[str, range]] = WeakKeyDictionary()


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


@contextmanager
def open_slice(
    files: OpenFiles, options: ReadOptions, task: SliceTask, *, looks_after: bool = True
) -> Iterator[pq.ParquetFile]:
    """Borrow a slice's file and see that it holds the row group that was planned.

    Args:
        files: Lends the file.
        options: Of the dataset.
        task: The slice.
        looks_after: See OpenFiles.borrow.

    Raises:
        DataChangedError: The file is not the one that was planned.
        BadFileError: It cannot be opened, or has another row group.
        StorageError: The store denies access, or fails again and again.
    """
    try:
        with files.borrow(
            options.storage,
            task.path,
            task.stamp,
            verify_checksums=options.verify_checksums,
            digest=task.digest,
            dictionaries=options.dictionaries,
            looks_after=looks_after,
        ) as file:
            check_group(file, task)
            yield file
    except StorageError as error:  # of the footer or the look, which know no row group
        raise decode_error(task.path, task.row_group, error) from None


def bundles(
    options: ReadOptions, *, group_rows: int, window_rows: int, mixed: bool
) -> list[tuple[Form, ...]]:
    """Divide the columns into those that are decoded together.

    One by one would be best for the cache and the allocator, but between two calls a
    reader must get hold of the interpreter, and a busy training loop makes it wait. Filters
    need all columns at once; so do remote files, where each call costs a round trip.

    Args:
        options: Has the columns.
        group_rows: Rows that one call decodes.
        window_rows: Rows of the window.
        mixed: Whether the bundle's part of the whole window waits to be mixed.
    """
    if options.expression is not None or not options.storage.is_local:
        return [options.forms]
    found: list[list[Form]] = []
    room = 0
    limit = DECODING_BYTES
    if mixed:
        share = _MIXED_BYTES * group_rows // max(1, window_rows)
        limit = max(1, min(limit, share))
    if options.transform is not None:
        return [options.forms]  # it is given all columns of a row
    for form in options.forms:
        unknown = 0 if form.has_stored_width else _TEXT_ROW_BYTES
        size = max(form.row_bytes, unknown) * group_rows
        # A mask is made of its column, which comes just before it.
        if (size > room and not form.mask_of) or not found:
            found.append([])
            room = limit
        found[-1].append(form)
        room -= size
    return [tuple(bundle) for bundle in found]


def table_pieces(
    file: pq.ParquetFile, task: SliceTask, options: ReadOptions, forms: Sequence[Form]
) -> Iterator[pa.Table]:
    """Yield the kept rows of a slice as tables with the columns asked for, in order.

    Raises:
        BadFileError: They cannot be decoded, or rows are missing.
    """
    position = 0
    for table in kept_tables(file, task, options, forms):
        low = max(task.start - position, 0)
        high = min(task.stop - position, table.num_rows)
        if low < high:
            yield table.slice(low, high - low)
        position += table.num_rows
        if position >= task.stop:
            return
    require_rows(task, position)


def kept_tables(
    file: pq.ParquetFile,
    task: SliceTask,
    options: ReadOptions,
    forms: Sequence[Form],
    *,
    max_rows: int = _MAX_PIECE_ROWS,
) -> Generator[pa.Table, None, None]:
    """Yield all kept rows of a slice's row group, a bounded number at a time.

    Args:
        file: The slice's.
        task: The slice.
        options: Has the filters.
        forms: The columns.
        max_rows: Rows that are decoded at once, before filtering.

    Raises:
        BadFileError: They cannot be decoded.
    """
    names = [form.name for form in forms]
    made = [form for form in forms if form.made]
    transform = options.transform
    read, needed, leaves = _needs(file, options, forms)
    if not leaves:  # else it is told where they are read
        expect(file, task.row_group, leaves)
    row_bytes = sum(form.row_bytes for form in forms)
    all_fixed = needed == set(read) and transform is None
    all_fixed = all_fixed and all(form.has_stored_width for form in forms)
    unknown = () if all_fixed else leaves  # whose width only the footer tells
    if transform is not None:
        row_bytes = max(row_bytes, transform.row_bytes)
    limit = min(max_rows, _piece_rows(file, task.row_group, unknown, row_bytes))
    if not needed:
        yield from origin_tables(task, made, limit)
        return
    first = kept = 0
    # From a row group of which all rows are wanted, one call takes them.
    whole = task.stop - task.start == task.group_rows <= limit
    shape = partial(_shape, nested=options.filter_columns, encoded=options.dictionaries)
    if options.own_types:
        shape = partial(shape, own=read, fitted=dict(options.fit.columns))
    for table in (_whole if whole else _batches)(file, task, leaves, limit, shape):
        if options.fit:
            table = fitted(table, task, options.fit, sorted(needed))
        if made:
            first, table = (
                first + table.num_rows,
                add_origin(table, task, made, first),
            )
        if options.expression is not None:
            table = table.filter(options.expression)
        if options.own_types:
            made_names = [form.name for form in made]
            table = own_columns(table, [*read, *made_names])
        if transform is not None and table.num_rows:
            table, kept = _transformed(transform, table, task, made, kept)
        elif transform is not None:
            continue
        yield add_masks(table, forms, task).select(names)


def _transformed(
    transform: Transform,
    table: pa.Table,
    task: SliceTask,
    made: Sequence[Form],
    kept: int,
) -> tuple[pa.Table, int]:
    """Return a transformed table with the columns that were made besides, and its end."""
    found = transform.apply(table, task, kept)
    for form in made:
        found = found.append_column(form.name, table.column(form.name))
    return found, kept + table.num_rows


def count_kept(file: pq.ParquetFile, task: SliceTask, options: ReadOptions) -> int:
    """Count the rows of a whole row group that the filters keep.

    Raises:
        BadFileError: It cannot be decoded.
    """
    places = _leaves_of(file)
    names, fit = options.filter_columns, options.fit
    told = {name for name, _ in fit.keys}
    wanted = {x for name in names if name not in told for x in places.get(name, ())}
    leaves = sorted(wanted)
    limit = _piece_rows(file, task.row_group, leaves, 0)
    shape = partial(_shape, nested=names)
    return sum(
        int(fitted(table, task, fit, names).filter(options.expression).num_rows)
        for table in _batches(file, task, leaves, limit, shape)
    )


def column_tables(
    file: pq.ParquetFile, task: SliceTask, name: str
) -> Iterator[pa.Table]:
    """Yield one column of a whole row group, dictionaries as such.

    Nothing where the file lacks it, as it may with schema=: all of it is null.

    Raises:
        BadFileError: It cannot be decoded.
    """
    leaves = list(_leaves_of(file).get(name, ()))
    if not leaves:
        return
    limit = _piece_rows(file, task.row_group, leaves, 0)
    flatten = partial(flatten_table, encoded=(name,))
    yield from _batches(file, task, leaves, limit, flatten)


def _leaves_of(file: pq.ParquetFile) -> dict[str, range]:
    # Asked for with each bundle of columns, and slow for a thousand of them.
    found = _leaves.get(file)
    if found is None:
        found = _leaves[file] = leaves_of(file.schema_arrow)
    return found


def _shape(
    table: pa.Table,
    nested: Sequence[str] = (),
    own: Sequence[str] = (),
    encoded: Sequence[str] = (),
    fitted: Collection[str] = (),
) -> pa.Table:
    """Return a table as it was read with the columns that filters and forms name."""
    return with_own_types(flatten_table(table, nested, encoded), table, own, fitted)


def fetch_ahead(
    file: pq.ParquetFile, task: SliceTask, options: ReadOptions, forms: Sequence[Form]
) -> None:
    """Fetch what table_pieces will read, if the file is remote and it is not too much.

    Raises:
        DataChangedError: The file is gone.
        StorageError: The store denies access, or fails again and again.
    """
    leaves = _needs(file, options, forms)[2]
    try:
        expect(file, task.row_group, leaves)
    except Exception as error:  # as where it is decoded
        raise decode_error(task.path, task.row_group, error) from error


def _needs(
    file: pq.ParquetFile, options: ReadOptions, forms: Sequence[Form]
) -> tuple[list[str], set[str], list[int]]:
    """Return the columns to deliver, those and the filters', and the latters' leaves."""
    places = _leaves_of(file)
    read = list(dict.fromkeys(f.mask_of or f.name for f in forms if not f.made))
    if options.transform is not None:
        read = list(options.transform.inputs)
    needed = {*read, *options.filter_columns}
    told = {name for name, _ in options.fit.keys}
    wanted = {leaf for name in needed - told for leaf in places.get(name, ())}
    return read, needed, sorted(wanted)


def _whole(
    file: pq.ParquetFile,
    task: SliceTask,
    leaves: Sequence[int],
    num_rows: int,
    shape: Callable[[pa.Table], pa.Table],
) -> Iterator[pa.Table]:
    if not leaves:
        yield from rows_alone(task.group_rows, num_rows)
        return
    try:
        expect(file, task.row_group, leaves)
        table = file.reader.read_row_groups(
            [task.row_group], column_indices=list(leaves), use_threads=False
        )
        yield shape(table)
    except Exception as error:  # Arrow has no common class, see open_error
        raise decode_error(task.path, task.row_group, error) from error


def _batches(
    file: pq.ParquetFile,
    task: SliceTask,
    leaves: Sequence[int],
    num_rows: int,
    shape: Callable[[pa.Table], pa.Table],
) -> Iterator[pa.Table]:
    if not leaves:
        yield from rows_alone(task.group_rows, num_rows)
        return
    try:
        expect(file, task.row_group, leaves)
        for batch in file.reader.iter_batches(
            num_rows,
            row_groups=[task.row_group],
            column_indices=list(leaves),
            use_threads=False,
        ):
            yield shape(pa.Table.from_batches([batch]))
    except Exception as error:  # Arrow has no common class, see open_error
        raise decode_error(task.path, task.row_group, error) from error


def _piece_rows(
    file: pq.ParquetFile, row_group: int, leaves: Sequence[int], fixed_bytes: int
) -> int:
    # By the decoded size of what is fixed, or the encoded size, which tells most of text.
    # Where a dictionary makes that small, the number of rows is bounded.
    group = file.metadata.row_group(row_group)
    encoded = sum(group.column(leaf).total_uncompressed_size for leaf in leaves)
    row_bytes: int = max(1, fixed_bytes, encoded // max(1, group.num_rows))
    return max(1, min(_MAX_PIECE_ROWS, PIECE_BYTES // row_bytes))


def require_rows(task: SliceTask, position: int) -> None:
    """Raise if a row group gave fewer rows than planned."""
    if position < task.stop:
        raise BadFileError(
            f"row group {task.row_group} of {task.path!r} gave {position} rows where "
            f"{task.stop} were planned; the footer does not tell the truth: rewrite the "
            "file, or leave it out of the path",
            path=task.path,
            row_group=task.row_group,
        )
