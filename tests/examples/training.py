"""Data for the training example, and what its ranks must have been given of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dask_loader import ParquetDataset

EXAMPLES = Path(__file__).parents[2] / "examples"
NUM_ROWS = 20_000


def make_data(folder: Path) -> Path:
    """Make a small set whose label depends on its features."""
    command = [sys.executable, str(EXAMPLES / "make_dataset.py"), str(folder)]
    command += ["--rows", str(NUM_ROWS), "--columns", "9", "--row-group-rows", "1500"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder


def check_ids(
    folder: Path, data: Path, *, num_ranks: int, num_epochs: int, batch_size: int
) -> None:
    """See that each id came once, and to each rank those that threads read, in order."""
    for epoch in range(num_epochs):
        together: list[int] = []
        for rank in range(num_ranks):
            text = (folder / f"epoch-{epoch}-rank-{rank}.txt").read_text()
            ids = [int(line) for line in text.split()]
            with ParquetDataset(
                data,
                batch_size=batch_size,
                shuffle=True,
                client="threads",
                rank=rank,
                world_size=num_ranks,
            ) as dataset:
                dataset.set_epoch(epoch)
                assert ids == [i for b in dataset for i in b["id"].tolist()]
            together += ids
        assert sorted(together) == list(range(NUM_ROWS))
