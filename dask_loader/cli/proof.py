"""Compare the batches of all ranks with what must come. Reads nothing of the data.

The digest of the global batches is a hash of each one's rows, sorted, without copies. It is
the same at every world size with the same global batch size and num_splits, if no rows are
left off. A rank's digest is a hash of its rows in their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dask_loader.cli.inventory import UNKNOWN, Inventory, Place
from dask_loader.cli.promise import Promise
from dask_loader.cli.spool import Spool

Ints = NDArray[np.int64]
# Offending rows that are shown of each kind.
MAX_SHOWN = 10


@dataclass(slots=True)
class Finding:
    """Something that broke the promise.

    Attributes:
        kind: One word or two for programs.
        text: What is wrong, for people.
        rows: The first offending rows, and (rank, step) of each of their arrivals.
    """

    kind: str
    text: str
    rows: list[tuple[Place, list[tuple[int, int]]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RankReport:
    """What a rank handed out; rows with copies."""

    rank: int
    steps: int
    rows: int
    pads: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The outcome.

    Attributes:
        findings: What is wrong; nothing is, if there are none.
        ranks: In their order.
        digest: Of the global batches.
        num_seen: Different rows that came.
        num_missing: Rows that did not come, promised ones too.
    """

    findings: tuple[Finding, ...]
    ranks: tuple[RankReport, ...]
    digest: str
    num_seen: int
    num_missing: int

    @property
    def is_proved(self) -> bool:
        """Whether all is as promised."""
        return not self.findings


def check(
    inventory: Inventory,
    promise: Promise,
    ranks: Iterable[Iterable[dict[str, Any]]],
    lengths: Sequence[int] = (),
) -> Report:
    """Check an epoch.

    Args:
        inventory: Which rows must come.
        promise: In how many batches.
        ranks: Each rank's batches, with provenance.
        lengths: What len() said, one for each rank; none asks for none.
    """
    with Spool(promise.num_ranks) as spool:
        checker = Checker(inventory, promise, spool)
        for rank, batches in enumerate(ranks):
            for batch in batches:
                checker.add(rank, batch)
        for rank, length in enumerate(lengths):
            checker.hear_length(rank, length, promise.num_steps(rank))
        return checker.finish()


