"""A window packed for another process: each column one out-of-band buffer.

Pickle protocol 5 lets Dask send the buffers as frames of their own, without copying them
in Python. The receiver gets one fresh writable buffer for each column.

Two habits of distributed's tcp comm decide the form. The first out-of-band buffer is read
together with the message's head and arrives at an odd address, so an empty-handed dummy
goes first. And buffers above the comm's shard size (64 MiB by default) arrive in parts
that are joined by a copy, so columns are not packed into one.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_loader.transfer.texts import pack_texts, unpack_texts
from dask_loader.transfer.window import WindowData

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
        shapes = [(n, a.dtype.str, a.shape) for n, a in window.arrays.items()]
        wrap = pickle.PickleBuffer if protocol >= 5 else bytes
        buffers: list[Any] = [wrap(memoryview(bytearray(_DUMMY_BYTES)))]
        buffers += [wrap(_as_bytes(a)) for a in window.arrays.values()]
        if window.texts:
            buffers.append(wrap(pack_texts(window.texts)))
        return _rebuild, (window.num_rows, shapes, bool(window.texts), buffers)


def _rebuild(
    num_rows: int,
    shapes: list[tuple[str, str, tuple[int, ...]]],
    has_texts: bool,
    buffers: list[Any],
) -> Parcel:
    window = WindowData(num_rows)
    for (name, dtype, shape), buffer in zip(shapes, buffers[1:], strict=False):
        flat = np.frombuffer(buffer, dtype=np.uint8)
        if not flat.flags.writeable or flat.ctypes.data % np.dtype(dtype).alignment:
            flat = flat.copy()
        window.arrays[name] = flat.view(dtype).reshape(shape)
    if has_texts:
        window.texts = unpack_texts(buffers[-1])
    return Parcel(window)


def _as_bytes(array: NDArray[np.generic]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
