"""Every loss at every step of a dataset's life, one at a time, at the very step.

A worker that comes to the step stops itself (stop_at.py). What is to happen then happens,
and the dataset must come to what threads make of the same files.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dask_loader import ParquetDataset
from tests.faults import stop_at

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.cluster]

OPTIONS: dict[str, Any] = {
    "batch_size": 500,
    "columns": ["id", "x0", "name"],
    "filters": [("x1", ">", -1.0)],
    "shuffle": True,
    "shuffle_window": 1000,
    "num_splits": 2,
    "footer_cache": False,
    "worker_timeout": "120 s",
}
# Keys of the tasks of each step, and what becomes of the first that does it.
STEPS = {
    "rows are counted": ("count_rows", "executing"),
    "rows were counted": ("count_rows", "memory"),
    "the transform is tried": ("try_transform", "executing"),
    "a window is read": ("read-window", "executing"),
    "a window was read": ("read-window", "memory"),
}


def double(table: pa.Table) -> pa.Table:
    return table.append_column("twice", pc.multiply(table["x0"], 2.0))


class Revived:
    """What cluster.Cluster looks like to a consumer."""

    revives_scheduler = True

    def __init__(self, address: str) -> None:
        self.scheduler_address = address


class Stage:
    """A cluster that comes back after each event."""

    def __init__(self, parts: Any, folder: Path) -> None:
        self.parts, self.folder = parts, folder
        self.scheduler = parts.start_scheduler()
        self.port = parts.address.rpartition(":")[2]
        self.workers = [self._worker() for _ in range(2)]

    @property
    def reached(self) -> Path:
        return self.folder / "reached"

    def gate(self, step: str) -> None:
        self.reached.unlink(missing_ok=True)
        (self.folder / "step").write_text(" ".join(STEPS[step]))

    def open(self) -> None:
        (self.folder / "step").unlink(missing_ok=True)

    def happens(self, event: str) -> None:
        """Do it to the worker that stopped, if there is one."""
        stopped = int(self.reached.read_text()) if self.reached.exists() else 0
        if event == "the worker goes on":
            os.kill(stopped, signal.SIGCONT)
            return
        fallen = list(self.workers)
        if event == "a worker dies":
            fallen = [w for w in self.workers if w.pid == stopped]
        for worker in fallen:
            worker.kill()
            worker.wait()
            self.workers.remove(worker)
        if event == "the scheduler dies":
            self.scheduler.kill()
            self.scheduler.wait()
            self.scheduler = self.parts.start_scheduler(port=self.port)
        self.workers.append(self._worker())

    def _worker(self) -> Any:
        return self.parts.start_worker("--preload", stop_at.__file__)


@pytest.fixture
def stage(parts, tmp_path, monkeypatch) -> Iterator[Stage]:
    monkeypatch.setenv(stop_at.FOLDER_VARIABLE, str(tmp_path))
    made = Stage(parts, tmp_path)
    yield made
    made.open()


@pytest.fixture(scope="module")
def path(wide_data, tmp_path_factory) -> Path:
    """The first 12 row groups: twice as many windows as are under way at once."""
    with pq.ParquetFile(wide_data) as file:
        table = file.read_row_groups(range(12))
    found = tmp_path_factory.mktemp("grid") / "part.parquet"
    pq.write_table(table, found, row_group_size=1000)
    return found


@pytest.fixture(scope="module")
def wanted(path) -> list[Any]:
    with ParquetDataset(path, client="threads", transform=double, **OPTIONS) as dataset:
        return list(dataset)


@pytest.mark.parametrize(
    "event",
    [
        "a worker dies",
        "all workers die",
        "the scheduler dies",
        "the worker goes on",
    ],
)
def test_whatever_happens_at_whichever_step_changes_no_batch(
    stage, path, wanted, assert_same, wait_until, event
):
    def read() -> list[Any]:
        with ParquetDataset(
            path, client=Revived(stage.parts.address), transform=double, **OPTIONS
        ) as dataset:
            return list(dataset)

    for step in STEPS:
        stage.gate(step)
        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(read)
            wait_until(
                lambda r=reading: stage.reached.exists() or r.done(),
                f"{event} as {step}",
            )
            assert stage.reached.exists(), f"{step}: {reading.exception()!r}"
            stage.open()
            stage.happens(event)
            assert_same(reading.result(timeout=240), wanted)


def test_a_scheduler_lost_between_batches_and_before_a_resumed_epoch_changes_none(
    stage, path, wanted, assert_same
):
    event = "the scheduler dies"

    def make() -> ParquetDataset:
        return ParquetDataset(
            path, client=Revived(stage.parts.address), transform=double, **OPTIONS
        )

    with make() as dataset:
        got = list(islice(iter(dataset), 7))
        stage.happens(event)
        state = dataset.state_dict()
    with make() as dataset:
        dataset.load_state_dict(state)
        stage.happens(event)
        batches = iter(dataset)
        got.append(next(batches))
        stage.happens(event)
        got += batches
    assert_same(got, wanted)
