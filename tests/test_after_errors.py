"""What comes after an error in the middle of an epoch: what was left of the epoch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader import DataLoader, ParquetDataset, TransformError

NUM_ROWS = 4000
OPTIONS: dict[str, Any] = {"shuffle": True, "shuffle_window": 100, "client": "threads"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"id": np.arange(NUM_ROWS)}), path, row_group_size=100)
    return path


def _fail_while(flag: Path, bad: int, table: pa.Table) -> pa.Table:
    if flag.exists() and bad in table["id"].to_pylist():
        raise ValueError("not now")
    return table


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """As long as it is there the window of a bad row cannot be read."""
    flag = tmp_path / "flag"
    flag.touch()
    return flag


def _take(batches: Any, got: list[list[int]]) -> None:
    for batch in batches:
        got.append(np.atleast_1d(batch["id"]).tolist())


# How batches are asked for; None of workers: of the dataset itself.
@pytest.mark.parametrize(
    ("batch_size", "num_workers"), [(70, None), (None, None), (70, 0), (70, 1)]
)
def test_the_next_iteration_goes_on_where_an_error_came(
    data: Path, flag: Path, batch_size: int | None, num_workers: int | None
) -> None:
    options = OPTIONS | {"batch_size": batch_size}
    with ParquetDataset(data, **options) as dataset:
        wanted: list[list[list[int]]] = [[], []]
        for epoch in wanted:
            _take(dataset, epoch)
    bad = [i for batch in wanted[0] for i in batch][NUM_ROWS // 2]
    transform = partial(_fail_while, flag, bad)
    with ParquetDataset(data, transform=transform, **options) as dataset:
        loop = (
            dataset
            if num_workers is None
            else DataLoader(dataset, num_workers=num_workers)
        )
        got: list[list[int]] = []
        for _ in range(2):  # nothing comes the second time
            with pytest.raises(TransformError, match="not now"):
                _take(loop, got)
            assert 0 < len(got) < len(wanted[0])
            state = loop.state_dict()
        flag.unlink()
        with ParquetDataset(data, transform=transform, **options) as another:
            another.load_state_dict(state)
            rest: list[list[int]] = []
            _take(another, rest)
            assert got + rest == wanted[0]
        _take(loop, got)
        assert got == wanted[0]
        got = []
        _take(loop, got)
        assert got == wanted[1]


def test_another_epoch_that_is_set_after_an_error_warns_of_what_will_not_come(
    data: Path, flag: Path
) -> None:
    transform = partial(_fail_while, flag, NUM_ROWS // 2)
    with ParquetDataset(
        data, transform=transform, batch_size=70, **OPTIONS | {"shuffle": False}
    ) as dataset:
        with pytest.raises(TransformError, match="not now"):
            list(dataset)
        with pytest.warns(
            UserWarning, match=r"set_epoch\(1\) drops .* in epoch 0: what was left of"
        ):
            dataset.set_epoch(1)
        flag.unlink()
        assert sum(len(b["id"]) for b in dataset) == NUM_ROWS


def test_an_iteration_that_is_only_left_is_not_gone_on_with(data: Path) -> None:
    with ParquetDataset(data, batch_size=70, **OPTIONS) as dataset:
        wanted = [[b["id"].tolist() for b in dataset] for _ in range(2)]
        dataset.set_epoch(0)
        for _ in dataset:
            break
        assert [b["id"].tolist() for b in dataset] == wanted[1]
