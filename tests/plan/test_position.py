"""Checkpoints as plain values: what they hold, and each way in which one does not fit."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from dask_loader.errors import ResumeError
from dask_loader.plan.position import (
    VERSION,
    OrderFacts,
    Position,
    make_state,
    read_state,
)
from dask_loader.plan.stage import Stage

FACTS = OrderFacts(
    num_files=3,
    files="f",
    place="p",
    stamps="t",
    filters="",
    num_rows=100,
    columns="c",
    shuffle=True,
    seed=7,
    shuffle_window="64 B",
)
POSITION = Position(epoch=2, rows=40, stages=(Stage(0, 4), Stage(30, 6)), step_rows=20)


def test_a_state_is_json_and_reads_back() -> None:
    state = json.loads(json.dumps(make_state(FACTS, POSITION)))
    assert read_state(state, FACTS) == (POSITION, [])
    assert state["stages"] == [[0, 4], [30, 6]]
    assert len(json.dumps(state)) < 500


WRITTEN_AGAIN = "files that were written again since"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_files": 2}, r"another number of files \(num_files was 3 and is 2\)"),
        ({"files": "g"}, "other files, or files with other content"),
        ({"stamps": "u"}, WRITTEN_AGAIN),
        ({"columns": "d"}, "other columns, or columns of other types"),
        ({"filters": "x"}, "other filters"),
        ({"num_rows": 101}, "another number of rows"),
        ({"shuffle": False}, r"another shuffle \(shuffle was True and is False\)"),
        ({"seed": 8}, r"another seed \(seed was 7 and is 8\)"),
        ({"seed": True}, r"another seed \(seed was 7 and is True\)"),
        ({"shuffle_window": "64 rows"}, "another shuffle_window"),
    ],
)
def test_a_state_of_something_else_is_refused_in_its_own_words(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ResumeError, match=f"was made with {reason}"):
        read_state(make_state(FACTS, POSITION), replace(FACTS, **change))


def test_the_same_files_elsewhere_have_times_of_their_own() -> None:
    elsewhere = replace(FACTS, place="q", stamps="u")
    assert read_state(make_state(FACTS, POSITION), elsewhere) == (POSITION, [])


IN_ORDER = replace(FACTS, shuffle=False)
IN_ROWS = replace(FACTS, shuffle_window="64 rows")


@pytest.mark.parametrize(
    ("facts", "change", "reason"),
    [
        (FACTS, {"stamps": "u"}, WRITTEN_AGAIN),
        (IN_ROWS, {"columns": "d"}, "other columns"),
        (IN_ORDER, {"columns": "d"}, "other columns"),
        (IN_ORDER, {"seed": 8}, "another seed"),
        (IN_ORDER, {"shuffle_window": "9 rows"}, "another shuffle_window"),
    ],
)
def test_what_does_not_change_the_order_is_refused_unless_not_strict(
    facts: OrderFacts, change: dict[str, Any], reason: str
) -> None:
    state = make_state(facts, POSITION)
    with pytest.raises(ResumeError, match=rf"{reason}.* or load it with strict=False"):
        read_state(state, replace(facts, **change))
    position, (harmless,) = read_state(state, replace(facts, **change), strict=False)
    assert position == POSITION
    assert harmless.startswith(reason)


@pytest.mark.parametrize(
    "change",
    [
        {"num_files": 2},
        {"files": "g"},
        {"columns": "d"},
        {"filters": "x"},
        {"num_rows": 101},
        {"shuffle": False},
        {"seed": 8},
        {"shuffle_window": "64 rows"},
    ],
)
def test_what_changes_the_order_is_refused_always(change: dict[str, Any]) -> None:
    state = make_state(FACTS, POSITION)
    with pytest.raises(ResumeError, match=r"start a new epoch$"):
        read_state(state, replace(FACTS, **change), strict=False)


@pytest.mark.parametrize("state", [None, 3, "state", [], {}, {"epoch": 1}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ResumeError, match="is not a state of a ParquetDataset"):
        read_state(state, FACTS)


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (VERSION + 1, f"has version {VERSION + 1}, newer than .*; update dask_loader"),
        (1, "has version 1, .* load it with the release that wrote it"),
        ("2", "has version '2', .* load it with the release that wrote it"),
        (True, "has version True, "),
    ],
)
def test_a_state_of_another_version_is_refused(version: Any, text: str) -> None:
    state = {**make_state(FACTS, POSITION), "version": version}
    with pytest.raises(ResumeError, match=text):
        read_state(state, FACTS)


@pytest.mark.parametrize("name", sorted(set(make_state(FACTS, POSITION)) - {"version"}))
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
        ("step_rows", None),
        ("step_rows", 0),
        ("stages", None),
        ("stages", []),
        ("stages", [4]),
        ("stages", [[0]]),
        ("stages", [[0, 0]]),
        ("stages", [[1, 4]]),
        ("stages", [[0, 4], [0, 5]]),
        ("stages", [[0, 4], [41, 5]]),
        ("stages", [[0, 4], [True, 5]]),
        ("stages", "0"),
    ],
)
def test_a_damaged_state_is_refused(name: str, value: Any) -> None:
    state = {**make_state(FACTS, POSITION), name: value}
    text = re.escape(f"the state has {name}={value!r}; it is damaged")
    with pytest.raises(ResumeError, match=text):
        read_state(state, FACTS)
