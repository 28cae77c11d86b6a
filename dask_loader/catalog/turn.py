"""One process at a time for work that all of them need the result of.

A turn is a lock on a file that the kernel gives back when its holder dies. Who has done
the work removes the file before letting go, so those that waited know it from a death.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum

# There is no wait for a file lock that ends by itself. Short against the work that is
# waited for, long against a look (2 us).
_LOOK_S = 0.05

_log = logging.getLogger("dask_loader")


class Turn(Enum):
    """How it stands with the work.

    Attributes:
        MINE: Others wait for this process, as long as the turn is held.
        DONE: Another process has done it meanwhile.
        NONE: It is to be done without a turn: there is no lock, or its holder has had it
            for too long.
    """

    MINE = "mine"
    DONE = "done"
    NONE = "none"


@contextmanager
def take_turn(name: str, folder: int, *, wait_s: float) -> Iterator[Turn]:
    """Wait for the turn, and hold it if it is this process's.

    Args:
        name: Of a file that exists only while somebody holds the turn, or died with it.
        folder: Descriptor of the folder that it is in; the user's own.
        wait_s: Longest wait.

    Raises:
        OSError: There can be no such file or no lock here.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    lock = os.open(name, flags, mode=0o600, dir_fd=folder)
    try:
        turn = _wait(lock, name, wait_s)
        if turn is Turn.MINE:
            os.ftruncate(lock, 0)
            os.write(lock, f"{os.getpid()}".encode())
        try:
            yield turn
        finally:
            if turn is Turn.MINE:
                with suppress(OSError):
                    os.unlink(name, dir_fd=folder)
                # Closing is not enough where a process was forked meanwhile.
                fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)


def _wait(lock: int, name: str, wait_s: float) -> Turn:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(lock, 20, 0).decode(errors="replace") or "unknown"
                _log.warning(
                    "process %s has worked on %s for %g s, and is waited for no longer: "
                    "the same work is done here too",
                    holder,
                    name,
                    wait_s,
                )
                return Turn.NONE
            time.sleep(_LOOK_S)
            continue
        if os.fstat(lock).st_nlink == 0:
            fcntl.flock(lock, fcntl.LOCK_UN)  # for others that wait
            return Turn.DONE
        return Turn.MINE
