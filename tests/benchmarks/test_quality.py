"""The figures of docs/shuffle.md are those that the code gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "quality.py"
pytestmark = pytest.mark.bench


def test_the_table_of_the_documentation_is_up_to_date() -> None:
    command = [sys.executable, PROGRAM]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("| splits a rank | window | in hand |")
    assert ran.stdout in (ROOT / "docs" / "shuffle.md").read_text()


@pytest.mark.slow
def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "shuffle.png"
    subprocess.run([sys.executable, PROGRAM, "--plot", picture], check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
