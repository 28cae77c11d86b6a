"""The state of a run, and why it may not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dask_loader.errors import ResumeError
from dask_loader.plan.position import OrderFacts, Position, make_state, read_state

FACTS = OrderFacts(
    files="f1",
    columns="c1",
    filters="w1",
    num_rows=1000,
    shuffle=True,
    seed=7,
    shuffle_window="67108864 B",
)
POSITION = Position(epoch=3, rows=640, num_splits=8, step_rows=64)
STATE = make_state(FACTS, POSITION)


def refusal(state: Any, facts: OrderFacts = FACTS) -> str:
    with pytest.raises(ResumeError) as caught:
        read_state(state, facts)
    return str(caught.value)


def test_a_state_is_these_plain_values() -> None:
    assert STATE == {
        "version": 1,
        "epoch": 3,
        "rows": 640,
        "num_splits": 8,
        "step_rows": 64,
        "files": "f1",
        "columns": "c1",
        "filters": "w1",
        "num_rows": 1000,
        "shuffle": True,
        "seed": 7,
        "shuffle_window": "67108864 B",
    }


@pytest.mark.parametrize("rows", [0, 640, 1000])
def test_a_state_survives_json(rows: int) -> None:
    position = replace(POSITION, rows=rows)
    state = json.loads(json.dumps(make_state(FACTS, position)))
    assert read_state(state, FACTS) == position


def test_what_newer_programs_add_is_left_alone() -> None:
    assert read_state({**STATE, "note": "mine"}, FACTS) == POSITION


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (None, "null"),
        ([1, 2], "[1, 2]"),
        ({"model": 1}, '{"model": 1}'),
        ("version", '"version"'),
        ({"weights": {1, 2}}, "{'weights': {1, 2}}"),  # not even JSON
        ({"x": "y" * 200}, '{"x": "' + 70 * "y" + "..."),
    ],
)
def test_what_is_no_state_is_refused(state: Any, shown: str) -> None:
    assert refusal(state) == (
        f"{shown} is not a state of a ParquetDataset; pass what its state_dict() returned"
    )


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused(version: Any) -> None:
    assert refusal({**STATE, "version": version}) == (
        f"the state has version {version!r}, this dask_loader reads version 1; load it "
        "with the release that wrote it"
    )


@pytest.mark.parametrize("name", [name for name in STATE if name != "version"])
def test_a_state_that_lacks_something_is_damaged(name: str) -> None:
    state = {key: value for key, value in STATE.items() if key != name}
    shown = json.dumps(state)[:77]
    assert refusal(state) == f"the state lacks {name!r}; it is damaged: {shown}..."


@pytest.mark.parametrize(
    ("name", "now", "reason"),
    [
        ("files", "f2", "other files, or files with other content"),
        ("columns", "c2", "other columns, or columns of other types"),
        ("filters", "w2", "other filters"),
        ("num_rows", 999, "another number of rows"),
        ("shuffle", False, "another shuffle"),
        ("seed", 8, "another seed"),
        ("shuffle_window", "1000 rows", "another shuffle_window"),
    ],
)
def test_each_fact_that_changed_is_refused_in_its_own_words(
    name: str, now: Any, reason: str
) -> None:
    saved = STATE[name]
    assert refusal(STATE, replace(FACTS, **{name: now})) == (
        f"the checkpoint was made with {reason} ({name} was {saved!r} and is {now!r}), "
        "so its position means other rows here; make the dataset as it was then, or "
        "start a new epoch"
    )


def test_an_equal_value_of_another_type_is_another_value() -> None:
    text = refusal({**STATE, "shuffle": 1})
    assert "another shuffle (shuffle was 1 and is True)" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epoch", -1),
        ("epoch", 1.0),
        ("rows", -1),
        ("rows", 1001),
        ("rows", None),
        ("rows", True),
        ("num_splits", 0),
        ("num_splits", "8"),
        ("step_rows", 0),
    ],
)
def test_a_number_that_cannot_be_is_damaged(name: str, value: Any) -> None:
    assert (
        refusal({**STATE, name: value})
        == f"the state has {name}={value!r}; it is damaged"
    )
