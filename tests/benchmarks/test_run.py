"""The benchmark runs, reports, and checks what is delivered. Nothing about time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.bench, pytest.mark.slow]

# The plain dataset with one batch left out.
LESS = """
from contextlib import contextmanager
from contestants.plain import plain
from contestants.serve import serve

@contextmanager
def less(case):
    with plain(case) as whole:
        yield lambda number: list(whole(number))[1:]

serve(less)
"""
# The plain dataset with every value of one column set to 0.
OTHER = """
from contextlib import contextmanager
from contestants.plain import plain
from contestants.serve import serve

@contextmanager
def other(case):
    with plain(case) as whole:
        yield lambda number: (b | {"label": 0 * b["label"]} for b in whole(number))

serve(other)
"""


def run(tmp_path: Path, *options: str | Path) -> dict[str, Any]:
    report = tmp_path / "report.json"
    bench = [sys.executable, ROOT / "benchmarks" / "run.py", "--scale", "tiny"]
    places = ["--folder", tmp_path / "sets", "--json", report]
    subprocess.run(
        [*bench, *places, "--repeats", "2", *options], check=True, timeout=240
    )
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_the_contestants_are_reported_beside_the_limit(tmp_path: Path) -> None:
    found = run(tmp_path, "--sets", "tabular", "strings", "--only", "threads", "plain")
    assert found["machine"]["cores"] >= 1
    ran = {(r["set"], r["shuffle"], r["contestant"]): r for r in found["results"]}
    assert {"LIMIT", "threads", "plain"} <= {name for _, _, name in ran}
    for (set_name, shuffle, name), result in ran.items():
        if name not in ("LIMIT", "threads", "plain"):
            continue
        assert (result["status"], result["error"]) == ("ok", None)
        assert result["rows_s"] > 0
        assert result["tree_cpu_s_gb"] >= 0
        assert len(result["rounds"]) == 2
        assert {r["rows"] for r in result["rounds"]} == {
            found["sets"][set_name]["rows"]
        }
        assert result["memory"]["consumer_peak_pss"] > 0
        assert result["memory"]["consumer_peak_rss"] > 0
        if name == "LIMIT":
            assert result["of_limit"] == 1.0
        else:
            neighbours = result["mixing"]["neighbours"]
            assert neighbours < 0.1 if shuffle else neighbours == 1.0
            assert result["mixing"]["row_groups_per_batch"] >= 1
            assert "id" in result["delivers"]


@pytest.mark.parametrize(
    ("program", "error"),
    [
        (LESS, "delivered 35,904 rows of 40,000"),
        (OTHER, "column 'label' sums to 0.0"),
        ("raise SystemExit('no such thing')", "no such thing"),
    ],
    ids=["fewer rows", "other values", "does not start"],
)
def test_a_contestant_that_delivers_something_else_has_no_figures(
    tmp_path: Path, program: str, error: str
) -> None:
    theirs = tmp_path / "theirs.py"
    theirs.write_text(program)
    options = ["--sets", "tabular", "--orders", "sequential", "--only", "limit"]
    found = run(tmp_path, *options, "--also", theirs)
    limit, result = found["results"]
    assert limit["status"] == "ok"
    assert result["contestant"] == "theirs"
    assert result["status"] == ("cannot" if "SystemExit" in program else "wrong")
    assert error in result["error"]
    assert "rows_s" not in result
    assert "of_limit" not in result
