"""Counts and seconds, reported by the stages and read by stats()."""

from __future__ import annotations

import threading

# label: (unit, what it counts). The only list of labels.
LABELS = {
    "batches": ("1", "batches handed out"),
    "rows": ("1", "rows handed out, pads included"),
    "windows": ("1", "windows that arrived"),
    "bytes": ("B", "decoded bytes of these windows"),
    "skipped_windows": ("1", "windows that other rows came in place of (on_error)"),
    "skipped_rows": ("1", "rows of these windows"),
    "unchecked_rows": ("1", "rows read from pages without a checksum to verify"),
    "wait_s": ("s", "time the consumer waited for windows"),
    "total_s": ("s", "time from each iteration's start to its last batch"),
}


class Meter:
    """Adds up numbers by label. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums = dict.fromkeys(LABELS, 0.0)

    def add(self, label: str, value: float) -> None:
        """Add to a label of LABELS."""
        with self._lock:
            self._sums[label] += value

    def read(self) -> dict[str, float]:
        """Return all sums."""
        with self._lock:
            return dict(self._sums)
