"""A worker that is stopped in the middle of writing a window, and goes on later.

The one thing that no check afterwards could mend: it goes on in memory that by then holds
another window.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from dask_loader import ParquetDataset
from dask_loader.transfer.shared import SharedPool
from tests.asking import workers_of

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture
def dropped(monkeypatch) -> list[Any]:
    """Nonces of the slabs that the owner gave up."""
    found: list[Any] = []
    real = SharedPool._drop

    def drop(pool: SharedPool, slab: Any) -> None:
        if not pool._closed:
            found.append(slab.nonce)
        real(pool, slab)

    monkeypatch.setattr(SharedPool, "_drop", drop)
    return found


def kept_copy(batch: dict[str, Any]) -> dict[str, Any]:
    return {
        name: column.clone() if isinstance(column, torch.Tensor) else list(column)
        for name, column in batch.items()
    }


@pytest.mark.parametrize(("way", "shuffle"), [("memory", False), ("files", True)])
def test_a_worker_that_goes_on_after_its_window_was_read_elsewhere_changes_nothing(
    start_faulty, wide_data, wait_until, assert_same, monkeypatch, dropped, way, shuffle
):
    options = {
        "batch_size": 500,
        "shuffle_window": 1000,
        "shuffle": shuffle,
        "num_splits": 1,
        "memory_limit": "64 MiB",
    }
    with ParquetDataset(wide_data, client="threads", **options) as dataset:
        wanted = [kept_copy(batch) for batch in dataset]
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", way)
    faulty = start_faulty(num_workers=2, ttl="12 s")
    with ParquetDataset(wide_data, client=faulty.address, **options) as dataset:
        batches = iter(dataset)
        got = [kept_copy(next(batches)) for _ in range(4)]
        assert dataset._pipeline().engine._sharing.place is not None
        faulty.arm(signal.SIGSTOP, after=5)
        while faulty.victim is None:
            got.append(kept_copy(next(batches)))
        # Its window is read by the other worker once the scheduler has given it up. The
        # slabs of the first windows are lent again, to windows whose batches are kept.
        while len(got) < 24:
            got.append(kept_copy(next(batches)))
        while len(got) < 54:
            got.append(next(batches))
        before = [kept_copy(batch) for batch in got]
        os.kill(faulty.victim, signal.SIGCONT)
        wait_until(lambda: faulty.went_on, "the stopped worker's window is written")
        assert_same(got, before)
        got += batches
        assert_same(got, wanted)
        assert_same(got[: len(before)], before)
        assert len(set(dropped)) == 1
    assert_same(got, wanted)


def test_a_worker_that_is_stopped_after_its_window_is_whole_has_it_taken_as_it_is(
    start_faulty, wide_data, wait_until, assert_same, dropped
):
    options = {"batch_size": 500, "shuffle_window": 1000, "memory_limit": "64 MiB"}
    with ParquetDataset(wide_data, client="threads", **options) as dataset:
        wanted = list(dataset)
    faulty = start_faulty(num_workers=2, ttl="12 s")
    with ParquetDataset(wide_data, client=faulty.address, **options) as dataset:
        faulty.arm(signal.SIGSTOP, when_whole=True)
        # The scheduler has the task run again, which finds nothing to do.
        got = list(dataset)
        assert faulty.victim is not None
        assert not faulty.went_on
        assert_same(got, wanted)
        os.kill(faulty.victim, signal.SIGCONT)
        wait_until(lambda: faulty.went_on, "the stopped worker goes on")
        assert_same(got, wanted)
        assert dropped == []


def test_a_worker_that_stays_stopped_holds_up_nothing_but_its_own_window(
    start_faulty, wide_data, assert_same
):
    options = {"batch_size": 500, "shuffle_window": 1000, "memory_limit": "64 MiB"}
    with ParquetDataset(wide_data, client="threads", **options) as dataset:
        wanted = list(dataset)
    faulty = start_faulty(num_workers=2, ttl="12 s")
    with ParquetDataset(wide_data, client=faulty.address, **options) as dataset:
        faulty.arm(signal.SIGSTOP)
        got = list(dataset)
        assert faulty.victim is not None
        assert_same(got, wanted)
        # The next epoch too: the scheduler has one worker.
        dataset.set_epoch(0)
        assert_same(list(dataset), wanted)
    assert not faulty.went_on


def test_a_worker_that_does_not_answer_keeps_no_other_from_sharing_memory(
    start_faulty, wide_data, assert_same
):
    options = {"batch_size": 500, "shuffle_window": 1000, "memory_limit": "64 MiB"}
    with ParquetDataset(wide_data, client="threads", **options) as dataset:
        wanted = list(dataset)
    faulty = start_faulty(num_workers=2, ttl="10 minutes")
    silent, other = sorted(workers_of(faulty.client))
    pid = faulty.client.run(os.getpid, workers=[silent])[silent]
    os.kill(pid, signal.SIGSTOP)
    with ParquetDataset(wide_data, client=faulty.address, **options) as dataset:
        engine = dataset._pipeline().engine
        assert engine.slots() == 2
        os.kill(pid, signal.SIGCONT)
        assert engine._sharing._shares == {silent: False, other: True}
        assert_same(list(dataset), wanted)
