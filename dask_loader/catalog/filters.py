"""Filters as users write them, checked against a schema before anything is read."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dask_loader.catalog.schema import require_column
from dask_loader.errors import ConfigError

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
    empty = schema.empty_table()
    for name in schema.names:
        try:
            empty.drop_columns([name]).filter(expression)
        except pa.ArrowInvalid:
            needed.append(name)
    return tuple(needed)


def _terms(filters: Any) -> list[tuple[str, str, Any]]:
    if not isinstance(filters, list) or not filters:
        raise ConfigError(
            f"filters={filters!r} must be a non-empty list of (column, op, value), a "
            "list of such lists, or a pyarrow.compute.Expression"
        )
    groups = filters if all(isinstance(g, list) for g in filters) else [filters]
    terms = []
    for term in (term for group in groups for term in group):
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
        terms.append(term)
    if not terms:
        raise ConfigError(f"filters={filters!r} holds no condition; leave it out")
    return terms
