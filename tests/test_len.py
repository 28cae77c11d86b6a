"""len() is what an epoch then hands out, whatever the options are."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader as TorchDataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from dask_loader import DataLoader, ParquetDataset

NUM_ROWS = 53
# All rows; 31, known from reading only; 13, known from statistics too; none.
FILTERS = (None, [("parity", "!=", 0)], [("id", ">=", 40)], [("id", "<", 0)])
MODES = tuple(product(("pad", "drop", "exact"), (False, True)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("len") / "a.parquet"
    ids = range(NUM_ROWS)
    table = pa.table({"id": ids, "parity": [i % 5 * (i % 4) for i in ids]})
    pq.write_table(table, path, row_group_size=8)
    return path


def check(data: Path, *, world_size: int, batch_size: int | None) -> None:
    """Compare len() with what comes, on each rank, for all modes and filters."""
    for (uneven, drop_last), filters, shuffle in product(MODES, FILTERS, (True, False)):
        if drop_last and batch_size is None:
            continue  # refused: torch's loader has a drop_last of its own
        counts = []
        for rank in range(world_size):
            options: dict[str, Any] = {
                "rank": rank,
                "world_size": world_size,
                "batch_size": batch_size,
                "uneven": uneven,
                "drop_last": drop_last,
                "filters": filters,
                "shuffle": shuffle,
                "shuffle_window": 5,
            }
            with ParquetDataset(data, client="threads", **options) as dataset:
                counts.append(len(dataset))
                assert sum(1 for _ in dataset) == len(dataset) == counts[-1], options
        if uneven != "exact" or drop_last:
            assert len(set(counts)) == 1, (uneven, drop_last, filters)


@pytest.mark.parametrize(
    ("world_size", "batch_size"),
    [
        (3, 4),
        *(
            pytest.param(world_size, batch_size, marks=pytest.mark.slow)
            for world_size, batch_size in (
                *((1, 1), (1, None), (2, 4), (2, 60)),
                *((3, None), (8, 1), (8, 60)),
            )
        ),
    ],
)
def test_len_is_exact_in_all_modes_with_all_filters(
    data: Path, world_size: int, batch_size: int | None
) -> None:
    check(data, world_size=world_size, batch_size=batch_size)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_length_of_every_loader_is_the_datasets(
    data: Path, num_workers: int
) -> None:
    makers = (
        lambda dataset: DataLoader(dataset, num_workers=num_workers),
        lambda dataset: TorchDataLoader(
            dataset, batch_size=None, num_workers=num_workers
        ),
        lambda dataset: StatefulDataLoader(
            dataset, batch_size=None, num_workers=num_workers
        ),
    )
    for make, filters in product(makers, FILTERS):
        with ParquetDataset(
            data, client="threads", rank=1, world_size=2, batch_size=4, filters=filters
        ) as dataset:
            loader = make(dataset)
            assert sum(1 for _ in loader) == len(loader) == len(dataset)
            del loader


def test_len_is_that_of_a_whole_epoch_also_where_one_is_resumed(data: Path) -> None:
    with ParquetDataset(data, client="threads", batch_size=4) as dataset:
        dataset.seek(0, 9)
        assert len(dataset) == 14
        assert sum(1 for _ in dataset) == 5
        assert sum(1 for _ in dataset) == len(dataset)
