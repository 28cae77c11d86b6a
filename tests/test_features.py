"""features= and dtypes= through the whole dataset."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dask_loader import CastError, ColumnError, DataLoader, NullError, ParquetDataset

NUM_ROWS = 2003


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(3)
    for part in range(3):
        rows = range(part * 700, min(NUM_ROWS, (part + 1) * 700))
        table = pa.table(
            {
                "id": pa.array(rows, pa.int64()),
                "f": pa.array(rng.standard_normal(len(rows)), pa.float32()),
                "d": pa.array(rng.standard_normal(len(rows)), pa.float64()),
                "i": pa.array(rng.integers(-99, 99, len(rows)), pa.int32()),
                "b": pa.array(rng.integers(0, 2, len(rows)), pa.int8()).cast(
                    pa.bool_()
                ),
                "n": pa.array([None if r % 7 == 0 else r for r in rows], pa.int16()),
                "s": [f"row {r}" for r in rows],
            }
        )
        pq.write_table(table, path / f"{part}.parquet", row_group_size=200)
    return str(path)


OPTIONS = {"batch_size": 64, "client": "threads", "shuffle_window": 150}
COLUMNS = ["id", "f", "d", "i", "b", "s"]


def read(folder: str, *, num_workers: int = 0, **options):
    with ParquetDataset(folder, **{**OPTIONS, **options}) as dataset:
        return list(DataLoader(dataset, num_workers=num_workers))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_splits", [1, 3])
def test_a_feature_holds_its_columns_side_by_side(folder, shuffle, num_splits) -> None:
    order = {"shuffle": shuffle, "num_splits": num_splits, "columns": COLUMNS}
    plain = read(folder, **order)
    stacked = read(folder, **order, features={"x": ["i", "f", "d"]})
    assert len(plain) == len(stacked)
    for want, got in zip(plain, stacked, strict=True):
        assert list(got) == ["id", "x", "b", "s"]
        assert got["x"].dtype == torch.float64
        assert got["x"].shape == (len(want["id"]), 3)
        for column, name in enumerate(("i", "f", "d")):
            assert torch.equal(got["x"][:, column], want[name].double())
        assert torch.equal(got["id"], want["id"])
        assert got["s"] == want["s"]


CASTS = {
    "columns": COLUMNS,
    "shuffle": True,
    "features": {"x": ["d", "b"]},
    "dtypes": {"x": torch.float32, "i": "float64"},
}


def check_casts(want, got) -> None:
    assert len(want) == len(got)
    for one, other in zip(want, got, strict=True):
        assert {n: v.dtype for n, v in one.items() if n != "s"} == {
            "id": torch.int64,
            "f": torch.float32,
            "x": torch.float32,
            "i": torch.float64,
        }
        assert one["s"] == other["s"]
        assert all(torch.equal(one[n], other[n]) for n in one if n != "s")


def test_dataloader_workers_deliver_the_same(folder) -> None:
    check_casts(read(folder, **CASTS), read(folder, **CASTS, num_workers=2))


@pytest.mark.cluster
def test_a_cluster_delivers_the_same(folder, local_cluster) -> None:
    options = {**CASTS, "client": local_cluster}
    for num_workers in (0, 1):
        got = read(folder, **options, num_workers=num_workers)
        check_casts(read(folder, **CASTS), got)


def test_a_feature_may_be_written_into(folder) -> None:
    want = [
        b["x"].clone() for b in read(folder, features={"x": ["f", "d"]}, columns=["id"])
    ]
    with ParquetDataset(
        folder, **OPTIONS, columns=["id"], features={"x": ["f", "d"]}
    ) as dataset:
        for batch, before in zip(dataset, want, strict=True):
            assert torch.equal(batch["x"], before)
            batch["x"].zero_()


@pytest.mark.parametrize("num_splits", [1, 2])
def test_dtypes_leave_the_order_as_it_is(folder, num_splits) -> None:
    # Windows are reckoned in the files' own widths.
    order = {"shuffle": True, "shuffle_window": "4 KB", "num_splits": num_splits}
    plain = read(folder, **order, columns=["id", "b"])
    wide = read(folder, **order, columns=["id", "b"], dtypes={"b": torch.float64})
    assert [b["id"].tolist() for b in plain] == [b["id"].tolist() for b in wide]


def test_a_state_fits_a_dataset_with_other_dtypes(folder) -> None:
    with ParquetDataset(
        folder, **OPTIONS, columns=["id", "i"], shuffle=True
    ) as dataset:
        epoch = iter(dataset)
        for _ in range(7):
            next(epoch)
        state = dataset.state_dict()
        left = [batch["id"].tolist() for batch in epoch]
    with ParquetDataset(
        folder,
        **OPTIONS,
        columns=["id", "i"],
        shuffle=True,
        dtypes={"i": torch.float32},
        num_splits=state["stages"][-1][1],
    ) as other:
        other.load_state_dict(state)
        assert [batch["id"].tolist() for batch in other] == left


def test_nulls_of_integers_become_nan_where_floats_were_asked_for(folder) -> None:
    batches = read(
        folder, columns=["id", "n"], dtypes={"n": torch.float32}, nulls="nan"
    )
    ids = torch.cat([b["id"] for b in batches])
    numbers = torch.cat([b["n"] for b in batches])
    assert torch.equal(numbers.isnan(), ids % 7 == 0)
    assert torch.equal(numbers[ids % 7 != 0], ids[ids % 7 != 0].float())
    with pytest.raises(NullError, match="column 'n' has"):
        read(folder, columns=["id", "n"], dtypes={"n": torch.float32})


def test_a_number_that_does_not_fit_names_column_file_and_way_out(folder) -> None:
    with pytest.raises(
        CastError,
        match=r"column 'id' is to be delivered as int8, and in .*0\.parquet', row group "
        r"0: 199 does not fit int8, which holds -128 to 127; choose another dtype with "
        r"dtypes=\{'id': \.\.\.\}",
    ) as caught:
        read(folder, columns=["id"], dtypes={"id": torch.int8})
    assert (caught.value.column, caught.value.row_group) == ("id", 0)


def test_a_feature_without_a_dtype_refuses_to_round(tmp_path) -> None:
    table = pa.table(
        {"big": [2**53 + 1, 1], "half": pa.array([0.5, 1.5], pa.float32())}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    options = {"batch_size": 2, "client": "threads", "features": {"x": ["big", "half"]}}
    with (
        ParquetDataset(str(tmp_path), **options) as dataset,
        pytest.raises(CastError, match=f"{2**53 + 1} does not fit float64.* exactly"),
    ):
        list(dataset)
    with ParquetDataset(str(tmp_path), **options, dtypes={"x": "float64"}) as dataset:
        assert next(iter(dataset))["x"][0, 0] == float(2**53)


def test_wrong_names_are_refused_when_the_dataset_is_made(folder) -> None:
    with pytest.raises(ColumnError, match="feature 'x' names column 'z'"):
        ParquetDataset(folder, client="threads", features={"x": ["z"]})


def test_single_rows_have_features_as_arrays(folder) -> None:
    with ParquetDataset(
        folder,
        client="threads",
        batch_size=None,
        columns=["id", "f"],
        features={"x": ["i", "d"]},
    ) as dataset:
        row = next(iter(dataset))
    assert list(row) == ["id", "f", "x"]
    assert row["x"].shape == (2,)


def test_a_plan_that_wider_dtypes_do_not_let_fit_is_refused(folder) -> None:
    options = {**OPTIONS, "columns": ["b"], "num_splits": 2, "memory_limit": "1 KB"}
    with ParquetDataset(folder, **options) as dataset:
        assert sum(len(batch["b"]) for batch in dataset) == NUM_ROWS
    with (
        ParquetDataset(folder, **options, dtypes={"b": "float64"}) as dataset,
        pytest.raises(
            ValueError, match=r"needs 2 windows of .* memory_limit is 1000 B"
        ),
    ):
        list(dataset)
