"""Where one process's part of a run stands: a DataLoader worker's, or a rank's single rows.

torchdata's StatefulDataLoader keeps a state for each of its workers. Such a state fits the
same rank, world size, batch size and number of workers only. With a batch_size, those of
all workers together say where the run stands. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from dask_loader.errors import ResumeError
from dask_loader.plan.position import OrderFacts, Position, make_state, read_state

_PART = "part"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What a process hands out, and how much of it.

    Attributes:
        items: Batches, or single rows, handed out since the run began.
        rank: The rank it belongs to.
        world_size: How many ranks.
        worker: This DataLoader worker, or 0 in the main process.
        num_workers: How many, or 0 in the main process.
        batch_size: Rows for each rank and step; None for single rows.
    """

    items: int
    rank: int
    world_size: int
    worker: int
    num_workers: int
    batch_size: int | None


def make_part_state(facts: OrderFacts, begun: Position, part: Part) -> dict[str, Any]:
    """Return the state as a dict of plain values.

    Args:
        facts: Of the dataset.
        begun: Where the run began.
        part: How far this process has come since.
    """
    return {**make_state(facts, begun), _PART: asdict(part)}


def is_part_state(state: Any) -> bool:
    """Whether a state is one of a part, whatever it is worth."""
    return isinstance(state, Mapping) and _PART in state


def read_part_state(
    state: Any, facts: OrderFacts, here: Part, *, strict: bool = True
) -> tuple[Position, int, list[str]]:
    """Check a part's state against a dataset and the process that loads it.

    Args:
        state: What make_part_state() returned.
        facts: Of the dataset.
        here: This process; its items do not matter.
        strict: As for read_state().

    Returns:
        Where the run began, the items handed out since, and what differs without harm.

    Raises:
        ResumeError: It does not fit.
    """
    if not is_part_state(state):
        # Says so where it is no state at all.
        read_state(state, facts, strict=strict)
        raise ResumeError(
            "the state is that of a whole run, but a DataLoader worker or a dataset of "
            "single rows (batch_size=None) loads it; load it with dask_loader.DataLoader, "
            "or into a dataset with a batch_size"
        )
    begun, harmless = read_state(state, facts, strict=strict)
    saved = state[_PART]
    wanted = asdict(here)
    if not isinstance(saved, Mapping) or set(saved) != set(wanted):
        raise ResumeError(f"the state has part={saved!r}; it is damaged")
    items = saved["items"]
    if not isinstance(items, int) or isinstance(items, bool) or items < 0:
        raise ResumeError(f"the state has part={saved!r}; it is damaged")
    for name, now in wanted.items():
        if name != "items" and saved[name] != now:
            raise ResumeError(
                f"the state was made with {name}={saved[name]!r}, here it is {now!r}: the "
                "state of a DataLoader worker, or of single rows, fits the same rank, "
                "world size, batch_size and number of workers only; dask_loader.DataLoader "
                "has states that fit all of them, and from_stateful_dataloader() makes one "
                "of a StatefulDataLoader's"
            )
    return begun, items, harmless


def join_parts(
    parts: Iterable[Mapping[str, Any]], *, more_steps: int = 0
) -> dict[str, Any]:
    """Return the state of a whole run from those of all of a rank's DataLoader workers.

    Args:
        parts: From make_part_state(), one of each worker.
        more_steps: Batches handed out since these were made.

    Raises:
        ResumeError: They are not those of one run's workers, or of single rows.
    """
    states = list(parts)
    found = [_part_of(state) for state in states]
    first = found[0]
    if first.batch_size is None:
        raise ResumeError(
            "a state of single rows (batch_size=None) cannot become one of steps: torch's "
            "DataLoader decides which rows make a step; load it where it was made"
        )
    whole = {k: v for k, v in states[0].items() if k != _PART}
    alike = all(
        replace(part, items=0, worker=0) == replace(first, items=0, worker=0)
        and {k: v for k, v in state.items() if k != _PART} == whole
        for part, state in zip(found, states, strict=True)
    )
    if not alike or sorted(p.worker for p in found) != list(range(first.num_workers)):
        raise ResumeError(
            f"{len(found)} states of DataLoader workers are not those of one run's "
            f"{first.num_workers} workers; the state is damaged"
        )
    steps = sum(part.items for part in found) + more_steps
    try:
        rows = whole["rows"] + steps * first.batch_size * first.world_size
        whole["rows"] = min(rows, whole["num_rows"])
    except (KeyError, TypeError) as error:
        raise ResumeError(
            f"the state of the DataLoader workers is damaged: {error!r}"
        ) from error
    return whole


def _part_of(state: Mapping[str, Any]) -> Part:
    saved = state[_PART]
    try:
        part = Part(**saved)
    except TypeError:
        part = None
    numbers = () if part is None else (part.items, part.worker, part.num_workers)
    if part is None or not all(type(n) is int and n >= 0 for n in numbers):
        raise ResumeError(f"the state has part={saved!r}; it is damaged")
    return part
