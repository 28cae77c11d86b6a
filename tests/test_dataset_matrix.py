"""Every way to read, at every world size: the rows as promised, the same batches."""

from __future__ import annotations

from collections import Counter
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader as TorchDataLoader

from dask_loader import DataLoader, ParquetDataset

WORLD_SIZES = (1, 2, 3, 5, 8)
UNEVEN = ("pad", "drop", "exact")
NUM_ROWS = 1009  # small_data's, a prime
BATCH_SIZE = 16
# Windows of 40 of the row groups' 67 rows: several for each split, and row groups that
# more than one window reads.
OPTIONS = {"batch_size": BATCH_SIZE, "shuffle_window": 40}


@pytest.fixture(scope="module")
def client(request) -> Any:
    """The value for client=, by name."""
    if request.param == "threads":
        return "threads"
    return request.getfixturevalue("local_cluster").address


def ids(batches: Any) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def read_ranks(path: Path, *, world_size: int, num_workers: int = 0, **options: Any):
    """Return each rank's batches of ids, and see that len() said how many."""
    ranks = []
    for rank in range(world_size):
        with ParquetDataset(
            path, rank=rank, world_size=world_size, **options
        ) as dataset:
            promised = len(dataset)
            ranks.append(ids(DataLoader(dataset, num_workers=num_workers)))
            assert len(ranks[-1]) == promised
    return ranks


def check_promises(ranks: list, *, num_rows: int, uneven: str, drop_last=False) -> None:
    """Check the rows of an epoch against what `uneven` promises."""
    world_size = len(ranks)
    whole, tail = divmod(num_rows, BATCH_SIZE * world_size)
    tail = 0 if drop_last else tail
    counts = [len(batches) for batches in ranks]
    rows = Counter(chain.from_iterable(chain.from_iterable(ranks)))
    assert set(rows) <= set(range(num_rows))
    for batches in ranks:
        assert all(len(batch) == BATCH_SIZE for batch in batches[:whole])
        assert all(0 < len(batch) <= BATCH_SIZE for batch in batches[whole:])
    # What lies before the last, incomplete global batch comes once in all modes.
    before = Counter(chain.from_iterable(b for r in ranks for b in r[:whole]))
    assert before.total() == len(before) == num_rows - (num_rows % (16 * world_size))
    if drop_last:
        assert counts == [whole] * world_size
    elif uneven == "exact":
        assert rows.total() == len(rows) == num_rows
        assert counts == sorted(counts, reverse=True)
        assert counts[0] - counts[-1] <= 1
    elif uneven == "pad":
        assert len(rows) == num_rows
        assert rows.total() - num_rows == -tail % world_size < world_size
        assert counts == [whole + (tail > 0)] * world_size
    else:
        assert rows.total() == len(rows) == num_rows - tail % world_size
        assert counts == [whole + (tail >= world_size)] * world_size
    if uneven != "exact" and not drop_last:
        assert len({len(batch) for batches in ranks for batch in batches[-1:]}) <= 1


def matrix() -> list[Any]:
    """The product; what the ordinary run leaves out is slow."""
    params = []
    for case in product(("threads", "cluster"), WORLD_SIZES, (0, 2), UNEVEN):
        client, world_size, num_workers, uneven = case
        if client == "threads":
            ordinary = num_workers == 0 or world_size == 3
        else:
            ordinary = (world_size, uneven) == (2, "pad")
        marks = [] if ordinary else [pytest.mark.slow]
        marks += [pytest.mark.cluster] if client == "cluster" else []
        params.append(pytest.param(*case, marks=marks))
    return params


@pytest.mark.parametrize(
    ("client", "world_size", "num_workers", "uneven"), matrix(), indirect=["client"]
)
def test_every_row_comes_as_promised(
    small_data, client, world_size, num_workers, uneven
):
    for shuffle in (True, False):
        ranks = read_ranks(
            small_data,
            client=client,
            world_size=world_size,
            num_workers=num_workers,
            uneven=uneven,
            shuffle=shuffle,
            columns=["id", "f32"],
            **OPTIONS,
        )
        check_promises(ranks, num_rows=NUM_ROWS, uneven=uneven)


