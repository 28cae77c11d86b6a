"""Statistics that Arrow cannot decode, found before it is asked to: it ends the process.

Where a minimum or maximum has fewer bytes than its column's type, Arrow throws an
exception that pyarrow 26 catches nowhere, in `ColumnChunkMetaData.statistics` and
wherever a filter is held against statistics. So the footer is walked here without Arrow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dask_loader.catalog.encryption import ENCRYPTED_MAGIC
from dask_loader.catalog.sanity import refused
from dask_loader.catalog.shape import Shape
from dask_loader.catalog.thrift import (
    LIST,
    Chunk,
    Footer,
    ThriftError,
    list_head,
    skip,
    walk,
)
from dask_loader.errors import BadFileError

_FIXED = "FIXED_LEN_BYTE_ARRAY"
# By Parquet's numbers.
_PHYSICAL = (
    "BOOLEAN",
    "INT32",
    "INT64",
    "INT96",
    "FLOAT",
    "DOUBLE",
    "BYTE_ARRAY",
    _FIXED,
)
# Arrow decodes no bounds of INT96, and those of texts have any length.
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8}
# A pattern costs as much as walking over this many chunks.
_WALKED_CHUNKS = 200
# Number of rows, then the list of row groups.
_OPENING = re.compile(rb"\x16[\x80-\xff]{0,9}+[\x00-\x7f]\x19")

# Physical type of each leaf, and the bytes of its values; None where no bound is too short.
Kinds = tuple[tuple[str, int | None], ...]


def kinds_of(schema: Any) -> Kinds:
    """Return what a Parquet schema says of its leaves.

    Args:
        schema: Arrow's.
    """
    columns = (schema.column(leaf) for leaf in range(len(schema)))
    return tuple(
        (
            column.physical_type,
            column.length
            if column.physical_type == _FIXED
            else _WIDTHS.get(column.physical_type),
        )
        for column in columns
    )


class SilentGroup:
    """A row group's metadata without statistics, as Arrow may not be asked for them."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self.num_rows: int = group.num_rows

    def column(self, leaf: int) -> Any:
        """Return a chunk's metadata."""
        return _SilentChunk(self._group.column(leaf))


class _SilentChunk:
    statistics = None

    def __init__(self, chunk: Any) -> None:
        self._chunk = chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chunk, name)


class BoundsCheck:
    """Checks the statistics of one footer after another; many are like the one before."""

    def __init__(self) -> None:
        self._kinds: Kinds | None = None
        self._num_walked = 0
        self._shape: Shape | None = None
        self._schema = self._ending = b""

    def check(
        self,
        path: str,
        tail: bytes,
        kinds: Kinds,
        leaves: Sequence[int],
        names: Mapping[int, str],
    ) -> bool:
        """Look at the statistics of some columns.

        Args:
            path: The file.
            tail: Its footer, with length and magic; Arrow could read it.
            kinds: From kinds_of.
            leaves: The columns' leaves.
            names: The columns' names.

        Returns:
            Whether Arrow may be asked for statistics. Empty bounds of fixed-size binary
            end the process too, but Arrow decodes such columns, so they are none.

        Raises:
            BadFileError: A bound is too short, or a chunk has another type than the schema
                says.
        """
        if tail[-4:] == ENCRYPTED_MAGIC:
            return True
        if kinds is not self._kinds:
            self._kinds, self._num_walked, self._shape = kinds, 0, None
        data = tail[:-8]
        if self._shape is not None and self._is_alike(data, self._shape):
            return True
        try:
            footer = walk(data)
        except ThriftError as error:
            raise BadFileError(
                f"the footer of {path!r} is damaged: {error}; rewrite the file, or leave "
                "it out of the path",
                path=path,
            ) from error
        is_sound = _judge(path, footer, kinds, leaves, names)
        before = self._num_walked
        self._num_walked += sum(len(chunks) for chunks in footer.groups)
        if before < _WALKED_CHUNKS <= self._num_walked:
            self._learn(data, footer)
        return is_sound

    def _learn(self, data: bytes, footer: Footer) -> None:
        """Make a pattern of a footer: the next ones are probably like it."""
        chunks = next(iter(footer.groups), [])
        known = [chunk for chunk in chunks if chunk is not None and chunk.path]
        assert self._kinds is not None
        if not known or len(known) < len(self._kinds):
            return
        widths = [width for _, width in self._kinds]
        self._shape = Shape(list(zip(known, widths, strict=True)))
        self._schema, self._ending = _around(data, footer)

    def _is_alike(self, data: bytes, shape: Shape) -> bool:
        if not data.startswith(self._schema):
            return False
        opening = _OPENING.match(data, len(self._schema))
        if opening is None:
            return False
        try:
            size, _, at = list_head(data, opening.end())
            for _ in range(size):
                end = shape.end(data, at)
                if end is None:
                    return False
                at = end
            return _behind_metadata(data, at) == self._ending
        except (IndexError, ThriftError):
            return False


def _judge(
    path: str,
    footer: Footer,
    kinds: Kinds,
    leaves: Sequence[int],
    names: Mapping[int, str],
) -> bool:
    is_sound = True
    for index, chunks in enumerate(footer.groups):
        for leaf in leaves:
            chunk = chunks[leaf] if leaf < len(chunks) else None
            if chunk is None:  # without metadata of its own, or encrypted
                continue
            name, (kind, width) = names[leaf], kinds[leaf]
            found = _physical(chunk)
            if found != kind:
                # Arrow ends the process where statistics are asked for in another type.
                text = f"column {name!r} is {found} there, and {kind} in the schema"
                raise refused(path, index, text, name)
            size = chunk.shortest(is_ordered=footer.orders[leaf : leaf + 1] == [True])
            if size is None or width is None or size >= width:
                continue
            if size or kind != _FIXED:
                text = (
                    f"a minimum or maximum of column {name!r} has {size} bytes, and "
                    f"{kind} has {width}"
                )
                raise refused(path, index, text, name)
            is_sound = False
    return is_sound


def _physical(chunk: Chunk) -> str:
    number = -1 if chunk.physical is None else chunk.physical
    return _PHYSICAL[number] if 0 <= number < len(_PHYSICAL) else "UNKNOWN"


def _around(data: bytes, footer: Footer) -> tuple[bytes, bytes]:
    """Return a footer before its number of rows, and behind its key-value metadata."""
    return data[: footer.schema_end], _behind_metadata(data, footer.groups_end)


def _behind_metadata(data: bytes, at: int) -> bytes:
    # Metadata differ from file to file: pandas tells its numbers of rows.
    if data[at : at + 1] == b"\x19":
        at = skip(data, at + 1, LIST)
    return data[at:]
