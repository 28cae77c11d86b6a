"""provenance=True: where each row came from, however it is read, and nothing else new."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader as TorchDataLoader

from dask_loader import ConfigError, DataLoader, ParquetDataset
from dask_loader.catalog.provenance import NAMES, public_path
from dask_loader.read import pieces

FILE, ROW_GROUP, ROW, PADDED = NAMES
NUM_ROWS = 1009
Place = tuple[str, int, int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files with row groups of 67 rows; `id` is the row's number."""
    path = tmp_path_factory.mktemp("origin")
    rng = np.random.default_rng(0)
    ids = np.arange(NUM_ROWS)
    table = pa.table(
        {
            "id": ids,
            "f": rng.random(NUM_ROWS, dtype=np.float32),
            "i": ids.astype(np.int32),
            "n": pa.array([None if i % 7 == 0 else i for i in ids], pa.int16()),
            "vec": pa.FixedSizeListArray.from_arrays(rng.random(NUM_ROWS * 2), 2),
            "s": [f"row {i}" * (i % 3) for i in ids],
        }
    )
    for number, (start, stop) in enumerate(((0, 400), (400, 401), (401, NUM_ROWS))):
        part = table.slice(start, stop - start)
        pq.write_table(part, path / f"part-{number}.parquet", row_group_size=67)
    return path


def places(path: Path) -> dict[int, Place]:
    """Return where each id lies, as pyarrow alone reads the files."""
    found = {}
    for name in sorted(path.glob("*.parquet")):
        file = pq.ParquetFile(name)
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["id"])["id"].to_pylist()
            found.update({i: (str(name), group, row) for row, i in enumerate(ids)})
    return found


OPTIONS: dict[str, Any] = {"batch_size": 48, "client": "threads", "shuffle_window": 150}
NULLS = {"n": -1}


def read(path: Path, *, num_workers: int = 0, **options: Any) -> list[Any]:
    with ParquetDataset(path, **OPTIONS | {"nulls": NULLS} | options) as dataset:
        return list(DataLoader(dataset, num_workers=num_workers))


def check(batches: list[Any], truth: dict[int, Place], name: str = "id") -> list[int]:
    """Check each row's place; return the ids."""
    for batch in batches:
        ids = batch[name].tolist()
        assert isinstance(batch[FILE], list)
        dtypes = [batch[n].dtype for n in (ROW_GROUP, ROW, PADDED)]
        assert dtypes == [torch.int32, torch.int64, torch.bool]
        assert batch[PADDED].shape == (len(ids),)
        groups, rows = batch[ROW_GROUP].tolist(), batch[ROW].tolist()
        given = list(zip(batch[FILE], groups, rows, strict=True))
        assert given == [truth[i] for i in ids]
    return list(chain.from_iterable(batch[name].tolist() for batch in batches))


def without(batches: list[Any]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield {name: column for name, column in batch.items() if name not in NAMES}


def same(got: Any, want: Any) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return all(
        list(a) == list(b) and all(equal(a[n], b[n]) for n in b)
        for a, b in zip(got, want, strict=True)
    )


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle_window": 7},
        {"shuffle_window": "2 KB"},
        {"filters": [("id", ">", 500)]},
        {"filters": pc.field("n").is_null(), "columns": ["id", "s"]},
        {"columns": ["s", "id"], "num_splits": 3},
        {"filters": [("f", "<", 0.2)], "shuffle_window": 11, "num_splits": 2},
    ],
    ids=str,
)
def test_each_row_tells_its_place_and_the_batches_are_the_same(
    folder, shuffle, options
):
    options = {"shuffle": shuffle, **options}
    if "columns" in options:
        options["nulls"] = "error"
    batches = read(folder, provenance=True, **options)
    assert list(batches[0])[-4:] == list(NAMES)
    ids = check(batches, places(folder))
    table = pq.read_table(folder)
    if isinstance(options.get("filters"), list):
        table = table.filter(pq.filters_to_expression(options["filters"]))
    elif "filters" in options:
        table = table.filter(options["filters"])
    assert sorted(ids) == table["id"].to_pylist()
    assert not any(batch[PADDED].any() for batch in batches)
    assert same(without(batches), read(folder, **options))


def test_features_and_dtypes_stand_beside_it(folder):
    options = {
        "shuffle": True,
        "features": {"x": ["f", "i"]},
        "dtypes": {"x": torch.float32, "n": "float64"},
    }
    batches = read(folder, provenance=True, **options)
    assert list(batches[0]) == ["id", "x", "n", "vec", "s", *NAMES]
    check(batches, places(folder))
    assert same(without(batches), read(folder, **options))


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_our_dataloaders_workers_send_it_with_their_windows(
    folder, world_size, num_workers
):
    options = {"shuffle": True, "rank": 0, "world_size": world_size, "provenance": True}
    batches = read(folder, num_workers=num_workers, **options)
    check(batches, places(folder))
    assert same(batches, read(folder, **options))


