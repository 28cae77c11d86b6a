"""A folder of small tables that outlive the process. Never trusted, never in the way.

A file here is a header, a checksum, and an Arrow table. One that is damaged, belongs to
somebody else, is a link, or can be written by others counts as absent. So does all of it
where the folder cannot be used; why is logged at level DEBUG. Nothing here raises.

Files are written beside and renamed, so a reader sees a whole file or none. Of two
processes that write at once the later wins, and the other's entries are read from the
data again some day.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pyarrow as pa

from dask_loader.catalog.turn import Turn, take_turn
from dask_loader.errors import hide_secrets

# Changes with the meaning of what is stored.
_MAGIC = b"dask_loader footers 1\n"
_DIGEST_BYTES = 16
# Of all files together; those used longest ago go first.
_MAX_FOLDER_BYTES = 256 << 20
_MAX_FILE_BYTES = 128 << 20
# A process that was killed while it wrote, or had a turn, leaves a file behind. (A turn
# of such length that is held loses its file: those who come later then do not wait for it.)
_ABANDONED_S = 3600.0
_OURS = re.compile(
    r"[0-9a-f]{32}\.(footers|answers|counts|values|writing|turn-for-\w+)"
)

_TABLES = (".footers", ".answers", ".counts", ".values")

_log = logging.getLogger("dask_loader")


class FooterCache:
    """Tables by name in one folder. Holds nothing open between calls."""

    def __init__(self, folder: str) -> None:
        """Name the folder; it is made, private to the user, when first written to.

        Args:
            folder: Absolute.
        """
        self.folder = folder

    def load(self, kind: str, key: str) -> pa.Table | None:
        """Return a table, or None where there is none that can be trusted.

        Args:
            kind: "footers", "answers", "counts" or "values".
            key: Any text.
        """
        try:
            with self._opened() as folder:
                return _read(_name(kind, key), folder)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, pa.ArrowException) as error:
            shown = hide_secrets(key)
            _log.debug("footer cache: %s of %r not used: %s", kind, shown, error)
            return None

    def save(self, kind: str, key: str, table: pa.Table) -> None:
        """Keep a table, and drop what was used longest ago.

        Args:
            kind: "footers", "answers", "counts" or "values".
            key: Any text.
            table: Of any columns.
        """
        try:
            packed = _pack(table, _name(kind, key))
            if len(packed) > _MAX_FILE_BYTES:
                raise ValueError(f"{len(packed)} bytes are too many for one file")
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            with self._opened() as folder:
                _write(_name(kind, key), packed, folder)
                _make_room(folder)
        except (OSError, ValueError, pa.ArrowException) as error:
            shown = hide_secrets(key)
            _log.debug("footer cache: %s of %r not kept: %s", kind, shown, error)

    @contextmanager
    def turn(self, kind: str, key: str, *, wait_s: float) -> Iterator[Turn]:
        """Wait until no other process of this host makes this table; hold that turn.

        Args:
            kind: "counts" or "values".
            key: Any text.
            wait_s: Longest wait.
        """
        with ExitStack() as held:
            try:
                os.makedirs(self.folder, mode=0o700, exist_ok=True)
                folder = held.enter_context(self._opened())
                name = _name(f"turn-for-{kind}", key)
                turn = held.enter_context(take_turn(name, folder, wait_s=wait_s))
            except (OSError, ValueError) as error:
                shown = hide_secrets(key)
                _log.debug("footer cache: no turn for %s of %r: %s", kind, shown, error)
                turn = Turn.NONE
            yield turn

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the folder: what is done below is done in this one, whatever its name."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _require_own(os.fstat(folder), self.folder)
            yield folder
        finally:
            os.close(folder)


def open_cache(
    footer_cache: bool | str | os.PathLike[str], environ: Mapping[str, str]
) -> FooterCache | None:
    """Return the cache that the user asked for, or None.

    Args:
        footer_cache: False; a folder; or True for DASK_LOADER_FOOTER_CACHE, which is "0"
            for none or a folder, and without it a folder in the user's cache folder.
        environ: The environment.
    """
    if footer_cache is False:
        return None
    if footer_cache is not True:
        return FooterCache(os.path.abspath(os.path.expanduser(footer_cache)))
    named = environ.get("DASK_LOADER_FOOTER_CACHE", "")
    if named == "0":
        return None
    if named not in ("", "1"):
        return FooterCache(os.path.abspath(os.path.expanduser(named)))
    base = environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the specification: relative paths are ignored
        base = os.path.join(environ.get("HOME", ""), ".cache")
    return (
        FooterCache(os.path.join(base, "dask_loader")) if os.path.isabs(base) else None
    )


def _name(kind: str, key: str) -> str:
    return f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.{kind}"


def _require_own(found: os.stat_result, what: str) -> None:
    if found.st_uid != os.geteuid():
        raise ValueError(f"{what!r} belongs to user {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"{what!r} can be written by others")


def _read(name: str, folder: int) -> pa.Table:
    # Without O_NONBLOCK a pipe in the file's place would be waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=folder), "rb") as file:
        found = os.fstat(file.fileno())
        _require_own(found, name)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{name!r} is no file")
        if found.st_size > _MAX_FILE_BYTES:
            raise ValueError(f"{name!r} has {found.st_size} bytes, too many")
        packed = file.read()
        table = _unpack(packed, name)
        with suppress(OSError):
            os.utime(file.fileno())  # used just now
        return table


def _write(name: str, packed: bytes, folder: int) -> None:
    beside = f"{uuid.uuid4().hex}.writing"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(beside, flags, mode=0o600, dir_fd=folder)
    try:
        with open(file, "wb") as opened:
            opened.write(packed)
        os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside, dir_fd=folder)
        raise


def _make_room(folder: int) -> None:
    """Drop the files used longest ago until the rest is small enough."""
    files: list[tuple[float, int, str]] = []
    for name in os.listdir(folder):
        if not _OURS.fullmatch(name):
            continue
        with suppress(FileNotFoundError):  # another process makes room too
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            files.append((found.st_mtime, found.st_size, name))
    room = _MAX_FOLDER_BYTES
    for used_at, num_bytes, name in sorted(files, reverse=True):
        room -= num_bytes
        abandoned = not name.endswith(_TABLES) and time.time() - used_at > _ABANDONED_S
        if room < 0 or abandoned:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)


def _pack(table: pa.Table, name: str) -> bytes:
    codec = "zstd" if pa.Codec.is_available("zstd") else None
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    payload: bytes = sink.getvalue().to_pybytes()
    return _MAGIC + _checksum(payload, name) + payload


def _unpack(packed: bytes, name: str) -> pa.Table:
    head = len(_MAGIC) + _DIGEST_BYTES
    payload: Any = memoryview(packed)[head:]
    if not packed.startswith(_MAGIC):
        raise ValueError("it is none of ours, or of another version")
    if _checksum(payload, name) != packed[len(_MAGIC) : head]:
        raise ValueError("its checksum is wrong")
    table = pa.ipc.open_stream(pa.py_buffer(payload)).read_all()
    table.validate(full=True)
    return table


def _checksum(payload: Any, name: str) -> bytes:
    # With the file's name: one that was put in another's place is damaged.
    key = name.encode()
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES, key=key).digest()
