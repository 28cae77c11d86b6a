"""Where a run stands, as a small JSON-able dict, and whether it fits a dataset. Pure.

A position is a number of rows of the epoch, over all ranks, not of steps: the epoch's
order is fixed by the plan's parameters alone, so any world size and batch size can go on
from it with exactly the rows that are left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dask_loader.errors import ResumeError
from dask_loader.plan.stage import Stage

VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderFacts:
    """What an epoch's order depends on; a checkpoint fits only if all of it is the same.

    Attributes:
        num_files: How many files.
        files: Hash of the files' content as their footers and sizes tell it.
        place: Hash of the files' paths.
        stamps: Hash of the files' times of modification, or ETags.
        filters: Hash of the filters.
        num_rows: Rows of an epoch.
        columns: Hash of the columns that are read and their types.
        shuffle: As the user gave it.
        seed: As the user gave it.
        shuffle_window: As the user gave it, in bytes (text ends in " B") or rows.
        vocabulary: Hash of the vocabularies, "" without one. The order does not depend
            on them, but what a code means.
    """

    num_files: int
    files: str
    place: str
    stamps: str
    filters: str
    num_rows: int
    columns: str
    shuffle: bool
    seed: int
    shuffle_window: str
    vocabulary: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """A place to go on from.

    Attributes:
        epoch: The epoch.
        rows: Its rows delivered so far over all ranks, without pads.
        stages: Over how many splits it was dealt, from which position on; at least one.
        step_rows: Rows of a global batch of the run that wrote it.
    """

    epoch: int
    rows: int
    stages: tuple[Stage, ...]
    step_rows: int


# What a state differs in, in the order of asking.
_REASONS = {
    "num_files": "another number of files",
    "files": "other files, or files with other content (their footers or sizes differ), "
    "or a folder in place of its _metadata",
    "stamps": "files that were written again since (their times of modification or ETags "
    "differ, their sizes and footers do not)",
    "filters": "other filters",
    "num_rows": "another number of rows",
    "shuffle": "another shuffle",
    "columns": "other columns, or columns of other types",
    "seed": "another seed",
    "shuffle_window": "another shuffle_window",
    "vocabulary": "another vocabulary, so the same code stands for another value",
}
_HASHES = ("files", "stamps", "filters", "columns", "vocabulary")


# A state stays small: of more skipped windows, the last ones are kept.
MAX_SKIPPED = 1000


def make_state(
    facts: OrderFacts,
    position: Position,
    skipped: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the state as a dict of plain values; the same on every rank.

    But for what was skipped, of which each rank knows its own.
    """
    stages = [[stage.start, stage.num_splits] for stage in position.stages]
    found = asdict(facts)
    if not facts.vocabulary:
        del found["vocabulary"]  # as states were before there was one
    if skipped:
        found["skipped"] = [dict(each) for each in skipped[-MAX_SKIPPED:]]
    return {
        "version": VERSION,
        "epoch": position.epoch,
        "rows": position.rows,
        "step_rows": position.step_rows,
        "stages": stages,
        **found,
    }


