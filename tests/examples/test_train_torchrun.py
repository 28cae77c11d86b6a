"""The training example: it learns, says so, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.examples.training import EXAMPLES, NUM_ROWS, make_data

pytestmark = [pytest.mark.slow, pytest.mark.torchrun, pytest.mark.cluster]

EPOCH = re.compile(
    r"epoch (\d+): (\d+) steps on each of (\d+) ranks, loss ([\d.]+), accuracy ([\d.]+) "
    r"\(always the commoner answer: ([\d.]+)\), ([\d,]+) rows/s, waited (\d+)% of"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A small set whose label depends on its features."""
    return make_data(tmp_path_factory.mktemp("train") / "set")


def train(data: Path, *arguments: str) -> tuple[str, list[tuple[str, ...]]]:
    """Train on two ranks; return what was printed, and the numbers of each epoch."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(EXAMPLES / "train_torchrun.py"), str(data)]
    # A mark that all descendants inherit, to find those that outlive the job.
    mark = f"DASK_LOADER_TEST_{os.getpid()}_{len(arguments)}"
    done = subprocess.run(
        [*command, "--batch-size", "256", *arguments],
        env={**os.environ, mark: "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not still_running(mark)
    return done.stdout, EPOCH.findall(done.stdout)


def still_running(mark: str) -> list[psutil.Process]:
    left = []
    for process in psutil.process_iter():
        try:
            if mark in process.environ():
                left.append(process)
        except psutil.Error:
            continue
    return psutil.wait_procs(left, timeout=120)[1]


def check_that_it_learned(epochs: list[tuple[str, ...]], num_epochs: int) -> None:
    assert [int(epoch[0]) for epoch in epochs] == list(range(num_epochs))
    losses = [float(epoch[3]) for epoch in epochs]
    assert losses[-1] < losses[0]
    for epoch in epochs:
        assert int(epoch[1]) == -(-NUM_ROWS // 512)
        assert int(epoch[2]) == 2
        assert int(epoch[6].replace(",", "")) > 0
        assert 0 <= int(epoch[7]) <= 100
    accuracy, common = float(epochs[-1][4]), float(epochs[-1][5])
    assert accuracy > common + 0.05


def test_it_launches_a_cluster_learns_and_leaves_nothing_running(data):
    printed, epochs = train(data, "--epochs", "3")
    check_that_it_learned(epochs, 3)
    # The plan comes first.
    assert printed.startswith(f"{NUM_ROWS} rows in ")
    assert "read by: Dask cluster at tcp://127.0.0.1:" in printed


def test_it_uses_a_cluster_that_runs_already_and_leaves_it_running(data, local_cluster):
    printed, epochs = train(
        data,
        "--epochs",
        "2",
        "--scheduler",
        local_cluster.address,
        "--dask-workers",
        "0",
    )
    check_that_it_learned(epochs, 2)
    assert f"read by: Dask cluster at {local_cluster.address}" in printed
    local_cluster.wait_for_workers(2)