def test_torchs_dataloader_and_its_workers_bring_it_too(folder):
    options = {**OPTIONS, "shuffle": True, "nulls": NULLS, "provenance": True}
    with ParquetDataset(folder, **options) as dataset:
        for num_workers in (0, 2):
            dataset.set_epoch(0)
            loader = TorchDataLoader(dataset, batch_size=None, num_workers=num_workers)
            assert sorted(check(list(loader), places(folder))) == list(range(NUM_ROWS))


@pytest.mark.cluster
@pytest.mark.parametrize("way", ["memory", "comm"])
def test_a_cluster_hands_it_over_either_way(folder, local_cluster, monkeypatch, way):
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", way)
    for options in ({"shuffle": True}, {"filters": [("id", ">", 9)]}):
        options |= {"provenance": True}
        batches = read(folder, client=local_cluster, **options)
        check(batches, places(folder))
        assert same(batches, read(folder, **options))


@pytest.mark.parametrize("filters", [None, [("id", ">=", 10)]])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_row_group_larger_than_a_window_counts_on_from_window_to_window(
    tmp_path, filters, shuffle
):
    ids = np.arange(9001)
    columns = {"id": ids, "x": ids * 0.5, "s": [f"{i}" for i in ids]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=9001)
    options = {
        "batch_size": 700,
        "shuffle_window": 1000,
        "filters": filters,
        "shuffle": shuffle,
        "nulls": "error",
    }
    for num_splits in (1, 3):
        batches = read(tmp_path, num_splits=num_splits, provenance=True, **options)
        got = check(batches, places(tmp_path))
        assert sorted(got) == ids[10 * (filters is not None) :].tolist()
        assert same(without(batches), read(tmp_path, num_splits=num_splits, **options))


@pytest.mark.parametrize("shuffle", [False, True])
def test_it_needs_no_column_of_the_file_to_be_decoded_beside(
    tmp_path, monkeypatch, shuffle
):
    # So many rows that each column is decoded alone.
    monkeypatch.setattr(pieces, "DECODING_BYTES", 1)
    monkeypatch.setattr(pieces, "_MAX_PIECE_ROWS", 300)
    pq.write_table(pa.table({"id": range(2000)}), tmp_path / "a.parquet")
    for window in (400, 1500, 5000):
        options = {"shuffle_window": window, "shuffle": shuffle, "nulls": "error"}
        batches = read(tmp_path, provenance=True, **options)
        assert sorted(check(batches, places(tmp_path))) == list(range(2000))


def test_texts_alone_have_it_too(folder):
    batches = read(folder, columns=["s"], nulls="error", provenance=True, shuffle=True)
    by_place = {place: f"row {i}" * (i % 3) for i, place in places(folder).items()}
    for batch in batches:
        numbers = (batch[name].tolist() for name in (ROW_GROUP, ROW))
        given = zip(batch[FILE], *numbers, strict=True)
        assert batch["s"] == [by_place[place] for place in given]


