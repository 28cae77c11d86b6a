"""Cut batches, or single rows, out of windows as the schedule says.

Windows come in the order of their requests, steps in the order of the schedule. Nothing
here waits or reads: the caller gives the windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from dask_loader.batch.ragged import Ragged
from dask_loader.batch.tensors import (
    Batch,
    Column,
    Join,
    Loosen,
    add_origin,
    cut_batch,
)
from dask_loader.plan.schedule import Piece, Step
from dask_loader.transfer.window import Block, WindowData

Row = dict[str, Any]


class Rebatcher:
    """Holds the windows in use and makes steps of them."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        take: Callable[[], WindowData],
        release: Callable[[int], None],
        must_copy: Callable[[], bool],
        allocate: Callable[[int], Block] | None = None,
        files: Sequence[str] | None = None,
        loosen: Loosen | None = None,
        arrived: Callable[[WindowData], None] | None = None,
    ) -> None:
        """Begin without any window.

        Args:
            names: The columns and features, in the order that a batch has them.
            take: Returns the next window in the order of requests; may wait.
            release: Told the number of a request whose window is used up.
            must_copy: Whether batches must have memory of their own, because someone
                keeps slices of so many windows that their memory runs short.
            allocate: Gives memory for batches that are joined; NumPy's where None.
            files: Names of the catalog's files, where batches shall say where their rows
                came from and windows have the columns for it.
            loosen: What texts and lists become; Python's where None.
            arrived: Told of each window.
        """
        self._arrived = arrived
        self._loosen = loosen
        self._names = tuple(names)
        self._take = take
        self._release = release
        self._must_copy = must_copy
        self._allocate = allocate
        self._files = files
        self._windows: dict[int, WindowData] = {}
        self._num_taken = 0
        self._stand_ins: set[int] = set()

    def batch(self, step: Step) -> Batch:
        """Return a step's batch.

        Tensors have shape (rows, *row shape). They are the caller's to write into: views
        on memory that no other batch uses, or copies.
        """
        hoarded = self._must_copy()
        # A pad is a copy of a row that someone else has, or had, under another tensor.
        if len(step.pieces) > 1 or step.pad is not None or hoarded:
            return self._join(step, None if hoarded else self._allocate)
        piece = step.pieces[0]
        self._finish(number for number in step.finished if number != piece.request)
        window = self._window(step, piece.request)
        batch = cut_batch(
            self._names, window, piece.start, piece.stop, loosen=self._loosen
        )
        self._finish(step.finished)
        return self._signed(step, batch)

    def rows(self, step: Step, *, num_splits: int) -> Iterator[Row]:
        """Yield a step's rows in the order of their positions, pads last.

        Numbers are NumPy scalars, lists of them NumPy arrays, text str or bytes.
        """
        order = _position_order(step.pieces, num_splits)
        if step.pad is not None:
            order.append(len(order))
        batch = self._join(step, None)
        columns = []
        for column in batch.values():
            columns.append(_rows_of(column, order))
        for values in zip(*columns, strict=True):
            yield dict(zip(batch, values, strict=True))

    def _join(self, step: Step, allocate: Callable[[int], Block] | None) -> Batch:
        """Copy a step's pieces together.

        A window that ends within the step is let go before the next is taken, so that no
        more windows are in hand than there are splits.
        """
        pieces = step.pieces if step.pad is None else (*step.pieces, step.pad)
        last_use = {piece.request: i for i, piece in enumerate(pieces)}
        # Where ranks share splits, another may have had the rest of a window.
        self._finish(number for number in step.finished if number not in last_use)
        num_rows = sum(piece.stop - piece.start for piece in pieces)
        join: Join | None = None
        for i, piece in enumerate(pieces):
            window = self._window(step, piece.request)
            join = join or Join(window, num_rows, allocate, loosen=self._loosen)
            join.add(window, piece.start, piece.stop)
            del window
            if last_use[piece.request] == i and piece.request in step.finished:
                self._finish([piece.request])
        self._finish(step.finished)
        assert join is not None
        return self._signed(step, join.batch(self._names))

    def _signed(self, step: Step, batch: Batch) -> Batch:
        if self._files is not None:
            padded, start = [], 0
            pieces = step.pieces if step.pad is None else (*step.pieces, step.pad)
            for piece in pieces:
                stop = start + piece.stop - piece.start
                if piece.request in self._stand_ins or piece is step.pad:
                    padded.append((start, stop))
                start = stop
            add_origin(batch, self._files, padded=padded)
        return batch

    def _window(self, step: Step, number: int) -> WindowData:
        if number not in self._windows:
            opened = any(request.number == number for request in step.opened)
            if not opened or number != self._num_taken:
                raise AssertionError(
                    f"window {self._num_taken} is next, the step uses {number}"
                )
            window = self._windows[number] = self._take()
            self._num_taken += 1
            if window.stands_for:
                self._stand_ins.add(number)
            if self._arrived is not None:
                self._arrived(window)
        return self._windows[number]

    def _finish(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if self._windows.pop(number, None) is not None:
                self._release(number)


def _rows_of(column: Column, order: Sequence[int]) -> list[Any]:
    if isinstance(column, Ragged):
        rows = [column.row(i) for i in order]
        return [row.numpy() if isinstance(row, torch.Tensor) else row for row in rows]
    items = column.numpy() if isinstance(column, torch.Tensor) else column
    return [items[i] for i in order]


def _position_order(pieces: Sequence[Piece], num_splits: int) -> list[int]:
    if len(pieces) < 2:
        return list(range(sum(p.stop - p.start for p in pieces)))
    positions = [
        (p.split_row + np.arange(p.stop - p.start)) * num_splits + p.split
        for p in pieces
    ]
    order: list[int] = np.argsort(np.concatenate(positions)).tolist()
    return order
