"""The benchmark runs and reports every way. Nothing is asserted about time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.bench
@pytest.mark.slow
def test_the_benchmark_reports_every_way_beside_the_limit(tmp_path: Path) -> None:
    data, report = tmp_path / "data", tmp_path / "report.json"
    make = [sys.executable, ROOT / "examples" / "make_dataset.py", data]
    sizes = ["--rows", "40000", "--row-group-rows", "5000", "--columns", "6"]
    subprocess.run([*make, *sizes, "--files", "2"], check=True, timeout=120)
    bench = [sys.executable, ROOT / "benchmarks" / "throughput.py", data]
    options = ["--repeats", "1", "--json", report]
    subprocess.run([*bench, *options], check=True, timeout=240)
    found = json.loads(report.read_text())
    ways = [
        f"{where}{shuffled}{unread}"
        for where in ("threads", "cluster")
        for shuffled in ("", ", shuffled")
        for unread in ("", ", unread")
    ]
    assert sorted(found) == sorted(["LIMIT", *ways])
    assert found["LIMIT"]["of_limit"] == 1.0
    assert all(row["gb_s"] > 0 for row in found.values())
