"""Data for the training example, and what its ranks must have been given of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dask_loader import ParquetDataset

EXAMPLES = Path(__file__).parents[2] / "examples"
NUM_ROWS = 20_000
BATCH_SIZE = 256


def make_data(folder: Path) -> Path:
    """Make a small set whose label depends on its features."""
    command = [sys.executable, str(EXAMPLES / "make_dataset.py"), str(folder)]
    command += ["--rows", str(NUM_ROWS), "--columns", "9", "--row-group-rows", "1500"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder


def train(data: Path, *arguments: str) -> str:
    """Train on two ranks of this machine; return what was printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(EXAMPLES / "train_torchrun.py"), str(data)]
    done = subprocess.run(
        [*command, "--batch-size", str(BATCH_SIZE), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_ids(folder: Path, data: Path, *, num_ranks: int, num_epochs: int) -> None:
    """See that each id came once, and to each rank those that threads read, in order."""
    for epoch in range(num_epochs):
        together: list[int] = []
        for rank in range(num_ranks):
            text = (folder / f"epoch-{epoch}-rank-{rank}.txt").read_text()
            ids = [int(line) for line in text.split()]
            with ParquetDataset(
                data,
                batch_size=BATCH_SIZE,
                shuffle=True,
                client="threads",
                rank=rank,
                world_size=num_ranks,
            ) as dataset:
                dataset.set_epoch(epoch)
                assert ids == [i for b in dataset for i in b["id"].tolist()]
            together += ids
        assert sorted(together) == list(range(NUM_ROWS))
