"""Windows as tensors, and batches put together from pieces of them.

Columns of one kind are cut and joined together, as rows of one tensor, and taken apart at
the end: with 40 columns this costs a fifth of handling each by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dask_loader.transfer.window import WindowData

# What a batch holds for one column: a tensor, or a list of str or bytes.
Column = torch.Tensor | list[Any]
Batch = dict[str, Column]


class TensorWindow:
    """A window whose columns are tensors over the window's own memory.

    A tensor keeps the memory alive, so slices of it may be handed out and outlive the
    window. Slices of different rows never overlap.

    Attributes:
        names: Columns of each group.
        groups: One tensor a group, shape (columns, rows, *row shape).
        texts: Text and binary columns.
    """

    def __init__(self, window: WindowData) -> None:
        self.names = [group.names for group in window.groups]
        self.groups = [torch.from_numpy(group.data) for group in window.groups]
        self.texts = window.texts


def make_batch(
    names: Sequence[str],
    pieces: Sequence[tuple[TensorWindow, int, int]],
    *,
    copy: bool,
) -> Batch:
    """Put the pieces of a batch together.

    Args:
        names: The columns in the batch's order.
        pieces: Window, first row, and one past the last row; at least one.
        copy: Return memory of its own even for a single piece.

    Returns:
        Tensors of shape (rows, *row shape), each contiguous: views on the window for a
        single piece, else copies.
    """
    first = pieces[0][0]
    found: Batch = {}
    for i, members in enumerate(first.names):
        parts = [window.groups[i][:, start:stop] for window, start, stop in pieces]
        joined = torch.cat(parts, dim=1) if copy or len(parts) > 1 else parts[0]
        # detach's older sister: without it all columns of all batches of a window share
        # one version counter, and autograd takes a write into one for a write into all.
        columns = [column.data for column in joined.unbind(0)]
        found.update(zip(members, columns, strict=True))
    for name in first.texts:
        found[name] = [
            text
            for window, start, stop in pieces
            for text in window.texts[name].slice(start, stop - start).to_pylist()
        ]
    return {name: found[name] for name in names}
