"""Sizes and durations as users write them: "64 MiB", "60 s", 1024. Pure."""

from __future__ import annotations

import math
import re

from dask_loader.errors import ConfigError

_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(value: int | str, *, name: str) -> int:
    """Turn "64 MiB" or a whole number into bytes.

    Args:
        value: A positive number of bytes, or text with a unit (B, kB, MB, GB, TB, KiB,
            MiB, GiB, TiB; case does not matter).
        name: The argument's name, for the error.

    Raises:
        ConfigError: It is neither, or not positive.
    """
    size = _parse(value, _BYTES)
    if size is None or size < 1 or (isinstance(value, float) and size != int(size)):
        raise ConfigError(
            f"{name}={value!r} is not a size; give a whole number of bytes or text such "
            'as "64 MiB"'
        )
    return int(size)


def parse_seconds(value: float | str, *, name: str) -> float:
    """Turn "60 s", "2 min" or a number into seconds.

    Raises:
        ConfigError: It is neither, or not positive.
    """
    seconds = _parse(value, _SECONDS)
    if seconds is None or not seconds > 0:
        raise ConfigError(
            f"{name}={value!r} is not a duration; give a number of seconds or text such "
            'as "60 s"'
        )
    return float(seconds)


def format_bytes(num_bytes: float) -> str:
    """Write a size for people: 67108864 becomes "64 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} TiB"


def _parse(value: object, units: dict[str, int] | dict[str, float]) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value if math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    match = _NUMBER.fullmatch(value)
    if match is None:
        return None
    factor = units.get(match[2].lower())
    size = None if factor is None else float(match[1]) * factor
    return size if size is not None and math.isfinite(size) else None
