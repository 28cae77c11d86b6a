"""Where files lie: one small, picklable description that opens file systems lazily.

The description travels to DataLoader workers and Dask workers; a live file system never
does, since its sockets and threads would not survive the journey or a fork.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import fsspec
import fsspec.implementations.arrow
from pyarrow import fs as arrow_fs

from dask_loader.catalog import s3
from dask_loader.catalog.encryption import Decryption
from dask_loader.catalog.patience import (
    SILENCE_S,
    finish,
    is_beyond_the_end,
    patiently,
    run_on,
)
from dask_loader.errors import (
    BadFileError,
    ConfigError,
    DaskLoaderError,
    DataChangedError,
    hide_secrets,
)

# What different fsspec file systems call "last modified" and "content tag" in info().
_TAG_KEYS = ("ETag", "etag", "md5Hash", "checksum")
_TIME_KEYS = (
    "LastModified",
    "Last-Modified",
    "last_modified",
    "mtime",
    "updated",
    "created",
)
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
        pickled: The file system that the user gave, as its own pickle, which describes it
            and holds no connection; b"" where protocol and options say it all.
        decryption: Gives the keys of encrypted files, or None.
    """

    protocol: str
    options: tuple[tuple[str, Any], ...] = field(default=(), repr=False, hash=False)
    pickled: bytes = field(default=b"", repr=False)
    decryption: Decryption | None = field(default=None, repr=False)

    @property
    def is_local(self) -> bool:
        """Whether paths are this machine's own."""
        return self.protocol in ("file", "local")

    def fsspec(self) -> Any:
        """Return the fsspec file system of this process.

        Raises:
            ConfigError: There is none of this name, or it does not take the options.
        """
        if self.pickled or self.protocol in _OWN:
            return _own_file_system(self, os.getpid())
        return _open(self)

    def call(self, name: str, path: str, *, what: str, **options: Any) -> Any:
        """Call a method of the fsspec file system, again where that may help.

        Args:
            name: The method: "info", "find", ...
            path: Its first argument.
            what: What it does, for an error's text: "list".
            options: Its other arguments.

        Raises:
            FileNotFoundError: Nothing is there.
            StorageError: The store denies access, or fails again and again.
        """
        system = self.fsspec()
        return patiently(
            lambda timeout_s: run_on(system, name, timeout_s, path, **options),
            what=what,
            path=path,
            scrub=self.scrub,
        )

    def kind(self, path: str) -> str:
        """Return "file", "directory" or, where nothing is, "".

        fsspec's own isfile() takes a store that cannot be reached for one without the file.

        Raises:
            StorageError: The store denies access, or fails again and again.
        """
        try:
            return str(self.call("info", path, what="look at")["type"])
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def require_reach(self, address: str | None) -> None:
        """Raise if the workers of a cluster at an address could not see the files.

        Raises:
            ConfigError: The files are in this process's memory.
        """
        if self.protocol == "memory" and address is not None:
            raise ConfigError(
                f"memory:// lies in this process, where Dask's workers at {address!r} "
                'cannot see it; read it with client="threads", or put the files where '
                "the workers can"
            )

    def fetch(self, path: str, start: int, stop: int) -> bytes:
        """Return bytes [start, stop) of a file that is not local.

        Raises:
            FileNotFoundError: It is gone.
            DataChangedError: It is shorter.
            StorageError: The store denies access, or fails again and again.
        """
        return self._fetch(path, start, stop)[0]

    def fetch_of(
        self, path: str, start: int, stop: int, stamp: Stamp
    ) -> tuple[bytes, bool]:
        """Return bytes, and whether the answer itself told that they are of a version.

        If not, only a look afterwards tells.

        Raises:
            FileNotFoundError: It is gone.
            DataChangedError: It is shorter, or another.
            StorageError: The store denies access, or fails again and again.
        """
        for _ in range(2):
            content, told = self._fetch(path, start, stop)
            if told is None or told == stamp:
                return content, told is not None
            # Changed; or back again already; or the store tags answers in its own way.
            self.check(path, stamp)
        return content, False

    def _fetch(self, path: str, start: int, stop: int) -> tuple[bytes, Stamp | None]:
        system = self.fsspec()
        tells = s3.can_tell(system)

        def get(timeout_s: float) -> tuple[bytes, Stamp | None]:
            told = None
            try:
                if tells:
                    work = s3.read_range(system, path, start, stop)
                    got, told = finish(system, work, timeout_s)
                else:
                    options = {"start": start, "end": stop}
                    got = run_on(system, "cat_file", timeout_s, path, **options)
            except Exception as error:  # each file system has its own
                if not is_beyond_the_end(error):
                    raise
                got = b""
            # A connection that breaks is an error of the library's: the file is short.
            if len(got) != stop - start:
                raise DataChangedError(
                    f"{path!r} changed after the dataset was made: bytes {start} to "
                    f"{stop} were asked for and {len(got)} came; make the dataset again",
                    path=path,
                )
            return bytes(got), None if told is None else Stamp(*told)

        what = f"read bytes {start} to {stop} of"
        return patiently(get, what=what, path=path, scrub=self.scrub)

    def scrub(self, text: str) -> str:
        """Return a text without any of the options' values, and what URLs hold of such."""
        given = dict(self.options)
        if self.pickled:
            given = getattr(self.fsspec(), "storage_options", {})
        for secret in sorted(_texts(given), key=len, reverse=True):
            text = text.replace(secret, "***")
        return hide_secrets(text)

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
            self.fsspec().invalidate_cache(path)
            return sight_of(self.call("info", path, what="look at"))
        except OSError as error:
            raise gone_error(path, error) from error

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


