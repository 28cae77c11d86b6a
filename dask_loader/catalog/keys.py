"""Directory keys (`day=2026-01-01/`) as columns: their names, types and values. Pure.

A key has one value for all rows of a file, said by its path alone. All files of a dataset
have the same keys; the values of all files decide a key's type, so every rank, which lists
the same files, finds the same one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from operator import and_
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from dask_loader.errors import ColumnError, ConfigError, SchemaError

# What Hive, Spark, Dask and Arrow write for a null.
NULL_TEXT = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"-?[0-9]{1,18}")

# The values of a file's keys, as its path has them, decoded; None for a null.
Texts = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Partitioning:
    """The user's choice, checked.

    Attributes:
        names: Keys by the directories' order, "year/month"; None where directories name
            them, "year=2026".
        types: Of keys whose type was given.
    """

    names: tuple[str, ...] | None = None
    types: tuple[tuple[str, pa.DataType], ...] = ()


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a dataset's files. Small: values are found in the paths.

    Attributes:
        base: The folder below which directories count.
        names: In the order of the first file's directories.
        types: For each name.
        in_order: Whether directories hold values alone, in the order of names.
    """

    base: str
    names: tuple[str, ...]
    types: tuple[pa.DataType, ...]
    in_order: bool = False

    @property
    def fields(self) -> tuple[tuple[str, pa.DataType], ...]:
        """Name and type of each key."""
        return tuple(zip(self.names, self.types, strict=True))

    def texts(self, path: str) -> Texts:
        """Return the values of a file's keys, in the order of names."""
        parts = _directories(self.base, path)
        if self.in_order:
            return tuple(_decoded(part, path) for part in parts[: len(self.names)])
        found = _pairs(parts, path)
        return tuple(found[name] for name in self.names)

    def guarantee(self, path: str) -> pc.Expression:
        """Return what is true of all rows of a file."""
        return reduce(
            and_,
            (
                pc.field(name).is_null()
                if text is None
                else pc.field(name) == key_scalar(text, kind)
                for (name, kind), text in zip(
                    self.fields, self.texts(path), strict=True
                )
            ),
        )

    def add_to(self, schema: pa.Schema) -> pa.Schema:
        """Return a schema with the keys: appended, or where it has their names."""
        for name, kind in self.fields:
            place = schema.get_field_index(name)
            field = pa.field(name, kind)
            schema = schema.append(field) if place < 0 else schema.set(place, field)
        return schema

    def table(self, paths: Sequence[str]) -> pa.Table:
        """Return the keys of files, a row for each file."""
        texts = [self.texts(path) for path in paths]
        arrays = [
            pa.array([of_file[place] for of_file in texts], pa.string()).cast(kind)
            for place, kind in enumerate(self.types)
        ]
        return pa.table(arrays, names=list(self.names))


def check_partitioning(partitioning: Any) -> Partitioning | None:
    """Check what the user gave for partitioning=, before anything is listed.

    Args:
        partitioning: "hive", None, {key: Arrow type}, [name, ...], or a
            pyarrow.dataset HivePartitioning or DirectoryPartitioning.

    Returns:
        None where directories are to be ignored.

    Raises:
        ConfigError: It is none of these.
    """
    if partitioning is None:
        return None
    if isinstance(partitioning, str) and partitioning == "hive":
        return Partitioning()
    if isinstance(partitioning, Mapping):
        return Partitioning(types=_types(partitioning.items()))
    if isinstance(partitioning, pads.HivePartitioning | pads.DirectoryPartitioning):
        schema = partitioning.schema
        types = _types((field.name, field.type) for field in schema)
        by_name = isinstance(partitioning, pads.HivePartitioning)
        return Partitioning(None if by_name else tuple(schema.names), types)
    is_list = isinstance(partitioning, list | tuple) and len(partitioning) > 0
    is_list = is_list and all(isinstance(n, str) and n for n in partitioning)
    if is_list and len(set(partitioning)) == len(partitioning):
        return Partitioning(names=tuple(partitioning))
    raise ConfigError(
        f'partitioning={partitioning!r} must be "hive", None to ignore directories, '
        "{key: Arrow type}, a list of different names for directories that hold values "
        "alone, or a pyarrow.dataset.HivePartitioning or DirectoryPartitioning"
    )


