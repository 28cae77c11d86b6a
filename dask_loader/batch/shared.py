"""Windows between a DataLoader worker and the main process.

A tensor costs 0.3 to 0.9 ms to send, whatever its size, so a window goes as one tensor of
bytes in shared memory. torch counts its references and frees it; nothing is named or left
behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dask_loader.transfer.texts import pack_texts, unpack_texts
from dask_loader.transfer.window import WindowData, make_group


@dataclass(frozen=True, slots=True)
class Sent:
    """A window on its way to the main process.

    Attributes:
        num_rows: Rows of each column.
        groups: For each group of columns: names, dtype, row shape, bytes of its block.
        block: uint8, shape (bytes,), in shared memory; the groups' blocks end to end.
        texts: The other columns as an Arrow IPC stream, or b"".
    """

    num_rows: int
    groups: tuple[tuple[tuple[str, ...], str, tuple[int, ...], int], ...]
    block: torch.Tensor
    texts: bytes


@dataclass(frozen=True, slots=True)
class SentError:
    """An error on its way to the main process, which torch's own way would strip."""

    error: Exception


def send(window: WindowData) -> Sent:
    """Copy a window into shared memory."""
    groups = tuple((g.names, g.dtype, g.shape, g.block.nbytes) for g in window.groups)
    total = sum(num_bytes for *_, num_bytes in groups)
    # What torch's own collate function uses to build batches in shared memory.
    storage = torch.UntypedStorage._new_shared(max(total, 1))
    block = torch.empty(0, dtype=torch.uint8).set_(storage)
    memory, start = block.numpy(), 0
    for group in window.groups:
        memory[start : start + group.block.nbytes] = group.block
        start += group.block.nbytes
    texts = pack_texts(window.texts).to_pybytes() if window.texts else b""
    return Sent(window.num_rows, groups, block, texts)


def receive(sent: Sent) -> WindowData:
    """Open a window; its arrays are views on memory that is now ours alone."""
    memory, start = sent.block.numpy(), 0
    window = WindowData(sent.num_rows)
    for names, dtype, shape, num_bytes in sent.groups:
        block = memory[start : start + num_bytes]
        window.groups.append(make_group(names, dtype, shape, sent.num_rows, block))
        start += num_bytes
    if sent.texts:
        window.texts = unpack_texts(sent.texts)
    return window
