"""Windows between a DataLoader worker and the main process.

A tensor costs 0.3 to 0.9 ms to send, whatever its size, so a window goes as one tensor of
bytes in shared memory. torch counts its references and frees it; nothing is named or left
behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dask_loader.transfer.texts import pack_texts, unpack_texts
from dask_loader.transfer.window import WindowData


@dataclass(frozen=True, slots=True)
class Sent:
    """A window on its way to the main process.

    Attributes:
        num_rows: Rows of each column.
        columns: For each fixed-width column: name, NumPy dtype, shape, first byte.
        block: uint8, shape (bytes,), in shared memory; the fixed-width columns.
        texts: The other columns as an Arrow IPC stream, or b"".
    """

    num_rows: int
    columns: tuple[tuple[str, str, tuple[int, ...], int], ...]
    block: torch.Tensor
    texts: bytes


@dataclass(frozen=True, slots=True)
class SentError:
    """An error on its way to the main process, which torch's own way would strip."""

    error: Exception


def send(window: WindowData) -> Sent:
    """Copy a window into shared memory."""
    columns, start = [], 0
    for name, array in window.arrays.items():
        columns.append((name, array.dtype.str, array.shape, start))
        start += -(-array.nbytes // 64) * 64
    # What torch's own collate function uses to build batches in shared memory.
    storage = torch.UntypedStorage._new_shared(max(start, 1))  # type: ignore[no-untyped-call]
    block = torch.empty(0, dtype=torch.uint8).set_(storage)
    memory = block.numpy()
    for (_, _, _, at), array in zip(columns, window.arrays.values(), strict=True):
        memory[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
    texts = pack_texts(window.texts).to_pybytes() if window.texts else b""
    return Sent(window.num_rows, tuple(columns), block, texts)


def receive(sent: Sent) -> WindowData:
    """Open a window; its arrays are views on memory that is now ours alone."""
    memory = sent.block.numpy()
    window = WindowData(sent.num_rows)
    for name, dtype, shape, at in sent.columns:
        kind = np.dtype(dtype)
        length = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        window.arrays[name] = memory[at : at + length].view(kind).reshape(shape)
    if sent.texts:
        window.texts = unpack_texts(sent.texts)
    return window
