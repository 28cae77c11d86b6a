"""output_format=: the same rows as tensors, NumPy arrays or Arrow tables."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader as TorchDataLoader

from dask_loader import ConfigError, DataLoader, ParquetDataset, Ragged

ROWS = 997


def table_of(ids: np.ndarray[Any, Any]) -> pa.Table:
    """Columns of all kinds that Parquet nests, with nulls at every level."""
    every = ids.tolist()
    structs = [None if i % 7 == 0 else {"a": i, "b": [str(i)] * (i % 3)} for i in every]
    lists = [None if i % 5 == 0 else [i, None, i + 1][: i % 4] for i in every]
    maps = [None if i % 9 == 0 else [(f"k{i}", i)] * (i % 3) for i in every]
    words = pa.array([None if i % 4 == 0 else f"w{i % 10}" for i in every])
    return pa.table(
        {
            "id": ids,
            "x": pa.array(ids * 0.5, mask=ids % 6 == 0),
            "s": pa.array(structs),
            "l": pa.array(lists, pa.list_(pa.int16())),
            "m": pa.array(maps, pa.map_(pa.string(), pa.int64())),
            "d": words.dictionary_encode(),
            "big": pa.array(every, pa.decimal128(38, 2)),
            "when": pa.array(ids, pa.timestamp("ms", tz="Europe/Paris")),
            "v": pa.array(
                [[float(i), float(-i)] for i in every], pa.list_(pa.float32(), 2)
            ),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("formats")
    for number, ids in enumerate(np.array_split(np.arange(ROWS), 3)):
        pq.write_table(table_of(ids), made / f"{number}.parquet", row_group_size=130)
    return made


def dataset_of(path: Path, **options: Any) -> ParquetDataset:
    chosen = {"client": "threads", "batch_size": 100, **options}
    return ParquetDataset(path, **chosen)


def check(tables: list[pa.Table]) -> list[int]:
    """Every value equals what was written for its id; returns the ids."""
    whole = pa.concat_tables(tables)
    ids = whole["id"].to_numpy()
    wanted = table_of(ids)
    assert whole.schema.names == wanted.schema.names
    for name in wanted.schema.names:
        assert whole[name].type == wanted[name].type
        assert whole[name].to_pylist() == wanted[name].to_pylist(), name
    return ids.tolist()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("filters", [None, [("d", "in", ["w1", "w2", "w3"])]])
def test_tables_have_every_value_in_its_own_type(
    folder: Path, shuffle: bool, filters: Any
) -> None:
    options = {"shuffle": shuffle, "shuffle_window": 200, "filters": filters}
    with dataset_of(folder, output_format="arrow", **options) as dataset:
        tables = list(dataset)
        assert all(isinstance(table, pa.Table) for table in tables)
        assert tables[0].schema == dataset.schema
    ids = check(tables)
    with dataset_of(folder, columns=["id"], **options) as dataset:
        assert ids == torch.cat([batch["id"] for batch in dataset]).tolist()


def test_row_groups_larger_than_windows_come_whole(folder: Path) -> None:
    with dataset_of(folder, output_format="arrow", shuffle_window=40) as dataset:
        assert check(list(dataset)) == list(range(ROWS))


@pytest.mark.parametrize(
    "make",
    [
        lambda d: DataLoader(d),
        lambda d: DataLoader(d, num_workers=2),
        lambda d: TorchDataLoader(d, batch_size=None, num_workers=2),
        lambda d: pickle.loads(pickle.dumps(d)),
    ],
    ids=["ours", "ours, 2 workers", "torch's, 2 workers", "pickled"],
)
def test_all_loaders_give_tables(folder: Path, make: Any) -> None:
    options = {"shuffle": True, "seed": 5, "shuffle_window": 150}
    with dataset_of(folder, output_format="arrow", **options) as dataset:
        wanted = list(dataset)
    with dataset_of(folder, output_format="arrow", **options) as dataset:
        loader = make(dataset)
        found = list(loader)
        if loader is not dataset and isinstance(loader, ParquetDataset):
            loader.close()
        del loader
    assert [table.to_pylist() for table in found] == [t.to_pylist() for t in wanted]


@pytest.mark.cluster
@pytest.mark.parametrize("way", ["memory", "comm"])
def test_a_cluster_gives_the_same_tables_and_arrays(
    folder: Path, local_cluster: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", way)
    options = {"shuffle": True, "shuffle_window": 150, "client": local_cluster}
    with dataset_of(folder, output_format="arrow", **options) as dataset:
        assert sorted(check(list(dataset))) == list(range(ROWS))
    columns = ["id", "v"]
    with dataset_of(
        folder, output_format="numpy", columns=columns, **options
    ) as dataset:
        for batch in dataset:
            assert batch["v"][:, 0].tolist() == batch["id"].tolist()


def test_a_resumed_run_goes_on_in_the_middle_also_with_pads(folder: Path) -> None:
    options = {"shuffle": True, "shuffle_window": 150, "world_size": 2, "rank": 1}
    with dataset_of(folder, output_format="arrow", **options) as dataset:
        whole = [table.to_pylist() for table in dataset]
    with dataset_of(folder, output_format="arrow", **options) as dataset:
        batches = iter(dataset)
        next(batches)
        state = json.loads(json.dumps(dataset.state_dict()))
        batches.close()  # type: ignore[attr-defined]
        dataset.load_state_dict(state)
        assert [table.to_pylist() for table in dataset] == whole[1:]
    assert len(whole[-1]) == 99  # 997 rows on 2 ranks: one comes twice


def test_columns_are_chosen_as_files_nest_them_and_flat(folder: Path) -> None:
    with dataset_of(
        folder, output_format="arrow", columns=["s", "s.a", "id"], provenance=True
    ) as dataset:
        table = next(iter(dataset))
    assert table.schema.names[:3] == ["s", "s.a", "id"]
    assert table["s.a"].to_pylist() == [s and s["a"] for s in table["s"].to_pylist()]
    assert table["__row__"].to_pylist() == list(range(100))
    assert table["__file__"][0].as_py().endswith("0.parquet")
    assert not any(table["__padded__"].to_pylist())


def test_a_transform_may_make_columns_of_any_type(folder: Path) -> None:
    def months(table: pa.Table) -> pa.Table:
        assert pa.types.is_struct(table["s"].type)
        kind = pa.month_day_nano_interval()
        made = [(i, 0, 0) for i in table["id"].to_pylist()]
        return pa.table({"m": pa.array(made, kind), "d": table["d"]})

    with dataset_of(
        folder, output_format="arrow", columns=["id", "s", "d"], transform=months
    ) as dataset:
        table = next(iter(dataset))
        assert pa.types.is_dictionary(dataset.schema.field("d").type)
    assert [m.months for m in table["m"].to_pylist()] == list(range(100))


def test_a_batch_keeps_no_window_and_pickles_small(folder: Path) -> None:
    with dataset_of(
        folder, output_format="arrow", batch_size=5, columns=["id", "l"]
    ) as dataset:
        table = next(iter(dataset))
    assert table.get_total_buffer_size() < 2000
    assert len(pickle.dumps(table)) < 4000


def test_delayed_partitions_have_arrows_own_types(folder: Path) -> None:
    with dataset_of(folder, output_format="arrow") as dataset:
        parts = [part.compute(scheduler="sync") for part in dataset.to_delayed()]
    assert check(parts) == list(range(ROWS))


# ---- NumPy --------------------------------------------------------------------------


def test_arrays_equal_tensors(folder: Path) -> None:
    options = {
        "columns": ["id", "x", "l", "v", "s.b"],
        "nulls": {"x": 0.0, "l": -1, "s.b": ""},
        "dtypes": {"x": torch.float32},
    }
    with dataset_of(folder, **options) as dataset:
        wanted = list(dataset)
    for num_workers in (0, 2):
        with dataset_of(folder, output_format="numpy", **options) as dataset:
            loader = DataLoader(dataset, num_workers=num_workers)
            for batch, want in zip(loader, wanted, strict=True):
                for name in ("id", "x", "v"):
                    assert isinstance(batch[name], np.ndarray)
                    assert batch[name].dtype == want[name].numpy().dtype
                    assert np.array_equal(batch[name], want[name].numpy())
                    batch[name][...] = 0  # the caller's to write
                assert isinstance(batch["l"], Ragged)
                assert np.array_equal(batch["l"].values, want["l"].values.numpy())
                assert np.array_equal(batch["l"].offsets, want["l"].offsets.numpy())
                assert batch["s.b"].values == want["s.b"].values
            del loader


# ---- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"output_format": "pandas"}, r"output_format='pandas' must be one of"),
        (
            {"output_format": "arrow", "nulls": "nan"},
            r"nulls='nan' makes tensors, and output_format=\"arrow\" gives columns in",
        ),
        ({"output_format": "arrow", "features": {"f": ["x"]}}, "features={'f'"),
        ({"output_format": "arrow", "dtypes": {"x": "float32"}}, "dtypes={'x'"),
        ({"output_format": "arrow", "ragged": "nested"}, "ragged='nested' makes"),
        ({"output_format": "arrow", "batch_size": None}, "batch_size=None single rows"),
    ],
)
def test_what_does_not_go_together_is_refused(
    folder: Path, options: Any, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        dataset_of(folder, **options)


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"pin_memory": True}])
def test_what_is_for_tensors_is_refused_by_the_loader(
    folder: Path, options: Any
) -> None:
    with dataset_of(folder, output_format="arrow") as dataset:
        name = next(iter(options))
        with pytest.raises(ConfigError, match=f"{name}=.* is for tensors"):
            DataLoader(dataset, **options)


def test_filters_of_nested_columns_are_exact(folder: Path) -> None:
    with dataset_of(
        folder, output_format="arrow", filters=pc.field("s", "a") > 900
    ) as dataset:
        ids = check(list(dataset))
    assert ids == [i for i in range(901, ROWS) if i % 7]
