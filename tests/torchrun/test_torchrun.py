"""Real torchrun jobs: every rank finds itself and reads its share."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from dask_loader import ParquetDataset

pytestmark = pytest.mark.torchrun

SCRIPT = Path(__file__).with_name("share_script.py")
NUM_ROWS = 1009
WAYS = ("no workers", "fork", "torch's", "spawn")
# As in the script.
OPTIONS = {"batch_size": 16, "shuffle": True, "shuffle_window": 40, "num_splits": 4}


def torchrun(*arguments: object, num_ranks: int = 2) -> None:
    """Run the script on all ranks of this machine, on a free port."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(num_ranks), str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def found_by(out: Path, num_ranks: int) -> list[dict[str, Any]]:
    return [json.loads((out / f"{r}.json").read_text()) for r in range(num_ranks)]


def check(ranks: list[dict[str, Any]], data: Path) -> None:
    world_size = len(ranks)
    for rank, found in enumerate(ranks):
        assert found["world"] == [rank, world_size, "torch.distributed"]
        given = f"rank={rank} and world_size={world_size + 1} were given, but"
        assert given in found["refused"]
        assert f"says rank {rank} of {world_size}" in found["refused"]
        with ParquetDataset(
            data, client="threads", rank=rank, world_size=world_size, **OPTIONS
        ) as dataset:
            for epoch, way in enumerate(WAYS):
                dataset.set_epoch(epoch)
                assert found[way] == [batch["id"].tolist() for batch in dataset], way
                assert len(found[way]) == found["len"]
    for way in WAYS:
        rows = list(chain.from_iterable(chain.from_iterable(r[way] for r in ranks)))
        assert set(rows) == set(range(NUM_ROWS))
        assert len(rows) - NUM_ROWS == -NUM_ROWS % world_size
    assert len({found["len"] for found in ranks}) == 1


def test_each_rank_reads_its_share_with_threads(small_data, tmp_path):
    torchrun(small_data, tmp_path, "threads")
    check(found_by(tmp_path, 2), small_data)


@pytest.mark.slow
@pytest.mark.cluster
def test_each_rank_reads_its_share_from_a_cluster_that_rank_0_launches(
    small_data, tmp_path
):
    torchrun(small_data, tmp_path, "launch")
    check(found_by(tmp_path, 2), small_data)


@pytest.mark.slow
@pytest.mark.cluster
def test_three_ranks_share_a_cluster_that_runs_already(
    small_data, tmp_path, local_cluster
):
    torchrun(small_data, tmp_path, local_cluster.address, num_ranks=3)
    check(found_by(tmp_path, 3), small_data)