def read_state(
    state: Any, facts: OrderFacts, *, strict: bool = True
) -> tuple[Position, list[str]]:
    """Check a state against a dataset.

    Args:
        state: What make_state() returned, perhaps by way of JSON.
        facts: Of the dataset.
        strict: Refuse also what differs without harm to the order: files written again
            with the same footers, and what the order of this dataset does not depend on.

    Returns:
        The position, and what differs without harm, in words.

    Raises:
        ResumeError: It is none of ours, is newer, or was made from something else; each in
            its own words.
    """
    if not isinstance(state, Mapping) or "version" not in state:
        raise ResumeError(
            f"{_short(state)} is not a state of a ParquetDataset; pass what its "
            "state_dict() returned"
        )
    _check_version(state["version"])
    state = {"vocabulary": "", **state}
    for name in ("epoch", "rows", "step_rows", "stages", *OrderFacts.__slots__):
        if name not in state:
            raise ResumeError(
                f"the state lacks {name!r}; it is damaged: {_short(state)}"
            )
    harmless = []
    for name, reason in _REASONS.items():
        saved, now = state[name], getattr(facts, name)
        if saved == now and type(saved) is type(now):
            continue
        if name == "stamps" and state["place"] != facts.place:
            continue  # a copy elsewhere is the same data
        values = (
            "" if name in _HASHES else f" ({name} was {_brief(saved)} and is {now!r})"
        )
        spared = _is_harmless(name, facts)
        if strict or not spared:
            way_out = (
                ", or load it with strict=False: the order of the rows is the same"
                if spared
                else ""
            )
            so = (
                "give the same vocabulary= (dataset.vocabulary of that time has it)"
                if name == "vocabulary"
                else "so its position may mean other rows here; make the dataset as it was "
                "then, or start a new epoch"
            )
            link = "; " if name == "vocabulary" else ", "
            raise ResumeError(
                f"the checkpoint was made with {reason}{values}{link}{so}{way_out}"
            )
        harmless.append(f"{reason}{values}")
    return _position(state, facts), harmless


def read_skipped(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the run of a state skipped: its epoch, what in words, how many rows.

    Raises:
        ResumeError: It is something else.
    """
    found = state.get("skipped", [])
    if isinstance(found, list) and len(found) <= MAX_SKIPPED:
        for each in found:
            if not isinstance(each, Mapping) or set(each) != {"epoch", "what", "rows"}:
                break
            whole = _is_whole(each["epoch"], 0) and _is_whole(each["rows"], 1)
            if not whole or not isinstance(each["what"], str):
                break
        else:
            return [dict(each) for each in found]
    raise ResumeError(f"the state has skipped={_brief(found)}; it is damaged")


def _check_version(version: Any) -> None:
    if version == VERSION and type(version) is int:
        return
    if type(version) is int and version > VERSION:
        raise ResumeError(
            f"the state has version {_brief(version)}, newer than this dask_loader, which "
            f"reads version {VERSION}; update dask_loader"
        )
    raise ResumeError(
        f"the state has version {_brief(version)}, this dask_loader reads version "
        f"{VERSION}; load it with the release that wrote it"
    )


def _is_harmless(name: str, facts: OrderFacts) -> bool:
    """Whether the order is the same although `name` differs, all before it being equal."""
    if name in ("stamps", "vocabulary"):
        return True
    if name in ("seed", "shuffle_window"):
        return not facts.shuffle
    in_rows = facts.shuffle_window.endswith("rows")
    # Windows of bytes end where the columns' widths say.
    return name == "columns" and (in_rows or not facts.shuffle)


def _position(state: Mapping[str, Any], facts: OrderFacts) -> Position:
    for name, least in (("epoch", 0), ("rows", 0), ("step_rows", 1)):
        value = state[name]
        most = facts.num_rows if name == "rows" else None
        if not _is_whole(value, least) or (most is not None and value > most):
            raise ResumeError(f"the state has {name}={_brief(value)}; it is damaged")
    stages = _stages(state["stages"], rows=state["rows"])
    if stages is None:
        raise ResumeError(
            f"the state has stages={_brief(state['stages'])}; it is damaged"
        )
    return Position(
        epoch=state["epoch"],
        rows=state["rows"],
        stages=stages,
        step_rows=state["step_rows"],
    )


def _stages(value: Any, *, rows: int) -> tuple[Stage, ...] | None:
    """Return the stages, or None where they cannot be those of a run that got so far."""
    if not isinstance(value, list | tuple) or not value:
        return None
    stages: list[Stage] = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return None
        start, num_splits = pair
        least = stages[-1].start + 1 if stages else 0
        if not _is_whole(start, least) or not _is_whole(num_splits, 1):
            return None
        stages.append(Stage(start, num_splits))
    if stages[0].start != 0 or stages[-1].start > rows:
        return None
    return tuple(stages)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _short(state: Any) -> str:
    try:
        text = json.dumps(state)
    except (TypeError, ValueError):
        text = repr(state)
    return text if len(text) <= 80 else f"{text[:77]}..."
