"""Casts that never change a number in silence. Pure: arrays in, arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.generic]


class MisfitError(ValueError):
    """A value does not fit its form; for the reader, which knows the column and file.

    Attributes:
        way_out: What to do; None where another dtype is.
    """

    def __init__(self, text: str, way_out: str | None = None) -> None:
        super().__init__(text)
        self.way_out = way_out


def cast_into(
    values: Numbers, out: Numbers, *, valid: NDArray[np.bool_] | None, exact: bool
) -> None:
    """Copy numbers into an array of another dtype.

    Args:
        values: Numbers or bool, shape (items,).
        out: Same shape; integers are never given floats.
        valid: Which values count, bool, same shape; None for all. The others may be
            anything.
        exact: Refuse integers that a float can only hold rounded. Otherwise only those
            are refused that it cannot hold at all.

    Raises:
        MisfitError: A number does not fit; the text begins with it.
    """
    if values.dtype == out.dtype:
        np.copyto(out, values)
        return
    bounds = _bounds(values.dtype, out.dtype, exact=exact)
    if bounds is not None:
        _check(values if valid is None else values[valid], bounds, out.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out, values, casting="unsafe")


def _bounds(
    old: np.dtype[Any], new: np.dtype[Any], *, exact: bool
) -> tuple[float | int, float | int] | None:
    """Return the least and greatest number that may be cast; None if all may."""
    if old.kind == "b":
        return None
    if new.kind in "iu":
        source, target = np.iinfo(old), np.iinfo(new)
        if target.min <= source.min and source.max <= target.max:
            return None
        return int(target.min), int(target.max)
    most = float(np.finfo(new).max)
    if old.kind == "f":
        return None if float(np.finfo(old).max) <= most else (-most, most)
    if exact:
        most = min(most, float(2 ** (np.finfo(new).nmant + 1)))
    source = np.iinfo(old)
    return None if -most <= source.min and source.max <= most else (-most, most)


def _check(
    values: Numbers, bounds: tuple[float | int, float | int], dtype: np.dtype[Any]
) -> None:
    if not values.size:
        return
    low, high = values.min().item(), values.max().item()
    if bounds[0] <= low and high <= bounds[1]:
        return
    if values.dtype.kind == "f":  # NaN and the infinities stay what they are
        values = values[np.isfinite(values)]
        if not values.size:
            return
        low, high = values.min().item(), values.max().item()
    if low < bounds[0] or high > bounds[1]:
        worst = low if low < bounds[0] else high
        rounds = dtype.kind == "f" and bounds[1] < float(np.finfo(dtype).max)
        raise MisfitError(
            f"{worst!r} does not fit {dtype}, which holds {bounds[0]!r} to "
            f"{bounds[1]!r}" + (" exactly" if rounds else "")
        )
