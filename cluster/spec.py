"""What a cluster shall be: one record that checks itself. Pure, but for Dask's units."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass

from dask.utils import parse_bytes

from cluster.errors import SpecError


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSpec:
    """What to launch, the same for every kind of cluster.

    A kind with fields of its own has a subclass of this, in its own file, frozen and
    with keywords only; its __post_init__ calls ClusterSpec.__post_init__(self) first
    (super() does not work with slots=True before Python 3.14).

    Attributes:
        workers: How many Dask workers to start with, each a process of its own; 0 is
            allowed, to scale later.
        threads_per_worker: Tasks that one worker runs at a time.
        memory_limit: Per worker: bytes, text such as "2 GiB", "auto" for an even share
            of the machine, or None for no limit. Dask spills, pauses and at last
            restarts a worker that nears it.
        local_directory: Folder for what workers spill to disk; None leaves it to Dask
            (its "temporary-directory" setting, or a folder in /tmp).
        dashboard: Serve Dask's dashboard. Anyone who can reach it can read it: it has
            no login.
        start_timeout_s: Longest wait for the scheduler and all the workers.
    """

    workers: int = 1
    threads_per_worker: int = 1
    memory_limit: str | int | None = "auto"
    local_directory: str | os.PathLike[str] | None = None
    dashboard: bool = False
    start_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Check each value by itself.

        Raises:
            SpecError: One of them is of the wrong type or out of range.
        """
        check_count("workers", self.workers, at_least=0)
        check_count("threads_per_worker", self.threads_per_worker, at_least=1)
        _check_memory_limit(self.memory_limit)
        _check_directory(self.local_directory)
        if not isinstance(self.dashboard, bool):
            raise SpecError(f"dashboard={self.dashboard!r} must be True or False")
        check_seconds("start_timeout_s", self.start_timeout_s)

    @property
    def num_workers(self) -> int:
        """How many workers to wait for; for kinds that count them in another way."""
        return self.workers


def check_count(name: str, value: object, *, at_least: int) -> None:
    """Refuse what is not a whole number of at least so much.

    Raises:
        SpecError: It is not; bool counts as none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise SpecError(f"{name}={value!r} must be a whole number, at least {at_least}")


def check_seconds(name: str, value: object) -> None:
    """Refuse what is not a positive, finite number of seconds.

    Raises:
        SpecError: It is not; bool counts as none.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(float(value)) or float(value) <= 0:  # type: ignore[arg-type]
        raise SpecError(f"{name}={value!r} must be a number of seconds above 0")


def unknown_text(what: str, name: object, known: Iterable[str]) -> str:
    """Say that a name is not known, which ones are near it, and which are known."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=2)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ";"
    return f"unknown {what} {name!r}{hint} known: {', '.join(names)}"


def _check_memory_limit(value: object) -> None:
    if value is None or value == "auto":
        return
    try:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError("neither a whole number nor text")
        # Dask reads "" and "GB" as one byte and as one GB.
        if not any(character.isdigit() for character in str(value)):
            raise ValueError("no number in it")
        num_bytes = parse_bytes(value)
    except ValueError as error:
        num_bytes, reason = 0, error
    else:
        reason = ValueError("not above 0")
    if num_bytes < 1:
        raise SpecError(
            f"memory_limit={value!r} is not a size ({reason}); give bytes, text such as "
            '"2 GiB", "auto", or None for no limit'
        ) from reason


def _check_directory(value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise SpecError(
            f"local_directory={value!r} must be the path of a folder, or None for Dask's "
            "own choice"
        )
