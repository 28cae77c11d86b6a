"""Files that differ: which types one column may have in them, and what it then becomes.

Pure. Without schema=, a column becomes the narrowest type that holds every number of all
its types exactly, whatever file comes first. With schema= the user names the type, and more
is possible: what is lost for some values only is found out when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dask_loader.catalog.flat import filter_schema
from dask_loader.catalog.schema import plain_type, unpack_schema
from dask_loader.errors import SchemaError

_INTS = (
    pa.int8(),
    pa.uint8(),
    pa.int16(),
    pa.uint16(),
    pa.int32(),
    pa.uint32(),
    pa.int64(),
    pa.uint64(),
)
_UNITS = ("s", "ms", "us", "ns")
_TEXTS = ((pa.string(), pa.large_string()), (pa.binary(), pa.large_binary()))

# Columns by name, and the type that each has in the dataset.
Fields = tuple[tuple[str, pa.DataType], ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """What a reader does to a file's columns to make them the dataset's.

    Attributes:
        keys: Columns that directories tell, in the order of SliceTask.keys.
        columns: Columns that a file lacks (nulls there) or has in another type.
    """

    keys: Fields = ()
    columns: Fields = ()

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.keys or self.columns)


@dataclass(frozen=True, slots=True)
class Agreement:
    """What files with these schemas agree on.

    Attributes:
        types: Columns whose type differs from the first's or between files.
        missing: For each distinct packed schema, columns that its files lack.
    """

    types: dict[str, pa.DataType]
    missing: dict[bytes, tuple[str, ...]]


def agree(
    asked: pa.Schema,
    packed: Sequence[bytes],
    paths: Sequence[str],
    names: Iterable[str],
    *,
    all_columns: bool,
    given: bool,
    view: Callable[[pa.Schema], pa.Schema] = filter_schema,
) -> Agreement:
    """Find one type for each column that is read.

    Order, nullability and metadata of columns may differ.

    Args:
        asked: From filter_schema(): the first file's or the user's columns.
        packed: Each file's schema.
        paths: The files.
        names: The columns that are read and that files hold.
        all_columns: The user asked for all that the files have, so one more is a
            disagreement too.
        given: The schema is the user's: its types stand, columns may be missing.
        view: Makes what `asked` is of a file's schema.

    Raises:
        SchemaError: A column is missing, is one too many, or its types have none in
            common.
    """
    distinct: dict[bytes, str] = {}
    for schema, path in zip(packed, paths, strict=True):
        distinct.setdefault(schema, path)
    names = list(dict.fromkeys(names))
    missing: dict[bytes, tuple[str, ...]] = {}
    kinds: dict[str, dict[pa.DataType, str]] = {name: {} for name in names}
    for schema, path in distinct.items():
        if not given and schema == packed[0]:
            found_in = asked
        else:
            found_in = view(unpack_schema(schema))
        lacking = []
        for name in names:
            count = found_in.names.count(name)
            if count > 1:
                raise SchemaError(
                    f"{path!r} has {count} columns called {name!r}; rename them, or "
                    "leave the column out with columns=[...]",
                    path=path,
                    column=name,
                )
            if count:
                kinds[name].setdefault(plain_type(found_in.field(name).type), path)
            elif given:
                lacking.append(name)
            else:
                raise _disagreement(
                    name, asked.field(name).type, paths[0], "is missing", path
                )
        if lacking:
            missing[schema] = tuple(lacking)
        extra = [name for name in found_in.names if name not in asked.names]
        if all_columns and extra:
            raise SchemaError(
                f"files disagree about column {extra[0]!r}: {path!r} has it, "
                f"{paths[0]!r} does not; name the columns to read with columns=[...], or "
                "those of the dataset with schema=",
                path=path,
                column=extra[0],
            )
    types = {}
    lost = {name for lacking in missing.values() for name in lacking}
    for name, of_files in kinds.items():
        first = plain_type(asked.field(name).type)
        if of_files.keys() <= {first}:
            if name in lost:
                types[name] = asked.field(name).type
            continue
        if given:
            for kind, path in of_files.items():
                if not can_become(kind, first):
                    raise SchemaError(
                        f"schema= gives column {name!r} the type {first}, and it has "
                        f"type {kind} in {path!r}, which does not become that; give "
                        "another type, or leave the column out",
                        path=path,
                        column=name,
                    )
            types[name] = asked.field(name).type
            continue
        common = common_type(of_files)
        if common is None:
            kind, path = next(
                (kind, path)
                for kind, path in reversed(of_files.items())
                if kind != first
            )
            raise _disagreement(name, first, paths[0], f"has type {kind}", path)
        types[name] = common
    return Agreement(types, missing)


def both(one: Agreement, other: Agreement) -> Agreement:
    """Return what two agreements about other columns of the same files say together."""
    schemas = {**one.missing, **other.missing}
    missing = {
        schema: (*one.missing.get(schema, ()), *other.missing.get(schema, ()))
        for schema in schemas
    }
    return Agreement({**one.types, **other.types}, missing)


def common_type(kinds: Iterable[pa.DataType]) -> pa.DataType | None:
    """Return the narrowest type that holds all values of these types, or None."""
    found = {kind for kind in kinds if not pa.types.is_null(kind)}
    if not found:
        return pa.null()
    if len(found) == 1:
        return next(iter(found))
    # Of dictionaries, which come here for output_format="arrow" only, their values.
    found = {_values(kind) for kind in found}
    if len(found) == 1:
        return next(iter(found))
    for narrow, wide in _TEXTS:
        if found == {narrow, wide}:
            return wide
    ints = [kind for kind in found if pa.types.is_integer(kind)]
    floats = [kind for kind in found if pa.types.is_floating(kind)]
    if len(ints) + len(floats) < len(found):
        return None
    if not floats:
        return next((k for k in _INTS if all(_holds(k, other) for other in ints)), None)
    int_bits = max((kind.bit_width for kind in ints), default=0)
    float_bits = max(kind.bit_width for kind in floats)
    if int_bits <= 16 and float_bits <= 32:
        return pa.float32()
    return pa.float64() if int_bits <= 32 else None


def can_become(kind: pa.DataType, target: pa.DataType) -> bool:
    """Whether a file's column may be delivered in a type that the user gave.

    Where single values may not fit, they are refused when they are read.
    """
    if kind == target or common_type([kind, target]) == target:
        return True
    kind = _values(kind)
    if pa.types.is_large_list(kind) and pa.types.is_large_list(target):
        return can_become(kind.value_type, target.value_type)
    if any({kind, target} == {*pair} for pair in _TEXTS):
        return True
    if pa.types.is_integer(kind):
        return bool(pa.types.is_floating(target) and target.bit_width >= 32)
    if pa.types.is_decimal(kind) and pa.types.is_decimal(target):
        return bool(kind.scale <= target.scale)
    if pa.types.is_timestamp(target):
        if pa.types.is_date(kind):
            return target.tz is None
        return bool(
            pa.types.is_timestamp(kind)
            and kind.tz == target.tz
            and _UNITS.index(kind.unit) <= _UNITS.index(target.unit)
        )
    return False


def same_pruning(kind: pa.DataType, asked: pa.DataType) -> bool:
    """Whether a file's statistics may rule out row groups for a filter on a wider type.

    A float32 rounds what it is compared with; whole numbers and texts compare as wide
    ones do.
    """
    if kind == asked or (pa.types.is_integer(kind) and pa.types.is_integer(asked)):
        return True
    return any({kind, asked} == {*pair} for pair in _TEXTS)


def _values(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if isinstance(kind, pa.DictionaryType) else kind


def _holds(wide: pa.DataType, narrow: pa.DataType) -> bool:
    if pa.types.is_signed_integer(wide) == pa.types.is_signed_integer(narrow):
        return bool(wide.bit_width >= narrow.bit_width)
    return bool(pa.types.is_signed_integer(wide) and wide.bit_width > narrow.bit_width)


def _disagreement(
    name: str, kind: pa.DataType, first: str, has: str, path: str
) -> SchemaError:
    return SchemaError(
        f"files disagree about column {name!r}: it has type {kind} in {first!r} and "
        f"{has} in {path!r}; rewrite one of them, leave the column out with "
        "columns=[...], or say what the dataset's columns are with schema= (a pyarrow "
        "schema: a column that a file lacks is null there)",
        path=path,
        column=name,
    )
