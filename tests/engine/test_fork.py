"""A process that was forked from one that had used the cluster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader import DataLoader, ParquetDataset
from dask_loader.engine.share import HAND_OVER_VARIABLE

pytestmark = pytest.mark.cluster


def test_large_windows_come_over_the_comm_in_a_forked_worker_too(
    tmp_path: Path, local_cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Above 10 MiB distributed unpickles in a thread, which a fork leaves behind.
    monkeypatch.setenv(HAND_OVER_VARIABLE, "comm")
    rows = np.arange(2_000_000)
    pq.write_table(pa.table({"x": rows}), tmp_path / "a.parquet")
    with ParquetDataset(
        str(tmp_path), batch_size=500_000, client=local_cluster
    ) as dataset:
        here = [batch["x"].tolist() for batch in DataLoader(dataset)]
        loader = DataLoader(dataset, num_workers=1, multiprocessing_context="fork")
        forked = [batch["x"].tolist() for batch in loader]
    assert [x for batch in here for x in batch] == rows.tolist()
    assert forked == here
