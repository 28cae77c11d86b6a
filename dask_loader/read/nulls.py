"""What becomes of nulls: an error, NaN, or a value of the user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dask_loader.catalog.forms import Form
from dask_loader.catalog.lists import fits
from dask_loader.errors import ConfigError, NullError


@dataclass(frozen=True, slots=True)
class NullPolicy:
    """The user's choice, checked.

    Attributes:
        nan: Nulls of float columns become NaN.
        mask: All become 0 or empty, and columns of their own tell which.
        fills: Value for each column that has one. For text, None keeps None.
    """

    nan: bool = False
    mask: bool = False
    fills: tuple[tuple[str, Any], ...] = ()

    def fill_for(self, form: Form) -> tuple[bool, Any]:
        """Return whether nulls of this column may be replaced, and by what."""
        if self.mask:
            return True, 0 if form.number else ""
        for name, value in self.fills:
            if name == form.name:
                return True, value
        if self.nan and _is_float(form):
            return True, float("nan")
        return False, None


def make_null_policy(
    nulls: Any, forms: Sequence[Form], schema: pa.Schema | None = None
) -> NullPolicy:
    """Check what the user gave for nulls=.

    Args:
        nulls: "error", "nan", "mask", or {column: value}.
        forms: The columns that are delivered.
        schema: Their Arrow types, to check what text columns can hold.

    Raises:
        ConfigError: It is none of these, names a column that is not delivered, or a value
            that does not fit its column.
    """
    if nulls == "error":
        return NullPolicy()
    if nulls == "nan":
        return NullPolicy(nan=True)
    if nulls == "mask":
        return NullPolicy(mask=True)
    if not isinstance(nulls, Mapping):
        raise ConfigError(
            f'nulls={nulls!r} must be "error", "nan" (for float columns), "mask", or a '
            "dict {column: value}"
        )
    by_name = {form.name: form for form in forms}
    for name, value in nulls.items():
        if name not in by_name:
            raise ConfigError(
                f"nulls={nulls!r} names {name!r}, which is not among the columns that "
                f"are delivered: {list(by_name)!r}"
            )
        if by_name[name].coded:
            continue  # a value of the vocabulary, checked with it
        _check_fill(by_name[name], value)
        if schema is not None and not by_name[name].number and value is not None:
            _check_text(name, schema.field(name).type, value)
    return NullPolicy(fills=tuple(nulls.items()))


def null_error(
    form: Form,
    count: int,
    *,
    path: str,
    row_group: int,
    where: str = "",
    made: bool = False,
) -> NullError:
    """Describe nulls for which there is no policy; `made` ones by a transform."""
    leave_out = (
        "or make others in transform="
        if made
        else f"or leave them out with "
        f"filters=~pyarrow.compute.field({form.name!r}).is_null()"
    )
    nan = 'nulls="nan" (for float columns), ' if _is_float(form) else ""
    number = "" if count < 0 else f"{count} "
    return NullError(
        f"column {form.name!r} has {number}nulls in {path!r}, row group {row_group}"
        f"{where}; choose what becomes of them with {nan}nulls={{{form.name!r}: value}} or "
        f'nulls="mask", {leave_out}',
        path=path,
        row_group=row_group,
        column=form.name,
    )


def _is_float(form: Form) -> bool:
    # Codes are never NaN, whatever dtype they are cast to.
    return bool(form.number) and np.dtype(form.number).kind == "f" and not form.coded


def _check_text(name: str, kind: pa.DataType, value: str | bytes) -> None:
    while pa.types.is_large_list(kind):
        kind = kind.value_type
    try:
        pa.array([value]).cast(kind).validate(full=True)
    except (pa.ArrowException, TypeError) as error:
        raise ConfigError(
            f"nulls={{{name!r}: {value!r}}} does not fit the column's type {kind}: {error}"
        ) from error


def _check_fill(form: Form, value: Any) -> None:
    if not form.number:
        if value is None or isinstance(value, str | bytes):
            return
        raise ConfigError(
            f"nulls={{{form.name!r}: {value!r}}}: a text column takes text, bytes or None"
        )
    number = isinstance(value, bool | int | float | np.number | np.bool_)
    if not (number and fits(value, np.dtype(form.number))):
        raise ConfigError(
            f"nulls={{{form.name!r}: {value!r}}} does not fit the column's type "
            f"{form.number}; give a value that it can hold exactly"
        )
