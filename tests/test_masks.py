"""nulls="mask": what is null is told, whatever its type and wherever it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_loader import ConfigError, DataLoader, NullError, ParquetDataset, Ragged

FIXED = pa.list_(pa.float32(), 2)
TYPES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "float": (pa.float32(), st.floats(width=32, allow_nan=False)),
    "bool": (pa.bool_(), st.booleans()),
    "text": (pa.string(), st.text(max_size=4)),
    "bytes": (pa.binary(3), st.binary(min_size=3, max_size=3)),
    "time": (pa.timestamp("us"), st.integers(0, 2**50)),
    "vector": (FIXED, st.lists(st.none() | st.just(1.5), min_size=2, max_size=2)),
    "list": (pa.list_(pa.int32()), st.lists(st.none() | st.integers(0, 9), max_size=3)),
    "texts": (pa.list_(pa.string()), st.lists(st.none() | st.just("x"), max_size=3)),
    "vectors": (
        pa.list_(FIXED),
        st.lists(
            st.lists(st.none() | st.just(2.5), min_size=2, max_size=2), max_size=2
        ),
    ),
    "deep": (
        pa.list_(pa.list_(pa.int8())),
        st.lists(st.lists(st.none() | st.just(3), max_size=2), max_size=2),
    ),
    "struct": (
        pa.struct([("a", pa.int16())]),
        st.fixed_dictionaries({"a": st.none() | st.integers(0, 9)}),
    ),
}


def rebuilt(value: Any, row: int) -> Any:
    """A row of a batch as a Python value."""
    if isinstance(value, Ragged):
        found = value.row(row)
        if isinstance(found, Ragged):
            return [rebuilt(found, i) for i in range(len(found.offsets) - 1)]
        return found.tolist() if isinstance(found, torch.Tensor) else found
    return value[row].tolist() if isinstance(value, torch.Tensor) else value[row]


def put_nulls(value: Any, valid: Any) -> Any:
    if isinstance(valid, list):
        return [put_nulls(v, m) for v, m in zip(value, valid, strict=True)]
    return value if valid else None


def values_of(batch: dict[str, Any], name: str) -> list[Any]:
    """The column as it was before nulls were filled."""
    valid = batch[f"{name}__valid"]
    found = []
    for row in range(len(valid)):
        value = rebuilt(batch[name], row)
        if f"{name}__items_valid" in batch:
            value = put_nulls(value, rebuilt(batch[f"{name}__items_valid"], row))
            found.append(value if valid[row] else None)
        elif name == "vector":
            found.append(put_nulls(value, valid[row].tolist()))
        else:
            found.append(value if valid[row] else None)
    return found


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
@pytest.mark.parametrize("name", TYPES)
def test_values_and_nulls_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    kind, values = TYPES[name]
    wanted = data.draw(st.lists(st.none() | values, min_size=1, max_size=30))
    column = pa.array(wanted, kind)
    path = tmp_path_factory.mktemp("mask") / "a.parquet"
    filters = data.draw(st.sampled_from([None, ("id", ">=", 0)]))
    pq.write_table(
        pa.table({name: column, "id": np.arange(len(wanted))}), path, row_group_size=7
    )
    delivered = f"{name}.a" if name == "struct" else name
    with ParquetDataset(
        path,
        client="threads",
        columns=[delivered],
        filters=filters and [filters],
        batch_size=11,
        nulls="mask",
    ) as dataset:
        batches = list(dataset)
        assert list(batches[0]) == dataset.schema.names
    found = [value for batch in batches for value in values_of(batch, delivered)]
    if name == "struct":
        wanted = [value and value["a"] for value in wanted]
    elif name == "vector":  # a null list is one of null elements
        wanted = [[None, None] if value is None else value for value in wanted]
    elif name == "time":
        wanted = column.cast(pa.int64()).to_pylist()
    assert found == wanted


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ids = np.arange(500)
    table = pa.table(
        {
            "id": ids,
            "x": pa.array(ids, mask=ids % 3 == 0),
            "y": pa.array(ids * 2.0, mask=ids % 5 == 0),
            "t": pa.array([[i] * (i % 4) if i % 7 else None for i in ids.tolist()]),
        },
        schema=pa.schema(
            [
                pa.field("id", pa.int64(), nullable=False),
                pa.field("x", pa.int64()),
                pa.field("y", pa.float64()),
                pa.field("t", pa.list_(pa.int64())),
            ]
        ),
    )
    made = tmp_path_factory.mktemp("masks") / "a.parquet"
    pq.write_table(table, made, row_group_size=90)
    return made


def check(batch: dict[str, Any]) -> None:
    ids = batch["id"]
    assert torch.equal(batch["x__valid"], ids % 3 != 0)
    assert torch.equal(batch["x"], torch.where(ids % 3 != 0, ids, 0))
    assert torch.equal(batch["y__valid"], ids % 5 != 0)


def test_columns_that_hold_none_by_their_schema_have_no_mask(path: Path) -> None:
    with ParquetDataset(path, client="threads", nulls="mask") as dataset:
        names = list(next(iter(dataset)))
    assert names == [
        *("id", "x", "x__valid", "y", "y__valid"),
        *("t", "t__valid", "t__items_valid"),
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_masks_are_mixed_and_resumed_with_their_columns(
    path: Path, num_workers: int
) -> None:
    options = {"shuffle": True, "shuffle_window": 60, "batch_size": 40, "nulls": "mask"}
    with ParquetDataset(path, client="threads", **options) as dataset:
        loader = DataLoader(dataset, num_workers=num_workers)
        ids = []
        for batch in loader:
            check(batch)
            ids += batch["id"].tolist()
        assert sorted(ids) == list(range(500))
        dataset.seek(0, 3)
        assert [i for batch in loader for i in batch["id"].tolist()] == ids[120:]
        del loader


def test_other_options_go_with_masks(path: Path) -> None:
    with ParquetDataset(
        path,
        client="threads",
        nulls="mask",
        features={"xy": ["x", "y"]},
        dtypes={"xy": "float32"},
        ragged={"t": (2, 0, "cut")},
        provenance=True,
        filters=[("id", "<", 100)],
    ) as dataset:
        batch = next(iter(dataset))
    ids = batch["id"]
    assert batch["xy"][:, 0].tolist() == torch.where(ids % 3 != 0, ids, 0).tolist()
    assert torch.equal(batch["x__valid"], ids % 3 != 0)
    assert batch["t"].shape == batch["t__items_valid"].shape == (100, 2)
    lengths = torch.where(ids % 7 != 0, (ids % 4).clamp(max=2), 0)
    assert torch.equal(batch["t__items_valid"].sum(dim=1), lengths)
    assert torch.equal(batch["t__valid"], ids % 7 != 0)


def test_what_a_transform_makes_has_masks(path: Path) -> None:
    def double(table: pa.Table) -> pa.Table:
        return pa.table({"id": table["id"], "x": table["x"], "y": table["y"]})

    with ParquetDataset(
        path, client="threads", nulls="mask", transform=double
    ) as dataset:
        batch = next(iter(dataset))
    check(batch)
    assert batch["id__valid"].all()


@pytest.mark.cluster
def test_a_cluster_gives_the_same(path: Path, local_cluster: Any) -> None:
    options = {"shuffle": True, "shuffle_window": 60, "nulls": "mask"}
    with ParquetDataset(path, client="threads", **options) as dataset:
        wanted = [batch["id"].tolist() for batch in dataset]
    with ParquetDataset(path, client=local_cluster, **options) as dataset:
        found = []
        for batch in dataset:
            check(batch)
            found.append(batch["id"].tolist())
    assert found == wanted


def test_a_null_list_within_a_list_is_refused(tmp_path: Path) -> None:
    column = pa.array([[[1], None]], pa.list_(pa.list_(pa.int8())))
    pq.write_table(pa.table({"d": column}), tmp_path / "a.parquet")
    with ParquetDataset(tmp_path, client="threads", nulls="mask") as dataset:
        with pytest.raises(
            NullError, match="'d' has 1 null lists within lists in"
        ) as e:
            list(dataset)
    assert e.value.row_group == 0
    assert e.value.column == "d"


def test_a_column_with_a_masks_name_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1], "x__valid": [2]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="adds a column 'x__valid', and there is one"):
        ParquetDataset(tmp_path, client="threads", nulls="mask")


@pytest.mark.parametrize("kind", [pa.list_(pa.int8(), 0), pa.list_(FIXED, 0)])
@pytest.mark.parametrize("nulls", ["mask", "error"])
def test_lists_without_width_end_nothing(
    tmp_path: Path, kind: pa.DataType, nulls: str
) -> None:
    pq.write_table(pa.table({"id": np.arange(40)}), tmp_path / "a.parquet")

    def make(table: pa.Table) -> pa.Table:
        empty = [[] for _ in range(len(table))]
        lists = pa.array([[[]] for _ in range(len(table))], pa.list_(kind))
        return pa.table({"id": table["id"], "e": pa.array(empty, kind), "l": lists})

    with ParquetDataset(
        tmp_path, client="threads", transform=make, nulls=nulls, shuffle=True
    ) as dataset:
        batch = next(iter(dataset))
    assert batch["e"].shape[:2] == (40, 0)
    assert batch["l"].offsets.tolist() == list(range(41))
    if nulls == "mask":
        assert batch["e__valid"].shape[:2] == (40, 0)
        assert batch["l__valid"].all()
