"""A `_metadata` file: the footers of other files in one. Pure.

Comes in: its bytes. Goes out: for each file that it names, a footer as that file might have
it, which all code that reads footers understands, and a digest to compare with the file's
own footer once that is read.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dask_loader.catalog.promise import (
    GROUPS,
    SCHEMA,
    Facts,
    file_of,
    leaf_paths,
)
from dask_loader.catalog.structs import (
    Struct,
    read_fields,
    read_structs,
    write_header,
    write_list_head,
)
from dask_loader.catalog.thrift import I64, LIST, write_varint
from dask_loader.errors import BadFileError

SUMMARY, SCHEMA_ONLY = "_metadata", "_common_metadata"

_NUM_ROWS = 3
# FileMetaData's fields that a file's footer has from `_metadata`: the format's version, the
# schema, key-value metadata, the writer, and how columns compare.
_SHARED = (1, 2, 5, 6, 7)
_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"
_ENDING_BYTES = 8
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True, slots=True)
class Part:
    """What `_metadata` says of one file.

    Attributes:
        places: Start and stop of each of its row groups in the footer.
        facts: To be compared with the file's own footer.
    """

    places: tuple[tuple[int, int], ...]
    facts: Facts

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return sum(self.facts.num_rows)


@dataclass(frozen=True, slots=True)
class Summary:
    """A `_metadata` file.

    Attributes:
        path: Where it lies.
        footer: Its bytes, without length and magic.
        fields: Kind, start and stop of each field of the footer.
        parts: By the files' full paths.
    """

    path: str
    footer: bytes
    fields: Mapping[int, tuple[int, int, int]]
    parts: Mapping[str, Part]

    @property
    def folder(self) -> str:
        """The folder that it lies in, below which its files lie."""
        return self.path.rpartition("/")[0]

    def tail(self, path: str) -> bytes:
        """Return a file's footer, with its length and magic."""
        part = self.parts[path]
        groups = b"".join(self.footer[start:stop] for start, stop in part.places)
        written = {
            number: (kind, self.footer[start:stop])
            for number, (kind, start, stop) in self.fields.items()
            if number in _SHARED
        }
        written[_NUM_ROWS] = I64, write_varint(part.num_rows << 1)
        written[GROUPS] = LIST, write_list_head(len(part.places)) + groups
        found, before = b"", 0
        for number, (kind, body) in sorted(written.items()):
            found += write_header(kind, number - before) + body
            before = number
        found += b"\0"
        return found + len(found).to_bytes(4, "little") + _MAGIC

    def digest(self, path: str, schema: str) -> str:
        """Return what promise.require_kept compares with the file's own footer.

        Args:
            path: The file.
            schema: From promise.schema_digest.
        """
        return self.parts[path].facts.digest(schema)


def is_summary(path: str) -> bool:
    """Whether a path is that of a `_metadata` file."""
    return path.partition("?")[0].rpartition("/")[2] == SUMMARY


def parse_summary(path: str, data: bytes) -> Summary:
    """Take a `_metadata` file apart.

    Args:
        path: Where it lies; files' paths are relative to its folder.
        data: All of its bytes.

    Raises:
        BadFileError: It is no Parquet, or names no file, or one outside the folder, for a
            row group, or its row groups have not the columns of its schema.
    """
    folder = path.rpartition("/")[0]
    places: dict[str, list[tuple[int, int]]] = {}
    facts: dict[str, Facts] = {}
    columns: dict[tuple[tuple[bytes, ...], ...], int] = {}
    count = 0

    def take(start: int, stop: int, group: Struct) -> None:
        nonlocal count
        try:
            named = _inside(file_of(group))
            of_file = facts.setdefault(named, Facts())
            columns.setdefault(tuple(of_file.add(group)), count)
        except ValueError as error:
            raise ValueError(f"row group {count}: {error}") from error
        places.setdefault(named, []).append((start, stop))
        count += 1

    try:
        footer = _footer(data)
        fields = read_fields(footer, GROUPS, take)
        for number, name in ((SCHEMA, "schema"), (GROUPS, "list of row groups")):
            if fields.get(number, (0,))[0] != LIST:
                raise ValueError(f"it has no {name}")
        leaves = tuple(leaf_paths(read_structs(footer, fields[SCHEMA][1])))
        for others, group in columns.items():
            if others != leaves:
                raise ValueError(
                    f"row group {group} has other columns than the schema, so its files "
                    "differ"
                )
    except ValueError as error:
        raise BadFileError(
            f"{path!r} cannot stand for the files of a folder: {error}; name the folder "
            f"{folder!r} in its place, whose files' own footers are then read, or write "
            "it anew",
            path=path,
        ) from error
    return Summary(
        path,
        footer,
        fields,
        {
            f"{folder}/{name}": Part(tuple(found), facts[name])
            for name, found in places.items()
        },
    )


def _footer(data: bytes) -> bytes:
    if data[-4:] == _ENCRYPTED:
        raise ValueError("it is encrypted")
    if data[-4:] != _MAGIC or len(data) < 4 + _ENDING_BYTES:
        raise ValueError("it is not a Parquet file")
    length = int.from_bytes(data[-8:-4], "little")
    if length > len(data) - _ENDING_BYTES:
        raise ValueError(
            f"its footer should have {length} bytes, the whole file has {len(data)}"
        )
    return data[len(data) - _ENDING_BYTES - length : -_ENDING_BYTES]


def _inside(named: str | None) -> str:
    """Return a file's path below the folder, spelled in one way."""
    if named is None:
        raise ValueError(
            "it names no file (whoever writes '_metadata' must say where row groups lie, "
            "as pyarrow's FileMetaData.set_file_path() does)"
        )
    parts = named.split("/")
    if (
        named.startswith("/")
        or "\\" in named
        or "\0" in named
        or ".." in parts
        or _SCHEME.fullmatch(parts[0])
    ):
        raise ValueError(f"it names {named!r}, which leads out of the folder")
    found = posixpath.normpath(named)
    if found in (".", SUMMARY, SCHEMA_ONLY):
        raise ValueError(f"it names {named!r}, which is no file with rows")
    return found
