"""Open Parquet files, kept open between windows and lent to one thread at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dask_loader.catalog.flat import leaves_of
from dask_loader.catalog.footers import (
    INT96_UNIT,
    footer_digest,
    parse_error,
    parse_schema,
    read_tail,
    tail_digest,
)
from dask_loader.catalog.promise import is_promise, require_kept
from dask_loader.catalog.storage import Stamp, Storage, gone_error
from dask_loader.errors import (
    BadFileError,
    DaskLoaderError,
    DataChangedError,
    DataError,
    StorageError,
)
from dask_loader.read.ranges import (
    HEAD_BYTES,
    RangedParquet,
    RangeFile,
    chunk_range,
)

# Footers of wide tables take megabytes, and each handle a descriptor.
_MAX_IDLE = 32
# Without a buffer one read takes a whole compressed column chunk, which is fastest where
# chunks are small. Files elsewhere with row groups above this are read through a buffer.
_BUFFERED_GROUP_BYTES = 128 << 20
_BUFFERS_BYTES, _LEAST_BUFFER_BYTES, _MOST_BUFFER_BYTES = 64 << 20, 1 << 18, 8 << 20
# Local files are read through a buffer for each column: larger pages are read past it. Of
# 64 KiB to 1 MiB and none at all, this took the least CPU.
_LOCAL_BUFFER_BYTES = 256 << 10
# Of pages in other encodings, such as DELTA_BYTE_ARRAY, Arrow makes no dictionaries.
_DECODED = frozenset(
    ("PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BIT_PACKED")
)


class OpenFiles:
    """Lends open files.

    A Parquet reader serves one thread at a time, so each borrower has one of its own.
    Thread-safe. close() may be called twice; a handle that is lent then is closed when it
    comes back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[tuple[Any, ...], list[pq.ParquetFile]] = OrderedDict()
        self._footers: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._num_idle = 0
        self._closed = False
        # So that threads which open the same remote file together ask for one footer.
        self._opening = tuple(threading.Lock() for _ in range(64))

    @contextmanager
    def borrow(
        self,
        storage: Storage,
        path: str,
        stamp: Stamp,
        *,
        verify_checksums: bool,
        digest: str = "",
        dictionaries: tuple[str, ...] = (),
        looks_after: bool = True,
    ) -> Iterator[pq.ParquetFile]:
        """Lend the file, and look whether it still is the one the catalog knows.

        Once what was borrowed is given back without an error, all that was read of it is
        of one version. A remote file is looked at only then, and only if the answers did
        not tell: a look is a round trip, and one after reading tells of changes before
        and during it. A local one is looked at before too: that costs nothing, and a
        handle that was lent before may be of an older file.

        Columns named in `dictionaries` are read as such where they hold text. With
        looks_after=False the borrower looks itself, before it hands on what it read.

        Raises:
            DataChangedError: It is not, or is gone.
            BadFileError: It cannot be opened.
            StorageError: The store denies access, or fails again and again.
        """
        if storage.is_local:
            storage.check(path, stamp)
        key = (storage, path, stamp, verify_checksums, digest, dictionaries)
        file = None
        try:
            file = self._take(key)
            if file is None and storage.is_local:
                file = self._open(key)
            elif file is None:
                with self._opening[hash(key) % len(self._opening)]:
                    file = self._open(key)
            yield file
            if looks_after:
                look_again(file, storage, path, stamp)
        except BaseException as error:
            if file is not None:
                file.close()
            if isinstance(error, BadFileError):
                storage.check(path, stamp)  # what cannot be read may be another file
            raise
        trim(file)
        self._put(key, file)

    def close(self) -> None:
        """Close all idle files."""
        with self._lock:
            self._closed = True
            files = [file for idle in self._idle.values() for file in idle]
            self._idle.clear()
            self._num_idle = 0
            self._footers.clear()
        for file in files:
            file.close()

    def _take(self, key: tuple[Any, ...]) -> pq.ParquetFile | None:
        with self._lock:
            idle = self._idle.get(key)
            file = idle.pop() if idle else None
            self._num_idle -= file is not None
            if idle is not None and not idle:
                del self._idle[key]
            return file

    def _put(self, key: tuple[Any, ...], file: pq.ParquetFile) -> None:
        surplus = [file]
        with self._lock:
            if not self._closed:
                self._idle.setdefault(key, []).append(file)
                self._idle.move_to_end(key)
                self._num_idle += 1
                surplus = []
                # Counted as it goes: adding up took a quarter of reading small files.
                while self._num_idle > _MAX_IDLE:
                    oldest = self._idle.popitem(last=False)[1]
                    self._num_idle -= len(oldest)
                    surplus += oldest
        for old in surplus:
            old.close()

    def _open(self, key: tuple[Any, ...]) -> pq.ParquetFile:
        storage, path, stamp, verify_checksums, digest, dictionaries = key
        with self._lock:
            footer = self._footers.get(key)
        try:
            keys = storage.decryption_of(path)
            tail = b""
            if not storage.is_local and footer is None:
                tail = read_tail(storage, path, stamp.num_bytes)
            if is_promise(digest):
                if footer is None:
                    own = tail or read_tail(storage, path, stamp.num_bytes)
                    _require_kept(storage, path, stamp, digest, own)
            elif digest and (tail or storage.is_local):
                found = tail_digest(tail) if tail else footer_digest(storage, path)
                if found != digest:
                    storage.check(path, stamp)
                    raise DataChangedError(
                        f"{path!r} changed after the dataset was made: it has the same "
                        "length and time and another footer; make the dataset again",
                        path=path,
                    )
            if tail:
                source = pa.BufferReader(tail)
                footer = pq.read_metadata(source, decryption_properties=keys)
            leaves = None
            if dictionaries and keys is None:
                if footer is None:  # which leaves these are only the file tells
                    opened = _open_parquet(storage, path, stamp, None, verify_checksums)
                    with opened as file:
                        footer = file.metadata
                leaves = _dictionary_leaves(footer, dictionaries)
            file = _open_parquet(storage, path, stamp, footer, verify_checksums, leaves)
        except DaskLoaderError:
            raise
        except FileNotFoundError as error:
            raise DataChangedError(
                f"{path!r} was there when the dataset was made and is gone ({error}); "
                "make the dataset again",
                path=path,
            ) from error
        except Exception as error:  # Arrow has no common class, see open_error
            raise parse_error(storage, path, error) from error
        if storage.decryption is not None:
            return file  # a reader given an encrypted file's footer could not decrypt
        with self._lock:
            self._footers[key] = file.metadata
            while len(self._footers) > _MAX_IDLE:
                self._footers.popitem(last=False)
        return file


