"""The benchmark of growth runs and reports. Nothing about time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.bench, pytest.mark.slow]


def run(tmp_path: Path, *options: str) -> dict[str, Any]:
    report = tmp_path / "growth.json"
    bench = [sys.executable, str(ROOT / "benchmarks" / "growth.py")]
    subprocess.run(
        [*bench, "--json", str(report), *options], check=True, timeout=240, cwd=tmp_path
    )
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_plans_of_each_size_are_reported(tmp_path: Path) -> None:
    sizes = ["--row-groups", "2050", "--world-sizes", "3"]
    found = run(tmp_path, "--part", "plan", *sizes)
    assert "scheduler" not in found
    cases = [(p["row_groups"], p["world_size"], p["shuffle"]) for p in found["plans"]]
    assert cases == [(2050, 3, False), (2050, 3, True)]
    for plan in found["plans"]:
        assert plan["first_step_rows"] == 4096
        assert plan["plan_s"] > 0
        assert plan["peak_bytes"] > 0


def test_a_scheduler_is_loaded_by_each_number_of_ranks(tmp_path: Path) -> None:
    small = ["--ranks-at-once", "1", "2", "--windows", "30", "--workers", "1"]
    found = run(tmp_path, "--part", "scheduler", *small)
    assert "plans" not in found
    assert [(s["ranks"], s["tasks"]) for s in found["scheduler"]] == [(1, 30), (2, 30)]
    for load in found["scheduler"]:
        assert load["ahead"] == 3
        assert load["tasks_s"] > 0
        assert load["scheduler_cpu_s_per_gb"] > 0
        assert load["scheduler_rss_bytes"] > 0