@pytest.mark.parametrize("num_splits", [1, 2, 5, 7, 12])
def test_any_number_of_splits_keeps_the_promises(small_data, num_splits):
    for world_size, uneven in product((2, 3, 8), UNEVEN):
        ranks = read_ranks(
            small_data,
            client="threads",
            world_size=world_size,
            uneven=uneven,
            shuffle=True,
            num_splits=num_splits,
            columns=["id"],
            **OPTIONS,
        )
        check_promises(ranks, num_rows=NUM_ROWS, uneven=uneven)


@pytest.fixture(scope="module")
def data_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")

    def make(num_rows: int) -> Path:
        path = folder / f"{num_rows}.parquet"
        if not path.exists():
            table = pa.table({"id": np.arange(num_rows)})
            pq.write_table(table, path, row_group_size=30)
        return path

    return make


@pytest.mark.parametrize(
    ("num_rows", "world_size"),
    [
        (0, 3),
        (1, 1),
        (1, 8),
        (3, 8),
        (8, 8),
        (15, 1),
        (16, 1),
        (48, 3),
        (49, 3),
        (95, 3),
    ],
)
def test_tails_of_any_size_keep_the_promises(data_of, num_rows, world_size):
    for uneven, shuffle in product(UNEVEN, (True, False)):
        ranks = read_ranks(
            data_of(num_rows),
            client="threads",
            world_size=world_size,
            uneven=uneven,
            shuffle=shuffle,
            **OPTIONS,
        )
        check_promises(ranks, num_rows=num_rows, uneven=uneven)


@pytest.mark.parametrize(("num_rows", "world_size"), [(3, 8), (96, 3), (1000, 3)])
def test_drop_last_leaves_off_what_is_not_whole(data_of, num_rows, world_size):
    for uneven in UNEVEN:
        ranks = read_ranks(
            data_of(num_rows),
            client="threads",
            world_size=world_size,
            uneven=uneven,
            drop_last=True,
            shuffle=True,
            **OPTIONS,
        )
        check_promises(ranks, num_rows=num_rows, uneven=uneven, drop_last=True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_filters_keep_the_promises(small_data, num_workers):
    ranks = read_ranks(
        small_data,
        client="threads",
        world_size=3,
        num_workers=num_workers,
        shuffle=True,
        filters=[("id", ">=", 200), ("u8", "<", 200)],
        **OPTIONS,
    )
    table = pq.read_table(small_data, filters=[("id", ">=", 200), ("u8", "<", 200)])
    rows = Counter(chain.from_iterable(chain.from_iterable(ranks)))
    assert set(rows) == set(table["id"].to_pylist())
    assert rows.total() - len(rows) == -(len(rows) % 48) % 3
    assert len({len(batches) for batches in ranks}) == 1


@pytest.mark.parametrize("client", ["threads"], indirect=True)
@pytest.mark.parametrize("world_size", [1, 4, 8])
@pytest.mark.parametrize("num_kept", [0, 1, 3, 40])
def test_filters_that_leave_few_rows_or_none_keep_equal_steps(
    tmp_path, client, num_kept, world_size
):
    # Statistics rule out nothing: each of the three row groups has small and large ids.
    spread = np.arange(60) * 7 % 60
    pq.write_table(pa.table({"id": spread}), tmp_path / "a.parquet", row_group_size=20)
    for uneven, shuffle in product(UNEVEN, (True, False)):
        ranks = read_ranks(
            tmp_path,
            client=client,
            world_size=world_size,
            uneven=uneven,
            shuffle=shuffle,
            filters=[("id", "<", num_kept)],
            **OPTIONS,
        )
        check_promises(ranks, num_rows=num_kept, uneven=uneven)


# ---- the same batches ---------------------------------------------------------------


def assert_equal_batches(got: list[dict], want: list[dict]) -> None:
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        assert list(mine) == list(theirs)
        for name, column in theirs.items():
            if isinstance(column, torch.Tensor):
                assert mine[name].dtype == column.dtype
                assert torch.equal(mine[name], column), name
            else:
                assert mine[name] == column, name


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("rank", "num_workers", "shuffle"),
    [(0, 1, True), (0, 2, True), (0, 2, False), (2, 3, True)],
)
def test_our_dataloaders_workers_change_no_bit(small_data, rank, num_workers, shuffle):
    with ParquetDataset(
        small_data,
        client="threads",
        rank=rank,
        world_size=3,
        shuffle=shuffle,
        **OPTIONS,
    ) as dataset:
        want = list(dataset)
        loader = DataLoader(dataset, num_workers=num_workers)
        loader.set_epoch(0)
        assert_equal_batches(list(loader), want)