class LocalFile(pq.ParquetFile):  # type: ignore[misc]
    """A local Parquet file, read page by page and never mapped.

    Mapping takes 0 to 2 % less CPU (docs/performance.md). But a mapped file that is cut
    short in place, or lies on a disk or mount that fails, ends the process (SIGBUS);
    with reading that is an error.
    """

    def __init__(self, path: str, **options: Any) -> None:
        self._file = pa.OSFile(path)
        self._first_read: tuple[int, int] | None = None
        try:
            super().__init__(self._file, buffer_size=_LOCAL_BUFFER_BYTES, **options)
        except BaseException:
            self._file.close()
            raise

    def expect(self, row_group: int, leaves: Sequence[int]) -> None:
        """Remember which column chunk is read first."""
        self._first_read = (row_group, leaves[0]) if leaves else None

    @property
    def first_header(self) -> bytes | None:
        """The begin of the first page's header, of what was expected last.

        None if that was nothing.
        """
        if self._first_read is None:
            return None
        row_group, leaf = self._first_read
        start, _ = chunk_range(self.metadata.row_group(row_group).column(leaf))
        return bytes(self._file.read_at(HEAD_BYTES, start))

    def close(self, force: bool = False) -> None:
        """Close the file; nothing can be read any more. Safe twice."""
        super().close(force)
        self._file.close()
        self.reader = None


