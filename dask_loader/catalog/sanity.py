"""What a footer must say truly before anything is built on it.

Arrow ends the process (SIGABRT) where Python asks for a column chunk whose metadata are
damaged or encrypted; so each chunk that will be asked for is looked at here first, by a
call that fails with an exception instead. That look also finds chunks that lie beyond the
file's end. Statistics that are cut short end the process all the same; those are looked at
in `bounds`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dask_loader.errors import BadFileError, PlanError
from dask_loader.units import format_bytes

# Beyond this, sums of rows and bytes over many files leave 64 bits.
_MAX_NUMBER = 1 << 48
# What no page begins with.
_NO_PAGE = b"\xff" * 64


class ChunkError(Exception):
    """Arrow cannot use a column chunk's metadata.

    Attributes:
        leaf: The column's leaf.
        row_group: Its index.
        cause: Arrow's error.
    """

    def __init__(self, leaf: int, row_group: int, cause: Exception) -> None:
        super().__init__(str(cause))
        self.leaf, self.row_group, self.cause = leaf, row_group, cause


class _NoFile:
    """A file of a given length without a page in it.

    It does not raise: Arrow would keep the exception, and with it the frames of all who
    called.

    Attributes:
        was_read: Whether anything was asked of it.
    """

    closed = False

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes, self._at = num_bytes, 0
        self.was_read = False

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._num_bytes)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        return self._num_bytes

    def read(self, num_bytes: int = -1) -> bytes:
        self.was_read = True
        return _NO_PAGE if num_bytes < 0 else _NO_PAGE[:num_bytes]

    def close(self) -> None:
        pass


class Look:
    """Looks at the chunks of one footer after another."""

    def __init__(self, most_bytes: int) -> None:
        """Prepare.

        Args:
            most_bytes: Length of the longest file.
        """
        # Pages that are never touched, so they take no memory.
        try:
            pages = mmap.mmap(
                -1,
                max(1, most_bytes),
                flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
                prot=mmap.PROT_READ,
            )
        except OSError:  # a limit on addresses (ulimit -v)
            self._pages = None
        else:
            self._pages = pa.py_buffer(pages)

    def check(self, metadata: Any, leaves: Sequence[int], num_bytes: int) -> None:
        """Look at the metadata of all chunks of some columns: 15 us, 0.5 us for each.

        Args:
            metadata: Arrow's.
            leaves: The columns' leaves.
            num_bytes: Length of the whole file.

        Raises:
            ChunkError: Asking for one would end the process, or it lies beyond the file.
        """
        groups = range(metadata.num_row_groups)
        if not leaves or not groups:
            return
        if not self._sound(metadata, groups, leaves, num_bytes):
            # Together they may fail for a reason that does not matter, such as overlapping.
            _find_fault(metadata, groups, leaves, num_bytes)

    def _sound(
        self, metadata: Any, groups: range, leaves: Sequence[int], num_bytes: int
    ) -> bool:
        """Return whether all is well; where not, or where one cannot know, False.

        Arrow looks at all chunks before it reads the first, which fails at once from a
        source that was closed. From a source in Python it would read in another thread,
        which took ten times as long.
        """
        if self._pages is None:
            return False
        source = pa.BufferReader(self._pages.slice(0, num_bytes))
        reader = pq.ParquetReader()
        try:
            reader.open(source, metadata=metadata, pre_buffer=True)
            source.close()
            reader.read_row_groups(
                list(groups), column_indices=list(leaves), use_threads=False
            )
        except Exception as error:  # Arrow has no common class, see open_error
            return "on closed BufferReader" in str(error)
        finally:
            reader.close()
        return True


def check_codecs(metadata: Any, leaves: Sequence[int], num_bytes: int) -> None:
    """Look for codecs that Arrow has not, in the first row group: a tenth of a millisecond.

    Args:
        metadata: Arrow's; its chunks were looked at.
        leaves: The columns' leaves.
        num_bytes: Length of the whole file.

    Raises:
        ChunkError: Arrow has not the codec of a chunk.
    """
    if not leaves or not metadata.num_row_groups:
        return
    if _fault(metadata, [0], leaves, num_bytes, codecs=True) is not None:
        _find_fault(metadata, [0], leaves, num_bytes, codecs=True)


def _find_fault(
    metadata: Any,
    groups: Sequence[int],
    leaves: Sequence[int],
    num_bytes: int,
    *,
    codecs: bool = False,
) -> None:
    for group in groups:
        for leaf in leaves:
            fault = _fault(metadata, [group], [leaf], num_bytes, codecs=codecs)
            if fault is not None:
                raise ChunkError(leaf, group, fault) from fault


def _fault(
    metadata: Any,
    groups: Sequence[int],
    leaves: Sequence[int],
    num_bytes: int,
    *,
    codecs: bool = False,
) -> Exception | None:
    source = _NoFile(num_bytes)
    # Where reads are planned ahead, all chunks are looked at before the first is read;
    # where chunks are read by and by, their decompressors are made before.
    how = {"pre_buffer": not codecs, "buffer_size": codecs << 10}
    opened = pa.PythonFile(source, mode="r")
    with pq.ParquetFile(opened, metadata=metadata, **how) as file:
        try:
            file.reader.read_row_groups(
                list(groups), column_indices=list(leaves), use_threads=False
            )
        except Exception as error:  # Arrow has no common class, see open_error
            return None if source.was_read else error
    return None


def check_numbers(
    path: str, groups: Sequence[Any], leaves: Sequence[tuple[str, int, bool]]
) -> None:
    """Refuse counts that cannot be.

    Args:
        path: The file.
        groups: Its row groups' metadata; their chunks were checked.
        leaves: Name and leaf of each column that is read, and whether its rows hold
            several values.

    Raises:
        BadFileError: A number is negative or absurd, or two do not agree.
    """
    flat = next((leaf for _, leaf, several in leaves if not several), None)
    for index, group in enumerate(groups):
        rows = group.num_rows
        if not 0 <= rows <= _MAX_NUMBER:
            raise refused(path, index, f"it says it has {rows} rows")
        if flat is not None:
            values = group.column(flat).num_values
            if values != rows:
                name = next(name for name, leaf, _ in leaves if leaf == flat)
                text = (
                    f"it says it has {rows} rows, and column {name!r} {values} values"
                )
                raise refused(path, index, text, name)


def check_sizes(path: str, group_bytes: Sequence[int]) -> None:
    """Refuse decoded sizes that cannot be.

    Raises:
        BadFileError: One is negative or absurd.
    """
    for index, num_bytes in enumerate(group_bytes):
        if not 0 <= num_bytes <= _MAX_NUMBER:
            raise refused(path, index, f"it says it has {num_bytes} decoded bytes")


def check_row_bytes(
    num_rows: NDArray[np.int64],
    num_bytes: NDArray[np.int64],
    memory_bytes: int,
    place: Callable[[int], tuple[str, int]],
) -> None:
    """Refuse rows of which a single one, on average, is larger than memory_limit.

    A row is what is decoded at once at least, and a few kilobytes can decode to gigabytes.

    Args:
        num_rows: Of each row group.
        num_bytes: Of each row group, decoded.
        memory_bytes: memory_limit.
        place: Returns path and index of a row group, for the text.

    Raises:
        PlanError: A row group has such rows.
    """
    # A row group without rows has bytes too: those of its pages' headers.
    large = np.flatnonzero(
        (num_rows > 0) & (num_bytes // np.maximum(1, num_rows) > memory_bytes)
    )
    if not len(large):
        return
    group = int(large[0])
    path, index = place(group)
    each = int(num_bytes[group]) // int(num_rows[group])
    raise PlanError(
        f"rows of row group {index} of {path!r} take {format_bytes(each)} each when they "
        f"are decoded, and memory_limit is {format_bytes(memory_bytes)}; raise "
        "memory_limit, or leave the large columns out with columns=[...]",
        path=path,
        row_group=index,
    )


def refused(
    path: str, row_group: int, text: str, column: str | None = None
) -> BadFileError:
    """Describe a footer that cannot be true of a row group."""
    return BadFileError(
        f"the footer of {path!r} is damaged: of row group {row_group} {text}; rewrite the "
        "file, or leave it out of the path",
        path=path,
        row_group=row_group,
        column=column,
    )
