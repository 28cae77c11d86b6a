"""Cut batches, or single rows, out of windows as the schedule says.

Windows come in the order of their requests, steps in the order of the schedule. Nothing
here waits or reads: the caller gives the windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from dask_loader.batch.tensors import Batch, make_batch
from dask_loader.plan.schedule import Piece, Step
from dask_loader.transfer.window import WindowData

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
    ) -> None:
        """Begin without any window.

        Args:
            names: The columns, in the order that a batch has them.
            take: Returns the next window in the order of requests; may wait.
            release: Told the number of a request whose window is used up.
            must_copy: Whether batches must have memory of their own, because someone
                keeps slices of so many windows that their memory runs short.
        """
        self._names = tuple(names)
        self._take = take
        self._release = release
        self._must_copy = must_copy
        self._windows: dict[int, WindowData] = {}
        self._num_taken = 0

    def batch(self, step: Step) -> Batch:
        """Return a step's batch.

        Tensors have shape (rows, *row shape). They are the caller's to write into: views
        on memory that no other batch uses, or copies.
        """
        # A pad is a copy of a row that someone else has, or had, under another tensor.
        copy = step.pad is not None or self._must_copy()
        batch = make_batch(self._names, self._pieces(step), copy=copy)
        self._finish(step)
        return batch

    def rows(self, step: Step, *, num_splits: int) -> Iterator[Row]:
        """Yield a step's rows in the order of their positions, pads last.

        Numbers are NumPy scalars, fixed-size lists NumPy arrays, text str or bytes.
        """
        order = _position_order(step.pieces, num_splits)
        if step.pad is not None:
            order.append(len(order))
        batch = make_batch(self._names, self._pieces(step), copy=True)
        columns = []
        for column in batch.values():
            items = column.numpy() if isinstance(column, torch.Tensor) else column
            columns.append([items[i] for i in order])
        self._finish(step)
        for values in zip(*columns, strict=True):
            yield dict(zip(self._names, values, strict=True))

    def _pieces(self, step: Step) -> list[tuple[WindowData, int, int]]:
        for request in step.opened:
            if request.number != self._num_taken:
                raise AssertionError(
                    f"window {self._num_taken} is next, the step opens {request.number}"
                )
            self._windows[request.number] = self._take()
            self._num_taken += 1
        pieces = step.pieces if step.pad is None else (*step.pieces, step.pad)
        return [(self._windows[p.request], p.start, p.stop) for p in pieces]

    def _finish(self, step: Step) -> None:
        for number in step.finished:
            del self._windows[number]
            self._release(number)


def _position_order(pieces: Sequence[Piece], num_splits: int) -> list[int]:
    if len(pieces) < 2:
        return list(range(sum(p.stop - p.start for p in pieces)))
    positions = [
        (p.split_row + np.arange(p.stop - p.start)) * num_splits + p.split
        for p in pieces
    ]
    order: list[int] = np.argsort(np.concatenate(positions)).tolist()
    return order
