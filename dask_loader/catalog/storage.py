"""Where files lie: one small, picklable description that opens file systems lazily.

The description travels to DataLoader workers and Dask workers; a live file system never
does, since its sockets and threads would not survive the journey or a fork.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import fsspec
from pyarrow import fs as arrow_fs

from dask_loader.catalog.encryption import Decryption
from dask_loader.errors import BadFileError, ConfigError, DataChangedError

# What different fsspec file systems call "last modified" and "content tag" in info().
_TAG_KEYS = ("ETag", "etag", "md5Hash", "checksum")
_TIME_KEYS = ("LastModified", "last_modified", "mtime", "updated", "created")
# A local file may be written again within the tick of its clock and keep its times; no
# file system's tick is longer.
SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one version of a file from another without reading it.

    Attributes:
        num_bytes: Length of the file.
        version: Modification time in ns for local files, else ETag or time as text.
    """

    num_bytes: int
    version: str


@dataclass(frozen=True, slots=True)
class Sight:
    """A file as a look found it.

    Attributes:
        stamp: For the time of a run.
        identity: What no other content at this path ever has, or "" where nothing known
            of the file can promise that.
    """

    stamp: Stamp
    identity: str


@dataclass(frozen=True, slots=True)
class Storage:
    """One file system, by fsspec protocol and options.

    Attributes:
        protocol: As fsspec names it: "file", "memory", "s3", ...
        options: The user's storage_options. They may hold secrets: never printed.
        decryption: Gives the keys of encrypted files, or None.
    """

    protocol: str
    options: tuple[tuple[str, Any], ...] = field(default=(), repr=False, hash=False)
    decryption: Decryption | None = field(default=None, repr=False)

    @property
    def is_local(self) -> bool:
        """Whether paths are this machine's own."""
        return self.protocol in ("file", "local")

    def fsspec(self) -> Any:
        """Return the fsspec file system of this process."""
        try:
            return fsspec.filesystem(self.protocol, **dict(self.options))
        except (ImportError, ValueError, TypeError) as error:
            names = sorted(name for name, _ in self.options)
            raise ConfigError(
                f"cannot open the file system {self.protocol!r} with storage_options "
                f"{names!r}: {error}; install the package that serves it, or correct "
                "the URL or the options"
            ) from error

    def arrow(self) -> arrow_fs.FileSystem:
        """Return the Arrow file system of this process."""
        return _arrow_file_system(self, os.getpid())

    def decryption_of(self, path: str) -> Any:
        """Return Arrow's decryption properties for a file, or None."""
        return None if self.decryption is None else self.decryption.properties(path)

    def stamp(self, path: str) -> Stamp:
        """Return the file's stamp as it is now.

        Raises:
            DataChangedError: The file is gone or cannot be looked at.
        """
        return self.look(path).stamp

    def look(self, path: str) -> Sight:
        """Return what is known of a file now, without opening it.

        Raises:
            DataChangedError: The file is gone or cannot be looked at.
        """
        try:
            if self.is_local:
                return _local_sight(os.stat(path))
            file_system = self.fsspec()
            file_system.invalidate_cache(path)
            return sight_of(file_system.info(path))
        except OSError as error:
            raise DataChangedError(
                f"{path!r} was there when the dataset was made and cannot be found now "
                f"({error}); make the dataset again",
                path=path,
            ) from error

    def check(self, path: str, stamp: Stamp) -> None:
        """Raise unless the file is the one that was stamped.

        Raises:
            DataChangedError: Length or version differ, or the file is gone.
        """
        now = self.stamp(path)
        if now != stamp:
            raise DataChangedError(
                f"{path!r} changed after the dataset was made: it had "
                f"{stamp.num_bytes} bytes (version {stamp.version!r}) and has "
                f"{now.num_bytes} (version {now.version!r}); make the dataset again",
                path=path,
            )


def sight_of(info: Mapping[str, Any]) -> Sight:
    """Return what a remote file system's info() or listing says of a file."""
    num_bytes = int(info["size"])
    tag = next((str(info[key]) for key in _TAG_KEYS if info.get(key)), "")
    if tag:
        return Sight(Stamp(num_bytes, tag), f"{num_bytes} {tag}")
    time_key = next((key for key in _TIME_KEYS if info.get(key)), "")
    return Sight(Stamp(num_bytes, str(info.get(time_key, ""))), "")


def _local_sight(stat: os.stat_result) -> Sight:
    # Unlike the time of modification, that of change cannot be set back.
    identity = ""
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) >= SETTLED_NS:
        identity = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    return Sight(Stamp(stat.st_size, str(stat.st_mtime_ns)), identity)


def make_storage(protocol: str, options: dict[str, Any] | None) -> Storage:
    """Describe a file system.

    Raises:
        ConfigError: The options are not a dict with text keys.
    """
    if options is None:
        return Storage(protocol)
    if not isinstance(options, dict) or not all(isinstance(k, str) for k in options):
        raise ConfigError(
            f"storage_options must be a dict with text keys, not "
            f"{type(options).__name__}"
        )
    return Storage(protocol, tuple(sorted(options.items())))


def open_error(path: str, error: Exception) -> BadFileError:
    """Describe a file that cannot be opened as Parquet.

    Arrow raises OSError, ArrowInvalid and, for broken names, UnicodeDecodeError.
    """
    return BadFileError(
        f"{path!r} is not a readable Parquet file: {error}; remove or rewrite it, or "
        "leave it out of the path",
        path=path,
    )


@lru_cache(maxsize=32)
def _arrow_file_system(storage: Storage, _pid: int) -> arrow_fs.FileSystem:
    if storage.is_local:
        return arrow_fs.LocalFileSystem()
    return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(storage.fsspec()))
