"""The soak, for less than a minute: `make soak` runs it for thirty."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.cluster
def test_ranks_and_dataloader_workers_outlive_kills_with_each_id_once(tmp_path):
    # Memory is still growing into its size in the first minute: --growth is wide.
    done = subprocess.run(
        [
            *(sys.executable, str(PROGRAM), "--minutes", "0.25", "--kill-every", "6"),
            *("--growth", "1.0"),
        ],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
    )
    said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.stdout.endswith("PASSED\n"), said
    assert "4 ranks x 2 DataLoader workers, 2 Dask workers" in done.stdout
    assert done.returncode == 0, said
