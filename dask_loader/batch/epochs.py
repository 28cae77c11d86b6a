"""Which epoch comes next, known to the main process and all its DataLoader workers.

The numbers lie in a shared tensor: an attribute would never reach persistent workers, and
with torch's own DataLoader and workers the main process's dataset is never iterated. Each
worker counts its own iterations, in a place of its own, so that there is nothing to lock.

Place 0 is the base epoch (set_epoch), place 1 the epoch that our own DataLoader announces
to its workers. Place 2 counts iterations of the main process, and worker w of k counts in
place 3 + k (k - 1) / 2 + w. The epoch that begins is the base plus the iterations so far:
one's own, and those of loaders with another number of workers.
"""

from __future__ import annotations

from typing import Any

import torch

from dask_loader.errors import ConfigError

# 3 + 128 * 129 / 2 places of 8 bytes are 65 KiB.
MAX_WORKERS = 128
_BASE, _ANNOUNCED, _MAIN, _FIRST_SLOT = range(4)


class EpochCounter:
    """Counts epochs. A plain pickle or deepcopy has a counter of its own."""

    def __init__(self) -> None:
        places = _FIRST_SLOT + MAX_WORKERS * (MAX_WORKERS + 1) // 2
        self._cell = torch.zeros(places, dtype=torch.int64)
        self._cell.share_memory_()

    def set(self, epoch: int) -> None:
        """Make `epoch` the next one."""
        self._cell[_MAIN:] = 0
        self._cell[_BASE] = epoch

    def peek(self) -> int:
        """Return the next epoch of an iteration without workers."""
        return int(self._cell[_BASE] + self._cell[_MAIN] + self._others(0))

    def announce(self, epoch: int) -> None:
        """Tell the workers of our own DataLoader which epoch they are to read."""
        self._cell[_ANNOUNCED] = epoch

    def announced(self) -> int:
        """Return what the main process announced."""
        return int(self._cell[_ANNOUNCED])

    def begin(self, worker: int = 0, num_workers: int = 0) -> int:
        """Return the epoch that this process begins now, and count it.

        Args:
            worker: This DataLoader worker.
            num_workers: How many there are; 0 in the main process.

        Raises:
            ConfigError: There are more workers than places.
        """
        if num_workers > MAX_WORKERS:
            raise ConfigError(
                f"num_workers={num_workers!r} is more than {MAX_WORKERS}; use fewer: "
                "each decodes with threads or on the cluster"
            )
        place = _slot(num_workers) + worker
        epoch = int(self._cell[_BASE] + self._cell[place] + self._others(num_workers))
        self._cell[place] += 1
        return epoch

    def _others(self, num_workers: int) -> int:
        # Iterations by loaders with another number of workers. Each of their workers
        # counts, and one that was killed counts less: the most is right.
        total = 0
        for other in range(MAX_WORKERS + 1):
            if other != num_workers:
                start = _slot(other)
                total += int(self._cell[start : start + max(other, 1)].max())
        return total

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Handed to a DataLoader worker the cell is the same memory; a copy shares its own.
        self._cell = state["_cell"]
        self._cell.share_memory_()


def _slot(num_workers: int) -> int:
    if num_workers == 0:
        return _MAIN
    return _FIRST_SLOT + num_workers * (num_workers - 1) // 2
