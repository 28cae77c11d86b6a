"""Workers that run out of memory, and out of room to spill to."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dask_loader import ParquetDataset, WorkersMissingError
from tests.asking import workers_of

pytestmark = [pytest.mark.faults, pytest.mark.cluster, pytest.mark.slow]

MIB = 1 << 20
_DEADLINE_S = 120.0
OPTIONS: dict[str, Any] = {
    "batch_size": 500,
    "columns": ["id", "x0"],
    "shuffle_window": 1000,
    "memory_limit": "64 MiB",
}


def ones(number: int) -> np.ndarray:
    """Some of somebody else's data."""
    return np.full(16 * MIB, number % 250, np.uint8)


def log_of(folder: Path, what: str) -> str:
    return "".join(file.read_text() for file in sorted(folder.glob(f"{what}-*.log")))


def status_of(client: Any, folder: Path) -> str:
    workers = workers_of(client).values()
    assert workers, f"the worker is gone:\n{log_of(folder, 'worker')}"
    (worker,) = workers
    return str(worker["status"])


def test_a_full_spill_disk_costs_no_row_and_a_paused_worker_is_named(
    parts, wide_data, tiny_tmpfs, wait_until, assert_same, monkeypatch
):
    with ParquetDataset(wide_data, client="threads", **OPTIONS) as dataset:
        wanted = list(dataset)
    for name, value in {
        "TARGET": "0.01",  # some MiB: whatever comes is to be spilled
        "SPILL": "0.02",
        "PAUSE": "0.8",
        "TERMINATE": "False",
    }.items():
        monkeypatch.setenv(f"DASK_DISTRIBUTED__WORKER__MEMORY__{name}", value)
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", "comm")  # windows lie in its memory too
    parts.start_scheduler()
    parts.start_worker(
        *("--memory-limit", str(600 * MIB)), *("--local-directory", str(tiny_tmpfs))
    )
    client = parts.client(1)
    others = [client.submit(ones, 0, pure=False)]
    others[0].result(_DEADLINE_S)
    others += client.map(ones, [1, 2], pure=False)
    wait_until(
        lambda: "Spill to disk failed" in log_of(parts.folder, "worker"),
        "the spill disk to be full",
    )
    options = {**OPTIONS, "client": parts.address}
    with ParquetDataset(wide_data, **options) as dataset:
        assert_same(list(dataset), wanted)
    with ParquetDataset(wide_data, **options, worker_timeout="5 s") as dataset:
        batches = iter(dataset)
        got = [next(batches)]

        def fill() -> bool:
            if status_of(client, parts.folder) == "paused":
                return True
            if all(f.done() for f in others):
                others.append(client.submit(ones, len(others), pure=False))
            return False

        wait_until(fill, "the worker to be paused")
        with pytest.raises(
            WorkersMissingError,
            match=r"all 1 workers of the Dask scheduler at .* are paused: .*no room on "
            "their spill disk",
        ):
            got += iter(batches)
        state = dataset.state_dict()
    assert len(got) < len(wanted)
    others.clear()
    wait_until(
        lambda: status_of(client, parts.folder) == "running", "the worker to go on"
    )
    with ParquetDataset(wide_data, **options) as dataset:
        dataset.load_state_dict(state)
        assert_same(wanted[: len(got)] + list(dataset), wanted)
    assert_same(got, wanted[: len(got)])


class Greedy:
    """A transform that takes much more memory for row 7000 than its worker has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, table: pa.Table) -> pa.Table:
        if 7000 not in table["id"].to_numpy():
            return table
        with (self.folder / "tries").open("a") as file:
            file.write("x")
        taken = [np.ones(64 * MIB, np.uint8) for _ in range(10)]
        deadline = time.monotonic() + _DEADLINE_S
        while time.monotonic() < deadline:  # until the nanny kills this process
            time.sleep(0.05)
        return table.slice(len(taken))


def test_a_row_group_that_needs_more_memory_than_a_worker_has_is_named_and_skipped(
    parts, wide_data, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")
    parts.start_scheduler()
    parts.start_worker("--nanny", "--memory-limit", str(500 * MIB))
    parts.client(1).close()
    options = {**OPTIONS, "client": parts.address, "transform": Greedy(tmp_path)}
    options |= {"on_error": "skip-window", "provenance": True}
    with ParquetDataset(wide_data, **options) as dataset:
        batches = list(dataset)
        (told,) = dataset.skipped
        assert dataset.stats()["skipped_rows"] == 1000
    assert told["rows"] == 1000
    assert re.fullmatch(r"row group 7 of '.*wide\.parquet'", told["what"])
    assert re.search(
        r"skipped 1000 rows: row group 7 of '.*wide\.parquet' killed every Dask worker "
        r"that tried it \(.*\); give the workers more memory, or make shuffle_window "
        r"smaller; rows of row group 6 of '.*' come in their place",
        caplog.text,
    )
    assert re.search("exceeded .*memory budget", log_of(tmp_path, "worker"))
    assert (tmp_path / "tries").stat().st_size == 2  # among others, then alone
    own = [
        number
        for batch in batches
        for number, copy in zip(
            batch["id"].tolist(), batch["__padded__"].tolist(), strict=True
        )
        if not copy
    ]
    assert [len(batch["id"]) for batch in batches] == [500] * 80
    assert own == [*range(7000), *range(8000, 40_000)]
