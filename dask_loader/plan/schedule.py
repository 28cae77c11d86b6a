"""Which windows a rank needs, in which order, and what each step takes from them. Pure.

A schedule is walked twice at different speeds: an engine runs ahead of the batches and
asks which window is next, the batches ask which rows of which window. Both walks number
the windows alike, by first use, so a number (a request) is all they need to share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dask_loader.plan.epoch import Epoch, Window
from dask_loader.plan.order import Ints
from dask_loader.plan.share import Deal

# Shares that are computed in one go, steps times splits: 0.5 MiB of int64.
_BLOCK_ITEMS = 1 << 16
_MAX_BLOCK_STEPS = 1024


class Request(NamedTuple):
    """A window to be read. Requests are numbered from 0 in the order of first use.

    split is the last stage's, of which the window's rows are used.
    """

    number: int
    split: int
    window: Window


class Piece(NamedTuple):
    """Rows [start, stop) of a requested window, in the window's own (mixed) order.

    split and split_row tell where the piece begins in the epoch: the position of its row i
    is (split_row + i) * num_splits + split, counted from where the last stage begins.
    """

    request: int
    start: int
    stop: int
    split: int
    split_row: int


class Step(NamedTuple):
    """One batch of one rank.

    Attributes:
        number: The step's number in the run, from 0.
        pieces: Its rows, sorted by split and row.
        pad: A row of the last global batch that comes a second time, or None.
        opened: Requests first used here.
        finished: Numbers of requests not used after this step.
    """

    number: int
    pieces: tuple[Piece, ...]
    pad: Piece | None
    opened: tuple[Request, ...]
    finished: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Which steps one of several DataLoader workers makes: `length` at a time, in turn.

    Attributes:
        worker: 0 <= worker < num_workers.
        num_workers: 1 where there are none.
        length: Consecutive steps in one turn.
        done: Steps of its own that this worker made before.
    """

    worker: int = 0
    num_workers: int = 1
    length: int = 1
    done: int = 0

    @property
    def first_step(self) -> int:
        """The worker's first step that it did not make before."""
        turns, over = divmod(self.done, self.length)
        return (turns * self.num_workers + self.worker) * self.length + over

    def mine(self, steps: Ints) -> NDArray[np.bool_]:
        """Return which of these steps are this worker's, bool, same shape."""
        turn: NDArray[np.bool_] = steps // self.length % self.num_workers == self.worker
        return turn

    def last(self, num_steps: int) -> int:
        """Return this worker's last step of num_steps, or -1 if it has none."""
        whole = (num_steps - 1) // self.length
        mine = whole - (whole - self.worker) % self.num_workers
        return min(num_steps, (mine + 1) * self.length) - 1 if mine >= 0 else -1


class _InUse:
    """Numbers the windows that steps touch and knows which of them are in use."""

    def __init__(self, epoch: Epoch) -> None:
        self._epoch = epoch
        self._count = 0
        self._numbers: dict[int, dict[int, int]] = {}  # split -> window -> request
        self.opened: list[Request] = []
        self.finished: list[int] = []

    def take(self, split: int, low: int, high: int) -> Iterator[Piece]:
        """Yield rows [low, high) of a split, window by window, opening what is new."""
        bounds = self._epoch.bounds(split)
        index = int(np.searchsorted(bounds, low, side="right")) - 1
        while low < high:
            begin = int(bounds[index]) - self._epoch.first_row(split, index)
            stop = min(high, int(bounds[index + 1]))
            yield Piece(self._open(split, index), low - begin, stop - begin, split, low)
            low, index = stop, index + 1

    def pass_before(self, split: int, row: int) -> None:
        """Finish the windows of a split that end at or before this row."""
        numbers = self._numbers.get(split, {})
        bounds = self._epoch.bounds(split)
        for index in [i for i in numbers if bounds[i + 1] <= row]:
            self.finished.append(numbers.pop(index))

    def pass_all(self) -> None:
        """Finish everything."""
        for numbers in self._numbers.values():
            self.finished += numbers.values()
        self._numbers.clear()

    def _open(self, split: int, index: int) -> int:
        numbers = self._numbers.setdefault(split, {})
        if index not in numbers:
            numbers[index] = self._count
            window = self._epoch.window(split, index)
            self.opened.append(Request(self._count, split, window))
            self._count += 1
        return numbers[index]


def walk(
    epoch: Epoch, deal: Deal, rank: int, turn: Turn | None = None
) -> Iterator[Step]:
    """Yield a rank's steps in order.

    Args:
        epoch: Splits and windows.
        deal: Shares; its num_rows and last stage are the epoch's.
        rank: 0 <= rank < deal.world_size.
        turn: Only this worker's steps; all where None.
    """
    turn = turn or Turn()
    num_steps = deal.num_steps(rank)
    my_last = turn.last(num_steps)
    in_use = _InUse(epoch)
    num_splits = max(1, len(deal.rank_splits(rank)))
    block_steps = max(1, min(_MAX_BLOCK_STEPS, _BLOCK_ITEMS // num_splits))
    for block in range(turn.first_step, num_steps, block_steps):
        steps = np.arange(block, min(block + block_steps, num_steps))
        splits, starts, stops = deal.pieces(rank, block, block + len(steps))
        for row in np.flatnonzero(turn.mine(steps)).tolist():
            step = block + row
            taken = np.flatnonzero(starts[row] < stops[row])
            ranges = list(
                zip(
                    splits[taken].tolist(),
                    starts[row, taken].tolist(),
                    stops[row, taken].tolist(),
                    strict=True,
                )
            )
            pieces: list[Piece] = []
            for split, low, high in ranges:
                pieces += in_use.take(split, low, high)
            pad = None
            place = deal.pad(rank) if step == num_steps - 1 else None
            if place is not None:
                pad = next(in_use.take(place[0], place[1], place[1] + 1))
            if step == my_last:
                in_use.pass_all()
            else:
                for split, _, high in ranges:
                    in_use.pass_before(split, high)
            yield Step(
                step,
                tuple(pieces),
                pad,
                tuple(in_use.opened),
                tuple(in_use.finished),
            )
            in_use.opened.clear()
            in_use.finished.clear()


def requests(
    epoch: Epoch, deal: Deal, rank: int, turn: Turn | None = None
) -> Iterator[Request]:
    """Yield the windows that walk() will use, in the order of first use."""
    for step in walk(epoch, deal, rank, turn):
        yield from step.opened
