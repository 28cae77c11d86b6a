"""Lists of any length in a batch: all elements in one tensor, and where each row begins."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch


class Ragged(NamedTuple):
    """A column of lists.

    Attributes:
        values: The elements of all rows, one after the other: a tensor of shape
            (elements, *element shape), a list of str or bytes, or for lists of lists
            another Ragged.
        offsets: int64, shape (rows + 1,): row i has elements offsets[i] to
            offsets[i + 1].
    """

    values: Any
    offsets: torch.Tensor

    def row(self, index: int) -> Any:
        """Return a row's elements: a view, a list, or for lists of lists a Ragged.

        Args:
            index: 0 <= index < rows.
        """
        start, stop = self.offsets[index : index + 2].tolist()
        return _part(self.values, start, stop)

    def nested(self) -> torch.Tensor:
        """Return a torch.nested tensor of layout torch.jagged over the same memory.

        Raises:
            TypeError: The elements are not numbers, or lists again.
        """
        if not isinstance(self.values, torch.Tensor):
            raise TypeError(
                "torch.nested holds lists of numbers only, not of text or lists"
            )
        nested: torch.Tensor = torch.nested.nested_tensor_from_jagged(
            self.values, self.offsets
        )
        return nested


def nest_each(
    batches: Generator[dict[str, Any], None, None], names: Collection[str]
) -> Generator[dict[str, Any], None, None]:
    """Yield batches with torch.nested tensors in place of some columns.

    The last thing that is done to a batch: pinned memory and copies to a device know
    plain tensors only.
    """
    with closing(batches):
        for batch in batches:
            yield {
                name: column.nested() if name in names else column
                for name, column in batch.items()
            }


def cut_lists(lists: pa.Array) -> Ragged:
    """Copy large lists, of numbers or texts or lists, out of Arrow's memory."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    first, last = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
    values = lists.values.slice(first, last - first)
    if not len(offsets):
        offsets = np.zeros(1, dtype=np.int64)
    return Ragged(_items(values), torch.from_numpy(offsets - first))


def join_lists(parts: Sequence[Ragged]) -> Ragged:
    """Return the rows of several columns of lists, one after the other."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([0, *(int(part.offsets[-1]) for part in parts)]).tolist()
    offsets = [part.offsets[:-1] + end for part, end in zip(parts, ends, strict=False)]
    values = [part.values for part in parts]
    joined: Any
    if isinstance(values[0], torch.Tensor):
        joined = torch.cat(values)
    elif isinstance(values[0], Ragged):
        joined = join_lists(values)
    else:
        joined = [item for value in values for item in value]
    return Ragged(joined, torch.cat([*offsets, torch.tensor([ends[-1]])]))


def _items(values: pa.Array) -> Any:
    if pa.types.is_large_list(values.type):
        return cut_lists(values)
    if pa.types.is_fixed_size_list(values.type):
        width = values.type.list_size
        inner = _items(values.values.slice(values.offset * width, len(values) * width))
        return inner.reshape(len(values), width, *inner.shape[1:])
    if pa.types.is_boolean(values.type):
        return torch.from_numpy(values.to_numpy(zero_copy_only=False).copy())
    if values.type.num_buffers == 2 and pa.types.is_primitive(values.type):
        return torch.from_numpy(values.to_numpy(zero_copy_only=True).copy())
    return values.to_pylist()


def _part(values: Any, start: int, stop: int) -> Any:
    if not isinstance(values, Ragged):
        return values[start:stop]
    inner = values.offsets[start : stop + 1]
    first, last = int(inner[0]), int(inner[-1])
    return Ragged(_part(values.values, first, last), inner - first)
