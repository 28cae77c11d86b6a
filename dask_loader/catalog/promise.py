"""What a footer says of a file's rows, as hashes that two writers of the same footer share.

A `_metadata` file repeats the footers of other files. Their bytes differ (paths are added,
and each writer has its own habits), so what matters to reading is taken out and hashed: row
groups and their rows, where column chunks lie, their sizes and codecs, statistics, and the
schema as Arrow has it. Pure.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa

from dask_loader.catalog.structs import Struct, read_fields
from dask_loader.catalog.thrift import LIST
from dask_loader.errors import BadFileError, DataChangedError

# Fields of Parquet's FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
SCHEMA, GROUPS = 2, 4
_COLUMNS, _NUM_ROWS = 1, 3
_FILE_PATH, _CHUNK = 1, 3
_TYPE, _PATH, _CODEC, _NUM_VALUES, _DECODED, _ENCODED = 1, 3, 4, 5, 6, 7
_DATA_PAGE, _DICTIONARY_PAGE, _STATISTICS = 9, 11, 12
_NAME, _NUM_CHILDREN = 4, 5
# Of statistics: counts of nulls, and least and greatest values in the old and new fields.
_OF_STATISTICS = (3, 1, 2, 5, 6)

# What digests of this kind begin with; those of footers' bytes are hexadecimal.
_MARK = "promise"
_DIFFER = (
    "row groups, or rows in them",
    "columns, or types of columns",
    "places, sizes or codecs of column chunks",
    "statistics",
)


class Facts:
    """What some row groups of one file say, gathered one after the other."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._chunks = hashlib.blake2b(digest_size=16)
        self._statistics = hashlib.blake2b(digest_size=8)
        self._has_statistics = False
        self.end = 0

    @property
    def num_rows(self) -> tuple[int, ...]:
        """Rows of each row group."""
        return tuple(self._rows)

    def add(self, group: Struct) -> list[tuple[bytes, ...]]:
        """Add a row group; return the paths of its columns.

        Raises:
            ValueError: Something that all footers say is not there.
        """
        paths, chunks, statistics = [], [], []
        num_rows = _number(group, _NUM_ROWS)
        for column in _columns(group):
            chunk = column.get(_CHUNK)
            if not isinstance(chunk, dict):
                raise ValueError("a column chunk is encrypted, or is not described")
            path = chunk.get(_PATH)
            if not isinstance(path, list) or any(type(p) is not bytes for p in path):
                raise ValueError("a column chunk does not say of which column it is")
            paths.append(tuple(path))
            first = _number(chunk, _DATA_PAGE)
            dictionary = chunk.get(_DICTIONARY_PAGE)
            if isinstance(dictionary, int) and 0 < dictionary < first:
                first = dictionary
            self.end = max(self.end, first + _number(chunk, _ENCODED))
            numbers = (_TYPE, _CODEC, _NUM_VALUES, _DECODED, _ENCODED, _DATA_PAGE)
            chunks.append([path, dictionary, *(_number(chunk, n) for n in numbers)])
            said = chunk.get(_STATISTICS)
            if isinstance(said, dict):
                self._has_statistics |= bool(said)
                statistics.append([said.get(n) for n in _OF_STATISTICS])
        self._rows.append(num_rows)
        self._chunks.update(repr(chunks).encode())
        self._statistics.update(repr(statistics).encode())
        return paths

    def digest(self, schema: str) -> str:
        """Return all of it as one text, with the columns: from schema_digest."""
        parts = (
            _hash(repr(self._rows)),
            schema,
            self._chunks.hexdigest(),
            self._statistics.hexdigest() if self._has_statistics else "",
        )
        return ":".join((_MARK, *parts))


def schema_digest(schema: pa.Schema) -> str:
    """Hash the names and types of columns."""
    return _hash(
        schema.to_string(show_field_metadata=False, show_schema_metadata=False)
    )


def file_of(group: Struct) -> str | None:
    """Return the file that a row group says it lies in, or None.

    Raises:
        ValueError: Its columns name different ones, or it is no text.
    """
    named = [column.get(_FILE_PATH, b"") for column in _columns(group)]
    found = named[0] if named else b""
    if not isinstance(found, bytes):
        raise ValueError("the name of a file is no text")
    if any(other != found for other in named):
        raise ValueError("the columns of one row group lie in different files")
    return found.decode() or None  # UnicodeDecodeError is a ValueError


def leaf_paths(elements: list[Struct]) -> list[tuple[bytes, ...]]:
    """Return the paths of a schema's leaves, as row groups must have them.

    Raises:
        ValueError: It is no tree.
    """
    leaves: list[tuple[bytes, ...]] = []
    # Children still to come of each element above, and its path.
    above: list[list[Any]] = []
    for number, element in enumerate(elements):
        name, count = element.get(_NAME), element.get(_NUM_CHILDREN, 0)
        if not isinstance(name, bytes) or not isinstance(count, int) or count < 0:
            raise ValueError("the schema has an element without a name")
        while above and not above[-1][0]:
            above.pop()
        if number and not above:
            raise ValueError("the schema has elements that belong to none")
        path = (*above[-1][1], name) if above else ()
        if above:
            above[-1][0] -= 1
        if count or not number:
            above.append([count, path])
        else:
            leaves.append(path)
    if any(count for count, _ in above):
        raise ValueError("the schema ends too early")
    return leaves


def is_promise(digest: str) -> bool:
    """Whether a digest is one of these, not of a footer's bytes."""
    return digest.startswith(f"{_MARK}:")


def require_kept(digest: str, path: str, tail: bytes, schema: pa.Schema) -> None:
    """Raise unless a file's own footer says what `_metadata` said of it.

    Statistics are compared where `_metadata` had some.

    Args:
        digest: Of what `_metadata` said.
        path: The file.
        tail: Its footer, with length and magic.
        schema: Its Arrow schema.

    Raises:
        DataChangedError: It says something else.
        BadFileError: It is no footer.
    """
    facts = Facts()
    try:
        fields = read_fields(tail[:-8], GROUPS, lambda _, __, group: _add(facts, group))
        if fields.get(SCHEMA, (0,))[0] != LIST:
            raise ValueError("it has no schema")
    except ValueError as error:
        raise BadFileError(
            f"{path!r} is not a readable Parquet file: {error}; remove or rewrite it, and "
            "write '_metadata' anew",
            path=path,
        ) from error
    said, now = (
        digest.split(":")[1:],
        facts.digest(schema_digest(schema)).split(":")[1:],
    )
    for what, one, other in zip(_DIFFER, said, now, strict=True):
        if one and one != other:
            raise DataChangedError(
                f"{path!r} is not the file that '_metadata' describes: its own footer has "
                f"other {what}; '_metadata' is stale: name the folder in its place, or "
                "write it anew",
                path=path,
            )


def _add(facts: Facts, group: Struct) -> None:
    facts.add(group)


def _columns(group: Struct) -> list[Struct]:
    columns = group.get(_COLUMNS)
    if not isinstance(columns, list) or not all(isinstance(c, dict) for c in columns):
        raise ValueError("a row group has no columns")
    return columns


def _number(values: Struct, field: int) -> int:
    found = values.get(field)
    if not isinstance(found, int) or found < 0:
        raise ValueError(f"a number that must be there is {found!r}")
    return found


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
