"""Windows between a DataLoader worker and the main process.

A tensor costs 0.3 to 0.9 ms to send, and torch's shared memory is fresh each time and
kills the process where /dev/shm is full. So a window stays where it was decoded, in a
slab that the worker owns (transfer/shared.py), and only the slab's name is sent. The main
process maps the slab, once for all its loans, and clears the header's word IN_USE when it
has no tensor over it any more; then the worker fills it again.
"""

from __future__ import annotations

import pickle
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_loader.errors import WindowError
from dask_loader.transfer.parcel import Parcel
from dask_loader.transfer.shared import IN_USE, SlabName, header_of
from dask_loader.transfer.texts import pack_texts, unpack_texts
from dask_loader.transfer.window import (
    Block,
    GroupKind,
    WindowData,
    kind_of,
    make_group,
)
from dask_loader.transfer.writer import Mappings

# The slabs of workers that this process has mapped: as many as the workers have.
_mappings = Mappings(max_bytes=sys.maxsize)


@dataclass(frozen=True, slots=True)
class SentError:
    """An error on its way to the main process, which torch's own way would strip."""

    error: Exception


class Outbox:
    """Sends a DataLoader worker's windows, and keeps their slabs until they are read."""

    def __init__(self) -> None:
        self._sent: list[tuple[WindowData, Any]] = []  # with the slab's header

    def send(self, window: WindowData) -> Sent:
        """Return what to send for a window."""
        self._sent = [(w, header) for w, header in self._sent if header[IN_USE]]
        if window.home is None or not window.groups:
            # No shared memory was to be had, or nothing is to be shared: through a pipe.
            packed = pickle.dumps(Parcel(window), pickle.HIGHEST_PROTOCOL)
            return Sent(None, packed, stands_for=window.stands_for)
        slab = window.groups[
            0
        ].block.base  # the lease, which begins where the slab does
        assert isinstance(slab, np.ndarray)
        header = header_of(slab)
        header[IN_USE] = 1
        self._sent.append((window, header))
        groups = tuple(
            (kind_of(g), g.block.ctypes.data - slab.ctypes.data, g.block.nbytes)
            for g in window.groups
        )
        texts = pack_texts(window.texts).to_pybytes() if window.texts else b""
        told = (window.stands_for, window.unchecked_rows)
        return Sent(window.home, texts, window.num_rows, groups, *told)


class Sent:
    """A window on its way to the main process. Opened where it is unpickled: its worker
    may be gone later.
    """

    def __init__(
        self,
        home: SlabName | None,
        packed: bytes,
        num_rows: int = 0,
        groups: tuple[tuple[GroupKind, int, int], ...] = (),
        stands_for: str = "",
        unchecked_rows: int = 0,
    ) -> None:
        """Describe a window.

        Args:
            home: The slab; None where packed is the whole window.
            packed: The texts as an Arrow IPC stream, or a pickled Parcel.
            num_rows: Rows of each column.
            groups: For each group of columns where its block begins in the slab, and its
                bytes.
            stands_for: See WindowData.
            unchecked_rows: See WindowData.
        """
        self.home = home
        self._packed = packed
        self._num_rows = num_rows
        self._groups = groups
        self._stands_for = stands_for
        self._unchecked_rows = unchecked_rows
        self._lease: Block | None = None

    def open(self) -> WindowData:
        """Return the window; once. Its arrays are this process's to write.

        Raises:
            WindowError: The worker's memory cannot be opened.
        """
        if self.home is None:
            parcel: Parcel = pickle.loads(self._packed)
            window = parcel.open()
            window.stands_for = self._stands_for
            return window
        if self._lease is None:
            raise WindowError(
                "a window in shared memory of a DataLoader worker could not be opened "
                f"({self.home.path!r}); the worker died, or runs as another user"
            )
        lease, self._lease = self._lease, None
        window = WindowData(
            self._num_rows,
            stands_for=self._stands_for,
            unchecked_rows=self._unchecked_rows,
        )
        for kind, start, num_bytes in self._groups:
            block = lease[start : start + num_bytes]
            window.groups.append(make_group(kind, self._num_rows, block))
        if self._packed:
            window.texts = unpack_texts(self._packed)
        return window

    def __reduce__(self) -> tuple[Callable[..., Sent], Any]:
        """Open the slab on arrival."""
        return _arrive, (
            self.home,
            self._packed,
            self._num_rows,
            self._groups,
            self._stands_for,
            self._unchecked_rows,
        )


def receive(sent: Sent) -> WindowData:
    """Open a window; see Sent.open."""
    return sent.open()


def forget_slabs() -> None:
    """Let go of the workers' slabs that no tensor looks at."""
    _mappings.drop_idle(0.0)


def _arrive(home: SlabName | None, *rest: Any) -> Sent:
    sent = Sent(home, *rest)
    memory = None if home is None else _mappings.map_for_reading(home)
    if memory is not None:
        # A fresh array over the slab: when it and all views of it are gone, opened or not,
        # the worker may have the slab back.
        sent._lease = np.frombuffer(memory, dtype=np.uint8)
        weakref.finalize(sent._lease, _free, header_of(memory)).atexit = False
    return sent


def _free(header: Any) -> None:
    header[IN_USE] = 0
