"""When to start again what has ended: back-off and a cap. Pure: the clock comes in."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartPolicy:
    """How long to wait, and how often to try.

    Attributes:
        first_s: Wait before the first start after an end.
        longest_s: Each further wait is twice as long, up to this.
        max_in_a_row: Ends that are followed by another start. What ends once more is
            given up.
        steady_s: Who ran so long has come up: its earlier ends are forgotten.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    max_in_a_row: int = 6
    steady_s: float = 60.0


class Restarts:
    """Remembers ends and decides; used by one thread."""

    def __init__(self, policy: RestartPolicy) -> None:
        """Nothing has ended yet."""
        self._policy = policy
        self._began: dict[Hashable, float] = {}
        self._ends: dict[Hashable, int] = {}
        self._given_up: dict[Hashable, str] = {}

    @property
    def given_up(self) -> tuple[str, ...]:
        """What is not started again, in words."""
        return tuple(self._given_up.values())

    def is_given_up(self, name: Hashable) -> bool:
        """Tell whether this one is not started again."""
        return name in self._given_up

    def began(self, name: Hashable, *, now_s: float) -> None:
        """Note a start."""
        self._began[name] = now_s

    def ended(self, name: Hashable, *, now_s: float, why: str) -> float | None:
        """Note an end.

        Returns:
            Seconds until the next start; None if there is none.
        """
        policy = self._policy
        began_s = self._began.pop(name, now_s)
        ends = 0 if now_s - began_s >= policy.steady_s else self._ends.get(name, 0)
        self._ends[name] = ends + 1
        if ends >= policy.max_in_a_row:
            self._given_up[name] = f"{name} was given up after {ends + 1} starts: {why}"
            return None
        return float(min(policy.first_s * 2**ends, policy.longest_s))

    def forget(self, name: Hashable) -> None:
        """Drop what is no longer wanted."""
        for table in (self._began, self._ends, self._given_up):
            table.pop(name, None)
