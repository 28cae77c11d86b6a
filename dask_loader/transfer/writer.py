"""Slabs of another process: the writer's side. See shared.py for the rules."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

import numpy as np

from dask_loader.transfer.shared import (
    DONE,
    GENERATION,
    HEADER_BYTES,
    TEXT_BYTES,
    UNCHECKED,
    SlabName,
    header_of,
)
from dask_loader.transfer.window import Block

# Mapping a slab anew costs two copies of it. But Dask takes what is mapped for the worker's
# own memory, of all consumers, and pauses or ends a worker that has too much.
_MAX_MAPPED_BYTES = 144 << 20
_FLAGS = os.O_RDWR | os.O_CLOEXEC
_NONCE = struct.Struct("=2q")


class Outcome(Enum):
    """What became of the attempt to write a window into a slab."""

    READY = "ready"  # yours to write
    DONE = "done"  # the window is whole, by this task or one before it
    BUSY = "busy"  # another writer has it, perhaps a stopped one
    STALE = "stale"  # lent again meanwhile: nobody waits for this window
    ABSENT = "absent"  # this process cannot open it: another host, or gone


class Writing:
    """One attempt to write a slab.

    Attributes:
        outcome: What the attempt found; the rest is for READY only.
        block: uint8, the slab after its header.
    """

    def __init__(self, outcome: Outcome, memory: mmap.mmap | None = None) -> None:
        self.outcome = outcome
        self._memory = memory
        self.block: Block = np.empty(0, dtype=np.uint8)
        if memory is not None:
            self.block = np.frombuffer(memory, dtype=np.uint8)[HEADER_BYTES:]

    def finish(
        self, generation: int, num_text_bytes: int, unchecked_rows: int = 0
    ) -> None:
        """Say that the window is whole, its texts at the slab's very end."""
        assert self._memory is not None
        header = header_of(self._memory)
        header[TEXT_BYTES] = num_text_bytes
        header[UNCHECKED] = unchecked_rows
        header[DONE] = generation
        self.outcome = Outcome.DONE


class Mappings:
    """The slabs that this process has mapped, kept for the next loan. Thread-safe.

    They keep a dead or closed owner's memory alive: drop_idle() is to be called now and
    then.
    """

    def __init__(self, max_bytes: int = _MAX_MAPPED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._maps: OrderedDict[tuple[int, int], _Mapping] = OrderedDict()

    def __len__(self) -> int:
        return len(self._maps)

    @contextmanager
    def writing(self, name: SlabName) -> Iterator[Writing]:
        """Lock a slab for writing, if it may be written."""
        try:
            fd = _open(name.path)
        except OSError:
            yield Writing(Outcome.ABSENT)
            return
        try:
            # First of all: another slab may be locked by a writer of its own, and must not
            # be by us.
            if os.pread(fd, _NONCE.size, 0) != _NONCE.pack(*name.nonce):
                yield Writing(Outcome.ABSENT)
                return
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield Writing(Outcome.BUSY)
                return
            memory = self._map(name, os.fstat(fd))
            if memory is None:
                yield Writing(Outcome.ABSENT)
                return
            header = header_of(memory)
            if int(header[GENERATION]) != name.generation:
                yield Writing(Outcome.STALE)
            elif int(header[DONE]) == name.generation:
                yield Writing(Outcome.DONE)
            else:
                yield Writing(Outcome.READY, memory)
        finally:
            os.close(fd)  # its lock too: nobody else has this description

    def can_open(self, name: SlabName) -> bool:
        """Return whether this process shares the slab; what a probe asks."""
        with self.writing(name) as writing:
            return writing.outcome is not Outcome.ABSENT

    def map_for_reading(self, name: SlabName) -> mmap.mmap | None:
        """Return a slab's memory; None if this process cannot open it."""
        try:
            fd = _open(name.path)
        except OSError:
            return None
        try:
            return self._map(name, os.fstat(fd))
        finally:
            os.close(fd)

    def drop_idle(self, older_than_s: float) -> None:
        """Unmap what was not used for so long."""
        before = time.monotonic() - older_than_s
        with self._lock:
            old = [key for key, kept in self._maps.items() if kept.used_s <= before]
            for key in old:
                del self._maps[key]

    def _map(self, name: SlabName, locked: os.stat_result) -> mmap.mmap | None:
        file = (locked.st_dev, locked.st_ino)
        with self._lock:
            kept = self._maps.get(name.nonce)
            if kept is None:
                memory = _map_anew(name)
                if memory is None:
                    return None
                kept = _Mapping(memory, file)
            # A path may lead to another slab by now: the one that is written must be the
            # one that is locked.
            if kept.file != file or locked.st_size != name.num_bytes:
                return None
            if tuple(header_of(kept.memory)[:2].tolist()) != name.nonce:
                return None
            kept.used_s = time.monotonic()
            self._maps.pop(name.nonce, None)
            # Slabs come round in turn: the one used last is needed last again.
            room = self._max_bytes - name.num_bytes
            while self._maps and sum(len(m.memory) for m in self._maps.values()) > room:
                self._maps.popitem()
            self._maps[name.nonce] = kept
            return kept.memory


class _Mapping:
    def __init__(self, memory: mmap.mmap, file: tuple[int, int]) -> None:
        self.memory = memory
        self.file = file  # device and inode
        self.used_s = time.monotonic()


def _map_anew(name: SlabName) -> mmap.mmap | None:
    # By a description of its own: mmap keeps a copy of the descriptor, which would keep
    # the lock.
    try:
        fd = _open(name.path)
    except OSError:
        return None
    try:
        return mmap.mmap(fd, name.num_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    except (OSError, ValueError):  # gone, or of another length
        return None
    finally:
        os.close(fd)


def _open(path: str) -> int:
    # An entry of /proc is a link that must be followed; a named file never is one.
    flags = _FLAGS if path.startswith("/proc/") else _FLAGS | os.O_NOFOLLOW
    fd = os.open(path, flags)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
        os.close(fd)
        raise PermissionError(f"{path!r} is not a file of this user's own")
    return fd
