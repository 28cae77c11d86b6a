"""The README's Python runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.fixture(scope="module")
def folder_with_flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    script = ROOT / "examples" / "flights.py"
    target = folder / "demo-data" / "flights"
    subprocess.run([sys.executable, script, target], check=True, timeout=120)
    return folder


def test_the_readme_has_the_first_example_and_the_cluster_example():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_example_of_the_readme_runs(folder_with_flights: Path, number: int):
    script = folder_with_flights / f"readme_{number}.py"
    script.write_text(BLOCKS[number])
    ran = subprocess.run(
        [sys.executable, script],
        cwd=folder_with_flights,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Error" not in ran.stderr
