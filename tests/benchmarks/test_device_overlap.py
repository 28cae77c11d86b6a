"""The benchmark of copies to a device runs. Nothing is asserted about time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "device_overlap.py"
SMALL = ["--repeats", "2", "--steps", "6", "--step-ms", "1", "--side", "32"]
SIZES = ["--batch-size", "64", "--columns", "3"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *SMALL, *SIZES, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.bench
@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--sync", "--shuffle"]])
def test_it_reports_the_ratios_as_json(options: list[str]) -> None:
    done = run("--device", "cpu", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ratio"] > 0
    assert found["ratio_plain"] > 0
    assert len(found["ratios"]) == 2
    assert found["batch_bytes"] == 64 * 3 * 4
    assert 0 <= found["wait_share"] <= 1


@pytest.mark.bench
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_device_it_says_so_and_ends_with_2() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no device to measure: device='cuda' does not exist here" in done.stderr
