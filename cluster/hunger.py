"""How many workers hungry consumers need. Pure: reports in, a number out.

A consumer that waits for windows is hungry; one whose trainer is the bottleneck is not.
How busy the workers are says nothing: consumers ask for a few windows ahead and no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

# What a consumer reports to, on the scheduler; plain numbers by name.
TOPIC = "dask-loader-hunger"

# Above this share of its time spent waiting a consumer is hungry. Between the two nothing
# changes.
_HUNGRY = 0.10
_FED = 0.02
# Looks in a row that say "fed" before a worker is let go.
_PATIENCE = 3
# A number of workers that was too small is tried again only when the consumers take less
# than this part of what it delivered.
_SAFE = 0.8
# At most so many times as many workers in one step: the first windows of an epoch wait.
_GROWTH = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What all consumers did since the last look.

    Attributes:
        stall: Share of its time that the hungriest one waited, 0 to 1.
        windows_per_s: Taken by all of them together.
        num_consumers: Not ended, and heard of lately.
    """

    stall: float
    windows_per_s: float
    num_consumers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Hunger:
    """What is remembered from look to look, and the answer.

    Attributes:
        target: Workers there should be.
        minimum: Never fewer.
        maximum: Never more.
        too_few: The largest number known to leave a consumer hungry.
        worker_windows_per_s: What one worker delivered when all were needed.
        fed_looks: How many looks in a row found nobody hungry.
        num_consumers: At the last look.
    """

    target: int
    minimum: int
    maximum: int
    too_few: int = 0
    worker_windows_per_s: float = 0.0
    fed_looks: int = 0
    num_consumers: int = 0

    def after(self, look: Look) -> Hunger:
        """Return what follows from a look that was taken with `target` workers."""
        known = self
        if look.num_consumers != self.num_consumers:
            # Others read other data: what was learnt is of the ones before.
            known = replace(
                self,
                num_consumers=look.num_consumers,
                too_few=0,
                worker_windows_per_s=0.0,
                fed_looks=0,
            )
        if not look.num_consumers:
            return replace(known, target=self.minimum)
        if look.stall > _HUNGRY:
            return known._hungry(look)
        if look.stall > _FED:
            return replace(known, fed_looks=0)
        return known._fed(look)

    def _hungry(self, look: Look) -> Hunger:
        wanted = math.ceil(self.target / max(1 / _GROWTH, 1 - look.stall))
        return replace(
            self,
            target=min(self.maximum, max(self.target + 1, wanted)),
            too_few=max(self.too_few, self.target),
            worker_windows_per_s=look.windows_per_s / max(1, self.target),
            fed_looks=0,
        )

    def _fed(self, look: Look) -> Hunger:
        if self.fed_looks + 1 < _PATIENCE:
            return replace(self, fed_looks=self.fed_looks + 1)
        fewer = self.target - 1
        if fewer < self.minimum:
            return self
        delivered = fewer * self.worker_windows_per_s
        if fewer > self.too_few:
            return replace(self, target=fewer, fed_looks=0)
        if look.windows_per_s < _SAFE * delivered:
            return replace(self, target=fewer, too_few=fewer - 1, fed_looks=0)
        return self


class Listener:
    """Adds up reports until somebody looks. Not thread-safe: the owner has a lock."""

    def __init__(self, *, silence_s: float) -> None:
        """Begin with no consumer.

        Args:
            silence_s: After so long without a word a consumer is taken for gone: one
                that waits says so every second, so a silent one at least waits for
                nothing.
        """
        self._silence_s = silence_s
        self._heard: dict[str, float] = {}
        self._sums: dict[str, tuple[float, int]] = {}

    def hear(self, report: object, now_s: float) -> None:
        """Take a report in; what is none is ignored, as anyone may write to a topic."""
        if not isinstance(report, dict) or not isinstance(report.get("consumer"), str):
            return
        name = report["consumer"]
        if report.get("ended"):
            self._heard.pop(name, None)
            self._sums.pop(name, None)
            return
        numbers = (report.get("waited_s"), report.get("windows"))
        if not all(isinstance(n, int | float) and n >= 0 for n in numbers):
            return
        waited_s, windows = self._sums.get(name, (0.0, 0))
        self._heard[name] = now_s
        self._sums[name] = (
            waited_s + float(report["waited_s"]),
            windows + int(report["windows"]),
        )

    def look(self, now_s: float, *, elapsed_s: float) -> Look:
        """Return what was heard since the last look, `elapsed_s` ago, and begin anew."""
        gone = [n for n, at in self._heard.items() if now_s - at > self._silence_s]
        for name in gone:
            del self._heard[name]
        sums, self._sums = self._sums, {}
        elapsed_s = max(elapsed_s, 1e-9)
        waits = [min(1.0, waited / elapsed_s) for waited, _ in sums.values()]
        return Look(
            stall=max(waits, default=0.0),
            windows_per_s=sum(windows for _, windows in sums.values()) / elapsed_s,
            num_consumers=len(self._heard),
        )


def clamp(num_workers: int, limits: Sequence[int]) -> int:
    """Return the number, or the nearer of (minimum, maximum)."""
    return min(max(num_workers, limits[0]), limits[1])
