"""Workers and consumers that are killed in the middle: rows are right, nothing is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dask_loader import ClosedError, ParquetDataset
from dask_loader.transfer.shared import SharedPool

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.cluster]

OPTIONS: dict[str, Any] = {
    "batch_size": 500,
    "shuffle_window": 1000,
    "memory_limit": "64 MiB",
}


@pytest.fixture
def wanted(wide_data) -> list[Any]:
    with ParquetDataset(wide_data, client="threads", **OPTIONS) as dataset:
        return list(dataset)


def maps_slab(pid: int) -> bool:
    return "memfd:dask-loader" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("way", ["memory", "files"])
def test_the_slab_of_a_worker_that_is_killed_is_written_by_the_next(
    start_faulty, wide_data, wanted, assert_same, monkeypatch, way
):
    dropped = []
    real = SharedPool.drop

    def drop(pool: SharedPool, slab: Any) -> None:
        dropped.append(slab)
        real(pool, slab)

    monkeypatch.setattr(SharedPool, "drop", drop)
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", way)
    faulty = start_faulty(num_workers=2)
    with ParquetDataset(wide_data, client=faulty.address, **OPTIONS) as dataset:
        faulty.arm(signal.SIGKILL, after=40)
        got = list(dataset)
        assert faulty.victim is not None
        assert_same(got, wanted)
        assert dropped == []


CONSUMER = """
import sys
from dask_loader import ParquetDataset
path, address = sys.argv[1:]
dataset = ParquetDataset(
    path, client=address, batch_size=500, shuffle_window=1000, memory_limit="64 MiB"
)
batches = iter(dataset)
kept = [next(batches) for _ in range(9)]
print(dataset._pipeline().engine._sharing.place, flush=True)
sys.stdin.read()
"""


def killed_consumer(path: Path, address: str) -> str:
    """Run a consumer, kill it in the middle of an epoch, and say where its slabs were."""
    consumer = subprocess.Popen(
        [sys.executable, "-c", CONSUMER, str(path), address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert consumer.stdout is not None
    place = consumer.stdout.readline().strip()
    consumer.kill()
    consumer.communicate()
    return place


def test_the_files_of_a_consumer_that_was_killed_are_removed_by_the_next_start(
    start_faulty, wide_data, wanted, assert_same, monkeypatch, tmp_path
):
    folder = tmp_path / "shared"
    folder.mkdir()
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", "files")
    monkeypatch.setenv("DASK_LOADER_SHARED_FOLDER", str(folder))
    faulty = start_faulty(num_workers=1)
    assert killed_consumer(wide_data, faulty.address) == f"files in {folder}"
    (left,) = folder.iterdir()
    assert len(list(left.iterdir())) > 1
    with ParquetDataset(wide_data, client=faulty.address, **OPTIONS) as dataset:
        batches = iter(dataset)
        got = [next(batches)]
        assert not left.exists()
        assert len(list(folder.iterdir())) == 1
        got += batches
    assert_same(got, wanted)
    assert list(folder.iterdir()) == []


def test_of_a_consumer_that_was_killed_no_memory_is_left(
    start_faulty, wide_data, monkeypatch, wait_until
):
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", "memory")
    faulty = start_faulty(num_workers=2)
    pids = list(faulty.client.run(_pid).values())
    place = killed_consumer(wide_data, faulty.address)
    assert place == "anonymous shared memory"
    # Of ours, and not for long: tests beside this one have files there too, now and then.
    wait_until(
        lambda: not list(Path("/dev/shm").glob("dask-loader-*")), "no files of ours"
    )
    wait_until(
        lambda: not any(maps_slab(pid) for pid in pids),
        "the workers let go of the dead consumer's slabs",
    )


def _pid() -> int:
    import os

    return os.getpid()


@pytest.mark.parametrize("way", ["memory", "files"])
def test_closing_in_the_middle_of_an_epoch_keeps_the_batches_and_leaves_no_memory(
    start_faulty, wide_data, wanted, assert_same, monkeypatch, tmp_path, way, wait_until
):
    folder = tmp_path / "shared"
    folder.mkdir()
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", way)
    monkeypatch.setenv("DASK_LOADER_SHARED_FOLDER", str(folder))
    faulty = start_faulty(num_workers=2)
    pids = list(faulty.client.run(_pid).values())
    dataset = ParquetDataset(wide_data, client=faulty.address, **OPTIONS)
    batches = iter(dataset)
    got = [next(batches) for _ in range(7)]
    dataset.close()
    assert list(folder.iterdir()) == []
    assert_same(got, wanted[:7])
    with pytest.raises(ClosedError, match="closed"):
        got.extend(batches)
    assert_same(got[:7], wanted[:7])
    wait_until(
        lambda: not any(maps_slab(pid) for pid in pids),
        "the workers let go of the closed consumer's slabs",
    )
    wait_until(
        lambda: not faulty.client.run_on_scheduler(_window_keys),
        "the scheduler has forgotten the windows",
    )


def _window_keys(dask_scheduler: Any) -> list[str]:
    return [str(k) for k in dask_scheduler.tasks if "read-window" in str(k)]
