"""Batches put together from pieces of windows.

Columns of one kind are cut and joined together, as rows of one array, and become tensors
one by one at the end. A tensor is made from its own piece of an array, not as a view of
another tensor: then it has a version counter of its own (autograd takes a write into one
view for a write into all), and torch.save() writes its rows, not the window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from dask_loader.batch.ragged import Ragged, cut_lists, join_lists
from dask_loader.catalog.provenance import FILE, PADDED
from dask_loader.transfer.window import Block, GroupKind, WindowData, kind_of

# What a batch holds for one column: a tensor, a list of str or bytes, or lists. (Columns
# that stay Arrow's are pa.ChunkedArray, which mypy does not know.)
Column = torch.Tensor | list[Any] | Ragged
Batch = dict[str, Column]
Loosen = Callable[[pa.Array], Any]

_ALIGNMENT = 64


def cut_batch(
    names: Sequence[str],
    window: WindowData,
    start: int,
    stop: int,
    *,
    loosen: Loosen | None = None,
) -> Batch:
    """Return rows [start, stop) of a window as a batch, without copying.

    Args:
        names: The columns and features in the batch's order.
        window: The window.
        start: First row.
        stop: One past the last row.
        loosen: What texts and lists become; Python's where None.

    Returns:
        Tensors of shape (rows, *row shape), each contiguous, on the window's memory; a
        feature has shape (rows, columns), each column contiguous. They keep that memory
        alive, so they may outlive the window; those of different rows never overlap.
    """
    found: Batch = {}
    for group in window.groups:
        _deliver(kind_of(group), group.data[:, start:stop], found)
    for name, text in window.texts.items():
        found[name] = (loosen or _loose)(text.slice(start, stop - start))
    return {name: found[name] for name in names}


class Join:
    """A batch that is put together from several pieces, in memory of its own."""

    def __init__(
        self,
        like: WindowData,
        num_rows: int,
        allocate: Callable[[int], Block] | None,
        *,
        loosen: Loosen | None = None,
    ) -> None:
        """Make room.

        Args:
            like: A window with the same columns.
            num_rows: Rows of the batch.
            allocate: Gives one block for all columns; None gives each group its own, so
                that a column that is kept for long keeps little else.
            loosen: What texts and lists become; Python's where None.
        """
        self._loosen = loosen or _loose
        self._num_rows = 0
        # Not the groups: the window must be free to go while the batch is joined.
        self._kinds = [kind_of(group) for group in like.groups]
        self._texts: dict[str, list[Any]] = {n: [] for n in like.texts}
        shapes = [(len(g.names), num_rows, *g.shape) for g in like.groups]
        self._arrays: list[NDArray[np.generic]] = []
        if allocate is None:
            pairs = zip(like.groups, shapes, strict=True)
            self._arrays = [np.empty(s, dtype=g.data.dtype) for g, s in pairs]
            return
        sizes = [
            int(np.prod(shape, dtype=np.int64)) * group.data.dtype.itemsize
            for group, shape in zip(like.groups, shapes, strict=True)
        ]
        padded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        block, at = allocate(sum(padded)), 0
        for group, shape, size, step in zip(
            like.groups, shapes, sizes, padded, strict=True
        ):
            part = block[at : at + size].view(group.data.dtype).reshape(shape)
            self._arrays.append(part)
            at += step

    def add(self, window: WindowData, start: int, stop: int) -> None:
        """Copy rows [start, stop) of a window to the batch's next rows."""
        rows = slice(self._num_rows, self._num_rows + stop - start)
        for array, group in zip(self._arrays, window.groups, strict=True):
            array[:, rows] = group.data[:, start:stop]
        for name, parts in self._texts.items():
            # Copies: the window must be free to go.
            parts.append(self._loosen(window.texts[name].slice(start, stop - start)))
        self._num_rows = rows.stop

    def batch(self, names: Sequence[str]) -> Batch:
        """Return the batch; see cut_batch."""
        found: Batch = {name: _join(parts) for name, parts in self._texts.items()}
        for kind, array in zip(self._kinds, self._arrays, strict=True):
            _deliver(kind, array, found)
        return {name: found[name] for name in names}


def _loose(array: pa.Array) -> list[Any] | Ragged:
    if pa.types.is_large_list(array.type):
        return cut_lists(array)
    items: list[Any] = array.to_pylist()
    return items


def keep_arrow(array: pa.Array) -> pa.ChunkedArray:
    """Leave a column Arrow's; see cut_batch. Arrow's memory is never written into."""
    return pa.chunked_array([array])


def _join(parts: Sequence[Any]) -> Any:
    if parts and isinstance(parts[0], pa.ChunkedArray):
        chunks = [chunk for part in parts for chunk in part.chunks]
        return pa.chunked_array(chunks, parts[0].type)
    lists = [part for part in parts if isinstance(part, Ragged)]
    if lists:
        return join_lists(lists)
    return [item for part in parts for item in part]


def add_origin(
    batch: Batch, files: Sequence[str], *, padded: Sequence[tuple[int, int]]
) -> None:
    """Put in what a batch's windows do not say of where its rows came from.

    Args:
        batch: Has `__file__` as an index into files, which becomes their names.
        files: As the catalog has them.
        padded: Which rows, from start to stop, are copies of others: of uneven="pad", or
            in place of a window that was skipped.
    """
    index = batch[FILE]
    assert isinstance(index, torch.Tensor)
    batch[FILE] = [files[i] for i in index.tolist()]
    flags = batch[PADDED] = torch.zeros(len(index), dtype=torch.bool)
    for start, stop in padded:
        flags[start:stop] = True


def _deliver(kind: GroupKind, rows: NDArray[np.generic], found: Batch) -> None:
    if kind.feature:
        found[kind.feature] = torch.from_numpy(rows.T)
        return
    for name, column in zip(kind.names, rows, strict=True):
        found[name] = torch.from_numpy(column)
