"""Slabs: blocks of memory that are used again once nobody looks at them any more.

Touching memory for the first time costs several times as much as copying into memory
that has been used before, so a window's block comes from a pool. A block that is handed
out is a lease: a fresh array over the slab. Every column, batch slice, tensor or NumPy
view made from it keeps the lease alive, and when the last of them is gone the slab goes
back to the pool, whichever thread lets go of it.

Who calls: lease() from any thread. The finalizer may run in any thread, inside a garbage
collection too, so it only appends to a deque. Nothing needs closing: slabs are ordinary
private memory, freed with the pool and the last lease.
"""

from __future__ import annotations

import mmap
import threading
import time
import weakref
from collections import deque
from typing import Protocol

import numpy as np

from dask_loader.transfer.window import Block

# Private: a shared anonymous map would be one memory for a forked DataLoader worker and
# its parent.
_MAP_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


# Slabs from this size on are made a little longer than needed.
_ROUND_FROM_BYTES = 1 << 20


class Registry(Protocol):
    """Is told of each slab: that of a device which reads host memory by itself."""

    def register(self, address: int, num_bytes: int) -> None:
        """Take note of a slab before it is first used; may take milliseconds."""
        ...

    def unregister(self, address: int) -> None:
        """Forget a slab that is about to be freed; from any thread, at any moment."""
        ...


class _Slab:
    def __init__(self, num_bytes: int, registry: Registry | None) -> None:
        self.num_bytes = num_bytes
        self.memory = mmap.mmap(-1, num_bytes, flags=_MAP_FLAGS)
        self._registry = registry
        if registry is not None:
            self._address = np.frombuffer(self.memory, dtype=np.uint8).ctypes.data
            registry.register(self._address, num_bytes)

    def __del__(self) -> None:
        # Here the memory is still mapped; a finalizer of the mmap would come too late.
        registry: Registry | None = getattr(self, "_registry", None)
        if registry is not None:
            registry.unregister(self._address)


class SlabPool:
    """Reuses up to max_bytes of slabs; beyond that, memory is allocated and freed."""

    def __init__(self, max_bytes: int, registry: Registry | None = None) -> None:
        self.max_bytes = max_bytes
        self.registry = registry
        self._lock = threading.Lock()
        self._free: deque[_Slab] = deque()
        self._owned_bytes = 0
        self._used_s = time.monotonic()
        self._beyond_bytes = 0  # of blocks beyond max_bytes, and what came back of them
        self._given_back: deque[int] = deque()

    def drop_idle(self, older_than_s: float) -> None:
        """Free the memory that is not leased, unless some was leased since."""
        with self._lock:
            if self._used_s <= time.monotonic() - older_than_s:
                while self._free:
                    self._owned_bytes -= self._free.popleft().num_bytes

    def count(self, block: Block) -> None:
        """Count a block that came from elsewhere as leased for as long as it lives."""
        num_bytes = block.nbytes
        with self._lock:
            self._beyond_bytes += num_bytes
        weakref.finalize(block, self._given_back.append, num_bytes).atexit = False

    @property
    def owned_bytes(self) -> int:
        """Bytes of all slabs of the pool, leased or free."""
        return self._owned_bytes

    @property
    def leased_bytes(self) -> int:
        """Bytes of all blocks that somebody looks at, slabs or not."""
        with self._lock:
            while self._given_back:
                self._beyond_bytes -= self._given_back.popleft()
        free = sum(slab.num_bytes for slab in list(self._free))
        return self._owned_bytes - free + self._beyond_bytes

    def lease(self, num_bytes: int) -> Block:
        """Return a writable uint8 array of this length, its content undefined."""
        if num_bytes == 0:
            return np.empty(0, dtype=np.uint8)
        slab = self._take(num_bytes)
        if slab is None:
            block = np.empty(num_bytes, dtype=np.uint8)
            self.count(block)
            return block
        lease = np.frombuffer(slab.memory, dtype=np.uint8, count=num_bytes)
        weakref.finalize(lease, self._free.append, slab).atexit = False
        return lease

    def _take(self, num_bytes: int) -> _Slab | None:
        with self._lock:
            self._used_s = time.monotonic()
            for _ in range(len(self._free)):
                slab = self._free.popleft()
                if slab.num_bytes >= num_bytes:
                    return slab
                self._free.append(slab)
                del slab  # or it would outlive its place in the pool below
            # None fits. Smaller free ones make room, since windows differ little in size.
            while self._free and self._owned_bytes + num_bytes > self.max_bytes:
                self._owned_bytes -= self._free.popleft().num_bytes
            if self._owned_bytes + num_bytes > self.max_bytes:
                return None
            length = min(_rounded(num_bytes), self.max_bytes - self._owned_bytes)
            self._owned_bytes += length
        return _Slab(length, self.registry)


def _rounded(num_bytes: int) -> int:
    # Windows differ by a row or two; one's slab is to fit the next.
    if num_bytes < _ROUND_FROM_BYTES:
        return num_bytes
    step = 1 << (num_bytes.bit_length() - 6)
    return -(-num_bytes // step) * step