@pytest.mark.parametrize("uneven", ["pad", "drop", "exact"])
def test_copies_of_padding_are_flagged_and_nothing_else(folder, uneven):
    counts: dict[int, int] = {}
    flagged = []
    for rank in range(5):
        batches = read(
            folder,
            provenance=True,
            rank=rank,
            world_size=5,
            uneven=uneven,
            shuffle=True,
            batch_size=11,
        )
        for i in check(batches, places(folder)):
            counts[i] = counts.get(i, 0) + 1
        for batch in batches:
            flagged += batch["id"][batch[PADDED]].tolist()
        # A copy is the last row of the last batch.
        assert not any(batch[PADDED][:-1].any() for batch in batches)
        assert not any(batch[PADDED].any() for batch in batches[:-1])
    assert sorted(flagged) == sorted(i for i, n in counts.items() if n > 1)
    assert len(flagged) == (-NUM_ROWS % 5 if uneven == "pad" else 0)
    assert len(counts) == NUM_ROWS - (NUM_ROWS % 5 if uneven == "drop" else 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_single_rows_have_numpy_scalars_and_the_file_as_text(folder, num_workers):
    truth = places(folder)
    options = {**OPTIONS, "batch_size": None, "provenance": True, "shuffle": True}
    ids, flags = [], 0
    for rank in range(2):
        with ParquetDataset(
            folder, **options, columns=["id"], rank=rank, world_size=2
        ) as dataset:
            for row in TorchDataLoader(
                dataset, batch_size=None, num_workers=num_workers, collate_fn=list_of
            ):
                assert [type(row[name]) for name in NAMES] == [
                    str,
                    np.int32,
                    np.int64,
                    np.bool_,
                ]
                assert (row[FILE], row[ROW_GROUP], row[ROW]) == truth[row["id"]]
                flags += row[PADDED]
                ids += [] if row[PADDED] else [int(row["id"])]
    assert sorted(ids) == list(range(NUM_ROWS))
    assert flags == 1


def list_of(row: Any) -> Any:
    return row


def test_the_schema_names_the_new_columns_after_the_data(folder):
    with ParquetDataset(
        folder, client="threads", nulls=NULLS, provenance=True
    ) as dataset:
        assert dataset.schema.names == ["id", "f", "i", "n", "vec", "s", *NAMES]
        types = [dataset.schema.field(name).type for name in NAMES]
        assert types == [pa.string(), pa.int32(), pa.int64(), pa.bool_()]


def test_a_state_goes_from_a_dataset_without_to_one_with_it(folder):
    options = {**OPTIONS, "shuffle": True, "nulls": NULLS, "shuffle_window": "3 KB"}
    with ParquetDataset(folder, **options) as plain:
        batches = iter(plain)
        next(batches)
        state = plain.state_dict()
        rest = list(batches)
    with ParquetDataset(folder, **options, provenance=True) as dataset:
        assert dataset.explain().splitlines()[2] == plain_order(folder, options)
        dataset.load_state_dict(state)
        assert same(without(list(dataset)), rest)


def test_rows_that_are_dealt_anew_over_other_splits_keep_their_places(folder):
    options = {**OPTIONS, "shuffle": True, "nulls": NULLS, "provenance": True}
    with ParquetDataset(folder, **options, num_splits=2) as dataset:
        batches = iter(dataset)
        first = [next(batches) for _ in range(3)]
        state = dataset.state_dict()
        del batches
    with ParquetDataset(folder, **options, num_splits=5) as dataset:
        with pytest.warns(UserWarning, match="dealt anew"):
            dataset.load_state_dict(state)
        ids = check(first + list(dataset), places(folder))
    assert sorted(ids) == list(range(NUM_ROWS))


def plain_order(folder: Path, options: dict[str, Any]) -> str:
    with ParquetDataset(folder, **options) as dataset:
        return dataset.explain().splitlines()[2]


def test_partitions_for_dask_have_the_data_alone(folder):
    with ParquetDataset(
        folder, client="threads", provenance=True, nulls=NULLS
    ) as dataset:
        (table, *_) = (part.compute() for part in dataset.to_delayed())
        assert table.schema.names == ["id", "f", "i", "n", "vec", "s"]


@pytest.mark.parametrize("name", NAMES)
def test_a_column_of_the_same_name_is_refused_only_where_it_is_read(tmp_path, name):
    table = pa.table({"id": range(5), name: range(5, 10)})
    pq.write_table(table, tmp_path / "a.parquet")
    text = f"provenance=True adds a column {name!r}.*has this name already; rename it"
    more: dict[str, Any]
    for more in (
        {},
        {"columns": ["id"], "filters": [(name, ">", 6)]},
        {"columns": ["id"], "features": {name: ["id"]}},
    ):
        with pytest.raises(ConfigError, match=text):
            ParquetDataset(tmp_path, client="threads", provenance=True, **more)
    (batch,) = read(tmp_path, columns=["id"], nulls="error", provenance=True)
    assert batch[ROW].tolist() == list(range(5))
    (batch,) = read(tmp_path, nulls="error")
    assert batch[name].tolist() == list(range(5, 10))


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_provenance_is_true_or_false(folder, value):
    with pytest.raises(
        ConfigError, match=f"provenance={value!r} must be True or False"
    ):
        ParquetDataset(folder, client="threads", provenance=value)


def test_memory_limit_counts_it(tmp_path):
    # One byte a row in the file, 17 with provenance.
    table = pa.table({"x": np.zeros(2_000_000, np.int8)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100_000)
    options = {"shuffle_window": "1 MiB", "memory_limit": "8 MiB", "num_splits": 1}
    assert len(read(tmp_path, batch_size=500_000, nulls="error", **options)) == 4
    with pytest.raises(ConfigError, match="needs 1 windows of 17"):
        read(tmp_path, batch_size=500_000, nulls="error", provenance=True, **options)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/data/a?token=b.parquet", "/data/a?token=b.parquet"),
        ("bucket/key=7/a.parquet", "bucket/key=7/a.parquet"),
        ("https://me:secret@host:8/a.parquet", "https://host:8/a.parquet"),
        ("https://host/a@b.parquet", "https://host/a@b.parquet"),
        (
            "https://host/a.parquet?part=2&X-Amz-Signature=abc&sig=d#x",
            "https://host/a.parquet?part=2&X-Amz-Signature=***&sig=***#x",
        ),
    ],
)
def test_a_files_name_holds_no_passwords(path, shown):
    assert public_path(path) == shown
