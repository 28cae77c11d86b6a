"""Where memory lies that several processes of one host share.

A memfd has no name in any file system: others open it through its owner's entry in /proc,
and it is gone with its last user, however that ends. Where a process cannot look into its
owner's /proc (another PID namespace), there are named files in a folder of the owner's.
The folder holds a file that the owner keeps locked for as long as it lives, so what a
dead owner left is told apart from what is in use, and the next start removes it.

All memory is private to the user (0600), and reserved before it is used: a file system
that is full refuses a reservation, but kills a process that writes to a page it cannot
have.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

_FOLDER_PREFIX = "dask-loader-"
_LOCK_NAME = "owner"
_NEW_LOCK_NAME = "new owner"
_PRIVATE = 0o600
_OF_THIS_LENGTH = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Place(Protocol):
    """Makes pieces of shared memory. Used and closed by the process that made it."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    def make(self, num_bytes: int) -> tuple[int, str]:
        """Return an open file of so many reserved bytes, and the path that opens it.

        Raises:
            OSError: There is no room.
        """
        ...

    def remove(self, path: str) -> None:
        """Take the name away; who has it open keeps it."""
        ...

    def close(self) -> None:
        """Remove everything. Safe twice."""
        ...


class MemfdPlace:
    """Memory without a name."""

    name = "anonymous shared memory"

    def make(self, num_bytes: int) -> tuple[int, str]:
        """Make a memfd."""
        fd = os.memfd_create("dask-loader", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(fd, _PRIVATE)
            os.posix_fallocate(fd, 0, num_bytes)
            # Nobody can cut it short under those who have it mapped (SIGBUS).
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _OF_THIS_LENGTH)
        except BaseException:
            os.close(fd)
            raise
        return fd, f"/proc/{os.getpid()}/fd/{fd}"

    def remove(self, path: str) -> None:
        """Do nothing: the owner's descriptor is the name."""

    def close(self) -> None:
        """Do nothing."""


class FolderPlace:
    """Named files in a folder of this process's own."""

    def __init__(self, parent: str) -> None:
        """Make the folder, and remove those of owners that are dead.

        Args:
            parent: A folder that others of this host see too, such as /dev/shm.

        Raises:
            OSError: It cannot be written to.
        """
        remove_abandoned(parent)
        self.name = f"files in {parent}"
        self._pid = os.getpid()
        self._folder = Path(parent) / f"{_FOLDER_PREFIX}{secrets.token_hex(8)}"
        self._folder.mkdir(mode=0o700)
        try:
            self._lock = _create(self._folder / _NEW_LOCK_NAME)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Under its name it is never seen unlocked, by a start at the same moment.
            (self._folder / _NEW_LOCK_NAME).rename(self._folder / _LOCK_NAME)
        except BaseException:
            _remove_folder(self._folder)
            raise
        self._closed = False

    def make(self, num_bytes: int) -> tuple[int, str]:
        """Make a file."""
        path = self._folder / secrets.token_hex(8)
        fd = _create(path)
        try:
            os.posix_fallocate(fd, 0, num_bytes)
        except BaseException:
            os.close(fd)
            path.unlink()
            raise
        return fd, str(path)

    def remove(self, path: str) -> None:
        """Unlink a file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def close(self) -> None:
        """Remove the folder."""
        if not self._closed and os.getpid() == self._pid:
            try:
                _remove_folder(self._folder)
            except FileNotFoundError:
                pass
            except OSError as error:  # somebody has put something else in its place
                log.warning("%s is left behind: %s", self._folder, error)
            os.close(self._lock)
        self._closed = True


def remove_abandoned(parent: str) -> list[str]:
    """Remove the folders of this user's owners that are dead; return their names.

    A folder is taken for abandoned when its lock can be had: the kernel lets go of a lock
    when its last holder dies. Folders of other users, links, and folders without a lock
    file are left alone.
    """
    removed = []
    for entry in Path(parent).glob(f"{_FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):  # another start removes it at this moment
            found = entry.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(entry / _LOCK_NAME, flags)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_folder(entry)
                removed.append(entry.name)
            finally:
                os.close(lock)
    return removed


def _create(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, _PRIVATE)


def _remove_folder(folder: Path) -> None:
    # Where somebody has put a link in its place, what that leads to is none of ours.
    opened = os.open(
        folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    )
    try:
        if os.fstat(opened).st_uid != os.geteuid():
            raise PermissionError(f"{str(folder)!r} is not this user's own")
        # The lock file last: without it nobody would take the folder for abandoned.
        names = sorted(os.listdir(opened), key=lambda name: name == _LOCK_NAME)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=opened)
    finally:
        os.close(opened)
    os.rmdir(folder)
