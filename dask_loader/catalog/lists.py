"""What the user wants lists of any length delivered as: ragged=. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from dask_loader.catalog.forms import Form, Padding
from dask_loader.errors import ColumnError, ConfigError

Way = Literal["jagged", "nested"]


@dataclass(frozen=True, slots=True)
class Lists:
    """The user's choice, checked as far as it can be without a schema.

    Attributes:
        otherwise: For columns that are not named.
        columns: Columns with a way of their own, or with a length.
    """

    otherwise: Way = "jagged"
    columns: tuple[tuple[str, Way | Padding], ...] = ()


def check_ragged(ragged: Any) -> Lists:
    """Check what the user gave for ragged=.

    Args:
        ragged: "jagged", "nested", or {column: "jagged", "nested", (length, fill) or
            (length, fill, "cut")}.

    Raises:
        ConfigError: It is none of these.
    """
    if isinstance(ragged, str) and ragged in get_args(Way):
        return Lists(otherwise=ragged)  # type: ignore[arg-type]
    if not isinstance(ragged, Mapping):
        raise ConfigError(
            f'ragged={ragged!r} must be "jagged", "nested", or a dict {{column: '
            "(length, fill)}"
        )
    return Lists(columns=tuple((str(n), _way(n, value)) for n, value in ragged.items()))


def shape_lists(forms: Sequence[Form], lists: Lists) -> tuple[Form, ...]:
    """Return the forms with lists as the user wants them; before they are cast.

    A list of numbers that is padded has a fixed layout. torch.nested has no form for
    texts and for lists of lists: "nested" for all leaves these as they are, and for one
    by name is refused.

    Args:
        forms: As the files have them, texts that come as codes being numbers.
        lists: From check_ragged.

    Raises:
        ColumnError: A name is not among the columns.
        ConfigError: A column is none of lists, or cannot be had that way.
    """
    chosen = dict(lists.columns)
    names = [form.name for form in forms]
    for name in chosen:
        if name not in names:
            raise ColumnError(
                f"ragged names {name!r}, which is not among the columns that are "
                f"delivered: {names!r}",
                column=name,
            )
    return tuple(
        _shaped(form, chosen.get(form.name), lists.otherwise) for form in forms
    )


def check_fills(forms: Sequence[Form]) -> None:
    """Refuse fill values that the dtype, after casts, cannot hold.

    Raises:
        ConfigError: One does not fit.
    """
    for form in forms:
        if form.pad is not None and not fits(form.pad.fill, np.dtype(form.dtype)):
            raise ConfigError(
                f"ragged={{{form.name!r}: ({form.pad.length}, {form.pad.fill!r})}}: the "
                f"fill value does not fit the column's type {form.dtype}; give one that "
                "it can hold exactly"
            )


def fits(value: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a number can stand in an array; floats may lose digits."""
    number = float(value) if isinstance(value, float | np.floating) else int(value)
    if dtype.kind == "f":
        # Digits may be lost, as in any float, but what is finite must stay finite.
        with np.errstate(over="ignore"):
            try:
                stays = bool(np.isfinite(np.array(number).astype(dtype)))
            except OverflowError:
                return False
        return stays or not math.isfinite(number)
    if not math.isfinite(number) or int(number) != number:
        return False
    if dtype.kind == "b":
        return number in (0, 1)
    return bool(np.iinfo(dtype).min <= number <= np.iinfo(dtype).max)


def _way(name: Any, value: Any) -> Way | Padding:
    if isinstance(value, str) and value in get_args(Way):
        return value  # type: ignore[return-value]
    if isinstance(value, tuple | list) and len(value) in (2, 3):
        length, fill, *cut = value
        whole = isinstance(length, int) and not isinstance(length, bool) and length > 0
        number = isinstance(fill, bool | int | float | np.number | np.bool_)
        if whole and number and cut in ([], ["cut"]):
            plain = fill.item() if isinstance(fill, np.generic) else fill
            return Padding(length, plain, bool(cut))
    raise ConfigError(
        f'ragged={{{name!r}: {value!r}}} must be "jagged", "nested", (length, fill) or '
        '(length, fill, "cut"), length being a whole number from 1 up and fill a number'
    )


def _shaped(form: Form, chosen: Way | Padding | None, otherwise: Way) -> Form:
    plain = form.depth == 1 and bool(form.items)
    if chosen is None:
        return replace(form, nested=otherwise == "nested" and plain)
    if not form.depth:
        raise ConfigError(
            f"ragged={{{form.name!r}: ...}}: the column's rows are no lists of any length"
        )
    if chosen == "jagged":
        return form
    what = "is padded" if isinstance(chosen, Padding) else "becomes torch.nested"
    if not form.items:
        raise ConfigError(
            f"ragged={{{form.name!r}: ...}}: only a list of numbers {what}, and the column "
            f"has lists of text or bytes; vocabulary={{{form.name!r}: True}} makes them "
            "numbers"
        )
    if not plain:
        raise ConfigError(
            f"ragged={{{form.name!r}: ...}}: only a list of numbers {what}, and the column "
            "has lists of lists; take them as they are, or flatten them with transform=..."
        )
    if isinstance(chosen, Padding):
        return replace(
            form,
            dtype=form.items,
            items="",
            depth=0,
            shape=(chosen.length, *form.shape),
            pad=chosen,
        )
    return replace(form, nested=True)
