"""Open Parquet files, kept open between windows and lent to one thread at a time."""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dask_loader.catalog.footers import INT96_UNIT, footer_digest, parse_error
from dask_loader.catalog.storage import Stamp, Storage
from dask_loader.errors import BadFileError, DataChangedError, DataError

# Footers of wide tables take megabytes, and each handle a descriptor.
_MAX_IDLE = 32
# Without a buffer one read takes a whole compressed column chunk, which is fastest where
# chunks are small. Files elsewhere with row groups above this are read through a buffer;
# local ones are mapped.
_BUFFERED_GROUP_BYTES = 128 << 20
_BUFFER_BYTES = 1 << 20


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
        self._closed = False

    @contextmanager
    def borrow(
        self,
        storage: Storage,
        path: str,
        stamp: Stamp,
        *,
        verify_checksums: bool,
        digest: str = "",
    ) -> Iterator[pq.ParquetFile]:
        """Lend the file, after a look whether it still is the one the catalog knows.

        Raises:
            DataChangedError: It is not, or is gone.
            BadFileError: It cannot be opened.
        """
        storage.check(path, stamp)
        key = (storage, path, stamp, verify_checksums, digest)
        file = self._take(key) or self._open(key)
        try:
            yield file
        except BaseException:
            file.close()
            raise
        trim(file)
        self._put(key, file)

    def close(self) -> None:
        """Close all idle files."""
        with self._lock:
            self._closed = True
            files = [file for idle in self._idle.values() for file in idle]
            self._idle.clear()
            self._footers.clear()
        for file in files:
            file.close()

    def _take(self, key: tuple[Any, ...]) -> pq.ParquetFile | None:
        with self._lock:
            idle = self._idle.get(key)
            file = idle.pop() if idle else None
            if idle is not None and not idle:
                del self._idle[key]
            return file

    def _put(self, key: tuple[Any, ...], file: pq.ParquetFile) -> None:
        surplus = [file]
        with self._lock:
            if not self._closed:
                self._idle.setdefault(key, []).append(file)
                self._idle.move_to_end(key)
                surplus = []
                while sum(map(len, self._idle.values())) > _MAX_IDLE:
                    surplus += self._idle.popitem(last=False)[1]
        for old in surplus:
            old.close()

    def _open(self, key: tuple[Any, ...]) -> pq.ParquetFile:
        storage, path, _, verify_checksums, digest = key
        with self._lock:
            footer = self._footers.get(key)
        try:
            if digest and footer_digest(storage, path) != digest:
                raise DataChangedError(
                    f"{path!r} changed after the dataset was made: it has the same length "
                    "and time and another footer; make the dataset again",
                    path=path,
                )
            file = _open_parquet(storage, path, footer, verify_checksums)
        except DataError:
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


class MappedFile(pq.ParquetFile):  # type: ignore[misc]
    """A local Parquet file, mapped: a tenth less CPU than reading it.

    Arrow's own mapping would let the pages that were read count as this process's memory
    for as long as the file is open. The price of mapping: a file that is cut short in
    place while it is being read ends the process (SIGBUS), so each window begins with a
    look at the file's length and time.
    """

    def __init__(self, path: str, **options: Any) -> None:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._mapping: mmap.mmap | None = mmap.mmap(
                file.fileno(), size, access=mmap.ACCESS_READ
            )
        super().__init__(pa.BufferReader(pa.py_buffer(self._mapping)), **options)

    def close(self, force: bool = False) -> None:
        """Close the file and let go of the mapping; nothing can be read any more."""
        super().close(force)
        self.reader = self._mapping = None

    def trim(self) -> None:
        """Let go of the pages that were read; they stay in the system's cache."""
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)


def trim(file: pq.ParquetFile) -> None:
    """Let go of memory that the file's last reads left behind."""
    if isinstance(file, MappedFile):
        file.trim()


def _open_parquet(
    storage: Storage, path: str, footer: Any, verify_checksums: bool
) -> pq.ParquetFile:
    options = {
        "pre_buffer": False,
        "page_checksum_verification": verify_checksums,
        "coerce_int96_timestamp_unit": INT96_UNIT,
        "decryption_properties": storage.decryption_of(path),
    }
    if storage.is_local:
        return MappedFile(path, metadata=footer, **options)
    open_file = partial(pq.ParquetFile, path, filesystem=storage.arrow(), **options)
    file = open_file(metadata=footer)
    footer = file.metadata
    sizes = [footer.row_group(i).total_byte_size for i in range(footer.num_row_groups)]
    if max(sizes, default=0) > _BUFFERED_GROUP_BYTES:
        file.close()
        kept = None if storage.decryption is not None else footer
        file = open_file(metadata=kept, buffer_size=_BUFFER_BYTES)
    return file


def decode_error(path: str, row_group: int, error: Exception) -> BadFileError:
    """Describe a row group that cannot be decoded."""
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
