"""Which epoch comes next, known to the main process and all its DataLoader workers.

The numbers lie in a shared tensor: an attribute would never reach persistent workers, and
with torch's own DataLoader and workers the main process's dataset is never iterated. Each
worker counts its own iterations, in a place of its own, so that there is nothing to lock.

The first places have names, below; then come the stages of a loaded position, two places
each. Worker w of k counts its iterations in the place
_FIRST_SLOT + k (k - 1) / 2 + w. The epoch that begins is the base plus the iterations so
far: one's own, and those of loaders with another number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from dask_loader.errors import ConfigError
from dask_loader.plan.stage import Stage

# 128 * 129 / 2 places of 8 bytes are 65 KiB.
MAX_WORKERS = 128
# Re-cuts within one epoch, each asked for by a user who resumed it, and the first cut.
MAX_STAGES = 64
(
    _BASE,  # the epoch given to set()
    _RESUMED,  # the epoch of a loaded position, or -1
    _RESUMED_ROWS,  # and the position
    _RESUMED_ITEMS,  # and what the main process had handed out since
    _NUM_SPLITS,  # once it is fixed, else 0
    _MAIN,  # iterations of the main process
    _NUM_STAGES,  # of the loaded position
    _STAGES,
) = range(8)
_FIRST_SLOT = _STAGES + 2 * MAX_STAGES


class Start(NamedTuple):
    """Where a run begins.

    Attributes:
        epoch: The epoch.
        rows: The position in it.
        stages: Its cuts; empty for one cut, which num_splits says.
        items: Batches or rows from there on that this process handed out before.
    """

    epoch: int
    rows: int
    stages: tuple[Stage, ...]
    items: int = 0


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
        self._cell[_MAIN] = 0
        self._cell[_FIRST_SLOT:] = 0
        self._cell[_BASE] = epoch
        if epoch != int(self._cell[_RESUMED]):
            self._cell[_RESUMED] = -1

    def resume(self, start: Start) -> None:
        """Make the next iteration begin at a place in an epoch."""
        self._cell[_RESUMED] = start.epoch
        self._cell[_RESUMED_ROWS] = start.rows
        self._cell[_RESUMED_ITEMS] = start.items
        _write_stages(self._cell[_NUM_STAGES:_FIRST_SLOT], start.stages)
        self.set(start.epoch)

    def start(self, epoch: int) -> Start:
        """Return where `epoch` begins: at the loaded position, or at 0 with no stages."""
        if not self.is_resumed(epoch):
            return Start(epoch, 0, ())
        stages = _read_stages(self._cell[_NUM_STAGES:_FIRST_SLOT])
        rows, items = self._cell[[_RESUMED_ROWS, _RESUMED_ITEMS]].tolist()
        return Start(epoch, rows, stages, items)

    def is_resumed(self, epoch: int) -> bool:
        """Whether a position of `epoch` was loaded and not begun with yet."""
        return int(self._cell[_RESUMED]) == epoch

    @property
    def workers_began(self) -> bool:
        """Whether a DataLoader worker began an epoch since one was set."""
        return bool(self._cell[_FIRST_SLOT:].max())

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

    def begin_at(self, epoch: int, worker: int, num_workers: int) -> None:
        """Begin an epoch that this DataLoader worker alone was told of, and count it."""
        base = int(self._cell[_BASE]) + self._others(num_workers)
        self._cell[_slot(num_workers) + worker] = epoch + 1 - base

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
        self._cell = torch.zeros(3 + 2 * MAX_STAGES, dtype=torch.int64)
        self._cell.share_memory_()

    def write(self, start: Start) -> None:
        """Announce a place in an epoch."""
        self._cell[0], self._cell[1] = start.epoch, start.rows
        _write_stages(self._cell[2:], start.stages)

    def read(self) -> Start:
        """Return the place announced last."""
        stages = _read_stages(self._cell[2:])
        return Start(int(self._cell[0]), int(self._cell[1]), stages)


def _write_stages(cell: torch.Tensor, stages: Sequence[Stage]) -> None:
    cell[0] = len(stages)
    for place, stage in enumerate(stages):
        cell[1 + 2 * place], cell[2 + 2 * place] = stage.start, stage.num_splits


def _read_stages(cell: torch.Tensor) -> tuple[Stage, ...]:
    pairs = cell[1 : 1 + 2 * int(cell[0])].view(-1, 2).tolist()
    return tuple(Stage(start, num_splits) for start, num_splits in pairs)


def _slot(num_workers: int) -> int:
    if num_workers == 0:
        return _MAIN
    return _FIRST_SLOT + num_workers * (num_workers - 1) // 2
