"""Slabs that a Dask worker on this host writes and the consumer reads: the owner's side.

The consumer owns the slabs. It lends one to each task, which writes the window straight
into it; what travels through Dask is a word. When the last tensor over a slab is gone, it
is lent again.

Layout: one page of header, then the window's block (window.py), then its texts as an
Arrow IPC stream. The header's words, int64:

    0, 1  random: tell the slab from any other file that has its path later
    2     generation: counts the slab's loans
    3     done: the generation whose window is whole
    4     bytes of the texts
    5     1 while another process reads it (DataLoader workers lend theirs)
    6     the window's unchecked rows (window.py)

What is in it is not checked by more than these words: who can open it is this user, and
could as well change the process that reads it. Words that make no sense are not believed,
and the window is read again.

Who may write is decided by the kernel. A writer opens the file anew for each task and
holds an exclusive flock while it writes; it writes only if the generation is the one it
was told and not done. The owner begins a new generation under the same lock. So a writer
that was stopped in the middle holds the lock: its slab is never lent again, but dropped,
and when the writer goes on it writes to memory that nobody reads. One that was stopped
before it had the lock finds another generation. (Checks of the generation alone do not
help: the stop may come after them.)

Threads: loans are made and given up by the engine's threads, under a lock. A lease may end
in any thread and inside a garbage collection, so its finalizer only appends to a deque.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import threading
import weakref
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_loader.transfer.places import Place
from dask_loader.transfer.window import Block

HEADER_BYTES = 4096
GENERATION, DONE, TEXT_BYTES, IN_USE, UNCHECKED = 2, 3, 4, 5, 6
_NUM_WORDS = 8
# Slabs are made in steps of this, so that windows of slightly different lengths can use
# each other's.
_STEP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SlabName:
    """What a writer needs to know of a slab on loan.

    Attributes:
        path: Opens it, for processes of this host and user.
        nonce: Words 0 and 1 of its header.
        generation: The loan.
        num_bytes: Length of the file.
    """

    path: str
    nonce: tuple[int, int]
    generation: int
    num_bytes: int


def header_of(memory: mmap.mmap | Block) -> NDArray[np.int64]:
    """Return a slab's header words, int64, shape (8,), writable."""
    return np.frombuffer(memory, dtype=np.int64, count=_NUM_WORDS)