@pytest.mark.cluster
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 3])
def test_threads_and_cluster_give_the_same_batches_bit_for_bit(
    small_data, local_cluster, world_size, shuffle
):
    for rank in range(world_size):
        both = []
        for client in ("threads", local_cluster):
            with ParquetDataset(
                small_data,
                client=client,
                rank=rank,
                world_size=world_size,
                shuffle=shuffle,
                **OPTIONS,
            ) as dataset:
                both.append(list(dataset))
        assert_equal_batches(*both)


def test_unshuffled_batches_of_one_rank_are_the_files_from_first_row_to_last(
    small_data,
):
    table = pq.read_table(small_data)
    with ParquetDataset(small_data, client="threads", **OPTIONS) as dataset:
        start = 0
        for batch in dataset:
            rows = table.slice(start, len(batch["id"]))
            start += rows.num_rows
            assert list(batch) == table.column_names
            for name in ("id", "f32", "f64", "u8", "i16"):
                column = rows[name].to_numpy()
                assert batch[name].numpy().dtype == column.dtype
                np.testing.assert_array_equal(batch[name].numpy(), column)
            assert batch["flag"].dtype == torch.bool
            assert batch["flag"].tolist() == rows["flag"].to_pylist()
            assert batch["when"].tolist() == rows["when"].cast("int64").to_pylist()
            assert batch["vec"].shape == (rows.num_rows, 3)
            assert batch["vec"].tolist() == rows["vec"].to_pylist()
            assert batch["name"] == rows["name"].to_pylist()
            assert batch["raw"] == rows["raw"].to_pylist()
        assert start == table.num_rows


@pytest.mark.parametrize(
    ("num_splits", "shuffle"), [(1, True), (4, True), (6, False), (30, True)]
)
def test_a_global_batch_has_the_same_rows_at_every_world_size(
    small_data, num_splits, shuffle
):
    global_batches = []
    for world_size in WORLD_SIZES:
        ranks = read_ranks(
            small_data,
            client="threads",
            world_size=world_size,
            uneven="exact",
            shuffle=shuffle,
            num_splits=num_splits,
            shuffle_window=25,
            columns=["id"],
            batch_size=240 // world_size,
        )
        steps = zip_longest(*ranks, fillvalue=[])
        global_batches.append([sorted(chain.from_iterable(step)) for step in steps])
    assert len(global_batches[0]) == 5
    assert all(other == global_batches[0] for other in global_batches[1:])


# ---- torch's own DataLoader ---------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("num_workers", "shuffle"), [(0, True), (2, True), (2, False), (3, True)]
)
def test_torchs_dataloader_gives_the_same_batches_in_the_same_order(
    small_data, num_workers, shuffle
):
    with ParquetDataset(
        small_data, client="threads", shuffle=shuffle, **OPTIONS
    ) as dataset:
        want = list(dataset)
        dataset.set_epoch(0)
        loader = TorchDataLoader(dataset, batch_size=None, num_workers=num_workers)
        assert len(loader) == len(want)
        assert_equal_batches(list(loader), want)