def look_again(file: pq.ParquetFile, storage: Storage, path: str, stamp: Stamp) -> None:
    """See that all that was read of a file is of the version that was planned.

    Raises:
        DataChangedError: It is not.
        StorageError: The store denies access, or fails again and again.
    """
    if not (isinstance(file, RangedParquet) and file.settle()):
        storage.check(path, stamp)


def trim(file: pq.ParquetFile) -> None:
    """Let go of memory that the file's last reads left behind."""
    if isinstance(file, RangedParquet):
        file.trim()


def _require_kept(
    storage: Storage, path: str, stamp: Stamp, digest: str, tail: bytes
) -> None:
    """Compare a file's own footer with what `_metadata` said of it."""
    try:
        require_kept(digest, path, tail, parse_schema(storage, path, tail))
    except DataError:
        storage.check(path, stamp)  # it may have been replaced just now
        raise


def _dictionary_leaves(footer: Any, names: Sequence[str]) -> list[int]:
    """Return the leaves of the columns that Arrow can read as dictionaries."""
    places = leaves_of(footer.schema.to_arrow_schema())
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    return [
        leaf
        for name in names
        for leaf in places.get(name, ())
        if all(_DECODED.issuperset(g.column(leaf).encodings) for g in groups)
    ]


def expect(file: pq.ParquetFile, row_group: int, leaves: Sequence[int]) -> None:
    """Tell a file which column chunks are read next; a remote one fetches them.

    Raises:
        FileNotFoundError: It is gone.
        StorageError: The store denies access, or fails again and again.
    """
    if isinstance(file, RangedParquet | LocalFile):
        file.expect(row_group, leaves)


def _open_parquet(
    storage: Storage,
    path: str,
    stamp: Stamp,
    footer: Any,
    verify_checksums: bool,
    dictionaries: Sequence[int] | None = None,
) -> pq.ParquetFile:
    options = {
        # A reader given an encrypted file's footer could not decrypt.
        "metadata": footer if storage.decryption is None else None,
        "read_dictionary": dictionaries,
        "pre_buffer": False,
        "page_checksum_verification": verify_checksums,
        "coerce_int96_timestamp_unit": INT96_UNIT,
        "decryption_properties": storage.decryption_of(path),
    }
    if storage.is_local:
        return LocalFile(path, **options)
    assert footer is not None  # from its tail
    sizes = [footer.row_group(i).total_byte_size for i in range(footer.num_row_groups)]
    if max(sizes, default=0) > _BUFFERED_GROUP_BYTES:
        most = _BUFFERS_BYTES // max(1, footer.num_columns)
        options["buffer_size"] = max(_LEAST_BUFFER_BYTES, min(_MOST_BUFFER_BYTES, most))
    return RangedParquet(RangeFile(storage, path, stamp), **options)


def decode_error(path: str, row_group: int, error: Exception) -> DaskLoaderError:
    """Describe a row group that cannot be decoded, or not be read from its store."""
    if isinstance(error, FileNotFoundError):
        return gone_error(path, error)
    if isinstance(error, StorageError) and error.row_group is None:
        return StorageError(
            f"row group {row_group}: {error}", path=path, row_group=row_group
        )
    if isinstance(error, DaskLoaderError):
        return error
    return BadFileError(
        f"cannot decode row group {row_group} of {path!r}: {error}; the file is damaged "
        "or was written by a faulty program: rewrite it, or leave it out of the path",
        path=path,
        row_group=row_group,
    )


def check_texts(column: pa.ChunkedArray, name: str, path: str, row_group: int) -> None:
    """Refuse text that is not UTF-8: Arrow decodes it, and Python cannot.

    Args:
        column: Text, bytes, or lists of them.
        name: The column's.
        path: The file.
        row_group: Its index.

    Raises:
        BadFileError: There is such a text.
    """
    kind = column.type
    while pa.types.is_large_list(kind) or pa.types.is_list(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return
    try:
        column.validate(full=True)
    except pa.ArrowException as error:
        raise BadFileError(
            f"column {name!r} in row group {row_group} of {path!r} holds text that is not "
            f"UTF-8 ({error}); the file is damaged, or should have it as binary: rewrite "
            "it, or leave the column out with columns=[...]",
            path=path,
            row_group=row_group,
            column=name,
        ) from error
