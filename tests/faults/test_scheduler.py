"""A scheduler that dies, hangs or forgets in the middle of an epoch."""

from __future__ import annotations

import signal
import threading
from itertools import islice
from typing import Any

import pytest

from dask_loader import ParquetDataset, SchedulerUnreachableError
from dask_loader.engine.watch import Watch

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.cluster]

OPTIONS: dict[str, Any] = {
    "batch_size": 500,
    "shuffle": True,
    "shuffle_window": 1000,
    "memory_limit": "64 MiB",
    "worker_timeout": "120 s",
    "num_splits": 2,
}


@pytest.fixture
def wanted(wide_data) -> list[Any]:
    with ParquetDataset(wide_data, client="threads", **OPTIONS) as dataset:
        return list(dataset)


class Revived:
    """What cluster.Cluster looks like to a consumer."""

    revives_scheduler = True

    def __init__(self, address: str) -> None:
        self.scheduler_address = address


def test_the_epoch_goes_on_where_a_scheduler_was_killed_and_is_back(
    parts, wide_data, wanted, assert_same
):
    scheduler = parts.start_scheduler()
    port = parts.address.rpartition(":")[2]
    workers = [parts.start_worker() for _ in range(2)]
    parts.client(2).close()
    got = []
    with ParquetDataset(wide_data, client=Revived(parts.address), **OPTIONS) as dataset:
        batches = iter(dataset)
        for stop in (7, 20, 21):  # the last time next to nothing came in between
            got += islice(batches, stop - len(got))
            scheduler.kill()
            scheduler.wait()
            for worker in workers:
                worker.kill()
                worker.wait()
            scheduler = parts.start_scheduler(port=port)
            workers = [parts.start_worker()]
        got += batches
    assert_same(got, wanted)


def test_filters_are_counted_where_the_scheduler_is_lost_meanwhile(
    parts, wide_data, monkeypatch
):
    scheduler = parts.start_scheduler()
    port = parts.address.rpartition(":")[2]
    # No worker yet: the count waits for one.
    asked = threading.Event()
    found: list[int] = []
    real = Watch.ask_threads

    def ask_and_tell(watch: Watch) -> dict[str, int]:
        threads = real(watch)
        asked.set()
        return threads

    monkeypatch.setattr(Watch, "ask_threads", ask_and_tell)

    def make() -> None:
        with ParquetDataset(
            wide_data,
            client=Revived(parts.address),
            filters=[("x0", ">", 0.0)],
            footer_cache=False,
            **OPTIONS,
        ) as dataset:
            found.append(dataset.num_rows)

    making = threading.Thread(target=make)
    making.start()
    assert asked.wait(120)
    scheduler.kill()
    scheduler.wait()
    parts.start_scheduler(port=port)
    parts.start_worker()
    making.join(120)
    with ParquetDataset(
        wide_data, client="threads", filters=[("x0", ">", 0.0)], **OPTIONS
    ) as dataset:
        assert found == [dataset.num_rows]


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP])
def test_a_foreign_scheduler_that_is_gone_is_named_and_the_state_goes_on_elsewhere(
    parts, wide_data, wanted, assert_same, what
):
    scheduler = parts.start_scheduler()
    parts.start_worker()
    parts.client(1).close()
    got = []
    with ParquetDataset(wide_data, client=parts.address, **OPTIONS) as dataset:
        batches = iter(dataset)
        got += islice(batches, 9)
        scheduler.send_signal(what)
        with pytest.raises(
            SchedulerUnreachableError,
            match=r"(?s)the Dask scheduler at 'tcp://127.* answered before and was lost "
            r"\(.*\), and did not come back within 15 s; check that it runs, and start "
            "again from the last state",
        ):
            got.extend(batches)
        state = dataset.state_dict()
        if what == signal.SIGSTOP:  # it is back at once, for the same dataset too
            scheduler.send_signal(signal.SIGCONT)
            assert_same(got + list(dataset), wanted)
    with ParquetDataset(wide_data, client="threads", **OPTIONS) as dataset:
        dataset.load_state_dict(state)
        assert_same(got + list(dataset), wanted)


def test_a_cluster_that_another_user_restarts_loses_nothing(
    parts, wide_data, wanted, assert_same
):
    parts.start_scheduler()
    for _ in range(2):
        parts.start_worker("--nanny")
    got = []
    with ParquetDataset(wide_data, client=parts.address, **OPTIONS) as dataset:
        batches = iter(dataset)
        for _ in range(2):
            got += islice(batches, 11)
            with parts.client(2) as client:
                client.restart(timeout=120)
        got += batches
    assert_same(got, wanted)
