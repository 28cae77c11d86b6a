"""Values in a fixed order, whose places columns are delivered as: vocabulary=. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from dask_loader.catalog.forms import Form
from dask_loader.errors import ColumnError, ConfigError
from dask_loader.units import format_bytes

# Of all columns together: each task carries the vocabularies (Dask warns of tasks above
# 10 MB), and each reader keeps them as a dict.
MAX_BYTES = 8 << 20
CODE_DTYPE = "int32"

# The values that the user gave for a column; None where they are to be found.
Asked = tuple[tuple[str, tuple[Any, ...] | None], ...]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The values of one column: the code of each is its place.

    Attributes:
        values: Texts, bytes or integers, without nulls, each once.
        digest: Hash of the values and their order.
    """

    values: pa.Array = field(compare=False, repr=False)
    digest: str


def make_vocabulary(values: Sequence[Any], kind: pa.DataType) -> Vocabulary:
    """Make the vocabulary of values in their order."""
    text = repr(list(values)).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=16).hexdigest()
    return Vocabulary(pa.array(values, wide_type(kind)), digest)


def check_vocabulary(vocabulary: Any) -> Asked:
    """Check what the user gave for vocabulary=, as far as it can be without a schema.

    Args:
        vocabulary: None, or {column: True or a list of all values}.

    Raises:
        ConfigError: It is none of these, or values come twice.
    """
    if vocabulary is None:
        return ()
    if not isinstance(vocabulary, Mapping):
        raise ConfigError(
            f"vocabulary={vocabulary!r} must be a dict {{column: True}} (its values are "
            "found by reading the column once) or {column: [value, ...]}, or None"
        )
    return tuple((str(n), _values(n, given)) for n, given in vocabulary.items())


def code_forms(
    forms: Sequence[Form], schema: pa.Schema, asked: Asked
) -> tuple[Form, ...]:
    """Return the forms with the columns that are delivered as codes.

    Args:
        forms: As the files have them.
        schema: Their Arrow types, flat.
        asked: From check_vocabulary.

    Raises:
        ColumnError: A column is not there.
        ConfigError: Its values are not text, bytes or integers, or those that the user
            gave are of another type.
    """
    names = [form.name for form in forms]
    for name, values in asked:
        if name not in names:
            raise ColumnError(
                f"vocabulary names {name!r}, which is not among the columns that are "
                f"delivered: {names!r}",
                column=name,
            )
        kind = leaf_type(schema.field(name).type)
        if not (_is_text(kind) or pa.types.is_integer(kind)):
            raise ConfigError(
                f"vocabulary={{{name!r}: ...}}: the column has values of type {kind}; only "
                "text, bytes and integers have a vocabulary"
            )
        for value in values or ():
            _require_fit("vocabulary", name, value, kind)
    coded = {name for name, _ in asked}
    return tuple(_coded(form) if form.name in coded else form for form in forms)


def fill_of(nulls: Any, name: str, kind: pa.DataType) -> Any:
    """Return the value that stands for a column's nulls, None where there is none.

    Raises:
        ConfigError: It is no value that the column could have.
    """
    if not isinstance(nulls, Mapping) or name not in nulls:
        return None
    if nulls[name] is None:
        raise ConfigError(
            f"nulls={{{name!r}: None}}: the column is delivered as codes, and None has "
            "none; give a value, which is then one of the vocabulary"
        )
    _require_fit("nulls", name, nulls[name], kind)
    return nulls[name]


def given_vocabulary(
    name: str, values: Sequence[Any], fill: Any, kind: pa.DataType
) -> Vocabulary:
    """Make the vocabulary of the values that the user gave, in the user's order.

    Raises:
        ConfigError: The value for nulls is not among them, or they are too many.
    """
    if fill is not None and fill not in values:
        raise ConfigError(
            f"nulls={{{name!r}: {fill!r}}} is not in vocabulary={{{name!r}: ...}}; add it "
            "there: nulls get its code"
        )
    made = make_vocabulary(values, kind)
    require_few(name, made.values.nbytes)
    return made