def find_keys(
    partitioning: Partitioning | None,
    base: str,
    paths: Sequence[str],
    columns: pa.Schema,
) -> Keys | None:
    """Find the keys of a dataset's files.

    Args:
        partitioning: From check_partitioning.
        base: The folder below which directories count.
        paths: The files.
        columns: Their own columns: a key that is one of these too has its type.

    Returns:
        None where there are none.

    Raises:
        SchemaError: Files disagree about keys, or a value does not fit a type.
        ConfigError: A key that was given a type is not there.
    """
    if partitioning is None:
        return None
    # Thousands of files lie in fewer directories.
    folders = {path.rpartition("/")[0]: path for path in reversed(paths)}
    firsts = list(reversed(folders.values()))
    given = dict(partitioning.types)
    if partitioning.names is not None:
        _require_depth(partitioning.names, base, firsts)
        keys = Keys(base, partitioning.names, (), in_order=True)
    else:
        keys = Keys(base, _agreed_names(base, firsts), ())
    for name in given:
        if name not in keys.names:
            raise ConfigError(
                f"partitioning gives key {name!r} the type {given[name]}, and no "
                f"directory below {base!r} has it; there are {list(keys.names)!r}"
            )
    if not keys.names:
        return None
    values = list(zip(*(keys.texts(path) for path in firsts), strict=True))
    types = []
    for name, texts in zip(keys.names, values, strict=True):
        if columns.names.count(name) > 1:
            raise ColumnError(
                f"{name!r} is a key of directories and {columns.names.count(name)} "
                f"columns of {paths[0]!r}; rename them, or leave directories out of it "
                "with partitioning=None",
                path=paths[0],
                column=name,
            )
        kind = given.get(name)
        if kind is None and name in columns.names:
            kind = columns.field(name).type
        kind = _inferred(texts) if kind is None else kind
        for text, path in zip(texts, firsts, strict=True):
            _require_fit(name, text, kind, path)
        types.append(kind)
    return replace(keys, types=tuple(types))


@lru_cache(maxsize=1024)
def key_scalar(text: str | None, kind: pa.DataType) -> pa.Scalar:
    """Return a key's value in its type."""
    return pa.scalar(text, pa.string()).cast(kind)


def _types(
    items: Iterable[tuple[Any, Any]],
) -> tuple[tuple[str, pa.DataType], ...]:
    found = []
    for name, given in items:
        kind = given
        if isinstance(given, str):
            try:
                kind = pa.type_for_alias(given)
            except ValueError:
                kind = None
        if isinstance(kind, pa.DictionaryType):
            kind = kind.value_type
        if not isinstance(name, str) or not isinstance(kind, pa.DataType):
            raise ConfigError(
                f"partitioning={{{name!r}: {given!r}}} must give the name of a key an "
                'Arrow type, such as pyarrow.int32() or "int32"'
            )
        found.append((name, kind))
    return tuple(found)


def _directories(base: str, path: str) -> list[str]:
    below = path[len(base) :] if path.startswith(base) else path
    return below.strip("/").split("/")[:-1]


def _pairs(parts: Sequence[str], path: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or not name:
            continue
        name = _decoded(name, path) or ""
        if name in found:
            raise SchemaError(
                f"the directories of {path!r} give key {name!r} twice; rename one, or "
                "ignore directories with partitioning=None",
                path=path,
                column=name,
            )
        found[name] = _decoded(value, path)
    return found


def _decoded(value: str, path: str) -> str | None:
    if value == NULL_TEXT:
        return None
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError as error:
        raise SchemaError(
            f"the directory {value!r} of {path!r} is no URL-encoded UTF-8 ({error}); "
            "rename it, or ignore directories with partitioning=None",
            path=path,
        ) from error


def _agreed_names(base: str, paths: Sequence[str]) -> tuple[str, ...]:
    first = tuple(_pairs(_directories(base, paths[0]), paths[0]))
    for path in paths[1:]:
        other = _pairs(_directories(base, path), path)
        if other.keys() != set(first):
            differing = sorted(set(first) ^ other.keys())[0]
            raise SchemaError(
                f"files disagree about the keys of their directories: {paths[0]!r} has "
                f"{list(first)!r}, {path!r} has {list(other)!r}; move one of them, or "
                "ignore directories with partitioning=None",
                path=path,
                column=differing,
            )
    return first


def _require_depth(names: Sequence[str], base: str, paths: Sequence[str]) -> None:
    for path in paths:
        parts = _directories(base, path)
        if len(parts) < len(names):
            raise SchemaError(
                f"partitioning={list(names)!r} needs {len(names)} directories below "
                f"{base!r}, and {path!r} lies below {parts!r}; move it, or give fewer "
                "names",
                path=path,
                column=names[len(parts)],
            )


def _inferred(texts: Sequence[str | None]) -> pa.DataType:
    known = [text for text in texts if text is not None]
    if known and all(_WHOLE.fullmatch(text) for text in known):
        return pa.int64()
    return pa.string()


def _require_fit(name: str, text: str | None, kind: pa.DataType, path: str) -> None:
    try:
        key_scalar(text, kind)
    except pa.ArrowException as error:
        raise SchemaError(
            f"key {name!r} should have type {kind}, and the directories of {path!r} say "
            f"{text!r} ({error}); give it another type with "
            f'partitioning={{{name!r}: "string"}}, or ignore directories with '
            "partitioning=None",
            path=path,
            column=name,
        ) from error
