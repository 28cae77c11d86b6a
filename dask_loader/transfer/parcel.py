"""A window packed for another process: each group of columns one out-of-band buffer.

Pickle protocol 5 lets Dask send the buffers as frames of their own, without copying them
in Python. The receiver gets one fresh writable buffer for each group.

Two habits of distributed's tcp comm decide the form. The first out-of-band buffer is read
together with the message's head and arrives at an odd address, so an empty-handed dummy
goes first. And buffers above the comm's shard size (64 MiB by default) arrive in parts
that are joined by a copy, so a window is not packed into one.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from dask_loader.transfer.texts import pack_texts, unpack_texts
from dask_loader.transfer.window import GroupKind, WindowData, kind_of, make_group

_DUMMY_BYTES = 8


class Parcel:
    """Carries a WindowData through Dask's comm or any other protocol-5 pickle."""

    def __init__(self, window: WindowData) -> None:
        self._window = window

    def __sizeof__(self) -> int:
        """Tell Dask what this holds."""
        return self._window.__sizeof__()

    def open(self) -> WindowData:
        """Return the window; its arrays are this process's own."""
        return self._window

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Parcel], Any]:
        """Take the buffers out of band."""
        window = self._window
        kinds = [kind_of(group) for group in window.groups]
        wrap = pickle.PickleBuffer if protocol >= 5 else bytes
        buffers: list[Any] = [wrap(bytearray(_DUMMY_BYTES))]
        buffers += [wrap(group.block.data) for group in window.groups]
        if window.texts:
            buffers.append(wrap(pack_texts(window.texts)))
        state = (window.num_rows, window.unchecked_rows, kinds, bool(window.texts))
        return _rebuild, (*state, buffers)


def _rebuild(
    num_rows: int,
    unchecked_rows: int,
    kinds: list[GroupKind],
    has_texts: bool,
    buffers: list[Any],
) -> Parcel:
    window = WindowData(num_rows, unchecked_rows=unchecked_rows)
    for kind, buffer in zip(kinds, buffers[1:], strict=False):
        block = np.frombuffer(buffer, dtype=np.uint8)
        if (
            not block.flags.writeable
            or block.ctypes.data % np.dtype(kind.dtype).alignment
        ):
            block = block.copy()
        window.groups.append(make_group(kind, num_rows, block))
    if has_texts:
        window.texts = unpack_texts(buffers[-1])
    return Parcel(window)
