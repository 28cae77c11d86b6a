"""Read one window: decode, cast, fill nulls, mix, all into a block of the caller's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dask_loader.catalog.forms import Form
from dask_loader.catalog.schema import plain_schema
from dask_loader.errors import CastError
from dask_loader.plan.order import Ints, permutation
from dask_loader.read.ahead import open_slices
from dask_loader.read.cast import MisfitError
from dask_loader.read.chains import CHAIN_BYTES, Chain
from dask_loader.read.checksums import unchecked_rows
from dask_loader.read.codes import code_of, encode
from dask_loader.read.columns import copy_fixed, fill_text
from dask_loader.read.files import OpenFiles, check_texts
from dask_loader.read.nulls import null_error
from dask_loader.read.pieces import (
    DECODING_BYTES,
    PIECE_BYTES,
    bundles,
    open_slice,
    table_pieces,
)
from dask_loader.read.ragged import copy_padded, plain_lists
from dask_loader.read.task import SliceTask, WindowTask
from dask_loader.transfer.window import Block, WindowData, block_bytes, lay_out

# A string array's 32-bit offsets end here.
_MAX_TEXT_BYTES = 2**31 - 1

Allocate = Callable[[int], Block]
# A piece of some columns: the slice, its columns, where its rows begin in the window.
_Part = tuple[SliceTask, Sequence[Form], int, pa.Table]

# Memory that a thread uses again for each column that is to be mixed.
_scratch = threading.local()


def read_window(
    task: WindowTask,
    files: OpenFiles,
    allocate: Allocate,
    chain: Chain | None = None,
) -> WindowData:
    """Decode a window.

    A few columns of one row group are decoded at a time and copied into the block while
    they are in the cache.

    Args:
        task: What to read.
        files: Lends the files.
        allocate: Gives a writable block of so many bytes.
        chain: For a window of a chain, from Chains.enter(): goes on where the window
            before it ended. Without it the row group is decoded from its start.

    Raises:
        DataChangedError: A file is not the one that was planned.
        BadFileError: A file cannot be decoded, or gives other rows than planned.
        NullError: Nulls without a policy.
        CastError: A number that does not fit the dtype asked for.
    """
    forms, num_rows = task.options.forms, task.num_rows
    block = allocate(block_bytes(forms, num_rows))
    window = WindowData(num_rows, lay_out(forms, num_rows, block))
    order = None if task.key is None else permutation(num_rows, *task.key)
    sink = _Sink(task, window, order)
    for index, bundle in enumerate(_bundles(task, chain)):
        # Each slice is counted once, with the first columns that are read of it.
        unchecked = window if index == 0 else None
        parts = _parts(task, files, chain, index, bundle, unchecked)
        if order is None:
            for part in parts:
                sink.put(part)
        elif task.options.transform is not None:
            # All columns come together, so none is kept until it is whole.
            for part in parts:
                sink.spread(part)
        else:
            sink.mix(bundle, list(parts))
    return sink.finish()


def scratch_bytes(task: WindowTask) -> int:
    """Return the bytes, about, that reading a window takes besides its block."""
    largest = max((s.group_rows for s in task.slices), default=0)
    row_bytes = sum(form.row_bytes for form in task.options.forms)
    most = DECODING_BYTES if task.chain is None else CHAIN_BYTES
    decoding = min(most, largest * row_bytes)
    transform = task.options.transform
    if transform is not None:  # what it is given, what it returns, and its mixed rows
        return decoding + min(3 * PIECE_BYTES, 3 * largest * transform.row_bytes)
    if task.key is None:
        return decoding
    found = bundles(
        task.options, group_rows=largest, window_rows=task.num_rows, mixed=True
    )
    return decoding + max(
        sum(form.row_bytes for form in bundle if not form.shape) * task.num_rows
        for bundle in found
    )


def read_table(
    task: WindowTask, files: OpenFiles, rows: tuple[tuple[int, int], ...]
) -> pa.Table:
    """Read a window as a table in Arrow's own types, nulls as they are.

    Args:
        task: What to read.
        files: Lends the files.
        rows: Ranges of the window's rows, counted after mixing, to keep.

    Raises:
        DataChangedError: A file is not the one that was planned.
        BadFileError: A file cannot be decoded, or gives other rows than planned.
    """
    options = replace(task.options, vocabularies=())  # values, not codes
    parts: list[pa.Table] = []
    for piece in task.slices:
        with open_slice(files, options, piece) as file:
            forms = [f for f in options.forms if not (f.made or f.mask_of)]
            for part in table_pieces(file, piece, options, forms):
                own = (
                    part if options.own_types else part.cast(plain_schema(part.schema))
                )
                parts.append(own)
    table = pa.concat_tables(parts)
    if task.key is not None:
        table = table.take(pa.array(permutation(task.num_rows, *task.key)))
    kept = [table.slice(start, stop - start) for start, stop in rows]
    return pa.concat_tables(kept).combine_chunks()


def _bundles(task: WindowTask, chain: Chain | None) -> list[tuple[Form, ...]]:
    """Return the columns that are taken through the whole window together.

    Where nothing is mixed, and slices are not chained, each slice is taken through all
    columns instead: it opens each file once.
    """
    mixed = task.key is not None
    if chain is None and not mixed:
        return [task.options.forms]
    largest = max((s.stop - s.start for s in task.slices), default=0)
    if chain is None:
        largest = max((s.group_rows for s in task.slices), default=0)
    found = bundles(
        task.options, group_rows=largest, window_rows=task.num_rows, mixed=mixed
    )
    return found if chain is None else chain.bundles(found)


def _parts(
    task: WindowTask,
    files: OpenFiles,
    chain: Chain | None,
    index: int,
    bundle: Sequence[Form],
    unchecked: WindowData | None,
) -> Iterator[_Part]:
    options = task.options
    if chain is not None:
        piece, at = task.slices[0], 0
        for table in chain.tables(options, piece, index, bundle):
            yield piece, bundle, at, table
            at += table.num_rows
        if unchecked is not None:
            unchecked.unchecked_rows += chain.unchecked_rows(piece)
        return
    start = 0
    for piece, opened in open_slices(files, options, task.slices, bundle):
        columns: Sequence[Sequence[Form]] = [bundle]
        if task.key is None:
            columns = bundles(
                options,
                group_rows=piece.group_rows,
                window_rows=task.num_rows,
                mixed=False,
            )
        with opened as file:
            for part in columns:
                at = start
                for table in table_pieces(file, piece, options, part):
                    yield piece, part, at, table
                    at += table.num_rows
            if unchecked is not None:
                unchecked.unchecked_rows += unchecked_rows(file, piece, options)
        start += piece.stop - piece.start


class _Sink:
    """Puts decoded pieces of columns where the finished window has them.

    A mixed window is gathered by index. A column is copied together in scratch memory and
    gathered at once, while it is in the cache; from memory that is not, gathering takes
    three times as long. Rows of fixed-size lists are wide enough to be scattered.
    """

    def __init__(
        self, task: WindowTask, window: WindowData, order: Ints | None
    ) -> None:
        self._task = task
        self._window = window
        self._arrays = window.arrays
        self._order = order
        self._inverse: Ints | None = None
        self._texts: dict[str, list[pa.Array]] = {}
        self._fills = {
            f.name: task.options.nulls.fill_for(f) for f in task.options.forms
        }
        self._vocabularies = dict(task.options.vocabularies)
        for name, vocabulary in self._vocabularies.items():
            allowed, fill = self._fills.get(name, (False, None))
            if allowed and not task.options.nulls.mask:
                self._fills[name] = (True, code_of(fill, vocabulary))

    def put(self, part: _Part) -> None:
        """Take a part of a window that keeps its order."""
        piece, forms, at, table = part
        for form, column in zip(forms, table.columns, strict=True):
            if form.is_fixed:
                self._copy(form, column, self._arrays[form.name], at, piece)
            else:
                self._keep(form, column, piece)

    def spread(self, part: _Part) -> None:
        """Take a part of a window that is mixed, all columns of some rows."""
        piece, forms, at, table = part
        for form, column in zip(forms, table.columns, strict=True):
            if form.is_fixed:
                self._scatter(form, column, at, piece)
            else:
                self._keep(form, column, piece)

    def mix(self, forms: Sequence[Form], parts: Sequence[_Part]) -> None:
        """Take all parts of some columns of a window that is mixed."""
        for index, form in enumerate(forms):
            columns = [
                (piece, at, table.column(index)) for piece, _, at, table in parts
            ]
            if not form.is_fixed:
                for piece, _, column in columns:
                    self._keep(form, column, piece)
            elif form.shape:
                for piece, at, column in columns:
                    self._scatter(form, column, at, piece)
            else:
                self._gather(form, columns)

    def _gather(
        self, form: Form, columns: Sequence[tuple[SliceTask, int, pa.ChunkedArray]]
    ) -> None:
        out = self._arrays[form.name]
        scratch = _scratch_block(out.nbytes)[: out.nbytes].view(out.dtype)
        for piece, at, column in columns:
            self._copy(form, column, scratch, at, piece)
        assert self._order is not None
        # mode="wrap" skips the check of each index and writes straight into out.
        np.take(scratch, self._order, out=out, mode="wrap")

    def _scatter(
        self, form: Form, column: pa.ChunkedArray, at: int, piece: SliceTask
    ) -> None:
        out = self._arrays[form.name]
        for chunk in column.chunks:
            rows = np.empty((len(chunk), *form.shape), dtype=out.dtype)
            self._copy(form, pa.chunked_array([chunk]), rows, 0, piece)
            out[self._places()[at : at + len(chunk)]] = rows
            at += len(chunk)

    def _keep(self, form: Form, column: pa.ChunkedArray, piece: SliceTask) -> None:
        if form.whole:
            self._texts.setdefault(form.name, []).extend(column.chunks)
            return
        allowed, fill = self._fills[form.name]
        if column.null_count and not allowed:
            self._refuse(form, column.null_count, piece)
        check_texts(column, form.name, piece.path, piece.row_group)
        texts = self._texts.setdefault(form.name, [])
        if not form.depth:
            texts += [fill_text(chunk, fill) for chunk in column.chunks]
            return
        for chunk in column.chunks:
            with self._told(form, piece):
                lists, nulls = plain_lists(
                    chunk,
                    form,
                    allowed=allowed,
                    fill=fill,
                    vocabulary=self._vocabularies.get(form.name),
                )
            if nulls and not allowed:
                self._refuse(form, nulls, piece)
            texts.append(lists)

    def _copy(
        self,
        form: Form,
        column: pa.ChunkedArray,
        out: NDArray[np.generic],
        at: int,
        piece: SliceTask,
    ) -> None:
        """Copy a column to out's rows from `at` on."""
        allowed, fill = self._fills[form.name]
        for chunk in column.chunks:
            if chunk.null_count and not allowed:
                self._refuse(form, chunk.null_count, piece)
            rows = out[at : at + len(chunk)]
            with self._told(form, piece):
                vocabulary = self._vocabularies.get(form.name)
                if form.pad is not None:
                    nulls = copy_padded(chunk, rows, form, fill, vocabulary)
                else:
                    if vocabulary is not None:
                        chunk = encode(chunk, form, vocabulary)
                    nulls = copy_fixed(chunk, rows, fill, exact=form.exact)
            if nulls and not allowed:
                self._refuse(form, nulls, piece)
            at += len(chunk)

    @contextmanager
    def _told(self, form: Form, piece: SliceTask) -> Iterator[None]:
        """Say of a number that does not fit where it is."""
        try:
            yield
        except MisfitError as error:
            way_out = error.way_out or (
                f"choose another dtype with dtypes={{{form.feature or form.name!r}: ...}}"
            )
            raise CastError(
                f"column {form.name!r} is to be delivered as {form.number}, and in "
                f"{piece.path!r}, row group {piece.row_group}: {error}; {way_out}",
                path=piece.path,
                row_group=piece.row_group,
                column=form.name,
            ) from error

    def finish(self) -> WindowData:
        """Return the window once all pieces are in."""
        for form in self._task.options.forms:
            if not form.is_fixed:
                text = _concat(self._texts.pop(form.name, []))
                if self._order is not None:
                    text = text.take(pa.array(self._order))
                self._window.texts[form.name] = text
        return self._window

    def _places(self) -> Ints:
        if self._inverse is None:
            assert self._order is not None
            self._inverse = np.empty_like(self._order)
            self._inverse[self._order] = np.arange(len(self._order))
        return self._inverse

    def _refuse(self, form: Form, count: int, piece: SliceTask) -> None:
        raise null_error(
            form,
            count,
            path=piece.path,
            row_group=piece.row_group,
            made=self._task.options.transform is not None,
        )


def _scratch_block(num_bytes: int) -> Block:
    """Return this thread's scratch memory, undefined; the next call takes it over."""
    block: Block | None = getattr(_scratch, "block", None)
    if block is None or len(block) < num_bytes:
        block = _scratch.block = np.empty(num_bytes, dtype=np.uint8)
    return block[:num_bytes]


def _concat(chunks: list[pa.Array]) -> pa.Array:
    if sum(chunk.nbytes for chunk in chunks) > _MAX_TEXT_BYTES:
        wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
        chunks = [chunk.cast(wide.get(chunk.type, chunk.type)) for chunk in chunks]
    return pa.concat_arrays(chunks)
