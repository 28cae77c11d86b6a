"""Read one window: decode, cast, fill nulls, mix, all into a block of the caller's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dask_loader.catalog.forms import Form
from dask_loader.catalog.schema import plain_schema
from dask_loader.errors import CastError
from dask_loader.plan.order import Ints, permutation
from dask_loader.read.cast import MisfitError
from dask_loader.read.chains import CHAIN_BYTES, Chain
from dask_loader.read.columns import copy_fixed, fill_text
from dask_loader.read.files import OpenFiles
from dask_loader.read.nulls import null_error
from dask_loader.read.pieces import (
    DECODING_BYTES,
    bundles,
    open_slice,
    table_pieces,
)
from dask_loader.read.task import SliceTask, WindowTask
from dask_loader.transfer.window import Block, WindowData, block_bytes, lay_out

# A string array's 32-bit offsets end here.
_MAX_TEXT_BYTES = 2**31 - 1

Allocate = Callable[[int], Block]
# A piece of some columns: the slice, its columns, where its rows begin in the window.
_Part = tuple[SliceTask, Sequence[Form], int, pa.Table]

# Memory that a thread uses again for each bundle that is to be mixed.
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
        sink.begin(bundle)
        for piece, columns, at, table in _parts(task, files, chain, index, bundle):
            for form, column in zip(columns, table.columns, strict=True):
                sink.put(form, column, at, piece)
        sink.mix()
    return sink.finish()


def scratch_bytes(task: WindowTask) -> int:
    """Return the bytes, about, that reading a window takes besides its block."""
    decoding = DECODING_BYTES if task.chain is None else CHAIN_BYTES
    if task.key is None:
        return decoding
    largest = max((s.group_rows for s in task.slices), default=0)
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
    options = task.options
    parts: list[pa.Table] = []
    for piece in task.slices:
        with open_slice(files, options, piece) as file:
            for part in table_pieces(file, piece, options, options.forms):
                parts.append(part.cast(plain_schema(part.schema)))
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
    return bundles(
        task.options, group_rows=largest, window_rows=task.num_rows, mixed=mixed
    )


def _parts(
    task: WindowTask,
    files: OpenFiles,
    chain: Chain | None,
    index: int,
    bundle: Sequence[Form],
) -> Iterator[_Part]:
    options = task.options
    if chain is not None:
        piece, at = task.slices[0], 0
        for table in chain.tables(options, piece, index, bundle):
            yield piece, bundle, at, table
            at += table.num_rows
        return
    start = 0
    for piece in task.slices:
        columns: Sequence[Sequence[Form]] = [bundle]
        if task.key is None:
            columns = bundles(
                options,
                group_rows=piece.group_rows,
                window_rows=task.num_rows,
                mixed=False,
            )
        with open_slice(files, options, piece) as file:
            for part in columns:
                at = start
                for table in table_pieces(file, piece, options, part):
                    yield piece, part, at, table
                    at += table.num_rows
        start += piece.stop - piece.start


class _Sink:
    """Takes decoded pieces of columns and puts them where the finished window has them.

    A mixed window is gathered by index. Columns of numbers wait in scratch memory, a
    bundle at a time, until they are whole; rows of fixed-size lists are wide enough to be
    scattered as they come.
    """

    def __init__(
        self, task: WindowTask, window: WindowData, order: Ints | None
    ) -> None:
        self._task = task
        self._window = window
        self._arrays = window.arrays
        self._waiting: dict[str, NDArray[np.generic]] = {}
        self._order = order
        self._inverse: Ints | None = None
        self._texts: dict[str, list[pa.Array]] = {}
        self._fills = {
            f.name: task.options.nulls.fill_for(f) for f in task.options.forms
        }

    def begin(self, bundle: Sequence[Form]) -> None:
        """Make room for a bundle, if it is to be mixed."""
        if self._order is None:
            return
        num_rows = self._task.num_rows
        narrow = [form for form in bundle if form.is_fixed and not form.shape]
        scratch = _scratch_block(block_bytes(narrow, num_rows))
        rough = WindowData(num_rows, lay_out(narrow, num_rows, scratch))
        self._waiting = rough.arrays

    def put(
        self, form: Form, column: pa.ChunkedArray, at: int, piece: SliceTask
    ) -> None:
        """Take rows [at, at + len(column)) of a column, counted before mixing."""
        for chunk in column.chunks:
            self._put(form, chunk, at, piece)
            at += len(chunk)

    def _put(self, form: Form, chunk: pa.Array, at: int, piece: SliceTask) -> None:
        allowed, fill = self._fills[form.name]
        if chunk.null_count and not allowed:
            self._refuse(form, chunk.null_count, piece)
        if not form.is_fixed:
            self._texts.setdefault(form.name, []).append(fill_text(chunk, fill))
            return
        rows = slice(at, at + len(chunk))
        out = self._arrays[form.name]
        try:
            if self._order is None:
                nulls = copy_fixed(chunk, out[rows], fill, exact=form.exact)
            elif form.shape:
                part = np.empty((len(chunk), *form.shape), dtype=out.dtype)
                nulls = copy_fixed(chunk, part, fill, exact=form.exact)
                out[self._places()[rows]] = part
            else:
                waiting = self._waiting[form.name][rows]
                nulls = copy_fixed(chunk, waiting, fill, exact=form.exact)
        except MisfitError as error:
            raise CastError(
                f"column {form.name!r} is to be delivered as {form.dtype}, and in "
                f"{piece.path!r}, row group {piece.row_group}: {error}; choose a wider "
                f"dtype with dtypes={{{form.feature or form.name!r}: ...}}",
                path=piece.path,
                row_group=piece.row_group,
                column=form.name,
            ) from error
        if nulls and not allowed:
            self._refuse(form, nulls, piece)

    def mix(self) -> None:
        """Gather the columns that wait."""
        for name, waiting in self._waiting.items():
            # mode="wrap" skips the check of each index and writes straight into out.
            assert self._order is not None
            np.take(waiting, self._order, out=self._arrays[name], mode="wrap")
        self._waiting = {}

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
        raise null_error(form, count, path=piece.path, row_group=piece.row_group)


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