class Checker:
    """Takes batches, a rank's in their order, and judges them at the end."""

    def __init__(self, inventory: Inventory, promise: Promise, spool: Spool) -> None:
        """Begin without a batch.

        Args:
            inventory: Which rows must come.
            promise: In how many batches.
            spool: Empty; closed by who made it, after finish().
        """
        self._inventory = inventory
        self._promise = promise
        self._spool = spool
        self._findings: list[Finding] = []
        self._seen = np.zeros(len(inventory.expected), dtype=np.bool_)
        self._arrivals: dict[str, _Arrivals] = {
            kind: _Arrivals() for kind in ("doubled", "filtered", "unknown", "copy")
        }
        ranks = range(promise.num_ranks)
        self._hashes = [hashlib.blake2b(digest_size=16) for _ in ranks]
        self._steps, self._rows, self._pads = ([0 for _ in ranks] for _ in range(3))
        self._sizes: list[str] = []
        self._num_wrong_sizes = 0

    def blame(self, kind: str, text: str) -> None:
        """Add a finding of the caller's."""
        self._findings.append(Finding(kind, text))

    def hear_length(self, rank: int, length: int, promised: int) -> None:
        """Compare what len() said of a rank."""
        if length != promised:
            self.blame(
                "length",
                f"rank {rank}: len() said {length} batches, {promised} are promised",
            )

    def add(self, rank: int, batch: dict[str, Any]) -> None:
        """Take a rank's next batch."""
        numbers, padded = self._inventory.numbers(batch)
        step = self._spool.num_steps(rank)
        self._check_size(rank, step, len(numbers))
        # The last bit says whether a row is flagged as a copy. An unknown row stays -1.
        codes = np.where(numbers == UNKNOWN, UNKNOWN, numbers * 2 + padded)
        self._spool.append(rank, codes)
        self._hashes[rank].update(_framed(codes))
        self._steps[rank] += 1
        self._rows[rank] += len(numbers)
        self._pads[rank] += int(np.count_nonzero(padded))
        self._arrivals["unknown"].count += int(np.count_nonzero(numbers == UNKNOWN))
        rows = numbers[(numbers != UNKNOWN) & ~padded]
        ordered = np.sort(rows)
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        self._arrivals["doubled"].add(rows[self._seen[rows]])
        self._arrivals["doubled"].add(again)
        self._arrivals["filtered"].add(rows[~self._inventory.expected[rows]])
        self._seen[rows] = True

    def finish(self) -> Report:
        """Judge, once all batches are in."""
        self._judge_steps()
        digest = self._judge_copies()
        self._judge_rows()
        num_missing = self._judge_missing()
        ranks = tuple(
            RankReport(
                rank,
                self._steps[rank],
                self._rows[rank],
                self._pads[rank],
                self._hashes[rank].hexdigest(),
            )
            for rank in range(self._promise.num_ranks)
        )
        return Report(
            findings=tuple(self._findings),
            ranks=ranks,
            digest=digest,
            num_seen=int(np.count_nonzero(self._seen)),
            num_missing=num_missing,
        )

    def _check_size(self, rank: int, step: int, num_rows: int) -> None:
        promised = self._promise.batch_rows(rank, step)
        if num_rows != promised:
            self._num_wrong_sizes += 1
            if len(self._sizes) < MAX_SHOWN:
                self._sizes.append(
                    f"rank {rank} step {step} has {num_rows} of {promised}"
                )

    def _judge_steps(self) -> None:
        for rank, came in enumerate(self._steps):
            promised = self._promise.num_steps(rank)
            if came != promised:
                self.blame(
                    "steps",
                    f"rank {rank} handed out {came} batches, {promised} are promised",
                )
        if self._sizes:
            more = self._num_wrong_sizes - len(self._sizes)
            self.blame(
                "batch size",
                f"{_number(self._num_wrong_sizes, 'batch', 'batches')} of other lengths "
                f"than promised: {', '.join(self._sizes)}"
                + (f" and {more} more" * (more > 0)),
            )

    def _judge_copies(self) -> str:
        """See that each copy is one; return the digest of the global batches."""
        ranks = range(self._promise.num_ranks)
        steps = max(self._spool.num_steps(rank) for rank in ranks)
        digest = hashlib.blake2b(digest_size=16)
        copies = self._arrivals["copy"]
        for step in range(steps):
            batches = [self._spool.read(rank, step) for rank in ranks]
            codes = np.concatenate(batches)
            codes = codes[codes != UNKNOWN]
            rows = np.sort(codes[codes % 2 == 0] // 2)
            pads = codes[codes % 2 == 1] // 2
            digest.update(_framed(rows))
            is_last = step == self._promise.num_whole
            copies.add(pads[~np.isin(pads, rows)] if is_last else pads)
        if copies.count:
            self._tell(
                "copy",
                f"{_number(copies.count)} flagged as a copy, of no row that came "
                "unflagged in the last global batch",
                flagged=True,
            )
        for rank, count in enumerate(self._pads):
            if count > 1:
                self.blame(
                    "pads",
                    f"rank {rank} has {count} rows flagged as copies; one is the most",
                )
        if sum(self._pads) != self._promise.num_pads:
            self.blame(
                "pads",
                f"{_number(sum(self._pads))} flagged as a copy, uneven="
                f"{self._promise.uneven!r} promises {self._promise.num_pads}",
            )
        return digest.hexdigest()

    def _judge_rows(self) -> None:
        arrivals = self._arrivals
        if count := arrivals["unknown"].count:
            first = next(self._spool.find([UNKNOWN]))
            self.blame(
                "unknown",
                f"{_number(count)} came that no file has, the first on rank {first[1]}, "
                f"step {first[2]}",
            )
        if count := arrivals["filtered"].count:
            self._tell("filtered", f"{_number(count)} came that the filters leave out")
        if count := arrivals["doubled"].count:
            text = f"{_number(count)} came again without being flagged as a copy"
            self._tell("doubled", text)

    def _judge_missing(self) -> int:
        missing = self._inventory.expected & ~self._seen
        count, promised = int(np.count_nonzero(missing)), self._promise.num_dropped
        if count != promised:
            lost: list[int] = np.flatnonzero(missing)[:MAX_SHOWN].tolist()
            why = "drop_last" if self._promise.drop_last else "uneven='drop'"
            self._findings.append(
                Finding(
                    "lost" if count > promised else "not dropped",
                    f"{_number(count)} never came"
                    + (f", {why} leaves off {promised}" if promised else ""),
                    [(self._inventory.place(r), []) for r in lost if count > promised],
                )
            )
        return count

    def _tell(self, kind: str, text: str, *, flagged: bool = False) -> None:
        """Add a finding about rows that came, with all arrivals of the first of them."""
        rows = self._arrivals[kind].first
        came: dict[int, list[tuple[int, int]]] = {row: [] for row in rows}
        for code, rank, step in self._spool.find([2 * row + flagged for row in rows]):
            came[code // 2].append((rank, step))
        found = [(self._inventory.place(row), came[row]) for row in rows]
        self._findings.append(Finding(kind, text, found))


class _Arrivals:
    """Counts rows, and keeps the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[int] = []

    def add(self, rows: Ints) -> None:
        self.count += len(rows)
        if len(self.first) < MAX_SHOWN and len(rows):
            new = dict.fromkeys([*self.first, *rows[:MAX_SHOWN].tolist()])
            self.first = list(new)[:MAX_SHOWN]


def _number(count: int, one: str = "row", more: str = "rows") -> str:
    return f"{count} {one if count == 1 else more}"


def _framed(numbers: Ints) -> bytes:
    """Return numbers as bytes, their count first, so that borders count in a hash."""
    return np.append(len(numbers), numbers).astype("<i8").tobytes()
