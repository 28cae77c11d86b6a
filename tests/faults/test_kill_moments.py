"""Kills at many moments: of Dask workers, of DataLoader workers, of the program itself."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import cluster
from dask_loader import DataLoader, ParquetDataset, WindowError

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.cluster]

OPTIONS: dict[str, Any] = {
    "batch_size": 500,
    "shuffle": True,
    "shuffle_window": 1000,
    "num_splits": 2,
    "memory_limit": "64 MiB",
    "worker_timeout": "120 s",
}


def test_three_kills_in_each_epoch_change_no_batch(wide_data, assert_same, wait_until):
    with ParquetDataset(wide_data, client="threads", **OPTIONS) as dataset:
        wanted = [list(dataset) for _ in range(2)]
        num_batches = len(dataset)
    with (
        cluster.launch("local", workers=2) as failing,
        ParquetDataset(wide_data, client=failing, **OPTIONS) as dataset,
    ):
        client = failing.client()
        for seed in range(int(os.environ.get("DASK_LOADER_KILL_SEEDS", "3"))):
            chance = random.Random(seed)
            moments = sorted(chance.sample(range(num_batches), 3))
            dataset.set_epoch(seed % 2)
            got = []
            for number, batch in enumerate(dataset):
                got.append(batch)
                if number not in moments:
                    continue
                pids: list[int] = []

                def living(pids: list[int] = pids) -> list[int]:
                    found = client.run(os.getpid, on_error="ignore")
                    pids[:] = sorted(found.values())
                    return pids

                wait_until(living, "a worker that answers")
                # Now and then all of them at once.
                for pid in pids if chance.random() < 0.3 else [chance.choice(pids)]:
                    os.kill(pid, signal.SIGKILL)
            assert_same(got, wanted[seed % 2])


# torch's iterator may complain about its dead worker when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_killed_dataloader_worker_is_an_error_and_the_state_goes_on(
    wide_data, assert_same, start_method
):
    with ParquetDataset(wide_data, client="threads", **OPTIONS) as dataset:
        wanted = list(dataset)
    got = []
    with ParquetDataset(wide_data, client="threads", **OPTIONS) as dataset:
        loader = DataLoader(
            dataset, num_workers=2, multiprocessing_context=start_method
        )
        before = set(psutil.Process().children())
        with pytest.raises(
            (RuntimeError, WindowError),
            match=r"DataLoader worker \(pid.*\) (is killed|exited)|"
            "of a DataLoader worker could not be opened .*; the worker died",
        ):
            for batch in loader:
                # torch raises from a signal handler, in the middle of anything: only what
                # was checkpointed is known to be delivered.
                if len(got) == 5:
                    continue
                got.append({k: _own(v) for k, v in batch.items()})
                if len(got) == 5:
                    state = loader.state_dict()
                    worker = next(
                        p
                        for p in psutil.Process().children()
                        if p not in before
                        and "resource_tracker" not in " ".join(p.cmdline())
                    )
                    worker.kill()
        del loader
    with ParquetDataset(wide_data, client="threads", **OPTIONS) as dataset:
        dataset.load_state_dict(state)
        assert_same(got + list(dataset), wanted)


def _own(column: Any) -> Any:
    return column.clone() if hasattr(column, "clone") else column


TRAINER = """
import os, sys, threading
import cluster
from dask_loader import DataLoader, ParquetDataset
path, folder, num_workers = sys.argv[1:]
with cluster.launch("local", workers=2, local_directory=folder) as launched:
    with ParquetDataset(path, client=launched, batch_size=500, shuffle_window=1000,
                        memory_limit="64 MiB") as dataset:
        for number in range(10**6):
            for batch in DataLoader(dataset, num_workers=int(num_workers)):
                print("batch", flush=True)
"""


@pytest.mark.parametrize("num_workers", [2])
@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGINT])
def test_of_a_trainer_that_is_ended_nothing_is_left(
    wide_data, tmp_path, wait_until, what, num_workers
):
    scratch = tmp_path / "scratch"
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, wide_data, scratch, str(num_workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert trainer.stdout is not None
    for _ in range(20):
        assert trainer.stdout.readline() == "batch\n"
    started = psutil.Process(trainer.pid).children(recursive=True)
    assert len(started) >= 2 + num_workers
    trainer.send_signal(what)
    _, said = trainer.communicate(timeout=120)
    assert trainer.returncode in (-what, 1 if what == signal.SIGINT else -what), said
    wait_until(
        lambda: not [p for p in started if p.is_running()], "an end of all processes"
    )
    # Others use the folder too.
    names = {f"torch_{pid}_" for pid in (trainer.pid, *(p.pid for p in started))}

    def shared_memory() -> list[str]:
        return [n for n in os.listdir("/dev/shm") if n.startswith(tuple(names))]

    wait_until(lambda: not shared_memory(), "an end of all shared memory")
    left = [p for p in scratch.rglob("*") if p.is_file()] if scratch.exists() else []
    assert [p for p in left if Path(p).suffix not in (".lock", ".dirlock")] == []
