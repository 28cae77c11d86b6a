"""Read one window: decode, fill nulls, mix, all into a block that the caller provides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dask_loader.catalog.forms import Form
from dask_loader.catalog.schema import plain_schema
from dask_loader.plan.order import Ints, permutation
from dask_loader.read.columns import copy_fixed, fill_text
from dask_loader.read.files import OpenFiles
from dask_loader.read.nulls import null_error
from dask_loader.read.pieces import bundles, open_slice, table_pieces
from dask_loader.read.task import SliceTask, WindowTask
from dask_loader.transfer.window import Block, WindowData, block_bytes, lay_out

# A string array's 32-bit offsets end here.
_MAX_TEXT_BYTES = 2**31 - 1

Allocate = Callable[[int], Block]


def read_window(task: WindowTask, files: OpenFiles, allocate: Allocate) -> WindowData:
    """Decode a window.

    A few columns of one row group are decoded at a time and copied into the block while
    they are in the cache.

    Args:
        task: What to read.
        files: Lends the files.
        allocate: Gives a writable block of so many bytes.

    Raises:
        DataChangedError: A file is not the one that was planned.
        BadFileError: A file cannot be decoded, or gives other rows than planned.
        NullError: Nulls without a policy.
    """
    options = task.options
    fixed = [form for form in options.forms if form.is_fixed]
    block = allocate(block_bytes(fixed, task.num_rows))
    window = WindowData(task.num_rows, lay_out(fixed, task.num_rows, block))
    order = None if task.key is None else permutation(task.num_rows, *task.key)
    waiting: dict[str, NDArray[np.generic]] = {}
    if order is not None:
        narrow = [form for form in fixed if not form.shape]
        scratch = allocate(block_bytes(narrow, task.num_rows))
        rough = WindowData(task.num_rows, lay_out(narrow, task.num_rows, scratch))
        waiting = rough.arrays
    sink = _Sink(task, window, waiting, order)
    start = 0
    for piece in task.slices:
        with open_slice(files, options, piece) as file:
            for forms in bundles(options, piece.group_rows):
                at = start
                for table in table_pieces(file, piece, options, forms):
                    for form, column in zip(forms, table.columns, strict=True):
                        sink.put(form, column, at, piece)
                    at += table.num_rows
        start += piece.stop - piece.start
    return sink.finish()


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


class _Sink:
    """Takes decoded pieces of columns and puts them where the finished window has them.

    A mixed window is gathered by index. Columns of numbers wait in scratch memory until
    they are whole; rows of fixed-size lists are wide enough to be scattered as they come.
    """

    def __init__(
        self,
        task: WindowTask,
        window: WindowData,
        waiting: dict[str, NDArray[np.generic]],
        order: Ints | None,
    ) -> None:
        self._task = task
        self._window = window
        self._arrays = window.arrays
        self._waiting = waiting
        self._order = order
        self._inverse: Ints | None = None
        self._texts: dict[str, list[pa.Array]] = {}
        self._fills = {
            f.name: task.options.nulls.fill_for(f) for f in task.options.forms
        }

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
        if self._order is None:
            nulls = copy_fixed(chunk, out[rows], fill)
        elif form.shape:
            part = np.empty((len(chunk), *form.shape), dtype=out.dtype)
            nulls = copy_fixed(chunk, part, fill)
            out[self._places()[rows]] = part
        else:
            nulls = copy_fixed(chunk, self._waiting[form.name][rows], fill)
        if nulls and not allowed:
            self._refuse(form, nulls, piece)

    def finish(self) -> WindowData:
        """Return the window once all pieces are in."""
        for name, waiting in self._waiting.items():
            # mode="wrap" skips the check of each index and writes straight into out.
            assert self._order is not None
            np.take(waiting, self._order, out=self._arrays[name], mode="wrap")
        for form in self._task.options.forms:
            if not form.is_fixed:
                text = _concat(self._texts.get(form.name, []))
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


def _concat(chunks: list[pa.Array]) -> pa.Array:
    if sum(chunk.nbytes for chunk in chunks) > _MAX_TEXT_BYTES:
        wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
        chunks = [chunk.cast(wide.get(chunk.type, chunk.type)) for chunk in chunks]
    return pa.concat_arrays(chunks)
