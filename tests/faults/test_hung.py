"""Workers that live, tell that they do, and get nowhere."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from distributed.core import Status

from dask_loader import ParquetDataset, WindowError, WorkersMissingError

pytestmark = [pytest.mark.faults, pytest.mark.cluster]

OPTIONS: dict[str, Any] = {
    "batch_size": 500,
    "columns": ["id", "x0"],
    "shuffle_window": 1000,
    "memory_limit": "64 MiB",
}
_DEADLINE_S = 120.0


class HangOnce:
    """A transform; who first calls it with row 7000 stays in it until it is let go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, table: pa.Table) -> pa.Table:
        if 7000 not in table["id"].to_numpy():
            return table
        try:
            fd = os.open(self.folder / "hangs", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(fd, str(os.getpid()).encode())
            os.close(fd)
        except FileExistsError:
            return table
        deadline = time.monotonic() + _DEADLINE_S
        while not (self.folder / "go on").exists() and time.monotonic() < deadline:
            time.sleep(0.05)  # polling a condition, with a deadline
        return table


@pytest.fixture
def hang_once(tmp_path):
    yield HangOnce(tmp_path)
    (tmp_path / "go on").touch()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["memory"])
def test_a_window_whose_worker_hangs_is_read_by_another(
    parts, wide_data, assert_same, hang_once, monkeypatch, way
):
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", way)
    with ParquetDataset(wide_data, client="threads", **OPTIONS) as dataset:
        wanted = list(dataset)
    parts.start_scheduler()
    for _ in range(2):
        parts.start_worker()
    parts.client(2).close()
    with ParquetDataset(
        wide_data,
        client=parts.address,
        transform=hang_once,
        worker_timeout="5 s",
        **OPTIONS,
    ) as dataset:
        got = list(dataset)
        assert (hang_once.folder / "hangs").exists()
        assert not (hang_once.folder / "go on").exists()
        # What the other one writes so late goes nowhere, in this epoch and the next.
        (hang_once.folder / "go on").touch()
        assert_same(got + list(dataset), wanted * 2)


@pytest.mark.slow
def test_the_window_that_hangs_on_the_only_worker_is_an_error_that_names_it(
    parts, wide_data, hang_once
):
    parts.start_scheduler()
    parts.start_worker()
    (worker,) = parts.client(1).ncores()
    with (
        ParquetDataset(
            wide_data,
            client=parts.address,
            transform=hang_once,
            window_timeout="20 s",
            **OPTIONS,
        ) as dataset,
        pytest.raises(
            WindowError,
            match=r"row group 7 of '.*wide\.parquet' was not done within \d+ s \(it is "
            rf"on {worker}\); look at those workers' logs and what they wait for, or "
            "allow more with window_timeout=",
        ),
    ):
        list(dataset)


def test_a_window_that_hangs_in_a_thread_is_an_error_that_names_it(
    wide_data, hang_once
):
    with (
        ParquetDataset(
            wide_data,
            client="threads",
            transform=hang_once,
            window_timeout="4 s",
            **OPTIONS,
        ) as dataset,
        pytest.raises(
            WindowError,
            match=r"row group 7 of '.*wide\.parquet' was not read within 4 s by a "
            r"thread of this process; .* allow more with window_timeout=",
        ),
    ):
        try:
            list(dataset)
        finally:  # close() waits for the thread
            (hang_once.folder / "go on").touch()


def _pause(dask_worker: Any) -> None:
    dask_worker.status = Status.paused


@pytest.mark.slow
def test_workers_that_are_all_paused_are_named(parts, wide_data):
    parts.start_scheduler()
    parts.start_worker("--memory-limit=0")  # nothing goes on by itself
    client = parts.client(1)
    (worker,) = client.ncores()
    client.run(_pause)
    with (
        ParquetDataset(
            wide_data, client=parts.address, worker_timeout="2 s", **OPTIONS
        ) as dataset,
        pytest.raises(
            WorkersMissingError,
            match=rf"all 1 workers of the Dask scheduler at '{parts.address}' are "
            rf"paused: {worker}; they have no memory left, or no room on their spill "
            "disk. Give them more",
        ),
    ):
        list(dataset)
