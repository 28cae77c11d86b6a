"""Filters as users write them, checked against a schema before anything is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dask_loader.catalog.schema import require_column
from dask_loader.errors import ConfigError

# How Arrow says that an expression names a column that is not there.
_NO_MATCH = re.compile(r"No match for FieldRef\.Name\((.*?)\)")
# How Arrow writes a column that is named by its number.
_NUMBERED = re.compile(r"(?<!FieldRef\.)FieldPath\(\d+\)")
_QUOTED = re.compile(r'"[^"]*"')
_NEVER_NAN = ("=", "==", "<", "<=", ">", ">=")
_OPERATORS = ("=", "==", "!=", "<", "<=", ">", ">=", "in", "not in")


def make_filter(filters: Any, schema: pa.Schema, *, path: str) -> pc.Expression | None:
    """Turn DNF lists or an Arrow expression into a checked expression.

    Args:
        filters: None; [(column, op, value), ...] joined by and; a list of such lists
            joined by or; or a pyarrow.compute.Expression.
        schema: The files'.
        path: A file that has it, for errors.

    Raises:
        ConfigError: It is none of these, or does not fit the columns' types.
        ColumnError: A column is not in the files.
    """
    if filters is None:
        return None
    if isinstance(filters, pc.Expression):
        expression = filters
        numbered = _NUMBERED.search(_QUOTED.sub("", str(expression)))
        if numbered:
            raise ConfigError(
                f"filters={filters!r} names a column by its number ({numbered[0]}), which "
                "is another one where only some columns are read; name it, as in "
                f"pyarrow.compute.field({schema.names[0]!r})"
            )
    else:
        for name, _, _ in _terms(filters):
            require_column(schema, name, "filters", path=path)
        try:
            expression = pq.filters_to_expression(filters)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise ConfigError(f"filters={filters!r} cannot be used: {error}") from error
    try:
        schema.empty_table().filter(expression)
    except (pa.ArrowException, TypeError) as error:
        unknown = _NO_MATCH.search(str(error))
        if unknown and unknown[1] not in schema.names:
            require_column(schema, unknown[1], "filters", path=path)
        raise ConfigError(
            f"filters={filters!r} do not fit the columns of {path!r}: {error}; compare "
            "each column with a value of its own type"
        ) from error
    return expression


def filter_columns(
    expression: pc.Expression | None, schema: pa.Schema
) -> tuple[str, ...]:
    """Return the columns that an expression reads, in the schema's order.

    Arrow does not tell, so each column is left out once: if the expression then no longer
    binds, it is needed.
    """
    if expression is None:
        return ()
    needed = []
    for name in dict.fromkeys(schema.names):
        others = pa.schema([field for field in schema if field.name != name])
        try:
            others.empty_table().filter(expression)
        except pa.ArrowInvalid:
            needed.append(name)
    return tuple(needed)


def may_prune(filters: Any, schema: pa.Schema, names: Sequence[str]) -> bool:
    """Whether row groups may be ruled out by their statistics.

    Parquet's least and greatest leave out NaN, and Arrow does not reckon with that: a row
    group of [NaN, 1, 1] would be ruled out for "!= 1", though NaN is kept. With floats it
    is safe only for comparisons that NaN never fulfils.
    """
    floats = {name for name in names if _has_floats(schema.field(name).type)}
    if not floats:
        return True
    if isinstance(filters, pc.Expression):
        return False
    return all(op in _NEVER_NAN for name, op, _ in _terms(filters) if name in floats)


def filter_text(
    filters: Any, expression: pc.Expression | None, schema: pa.Schema
) -> str:
    """Write filters as text that differs where they differ, for fingerprints."""
    if expression is None:
        return ""
    if not isinstance(filters, pc.Expression):
        return name_filter(filters)
    text = str(expression)
    # Arrow leaves out the middle of long lists of values.
    return bytes(expression.to_substrait(schema)).hex() if "..." in text else text


def name_filter(filters: Any) -> str:
    """Write filters as text, before a schema is known.

    Expressions that differ in the middle of a long list of values have the same text.

    Raises:
        ConfigError: They are neither lists of conditions nor an expression.
    """
    if filters is None or isinstance(filters, pc.Expression):
        return "" if filters is None else str(filters)
    _terms(filters)
    groups = [
        [(n, op, _plain(value)) for n, op, value in group] for group in _groups(filters)
    ]
    return repr(groups[0] if len(groups) == 1 else groups)


def _plain(value: Any) -> Any:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return value
    items = [repr(item) for item in value]
    return sorted(items) if isinstance(value, set | frozenset) else items


def _has_floats(kind: pa.DataType) -> bool:
    if pa.types.is_floating(kind):
        return True
    children = (kind.field(i).type for i in range(kind.num_fields))
    return any(_has_floats(child) for child in children)


def _groups(filters: Any) -> list[Any]:
    """Return the lists of conditions that are joined by or."""
    nested = isinstance(filters, list) and all(isinstance(g, list) for g in filters)
    return filters if nested else [filters]


def _terms(filters: Any) -> list[tuple[str, str, Any]]:
    if not isinstance(filters, list) or not filters:
        raise ConfigError(
            f"filters={filters!r} must be a non-empty list of (column, op, value), a "
            "list of such lists, or a pyarrow.compute.Expression"
        )
    terms = []
    for term in (term for group in _groups(filters) for term in group):
        if (
            not isinstance(term, tuple)
            or len(term) != 3
            or not isinstance(term[0], str)
        ):
            raise ConfigError(
                f"filters={filters!r} holds {term!r}; each part must be a tuple "
                "(column, op, value)"
            )
        if term[1] not in _OPERATORS:
            raise ConfigError(
                f"filters={filters!r} uses the operator {term[1]!r}; known are "
                f"{', '.join(_OPERATORS)}"
            )
        if isinstance(term[2], Iterator):
            raise ConfigError(
                f"filters={filters!r} compares {term[0]!r} with an iterator, which can be "
                "read only once; give a list"
            )
        terms.append(term)
    if not terms:
        raise ConfigError(f"filters={filters!r} holds no condition; leave it out")
    return terms
