"""The benchmark of resumes runs and reports. Nothing about time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "benchmarks" / "resume.py"
pytestmark = [pytest.mark.bench, pytest.mark.slow]


def test_each_position_is_timed_in_order_and_shuffled(tmp_path: Path) -> None:
    report = tmp_path / "resume.json"
    small = ["--files", "2", "--row-groups", "20", "--rows", "300", "--runs", "2"]
    command = [sys.executable, str(BENCH), "--json", str(report), *small]
    subprocess.run(command, check=True, timeout=240, cwd=tmp_path)
    found = json.loads(report.read_text())
    assert found["row_groups"] == 40
    assert [case["shuffle"] for case in found["cases"]] == [False, True]
    for case in found["cases"]:
        assert case["rows"] == 12_000
        assert [at["position"] for at in case["positions"]] == [0, 0.5, 0.9, 0.99]
        for at in case["positions"]:
            assert 0 < at["min_s"] <= at["median_s"] <= at["max_s"]
            assert at["median_cpu_s"] > 0
