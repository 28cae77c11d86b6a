"""`dask loader plan` and the values that its options take."""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from dask_loader import ParquetDataset
from dask_loader.cli.source import to_filters


def test_the_plan_of_a_rank_is_printed_as_explain_says_it(run, folder):
    options: dict[str, Any] = {"shuffle": True, "batch_size": 50, "num_splits": 6}
    result = run(
        *("plan", folder, "--world-size", 3, "--rank", 2, "--shuffle"),
        *("--batch-size", 50, "--num-splits", 6),
    )
    assert result.exit_code == 0
    nulls = {"x": 0.0, "s": ""}
    with ParquetDataset(
        folder, client="threads", rank=2, world_size=3, nulls=nulls, **options
    ) as dataset:
        assert result.stdout.splitlines() == dataset.explain().splitlines()


def test_the_plan_is_printed_for_programs(run, folder):
    result = run(
        *("plan", folder, "--world-size", 3, "--rank", 2, "--batch-size", 50),
        *("--filters", '[["day", "<", "2026-01-03"]]', "--json"),
    )
    found = json.loads(result.stdout)
    lines = found.pop("explain")
    assert len(lines) > 3
    assert found == {
        "rank": 2,
        "world_size": 3,
        "epoch": 0,
        "files": 3,
        "rows": 200,
        "batch_size": 50,
        "steps": 2,
    }


def test_a_rank_outside_of_the_world_is_exit_code_two(run, folder):
    result = run("plan", folder, "--world-size", 2, "--rank", 2)
    assert result.exit_code == 2
    assert "2 is not below --world-size 2" in result.stderr


def test_a_plan_that_cannot_be_kept_is_one_line_on_stderr(run, folder):
    result = run("plan", folder, "--memory-limit", 100, "--num-splits", 64)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: this rank needs 64 windows")


SCHEMA = pa.schema(
    {
        "i": pa.int64(),
        "s": pa.string(),
        "d": pa.date32(),
        "t": pa.timestamp("us"),
        "m": pa.decimal128(9, 2),
        "c": pa.dictionary(pa.int32(), pa.string()),
    }
)


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (None, None),
        ([["i", ">", 1]], [("i", ">", 1)]),
        ([("s", "==", "2026-01-01")], [("s", "==", "2026-01-01")]),
        ([["c", "==", "x"]], [("c", "==", "x")]),
        ([["d", ">", "2026-01-02"]], [("d", ">", date(2026, 1, 2))]),
        ([["t", ">", "2026-01-02"]], [("t", ">", datetime(2026, 1, 2))]),
        (
            [["d", "in", ["2026-01-02", "2026-01-03"]]],
            [("d", "in", [date(2026, 1, 2), date(2026, 1, 3)])],
        ),
        ([["m", "<", "1.50"]], [("m", "<", Decimal("1.50"))]),
        ([["d", ">", "soon"]], [("d", ">", "soon")]),
        (
            [[["i", ">", 1], ["s", "!=", "x"]], [["i", "<", 0]]],
            [[("i", ">", 1), ("s", "!=", "x")], [("i", "<", 0)]],
        ),
        ([["other", ">", "1"]], [("other", ">", "1")]),
        ([["i", ">"]], [["i", ">"]]),
        ([3, "x"], [3, "x"]),
    ],
)
def test_filters_are_made_of_what_json_can_hold(given, made):
    assert to_filters(given, SCHEMA) == made
