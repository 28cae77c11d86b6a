"""Columns of a window as tensors, and pieces of them put together."""

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
    """

    def __init__(self, window: WindowData) -> None:
        self.num_rows = window.num_rows
        self._tensors = {n: torch.from_numpy(a) for n, a in window.arrays.items()}
        self._texts = window.texts

    def column(self, name: str, start: int, stop: int) -> Column:
        """Return rows [start, stop) of a column; tensors are views."""
        tensor = self._tensors.get(name)
        if tensor is not None:
            return tensor[start:stop]
        texts: list[Any] = self._texts[name].slice(start, stop - start).to_pylist()
        return texts


def join(parts: Sequence[Column], *, copy: bool) -> Column:
    """Put parts of one column together.

    Args:
        parts: At least one, all of the same kind.
        copy: Return memory of its own even for a single part.
    """
    if len(parts) == 1:
        only = parts[0]
        return only.clone() if copy and isinstance(only, torch.Tensor) else only
    if isinstance(parts[0], torch.Tensor):
        return torch.cat([part for part in parts if isinstance(part, torch.Tensor)])
    return [item for part in parts for item in part]