@pytest.mark.cluster
@pytest.mark.slow
def test_torchs_dataloader_on_a_cluster_gives_the_same_batches(
    small_data, local_cluster
):
    with ParquetDataset(
        small_data, client=local_cluster, shuffle=True, **OPTIONS
    ) as dataset:
        want = list(dataset)
        dataset.set_epoch(0)
        loader = TorchDataLoader(dataset, batch_size=None, num_workers=2)
        assert_equal_batches(list(loader), want)


@pytest.mark.parametrize(("num_workers", "world_size"), [(0, 3), (2, 1), (2, 3)])
def test_torchs_dataloader_over_rows_gives_each_row_once(
    small_data, world_size, num_workers
):
    rows: Counter[int] = Counter()
    for rank in range(world_size):
        with ParquetDataset(
            small_data,
            client="threads",
            rank=rank,
            world_size=world_size,
            uneven="exact",
            shuffle=True,
            shuffle_window=40,
            batch_size=None,
        ) as dataset:
            loader = TorchDataLoader(dataset, batch_size=64, num_workers=num_workers)
            batches = list(loader)
            mine = [i for batch in batches for i in batch["id"].tolist()]
            assert len(mine) == len(set(mine)) == len(dataset)
            rows.update(mine)
    assert rows == Counter(range(NUM_ROWS))


def test_rows_keep_their_numpy_dtypes_through_torchs_batching(small_data):
    table = pq.read_table(small_data)
    with ParquetDataset(small_data, client="threads", batch_size=None) as dataset:
        row = next(iter(dataset))
        want = {"id": "i8", "f32": "f4", "f64": "f8", "u8": "u1", "i16": "i2"}
        for name, dtype in want.items():
            assert isinstance(row[name], np.generic)
            assert row[name].dtype == dtype
            assert row[name] == table[name][0].as_py()
        assert isinstance(row["flag"], np.bool_)
        assert row["vec"].dtype == np.float32
        assert row["vec"].shape == (3,)
        assert isinstance(row["name"], str)
        assert isinstance(row["raw"], bytes)
        (batch, *_) = TorchDataLoader(dataset, batch_size=64)
        assert batch["id"].dtype == torch.int64
        assert batch["f32"].dtype == torch.float32
        assert batch["f64"].dtype == torch.float64
        assert batch["u8"].dtype == torch.uint8
        assert batch["i16"].dtype == torch.int16
        assert batch["flag"].dtype == torch.bool
        assert batch["vec"].shape == (64, 3)
        assert len(batch["name"]) == 64


def test_rows_of_one_rank_come_in_the_files_order_when_not_shuffled(small_data):
    with ParquetDataset(small_data, client="threads", batch_size=None) as dataset:
        assert [int(row["id"]) for row in dataset] == list(range(NUM_ROWS))
        assert len(dataset) == NUM_ROWS


@pytest.mark.parametrize("uneven", UNEVEN)
def test_ranks_get_rows_as_promised_without_batches_too(small_data, uneven):
    counts, rows = [], Counter()
    for rank in range(8):
        with ParquetDataset(
            small_data,
            client="threads",
            rank=rank,
            world_size=8,
            uneven=uneven,
            shuffle=True,
            batch_size=None,
        ) as dataset:
            mine = [int(row["id"]) for row in dataset]
            assert len(mine) == len(dataset)
            counts.append(len(mine))
            rows.update(mine)
    short = -NUM_ROWS % 8
    if uneven == "pad":
        assert len(set(counts)) == 1
        assert len(rows) == NUM_ROWS
        assert rows.total() == NUM_ROWS + short
    elif uneven == "drop":
        assert len(set(counts)) == 1
        assert rows.total() == len(rows) == NUM_ROWS - NUM_ROWS % 8
    else:
        assert max(counts) - min(counts) <= 1
        assert rows == Counter(range(NUM_ROWS))
