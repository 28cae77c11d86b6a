"""What becomes of nulls: an error, NaN, or a value of the user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dask_loader.catalog.forms import Form
from dask_loader.errors import ConfigError, NullError


@dataclass(frozen=True, slots=True)
class NullPolicy:
    """The user's choice, checked.

    Attributes:
        nan: Nulls of float columns become NaN.
        fills: Value for each column that has one. For text, None keeps None.
    """

    nan: bool = False
    fills: tuple[tuple[str, Any], ...] = ()

    def fill_for(self, form: Form) -> tuple[bool, Any]:
        """Return whether nulls of this column may be replaced, and by what."""
        for name, value in self.fills:
            if name == form.name:
                return True, value
        if self.nan and form.is_fixed and np.dtype(form.dtype).kind == "f":
            return True, float("nan")
        return False, None


def make_null_policy(nulls: Any, forms: Sequence[Form]) -> NullPolicy:
    """Check what the user gave for nulls=.

    Args:
        nulls: "error", "nan", or {column: value}.
        forms: The columns that are delivered.

    Raises:
        ConfigError: It is none of these, names a column that is not delivered, or a value
            that does not fit its column.
    """
    if nulls == "error":
        return NullPolicy()
    if nulls == "nan":
        return NullPolicy(nan=True)
    if not isinstance(nulls, Mapping):
        raise ConfigError(
            f'nulls={nulls!r} must be "error", "nan" (for float columns), or a dict '
            "{column: value}"
        )
    by_name = {form.name: form for form in forms}
    for name, value in nulls.items():
        if name not in by_name:
            raise ConfigError(
                f"nulls={nulls!r} names {name!r}, which is not among the columns that "
                f"are delivered: {list(by_name)!r}"
            )
        _check_fill(by_name[name], value)
    return NullPolicy(fills=tuple(nulls.items()))


def null_error(
    form: Form, count: int, *, path: str, row_group: int, where: str = ""
) -> NullError:
    """Describe nulls for which there is no policy."""
    is_float = form.is_fixed and np.dtype(form.dtype).kind == "f"
    nan = 'nulls="nan" (for float columns), ' if is_float else ""
    number = "" if count < 0 else f"{count} "
    return NullError(
        f"column {form.name!r} has {number}nulls in {path!r}, row group {row_group}"
        f"{where}; choose what becomes of them with {nan}nulls={{{form.name!r}: value}}, "
        f"or leave them out with filters=~pyarrow.compute.field({form.name!r}).is_null()",
        path=path,
        row_group=row_group,
        column=form.name,
    )


def _check_fill(form: Form, value: Any) -> None:
    if not form.is_fixed:
        if value is None or isinstance(value, str | bytes):
            return
        raise ConfigError(
            f"nulls={{{form.name!r}: {value!r}}}: a text column takes text, bytes or None"
        )
    dtype = np.dtype(form.dtype)
    fits = isinstance(value, bool | int | float | np.generic)
    if fits and dtype.kind in "iub":
        try:
            fits = bool(np.array(value).astype(dtype) == value)
        except (OverflowError, ValueError):
            fits = False
        if fits and dtype.kind in "iu":
            low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
            fits = low <= int(value) <= high
    if not fits:
        raise ConfigError(
            f"nulls={{{form.name!r}: {value!r}}} does not fit the column's type "
            f"{form.dtype}; give a value that it can hold exactly"
        )
