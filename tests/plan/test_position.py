"""Checkpoints as plain values: what they hold, and each way in which one does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dask_loader.errors import ResumeError
from dask_loader.plan.position import OrderFacts, Position, make_state, read_state

FACTS = OrderFacts(
    files="f",
    columns="c",
    filters="",
    num_rows=100,
    shuffle=True,
    seed=7,
    shuffle_window="64 B",
)
POSITION = Position(epoch=2, rows=40, num_splits=4, step_rows=20)


def test_a_state_is_json_and_reads_back() -> None:
    state = json.loads(json.dumps(make_state(FACTS, POSITION)))
    assert read_state(state, FACTS) == POSITION


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"files": "g"}, "other files, or files with other content"),
        ({"columns": "d"}, "other columns, or columns of other types"),
        ({"filters": "x"}, "other filters"),
        ({"num_rows": 101}, "another number of rows"),
        ({"shuffle": False}, "another shuffle"),
        ({"seed": 8}, r"another seed \(seed was 7 and is 8\)"),
        ({"shuffle_window": "64 rows"}, "another shuffle_window"),
    ],
)
def test_a_state_of_something_else_is_refused_in_its_own_words(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ResumeError, match=f"was made with {reason}"):
        read_state(make_state(FACTS, POSITION), replace(FACTS, **change))


@pytest.mark.parametrize("state", [None, 3, "state", [], {}, {"epoch": 1}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ResumeError, match="is not a state of a ParquetDataset"):
        read_state(state, FACTS)


def test_a_newer_state_is_refused() -> None:
    state = {**make_state(FACTS, POSITION), "version": 2}
    with pytest.raises(ResumeError, match="has version 2, this dask_loader reads"):
        read_state(state, FACTS)


@pytest.mark.parametrize("name", ["rows", "epoch", "num_splits", "seed", "files"])
def test_a_state_that_lacks_something_is_refused(name: str) -> None:
    state = make_state(FACTS, POSITION)
    del state[name]
    with pytest.raises(ResumeError, match=f"the state lacks '{name}'"):
        read_state(state, FACTS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", -1),
        ("rows", 101),
        ("rows", 1.0),
        ("rows", True),
        ("epoch", -1),
        ("epoch", "2"),
        ("num_splits", 0),
        ("step_rows", None),
    ],
)
def test_a_damaged_state_is_refused(name: str, value: Any) -> None:
    state = {**make_state(FACTS, POSITION), name: value}
    with pytest.raises(ResumeError, match=f"the state has {name}={value!r}; it is"):
        read_state(state, FACTS)
