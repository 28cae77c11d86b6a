"""on_error="skip-window": other rows in place of those that cannot be read."""

from __future__ import annotations

import collections
import logging
import os
import signal
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cluster
from dask_loader import (
    BadFileError,
    ConfigError,
    DataLoader,
    ParquetDataset,
    ResumeError,
)

NUM_ROWS = 2000
GROUP_ROWS = 100
BAD = {3, 4, 11}  # row groups
BAD_ROWS = {r for g in BAD for r in range(g * GROUP_ROWS, (g + 1) * GROUP_ROWS)}
OPTIONS: dict[str, Any] = {
    "batch_size": 50,
    "shuffle_window": 100,
    "columns": ["id", "text"],
    "provenance": True,
}


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """One file; in some row groups a bit of the column `id` is flipped."""
    path = tmp_path / "damaged.parquet"
    ids = np.arange(NUM_ROWS)
    table = pa.table({"id": ids, "text": [f"row {i}" for i in ids]})
    pq.write_table(
        table,
        path,
        row_group_size=GROUP_ROWS,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    return damage(path, BAD)


def damage(path: Path, groups: set[int]) -> Path:
    content = bytearray(path.read_bytes())
    meta = pq.read_metadata(path)
    for group in groups:
        chunk = meta.row_group(group).column(0)
        content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    return path


def rows_of(batches: list[Any]) -> tuple[list[int], list[int]]:
    """Return the ids that came for themselves, and those that came as copies."""
    own, copies = [], []
    for batch in batches:
        for number, text, copy in zip(
            batch["id"].tolist(), batch["text"], batch["__padded__"], strict=True
        ):
            assert text == f"row {number}"
            (copies if copy else own).append(number)
    return own, copies


def test_by_default_a_damaged_window_is_an_error(damaged):
    with (
        ParquetDataset(damaged, client="threads", **OPTIONS) as dataset,
        pytest.raises(BadFileError, match="row group 3 of"),
    ):
        list(dataset)


def test_another_value_is_refused(damaged):
    with pytest.raises(
        ConfigError, match=r"on_error='skip' must be one of \('raise', 'skip-window'\)"
    ):
        ParquetDataset(damaged, on_error="skip")


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("way", ["threads", "cluster", "workers"])
def test_other_rows_come_instead_in_as_many_batches(
    damaged, local_cluster, caplog, shuffle, way
):
    with ParquetDataset(
        damaged,
        client=local_cluster if way == "cluster" else "threads",
        on_error="skip-window",
        shuffle=shuffle,
        num_splits=2,
        **OPTIONS,
    ) as dataset:
        loader = DataLoader(dataset, num_workers=2) if way == "workers" else dataset
        batches = list(loader)
        assert [len(batch["id"]) for batch in batches] == [50] * len(dataset)
        own, copies = rows_of(batches)
        assert sorted(own) == sorted(set(range(NUM_ROWS)) - BAD_ROWS)
        assert len(copies) == len(BAD_ROWS)
        assert not set(copies) & BAD_ROWS
        stats = dataset.stats()
        assert stats["skipped_rows"] == len(BAD_ROWS)
        told = dataset.skipped
        assert stats["skipped_windows"] == len(told)
        assert sum(each["rows"] for each in told) == len(BAD_ROWS)
        assert {each["epoch"] for each in told} == {0}
        for group in BAD:
            assert any(f"row group {group} of" in each["what"] for each in told)
    if way != "workers":  # theirs is another process's log
        texts = [r.message for r in caplog.records if r.levelno == logging.WARNING]
        assert len([t for t in texts if t.startswith("skipped ")]) == len(told)


def test_the_first_windows_may_be_the_bad_ones(damaged):
    damage(damaged, {0, 1})
    with ParquetDataset(
        damaged, client="threads", on_error="skip-window", **OPTIONS
    ) as dataset:
        own, copies = rows_of(list(dataset))
        assert len(own) == NUM_ROWS - len(BAD_ROWS) - 2 * GROUP_ROWS
        assert own[:100] == list(range(200, 300))
        assert len(own) + len(copies) == NUM_ROWS


def test_where_nothing_can_be_read_the_first_error_comes(damaged):
    damage(damaged, set(range(20)) - BAD)
    with (
        ParquetDataset(
            damaged, client="threads", on_error="skip-window", **OPTIONS
        ) as dataset,
        pytest.raises(BadFileError, match="row group 0 of"),
    ):
        list(dataset)


def test_all_ranks_stay_in_step_and_skip_the_same_rows(damaged):
    found: collections.Counter[int] = collections.Counter()
    steps = []
    for rank in range(3):
        with ParquetDataset(
            damaged,
            client="threads",
            on_error="skip-window",
            rank=rank,
            world_size=3,
            shuffle=True,
            **OPTIONS,
        ) as dataset:
            batches = list(dataset)
            steps.append([len(batch["id"]) for batch in batches])
            found.update(rows_of(batches)[0])
    assert steps[0] == steps[1] == steps[2]
    assert found == dict.fromkeys(set(range(NUM_ROWS)) - BAD_ROWS, 1)


def test_a_state_keeps_what_was_skipped_and_goes_on(damaged):
    with ParquetDataset(
        damaged, client="threads", on_error="skip-window", **OPTIONS
    ) as dataset:
        batches = iter(dataset)
        first = [next(batches) for _ in range(9)]  # into row group 4
        state = dataset.state_dict()
        batches.close()
        assert [each["rows"] for each in state["skipped"]] == [100, 100]
    with ParquetDataset(
        damaged, client="threads", on_error="skip-window", **OPTIONS
    ) as dataset:
        dataset.load_state_dict(state)
        assert dataset.skipped == state["skipped"]
        own, _copies = rows_of(first + list(dataset))
        assert sorted(own) == sorted(set(range(NUM_ROWS)) - BAD_ROWS)
        # The window that the state stands in is skipped a second time.
        assert [each["what"] for each in dataset.skipped] == [
            f"row group {group} of '{damaged}'" for group in (3, 4, 4, 11)
        ]


@pytest.mark.parametrize(
    "skipped",
    [
        "all",
        [1],
        [{"epoch": 0}],
        [{"epoch": -1, "what": "", "rows": 1}],
        [{"epoch": 0, "what": 3, "rows": 1}],
        [{"epoch": 0, "what": "", "rows": 1}] * 1001,
    ],
)
def test_a_state_that_is_damaged_there_is_refused(damaged, skipped):
    with ParquetDataset(damaged, client="threads", **OPTIONS) as dataset:
        state = {**dataset.state_dict(), "skipped": skipped}
        with pytest.raises(
            ResumeError, match=r"the state has skipped=.*; it is damaged"
        ):
            dataset.load_state_dict(state)


# ---- on a cluster -------------------------------------------------------------------


class Poison:
    """A transform that kills the process that meets row 700."""

    def __call__(self, table: pa.Table) -> pa.Table:
        if 700 in table["id"].to_numpy():
            os.kill(os.getpid(), signal.SIGKILL)
        return table


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.faults
def test_a_row_group_that_kills_each_worker_is_skipped_and_no_other(tmp_path):
    ids = np.arange(NUM_ROWS)
    path = tmp_path / "poison.parquet"
    table = pa.table({"id": ids, "text": [f"row {i}" for i in ids]})
    pq.write_table(table, path, row_group_size=GROUP_ROWS)
    # The scheduler lives in this process.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        cluster.launch("local", workers=2) as launched,
    ):
        with ParquetDataset(
            path, client=launched, transform=Poison(), on_error="skip-window", **OPTIONS
        ) as dataset:
            own, copies = rows_of(list(dataset))
            # Whoever waited on a worker that was killed is not taken for guilty.
            assert own == [i for i in range(NUM_ROWS) if not 700 <= i < 800]
            assert len(copies) == 100
