"""Where a run stands, as a small JSON-able dict, and whether it fits a dataset. Pure.

A position is a number of rows of the epoch, over all ranks, not of steps: the epoch's
order is fixed by the plan's parameters alone, so any world size and batch size can go on
from it with exactly the rows that are left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dask_loader.errors import ResumeError

VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderFacts:
    """What an epoch's order depends on; a checkpoint fits only if all of it is the same.

    Attributes:
        files: Hash of the files' content as their footers tell it.
        columns: Hash of the columns that are read and their types.
        filters: Hash of the filters.
        num_rows: Rows of an epoch.
        shuffle: As the user gave it.
        seed: As the user gave it.
        shuffle_window: As the user gave it, in bytes (text ends in " B") or rows.
    """

    files: str
    columns: str
    filters: str
    num_rows: int
    shuffle: bool
    seed: int
    shuffle_window: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """A place to go on from.

    Attributes:
        epoch: The epoch.
        rows: Its rows delivered so far over all ranks, without pads.
        num_splits: Over which the epoch is dealt.
        step_rows: Rows of a global batch of the run that wrote it.
    """

    epoch: int
    rows: int
    num_splits: int
    step_rows: int


_REASONS = {
    "files": "other files, or files with other content",
    "columns": "other columns, or columns of other types",
    "filters": "other filters",
    "num_rows": "another number of rows",
    "shuffle": "another shuffle",
    "seed": "another seed",
    "shuffle_window": "another shuffle_window",
}


def make_state(facts: OrderFacts, position: Position) -> dict[str, Any]:
    """Return the state as a dict of plain values; the same on every rank."""
    return {"version": VERSION, **asdict(position), **asdict(facts)}


def read_state(state: Any, facts: OrderFacts) -> Position:
    """Check a state against a dataset.

    Raises:
        ResumeError: It is none of ours, is newer, or was made from something else; each in
            its own words.
    """
    if not isinstance(state, Mapping) or "version" not in state:
        raise ResumeError(
            f"{_short(state)} is not a state of a ParquetDataset; pass what its "
            "state_dict() returned"
        )
    if state["version"] != VERSION:
        raise ResumeError(
            f"the state has version {state['version']!r}, this dask_loader reads version "
            f"{VERSION}; load it with the release that wrote it"
        )
    known = {**asdict(facts), **dict.fromkeys(Position.__slots__)}
    for name in known:
        if name not in state:
            raise ResumeError(
                f"the state lacks {name!r}; it is damaged: {_short(state)}"
            )
    for name, now in asdict(facts).items():
        saved = state[name]
        if saved != now or type(saved) is not type(now):
            raise ResumeError(
                f"the checkpoint was made with {_REASONS[name]} ({name} was {saved!r} "
                f"and is {now!r}), so its position means other rows here; make the "
                "dataset as it was then, or start a new epoch"
            )
    numbers = {name: state[name] for name in Position.__slots__}
    for name, value in numbers.items():
        least = 0 if name in ("epoch", "rows") else 1
        most = facts.num_rows if name == "rows" else None
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least or (most is not None and value > most):
            raise ResumeError(f"the state has {name}={value!r}; it is damaged")
    return Position(**numbers)


def _short(state: Any) -> str:
    try:
        text = json.dumps(state)
    except (TypeError, ValueError):
        text = repr(state)
    return text if len(text) <= 80 else f"{text[:77]}..."
