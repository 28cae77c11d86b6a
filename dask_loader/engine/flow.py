"""How much work may be under way, in bytes and tasks. Pure: events in, answers out."""

from __future__ import annotations


class Flow:
    """Bounds the windows that are on their way or in hand.

    A window counts from its submission until its release: first with the bytes that the
    plan reckons, from its arrival on with those it really has. One window is always
    allowed, or a limit below a window would wait for ever.
    """

    def __init__(self, *, max_bytes: int, max_tasks: int) -> None:
        self._max_bytes = max_bytes
        self._max_tasks = max_tasks
        self._on_the_way: dict[int, int] = {}
        self._in_hand: dict[int, int] = {}

    @property
    def num_tasks(self) -> int:
        """Windows submitted and not arrived."""
        return len(self._on_the_way)

    @property
    def num_bytes(self) -> int:
        """Bytes of all windows on their way and in hand."""
        return sum(self._on_the_way.values()) + sum(self._in_hand.values())

    def may_submit(self, num_bytes: int) -> bool:
        """Whether a window of so many bytes may be submitted now."""
        if not self._on_the_way:
            return True
        fits = self.num_bytes + num_bytes <= self._max_bytes
        return fits and self.num_tasks < self._max_tasks

    def submitted(self, number: int, num_bytes: int) -> None:
        """Count a window as on its way."""
        self._on_the_way[number] = num_bytes

    def arrived(self, number: int, num_bytes: int) -> None:
        """Count a window as in hand, with the bytes that it really has."""
        del self._on_the_way[number]
        self._in_hand[number] = num_bytes

    def released(self, number: int) -> None:
        """Forget a window in hand."""
        del self._in_hand[number]