class _Slab:
    def __init__(self, place: Place, num_bytes: int) -> None:
        length = -(-(HEADER_BYTES + num_bytes) // _STEP_BYTES) * _STEP_BYTES
        self.fd, self.path = place.make(length)
        try:
            self.memory = mmap.mmap(self.fd, length)
        except BaseException:
            os.close(self.fd)
            place.remove(self.path)
            raise
        self.header = header_of(self.memory)
        self.nonce = (secrets.randbits(62), secrets.randbits(62))
        self.header[:2] = self.nonce
        self.generation = 0
        self.num_bytes = length

    def next_generation(self) -> bool:
        """Begin a loan; False if a writer of an earlier one may still write.

        Also if somebody has written over its name: no writer would find it.
        """
        if tuple(self.header[:2].tolist()) != self.nonce:
            return False
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.generation += 1
        self.header[GENERATION] = self.generation
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return True


class Loan:
    """A slab lent to one task. Ends with accept(), give_back() or drop(), once.

    Attributes:
        name: For its writer.
        unchecked_rows: The window's, once it was accepted.
    """

    def __init__(self, pool: SharedPool, slab: _Slab) -> None:
        self._pool = pool
        self._slab = slab
        self._ended = False
        self.unchecked_rows = 0
        self.name = SlabName(slab.path, slab.nonce, slab.generation, slab.num_bytes)

    def finish(self) -> None:
        """Say that the owner itself writes the slab."""
        self._slab.header[TEXT_BYTES] = 0
        self._slab.header[DONE] = self.name.generation

    def accept(self) -> tuple[Block, Block] | None:
        """Return the window's block and its texts' bytes; None if it is not whole.

        The arrays are leases: the slab is lent again when they, and all views of them,
        are gone.
        """
        header = self._slab.header
        if int(header[DONE]) != self.name.generation or self._ended:
            return None
        num_text_bytes = int(header[TEXT_BYTES])
        if not 0 <= num_text_bytes <= self._slab.num_bytes - HEADER_BYTES:
            return None
        self.unchecked_rows = int(header[UNCHECKED])
        self._ended = True
        return self._pool.lease(self._slab, num_text_bytes)

    def give_back(self) -> None:
        """End a loan that nobody needs; its writer may still be at work."""
        if not self._ended:
            self._ended = True
            self._pool.free(self._slab)

    def drop(self) -> None:
        """End a loan whose slab is held by a writer that may be stopped."""
        if not self._ended:
            self._ended = True
            self._pool.drop(self._slab)


class SharedPool:
    """Up to max_bytes of slabs in one place."""

    def __init__(self, place: Place, max_bytes: int) -> None:
        self.place = place
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._slabs: set[_Slab] = set()
        self._free: deque[_Slab] = deque()
        self._closed = False

    @property
    def owned_bytes(self) -> int:
        """Bytes of all slabs, on loan, leased or free."""
        return sum(slab.num_bytes for slab in list(self._slabs))

    @property
    def used_bytes(self) -> int:
        """Bytes of the slabs that are on loan or leased."""
        return self.owned_bytes - sum(slab.num_bytes for slab in list(self._free))

    def lend(self, num_bytes: int) -> Loan | None:
        """Lend a slab with room for a window of so many bytes.

        Returns:
            None if max_bytes would be passed, or the pool is closed.

        Raises:
            OSError: There is no room for another slab.
        """
        with self._lock:
            while not self._closed:
                slab = self._take(num_bytes)
                if slab is None:
                    return None
                if slab.next_generation():
                    return Loan(self, slab)
                self._drop(slab)
        return None

    def lease_new(self, num_bytes: int) -> tuple[Block, SlabName | None]:
        """Lease a slab for this process to write, beyond max_bytes if need be.

        Returns:
            The block, undefined; and the slab's name. None and private memory where no
            slab is to be had.
        """
        try:
            loan = self.lend(num_bytes)
            if loan is None:
                with self._lock:
                    slab = _Slab(self.place, num_bytes)
                    self._slabs.add(slab)
                loan = Loan(self, slab)
        except OSError:
            return np.empty(num_bytes, dtype=np.uint8), None
        loan.finish()
        accepted = loan.accept()
        assert accepted is not None
        return accepted[0][:num_bytes], loan.name

    def lease(self, slab: _Slab, num_text_bytes: int) -> tuple[Block, Block]:
        """See Loan.accept."""
        lease = np.frombuffer(slab.memory, dtype=np.uint8)
        weakref.finalize(lease, self._free.append, slab).atexit = False
        stop = slab.num_bytes - num_text_bytes
        return lease[HEADER_BYTES:stop], lease[stop:]

    def free(self, slab: _Slab) -> None:
        """Let a slab be lent again."""
        if slab in self._slabs:  # else it was dropped, or the pool is closed
            self._free.append(slab)

    def drop(self, slab: _Slab) -> None:
        """Forget a slab; who has it mapped keeps the memory."""
        with self._lock:
            self._drop(slab)

    def close(self) -> None:
        """Remove all slabs; leases stay readable. Safe twice."""
        with self._lock:
            self._closed = True
            for slab in list(self._slabs):
                self._drop(slab)
            # Leases that end later must not keep their slabs here.
            self._free = deque()
        self.place.close()

    def _take(self, num_bytes: int) -> _Slab | None:
        needed = HEADER_BYTES + num_bytes
        # The one used last first: then few slabs go round, and fewer are mapped anew.
        for _ in range(len(self._free)):
            slab = self._free.pop()
            if slab not in self._slabs:
                continue
            if slab.num_bytes >= needed:
                return slab
            self._free.appendleft(slab)
        while self._free and self.owned_bytes + needed > self.max_bytes:
            self._drop(self._free.popleft())
        if self.owned_bytes + needed > self.max_bytes:
            return None
        slab = _Slab(self.place, num_bytes)
        self._slabs.add(slab)
        return slab

    def _drop(self, slab: _Slab) -> None:
        if slab in self._slabs:
            self._slabs.remove(slab)
            self.place.remove(slab.path)
            os.close(slab.fd)