def found_vocabulary(
    name: str, parts: Iterable[pa.Array], fill: Any, kind: pa.DataType
) -> Vocabulary:
    """Make the vocabulary of values that were found: a function of their set alone.

    Args:
        name: The column.
        parts: Values, some of them in several parts.
        fill: The value for nulls, or None.
        kind: The values' type.

    Raises:
        ConfigError: They are too many.
    """
    wide = wide_type(kind)
    chunks = [part.cast(wide) for part in parts]
    if fill is not None:
        chunks.append(pa.array([fill], wide))
    values = pa.chunked_array(chunks, wide).unique()
    require_few(name, values.nbytes)
    return make_vocabulary(sorted(values.to_pylist()), kind)


def require_few(name: str, num_bytes: int, *, where: str = "") -> None:
    """Refuse a vocabulary that is too large to travel with each task.

    Raises:
        ConfigError: It is.
    """
    if num_bytes > MAX_BYTES:
        raise ConfigError(
            f"vocabulary={{{name!r}: ...}}: the column has more than "
            f"{format_bytes(MAX_BYTES)} of different values{where}; a vocabulary is for "
            "columns with few of them: hash the values with transform=..., or write the "
            "codes into the files"
        )


def require_few_together(vocabularies: Sequence[tuple[str, Vocabulary]]) -> None:
    """Refuse vocabularies that are too large together.

    Raises:
        ConfigError: They are; the text names the largest.
    """
    sizes = {name: int(made.values.nbytes) for name, made in vocabularies}
    if sum(sizes.values()) > MAX_BYTES:
        largest = sorted(sizes, key=sizes.__getitem__)[-3:]
        where = (
            f", together with those of {len(sizes) - 1} others (largest: {largest!r})"
        )
        require_few(largest[-1], sum(sizes.values()), where=where)


def leaf_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values in (lists of) a flat column."""
    while pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return kind


def wide_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that a vocabulary of such values has."""
    if pa.types.is_integer(kind):
        return pa.int64() if pa.types.is_signed_integer(kind) else pa.uint64()
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return pa.large_string() if is_string else pa.large_binary()


def _values(name: Any, given: Any) -> tuple[Any, ...] | None:
    if given is True:
        return None
    is_list = isinstance(given, list | tuple) and len(given) > 0
    items = given if is_list else ()
    plain = [v.item() if isinstance(v, np.generic) else v for v in items]
    kinds = {type(value) for value in plain}
    if len(kinds) != 1 or not kinds <= {str, bytes, int}:
        raise ConfigError(
            f"vocabulary={{{name!r}: {_short(given)}}} must be True, or a list of all the "
            "column's values: texts, bytes or whole numbers, at least one"
        )
    if len(set(plain)) < len(plain):
        twice = next(v for i, v in enumerate(plain) if v in plain[:i])
        raise ConfigError(
            f"vocabulary={{{name!r}: ...}} holds {twice!r} twice; each value has one code"
        )
    return tuple(plain)


def _coded(form: Form) -> Form:
    if form.depth:
        return replace(form, items=CODE_DTYPE, coded=True)
    return replace(form, dtype=CODE_DTYPE, coded=True)


def _is_text(kind: pa.DataType) -> bool:
    wide = (pa.types.is_string, pa.types.is_large_string)
    more = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in (*wide, *more))


def _require_fit(argument: str, name: str, value: Any, kind: pa.DataType) -> None:
    if pa.types.is_integer(kind):
        low, high = _range(kind)
        fits = type(value) is int and low <= value <= high
    else:
        is_text = wide_type(kind) == pa.large_string()
        fits = type(value) is (str if is_text else bytes)
    if not fits:
        raise ConfigError(
            f"{argument}={{{name!r}: ...}} holds {value!r}, which is no value of the "
            f"column's type {kind}"
        )


def _range(kind: pa.DataType) -> tuple[int, int]:
    info = np.iinfo(kind.to_pandas_dtype())
    return int(info.min), int(info.max)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
