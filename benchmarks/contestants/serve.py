"""What every contestant runs on: told to read one epoch at a time, it says how it went.

Standard library only, since contestants live in environments of their own. Each line on
stdin is a request, each line on stdout its answer, both JSON:

    {"do": "open", "case": {...}}       {"ok": true, "open_s": 0.1}
    {"do": "epoch", "number": 0, ...}   {"ok": true, "seconds": 1.9, "rows": 6000000, ...}
    {"do": "close"}                     {"ok": true}

A request that fails is answered by {"ok": false, "error": ..., "traceback": ...}. What
libraries print goes to stderr.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

# The tensor [rows, features] of variants that deliver one.
MATRIX = "x"
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to read, and how.

    Attributes:
        path: Folder of Parquet files; their names sort in the order of the rows.
        kinds: For each column "number", "vector" (a list of fixed size) or "text".
        batch_rows: Rows of a batch; the last may have fewer.
        num_rows: Rows of an epoch.
        row_group_rows: Row r is in row group r // row_group_rows, counted over all files.
        buffer_rows: Rows of a shuffle buffer, for contestants that have one.
        shuffle: Mix the rows.
        mix: "rows", or "pieces" for what costs a contestant nothing: whole row groups,
            files or fragments in another order.
        num_workers: torch DataLoader workers.
        matrix: Deliver all numbers but the row's id as one float32 tensor.
        threads: Threads that read ahead, for contestants that leave this to the user.
    """

    path: str
    kinds: dict[str, str]
    batch_rows: int
    num_rows: int
    row_group_rows: int
    buffer_rows: int
    shuffle: bool = False
    mix: str = "rows"
    num_workers: int = 0
    matrix: bool = False
    threads: int = 0

    @property
    def files(self) -> list[str]:
        """The Parquet files in the order of their rows."""
        names = sorted(n for n in os.listdir(self.path) if n.endswith(".parquet"))
        return [os.path.join(self.path, name) for name in names]

    @property
    def features(self) -> list[str]:
        """The columns of the matrix, in its order."""
        return [n for n, kind in self.kinds.items() if kind == "number" and n != "id"]


# One epoch of dicts {column: tensor of shape (rows, ...), or list of str}. An int instead
# of a dict is a number of rows that were decoded and not looked at: LIMIT's.
Epoch = Callable[[int], Iterable[Any]]
Contestant = Callable[[Case], AbstractContextManager[Epoch]]


def serve(contestant: Contestant) -> None:
    """Answer requests until stdin ends."""
    requests, answers = _take_pipes()
    _adopt_orphans()
    with ExitStack() as stack:
        case: Case | None = None
        epoch: Epoch | None = None
        for line in requests:
            request = json.loads(line)
            try:
                answer: dict[str, Any] = {}
                if request["do"] == "open":
                    began = time.perf_counter()
                    case = Case(**request["case"])
                    epoch = stack.enter_context(contestant(case))
                    answer["open_s"] = time.perf_counter() - began
                elif request["do"] == "epoch":
                    assert epoch is not None
                    assert case is not None
                    answer = run_epoch(
                        epoch,
                        case,
                        number=request["number"],
                        look_at_order=request["look_at_order"],
                        skip_rows=request["skip_rows"],
                        cut_s=request["cut_s"],
                    )
                else:
                    stack.close()
                answer["ok"] = True
            except Exception as error:
                answer = {
                    "ok": False,
                    "error": f"{type(error).__name__}: {error}",
                    "traceback": traceback.format_exc(),
                }
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
            if request["do"] == "close":
                return


def run_epoch(
    epoch: Epoch,
    case: Case,
    *,
    number: int,
    look_at_order: bool,
    skip_rows: int,
    cut_s: float | None,
) -> dict[str, Any]:
    """Read an epoch and touch every column of every batch.

    Args:
        epoch: Gives the batches.
        case: What is read.
        number: The epoch's.
        look_at_order: Measure how well rows are mixed; takes time.
        skip_rows: Rows at the beginning that are timed on their own.
        cut_s: Stop after the batch that passes this many seconds.

    Returns:
        seconds, first_batch_s, skipped_s and cpu_s (of this process; all in seconds),
        rows, skipped_rows and batches (counts), sums (of each column; for text the number
        of characters), whole (False where the epoch was cut), delivers (the first batch
        in words), and mixing where it was asked for.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        # Sums of a batch are too small to share: a second thread would only spin, on the
        # core that somebody decodes on. The same for all.
        torch.set_num_threads(1)
    seen = _Seen(case)
    first_batch_s: float | None = None
    skipped_s, skipped_rows, whole = 0.0, 0, True
    cpu, began = time.process_time(), time.perf_counter()
    batches = iter(epoch(number))
    for batch in batches:
        if first_batch_s is None:
            first_batch_s = time.perf_counter() - began
        seen.touch(batch)
        if look_at_order and not isinstance(batch, int):
            seen.look_at_order(batch["id"])
        if not skipped_rows and skip_rows and seen.rows >= skip_rows:
            skipped_s, skipped_rows = time.perf_counter() - began, seen.rows
        if cut_s is not None and time.perf_counter() - began > cut_s:
            whole = seen.rows == case.num_rows
            break
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    close = getattr(batches, "close", None)
    if close is not None:
        close()
    return {
        "seconds": seconds,
        "first_batch_s": first_batch_s,
        "skipped_s": skipped_s,
        "skipped_rows": skipped_rows,
        "cpu_s": cpu,
        "rows": seen.rows,
        "batches": seen.batches,
        "sums": seen.sums,
        "whole": whole,
        "delivers": seen.delivers,
        "mixing": seen.mixing() if look_at_order else None,
    }


@dataclass
class _Seen:
    """What was delivered so far."""

    case: Case
    rows: int = 0
    batches: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    delivers: dict[str, str] = field(default_factory=dict)
    pairs: int = 0
    neighbours: int = 0
    row_groups: int = 0

    def touch(self, batch: Any) -> None:
        """Read every value once, as a training step would at the least."""
        self.batches += 1
        if isinstance(batch, int):
            self.rows += batch
            return
        if not self.delivers:
            self.delivers = {name: _in_words(column) for name, column in batch.items()}
        for name, column in batch.items():
            if isinstance(column, list):
                self._add(name, sum(map(len, column)))
            elif self.case.matrix and name == MATRIX:
                found = column.sum(0).tolist()
                for feature, value in zip(self.case.features, found, strict=True):
                    self._add(feature, value)
            else:
                self._add(name, float(column.sum()))
        self.rows += len(batch["id"])

    def _add(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value

    def look_at_order(self, ids: Any) -> None:
        """Count neighbours of the files that are neighbours here, and row groups."""
        self.pairs += len(ids) - 1
        self.neighbours += int((ids[1:] - ids[:-1] == 1).sum())
        self.row_groups += len(set((ids // self.case.row_group_rows).tolist()))

    def mixing(self) -> dict[str, float]:
        """Return the share of neighbours, and row groups in a batch on average."""
        return {
            "neighbours": self.neighbours / max(1, self.pairs),
            "row_groups_per_batch": self.row_groups / max(1, self.batches),
        }


def _in_words(column: Any) -> str:
    if isinstance(column, list):
        return f"list of {type(column[0]).__name__}"
    return f"{type(column).__name__} {column.dtype} {list(column.shape)}"


def _take_pipes() -> tuple[Any, Any]:
    """Keep stdin and stdout for the protocol; others get nothing and stderr."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)
    return os.fdopen(requests), os.fdopen(answers, "w")


def _adopt_orphans() -> None:
    """Stay the parent of daemons, so that what they use is counted (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
