"""Read a remote Parquet file in few requests: what a row group's columns need, together.

Arrow asks for one column chunk at a time, and a request costs a round trip. Here, what is
about to be decoded is said first; chunks that lie near each other are fetched as one.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dask_loader.catalog.storage import Stamp, Storage

# Bytes between two chunks that are fetched along with them: at 100 MB/s they cost as much
# as a round trip of 10 ms.
HOLE_BYTES = 1 << 20
# One request asks for no more than about this much, so that several run side by side and
# a failed one loses little.
REQUEST_BYTES = 16 << 20
# Requests of one reader that are under way at once.
_AT_ONCE = 4
# What is fetched ahead of decoding takes no more than this; a larger row group is read
# through a buffer for each column instead.
AHEAD_BYTES = 64 << 20
# A page header up to its checksum: three fields of at most 6 bytes, and the field's head.
HEAD_BYTES = 24

Range = tuple[int, int]


def merge(chunks: Iterable[Range]) -> list[Range]:
    """Return ranges that cover chunks, in order, near ones as one. Pure.

    A range is longer than REQUEST_BYTES only where a single chunk is.
    """
    found: list[Range] = []
    for start, stop in sorted(chunks):
        if found:
            first, end = found[-1]
            near = start - end <= HOLE_BYTES
            if near and max(stop, end) - first <= REQUEST_BYTES:
                found[-1] = (first, max(stop, end))
                continue
        found.append((start, stop))
    return found


class RangeFile(io.RawIOBase):
    """A remote file, for one reader at a time."""

    def __init__(self, storage: Storage, path: str, stamp: Stamp) -> None:
        self._storage, self._path, self._stamp = storage, path, stamp
        self._size = stamp.num_bytes
        self._told = list[bool]()  # of each range; several threads add to it
        self._position = 0
        self._ahead: list[tuple[int, bytes]] = []
        self._expected: list[Range] | None = None
        self._watched: int | None = None
        self.head: bytes | None = None

    def watch(self, start: int | None) -> None:
        """Keep the first bytes of what is read from there on, as `head`."""
        self._watched, self.head = start, None if start is None else b""

    def expect(self, chunks: Sequence[Range]) -> None:
        """Fetch what is about to be read, if it is not too much; forget what was before.

        What is expected already is not fetched again.

        Raises:
            FileNotFoundError: The file is gone.
            StorageError: The store denies access, or fails again and again.
        """
        ranges = merge(chunks)
        if ranges == self._expected:
            return
        self.forget()
        if sum(stop - start for start, stop in ranges) > AHEAD_BYTES:
            return
        if len(ranges) < 2:
            self._ahead = [(start, self._fetch(start, stop)) for start, stop in ranges]
            self._expected = ranges
            return
        with ThreadPoolExecutor(
            _AT_ONCE, thread_name_prefix="dask-loader-range"
        ) as pool:
            parts = pool.map(lambda r: self._fetch(*r), ranges)
            self._ahead = [(r[0], part) for r, part in zip(ranges, parts, strict=True)]
        self._expected = ranges

    def forget(self) -> None:
        """Let go of what was fetched ahead."""
        self._ahead, self._expected = [], None

    def settle(self) -> bool:
        """Whether answers told that all is of the version that was planned.

        All means what came since the last call; if nothing did, False.
        """
        told, self._told = self._told, []
        return bool(told) and all(told)

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def seekable(self) -> bool:
        """Whether it has positions: yes."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = base[whence] + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read from the position on: from what was fetched ahead, else from the store."""
        start = self._position
        stop = self._size if size is None or size < 0 else min(start + size, self._size)
        if stop <= start:
            return b""
        self._position = stop
        found = self._read(start, stop)
        if start == self._watched:
            self.head = found[:HEAD_BYTES]
        return found

    def _read(self, start: int, stop: int) -> bytes:
        for first, part in self._ahead:
            if first <= start and stop <= first + len(part):
                return part[start - first : stop - first]
        return self._fetch(start, stop)

    def _fetch(self, start: int, stop: int) -> bytes:
        content, told = self._storage.fetch_of(self._path, start, stop, self._stamp)
        self._told.append(told)
        return content


def open_plain(storage: Storage, path: str) -> Any:
    """Return what Arrow reads a file from, with our tries where it is remote.

    Nothing is planned: each read of Arrow's is a request.

    Raises:
        DataChangedError: The file is gone.
        StorageError: The store denies access, or fails again and again.
    """
    if storage.is_local:
        return path
    file = RangeFile(storage, path, storage.stamp(path))
    return pa.PythonFile(file, mode="r")


class RangedParquet(pq.ParquetFile):  # type: ignore[misc]
    """A remote Parquet file that is told what will be read of it."""

    def __init__(self, file: RangeFile, **options: Any) -> None:
        self._ranges = file
        super().__init__(pa.PythonFile(file, mode="r"), **options)

    def expect(self, row_group: int, leaves: Sequence[int]) -> None:
        """Fetch some column chunks of a row group; see RangeFile.expect."""
        group = self.metadata.row_group(row_group)
        chunks = [chunk_range(group.column(leaf)) for leaf in leaves]
        self._ranges.watch(chunks[0][0] if chunks else None)
        self._ranges.expect(chunks)

    @property
    def first_header(self) -> bytes | None:
        """The begin of the first page's header, of what was expected and read last.

        None if nothing was expected.
        """
        return self._ranges.head

    def settle(self) -> bool:
        """Whether no look is needed; see RangeFile.settle."""
        return self._ranges.settle()

    def trim(self) -> None:
        """Let go of what was fetched ahead."""
        self._ranges.forget()


def chunk_range(chunk: Any) -> Range:
    """Return where a column chunk lies."""
    start = chunk.data_page_offset
    # Some writers put 0 where there is no dictionary.
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    return start, start + chunk.total_compressed_size
