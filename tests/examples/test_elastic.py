"""The elastic example: loss curves of several world sizes agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
LAST_LINE = re.compile(
    r"(\d+) steps of 512 rows: the same rows in each step: (yes|NO); "
    r"losses differ by ([\d.e+-]+) at most"
)


def run(data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "elastic.py"), str(data), *options]
    environ = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=280
    )


@pytest.mark.slow
@pytest.mark.torchrun
def test_curves_of_1_2_and_4_ranks_agree_and_fall(tmp_path):
    command = [sys.executable, str(EXAMPLES / "make_dataset.py"), str(tmp_path / "set")]
    command += ["--rows", "12000", "--columns", "9", "--row-group-rows", "900"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    done = run(tmp_path / "set", "--global-batch", "512")
    assert done.returncode == 0, done.stdout + done.stderr
    (last,) = LAST_LINE.findall(done.stdout)
    assert last[:2] == ("23", "yes")
    assert float(last[2]) < 1e-5
    rows = [line.split() for line in done.stdout.splitlines()[1:-1]]
    losses = [[float(loss) for loss in row[1:]] for row in rows]
    assert all(len(row) == 3 for row in losses)
    for first, final in zip(losses[0], losses[-1], strict=True):
        assert final < first - 0.02


def test_a_world_size_that_does_not_divide_the_batch_is_refused(tmp_path):
    done = run(tmp_path, "--world-sizes", "1", "3", "--global-batch", "512")
    assert done.returncode == 2
    assert "each world size must divide --global-batch" in done.stderr
