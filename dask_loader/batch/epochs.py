"""Which epoch comes next, known to the main process and all its DataLoader workers.

The numbers lie in a shared tensor: an attribute would never reach persistent workers, and
with torch's own DataLoader and workers the main process's dataset is never iterated. Each
worker counts its own iterations, in a place of its own, so that there is nothing to lock.

The first places have names, below. Worker w of k counts its iterations in the place
_FIRST_SLOT + k (k - 1) / 2 + w. The epoch that begins is the base plus the iterations so
far: one's own, and those of loaders with another number of workers.
"""

from __future__ import annotations

from typing import Any

import torch

from dask_loader.errors import ConfigError

# 128 * 129 / 2 places of 8 bytes are 65 KiB.
MAX_WORKERS = 128
(
    _BASE,  # the epoch given to set()
    _RESUMED,  # the epoch of a loaded position, or -1
    _RESUMED_ROWS,  # and the position
    _NUM_SPLITS,  # once it is fixed, else 0
    _MAIN,  # iterations of the main process
    _FIRST_SLOT,
) = range(6)


class EpochCounter:
    """Counts epochs. A plain pickle or deepcopy has a counter of its own."""

    def __init__(self) -> None:
        places = _FIRST_SLOT + MAX_WORKERS * (MAX_WORKERS + 1) // 2
        self._cell = torch.zeros(places, dtype=torch.int64)
        self._cell[_RESUMED] = -1
        self._cell.share_memory_()

    @property
    def num_splits(self) -> int | None:
        """The dataset's num_splits, fixed at first use; None before."""
        return int(self._cell[_NUM_SPLITS]) or None

    @num_splits.setter
    def num_splits(self, value: int) -> None:
        self._cell[_NUM_SPLITS] = value

    def set(self, epoch: int) -> None:
        """Make `epoch` the next one; a position loaded for it stays."""
        self._cell[_MAIN:] = 0
        self._cell[_BASE] = epoch
        if epoch != int(self._cell[_RESUMED]):
            self._cell[_RESUMED] = -1

    def resume(self, epoch: int, rows: int) -> None:
        """Make the next iteration begin at a position of `epoch`."""
        self._cell[_RESUMED] = epoch
        self._cell[_RESUMED_ROWS] = rows
        self.set(epoch)

    def first_rows(self, epoch: int) -> int:
        """Return the position at which `epoch` begins: the loaded one, or 0."""
        resumed = int(self._cell[_RESUMED]) == epoch
        return int(self._cell[_RESUMED_ROWS]) if resumed else 0

    def forget_position(self) -> None:
        """Begin at 0 from now on; the main process has begun at the loaded position."""
        self._cell[_RESUMED] = -1

    def peek(self) -> int:
        """Return the next epoch of an iteration without workers."""
        return int(self._cell[_BASE] + self._cell[_MAIN] + self._others(0))

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


class Announcement:
    """Tells the workers of one loader's iteration which epoch to read, and from where.

    Written by the main process before they begin. Each iteration has one of its own, so
    that two of them cannot be taken for each other; persistent workers keep theirs.
    """

    def __init__(self) -> None:
        self._cell = torch.zeros(2, dtype=torch.int64)
        self._cell.share_memory_()

    def write(self, epoch: int, rows: int) -> None:
        """Announce a position of an epoch."""
        self._cell[0], self._cell[1] = epoch, rows

    def read(self) -> tuple[int, int]:
        """Return the epoch and the position announced last."""
        return int(self._cell[0]), int(self._cell[1])


def _slot(num_workers: int) -> int:
    if num_workers == 0:
        return _MAIN
    return _FIRST_SLOT + num_workers * (num_workers - 1) // 2
