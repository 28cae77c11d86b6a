"""Batches put together from pieces of windows.

Columns of one kind are cut and joined together, as rows of one array, and become tensors
one by one at the end. A tensor is made from its own piece of an array, not as a view of
another tensor: then it has a version counter of its own (autograd takes a write into one
view for a write into all), and torch.save() writes its rows, not the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dask_loader.transfer.window import WindowData

# What a batch holds for one column: a tensor, or a list of str or bytes.
Column = torch.Tensor | list[Any]
Batch = dict[str, Column]


def make_batch(
    names: Sequence[str],
    pieces: Sequence[tuple[WindowData, int, int]],
    *,
    copy: bool,
) -> Batch:
    """Put the pieces of a batch together.

    Args:
        names: The columns in the batch's order.
        pieces: Window, first row, and one past the last row; at least one.
        copy: Return memory of its own even for a single piece.

    Returns:
        Tensors of shape (rows, *row shape), each contiguous: on the window's memory for a
        single piece, else copies. They keep that memory alive, so they may outlive the
        window; those of different rows never overlap.
    """
    first = pieces[0][0]
    found: Batch = {}
    for i, group in enumerate(first.groups):
        parts = [window.groups[i].data[:, start:stop] for window, start, stop in pieces]
        joined = np.concatenate(parts, axis=1) if copy or len(parts) > 1 else parts[0]
        for name, column in zip(group.names, joined, strict=True):
            found[name] = torch.from_numpy(column)
    for name in first.texts:
        found[name] = [
            text
            for window, start, stop in pieces
            for text in window.texts[name].slice(start, stop - start).to_pylist()
        ]
    return {name: found[name] for name in names}
