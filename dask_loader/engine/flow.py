"""How much work may be under way, in bytes and tasks. Pure: events in, answers out."""

from __future__ import annotations

# A window that was larger than planned is remembered for about this many windows.
_MEMORY_WINDOWS = 16


class Flow:
    """Bounds the windows that are on their way or in hand.

    A window counts from its submission until its release: first with the bytes that the
    plan reckons, corrected by what windows really had so far; from its arrival on with
    those it has. Beside it counts, until it arrives, what its making takes.

    Attributes:
        max_tasks: Windows on their way, at most; may be changed at any time.
    """

    def __init__(self, *, max_bytes: int, max_tasks: int) -> None:
        self._max_bytes = max_bytes
        self.max_tasks = max_tasks
        self._on_the_way: dict[int, int] = {}
        self._in_hand: dict[int, int] = {}
        self._besides: dict[int, int] = {}
        self._planned: dict[int, int] = {}
        self._excess = 1.0  # real bytes over planned bytes, of late

    @property
    def num_tasks(self) -> int:
        """Windows submitted and not arrived."""
        return len(self._on_the_way)

    @property
    def num_bytes(self) -> int:
        """Bytes of all windows on their way and in hand."""
        return sum(self._on_the_way.values()) + sum(self._in_hand.values())

    def may_submit(
        self, num_bytes: int, *, besides_bytes: int = 0, kept_bytes: int = 0
    ) -> bool:
        """Whether a window may be submitted before anyone waits for it.

        The first one always may. One that the consumer waits for, with nothing on the
        way, must be submitted whatever the answer, or it would wait for ever.

        Args:
            num_bytes: As the plan reckons them.
            besides_bytes: What making it takes besides.
            kept_bytes: Of released windows that somebody still looks at.
        """
        if not self._on_the_way and not self._in_hand:
            return True
        besides = sum(self._besides.values()) + besides_bytes
        windows = self.num_bytes + self._corrected(num_bytes)
        fits = windows + besides + kept_bytes <= self._max_bytes
        return fits and self.num_tasks < self.max_tasks

    def submitted(self, number: int, num_bytes: int, *, besides_bytes: int = 0) -> None:
        """Count a window as on its way."""
        self._planned[number] = num_bytes
        self._besides[number] = besides_bytes
        self._on_the_way[number] = self._corrected(num_bytes)

    def arrived(self, number: int, num_bytes: int) -> None:
        """Count a window as in hand, with the bytes that it really has."""
        del self._on_the_way[number], self._besides[number]
        self._in_hand[number] = num_bytes
        seen = num_bytes / max(1, self._planned.pop(number))
        fading = self._excess + (seen - self._excess) / _MEMORY_WINDOWS
        self._excess = max(seen, fading, 1.0)

    def released(self, number: int) -> None:
        """Forget a window in hand."""
        del self._in_hand[number]

    def _corrected(self, num_bytes: int) -> int:
        return int(num_bytes * self._excess)