def describe(filesystem: Any, storage_options: Any) -> Storage:
    """Describe a file system that the user gives, of fsspec or of pyarrow.

    Raises:
        ConfigError: It is neither, cannot travel, or comes with storage_options.
    """
    if storage_options is not None:
        raise ConfigError(
            "filesystem= and storage_options= are given both; a file system has its "
            "options already: leave out storage_options"
        )
    if isinstance(filesystem, arrow_fs.LocalFileSystem):
        return Storage("file")
    if isinstance(filesystem, arrow_fs.FileSystem):
        name = str(filesystem.type_name)
    elif isinstance(filesystem, fsspec.AbstractFileSystem):
        kinds = filesystem.protocol
        name = kinds if isinstance(kinds, str) else kinds[0]
        if name in ("file", "local"):
            return Storage("file")
    else:
        raise ConfigError(
            f"filesystem={type(filesystem).__name__!r} is no file system; give one of "
            "fsspec or of pyarrow.fs, or leave it out and name the path with its scheme"
        )
    try:
        return Storage(name, pickled=pickle.dumps(filesystem))
    except Exception as error:  # whatever its parts raise
        raise ConfigError(
            f"filesystem={type(filesystem).__name__!r} cannot be sent to other processes "
            f"({type(error).__name__}); give a path with a scheme and storage_options"
        ) from None


def gone_error(path: str, error: OSError) -> DataChangedError:
    """Describe a file that was listed and is gone, or cannot be looked at."""
    return DataChangedError(
        f"{path!r} was there when the dataset was made and cannot be found now "
        f"({error}); make the dataset again",
        path=path,
    )


def open_error(path: str, error: Exception) -> DaskLoaderError:
    """Describe a file that cannot be opened as Parquet.

    Arrow raises OSError, ArrowInvalid and, for broken names, UnicodeDecodeError. An error
    of ours, from a store below Arrow, stays what it is.
    """
    if isinstance(error, DaskLoaderError):
        return error
    if isinstance(error, PermissionError):
        return BadFileError(
            f"{path!r} may not be read by this user: {error}; give it the right to, or "
            "leave the file out of the path",
            path=path,
        )
    return BadFileError(
        f"{path!r} is not a readable Parquet file: {error}; remove or rewrite it, or "
        "leave it out of the path",
        path=path,
    )


# What to install for a scheme, where fsspec itself does not serve it.
_PACKAGES = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "abfs": ("adlfs", "azure"),
    "abfss": ("adlfs", "azure"),
    "az": ("adlfs", "azure"),
    "hf": ("huggingface_hub", "hf"),
    "http": ("aiohttp", "http"),
    "https": ("aiohttp", "http"),
}


# Those whose tries and timeouts are ours, so that none is shared with the user's.
_OWN = ("s3", "s3a", "http", "https")


class _Wrapped(fsspec.implementations.arrow.ArrowFSWrapper):  # type: ignore[misc]
    """A file system of pyarrow's with fsspec's face."""

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> Any:
        # The wrapper's own reads from a stream, which cannot seek.
        with self.fs.open_input_file(path) as file:
            first = start or 0
            return file.read_at((file.size() if end is None else end) - first, first)


@lru_cache(maxsize=32)
def _own_file_system(storage: Storage, _pid: int) -> Any:
    if not storage.pickled:
        return _open(storage)
    given = pickle.loads(storage.pickled)
    return _Wrapped(given) if isinstance(given, arrow_fs.FileSystem) else given


def _open(storage: Storage) -> Any:
    try:
        return _make(storage.protocol, dict(storage.options))
    except ImportError as error:
        package, extra = _PACKAGES.get(storage.protocol, ("", ""))
        if not package:
            raise _open_failure(storage, error) from None
        hint = f" (or pip install 'dask-loader[{extra}]')" if extra else ""
        raise ConfigError(
            f"{storage.protocol}:// needs the package {package!r}, which is not "
            f"installed: pip install {package}{hint}, on each machine that reads"
        ) from error
    except (ValueError, TypeError) as error:
        raise _open_failure(storage, error) from None


def _open_failure(storage: Storage, error: Exception) -> ConfigError:
    names = sorted(name for name, _ in storage.options)
    return ConfigError(
        f"cannot open the file system {storage.protocol!r} with storage_options "
        f"{names!r}: {storage.scrub(str(error))}; install the package that serves it, or "
        "correct the URL or the options"
    )


def _make(protocol: str, options: dict[str, Any]) -> Any:
    if protocol in ("s3", "s3a"):
        # Silence is given up early, and tries are counted in one place: patience.py.
        ours: dict[str, Any] = {
            "connect_timeout": SILENCE_S,
            "read_timeout": SILENCE_S,
            "retries": {"max_attempts": 0},
        }
        options["config_kwargs"] = ours | options.get("config_kwargs", {})
        system = fsspec.filesystem(protocol, **options, skip_instance_cache=True)
        system.retries = 1
        return system
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        ours = {"timeout": ClientTimeout(sock_connect=SILENCE_S, sock_read=SILENCE_S)}
        options["client_kwargs"] = ours | options.get("client_kwargs", {})
        return fsspec.filesystem(protocol, **options, skip_instance_cache=True)
    return fsspec.filesystem(protocol, **options)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in options that may be secrets."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("endpoint_url", "region_name", "signature_version"):
                yield from _texts(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, bytes):
        yield from _texts(value.decode("latin-1"))
    elif isinstance(value, str) and len(value) > 3:
        yield value
