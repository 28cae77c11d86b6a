"""ragged=: lists of any length as torch.nested tensors, or padded to one length."""

from __future__ import annotations

import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader as TorchDataLoader

from dask_loader import (
    CastError,
    ColumnError,
    ConfigError,
    DataLoader,
    NullError,
    ParquetDataset,
    PlanError,
    Ragged,
)

ROWS = 101
LISTS = [list(range(i, i + i % 5)) for i in range(ROWS)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ragged") / "a.parquet"
    boxes = [[[v, -v] for v in row] for row in LISTS]
    columns = {
        "id": range(ROWS),
        "n": pa.array(LISTS, pa.list_(pa.int32())),
        "box": pa.array(boxes, pa.list_(pa.list_(pa.float32(), 2))),
        "text": [[str(v) for v in row] for row in LISTS],
        "deep": pa.array([[row] for row in LISTS], pa.list_(pa.list_(pa.int8()))),
    }
    pq.write_table(pa.table(columns), made, row_group_size=37)
    return made


def make(path: Path, **options: Any) -> ParquetDataset:
    return ParquetDataset(path, **{"client": "threads", "batch_size": 16, **options})


def padded(row: list[Any], length: int, fill: Any) -> list[Any]:
    return (row + [fill] * length)[:length]


def items_of(batches: Any, name: str) -> dict[int, Any]:
    found = {}
    for batch in batches:
        column = batch[name]
        rows = column.unbind() if column.is_nested else column
        found.update(
            zip(batch["id"].tolist(), [row.tolist() for row in rows], strict=True)
        )
    return found


# ---- padded --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle": True, "shuffle_window": 30},
        {"shuffle": True, "shuffle_window": 7, "num_splits": 1},
        {"shuffle_window": 7},
        {"filters": [("id", ">=", 0)], "dtypes": {"n": "float64"}},
    ],
    ids=str,
)
def test_lists_are_padded_to_one_tensor(path: Path, options: Any) -> None:
    columns = ["id", "n", "box"]
    ragged = {"n": (6, -1), "box": (4, 0.5)}
    with make(path, columns=columns, ragged=ragged, **options) as dataset:
        batches = list(dataset)
        assert batches[0]["n"].shape == (16, 6)
        assert batches[0]["box"].shape == (16, 4, 2)
        dtype = torch.float64 if "dtypes" in options else torch.int32
        assert {b["n"].dtype for b in batches} == {dtype}
    wanted = {i: padded(row, 6, -1) for i, row in enumerate(LISTS)}
    assert items_of(batches, "n") == wanted
    boxes = {i: [[v, -v] for v in row] for i, row in enumerate(LISTS)}
    wanted = {i: padded(row, 4, [0.5, 0.5]) for i, row in boxes.items()}
    assert items_of(batches, "box") == wanted


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.none() | st.lists(st.none() | st.integers(-9, 9), max_size=6),
        min_size=1,
        max_size=15,
    ),
    length=st.integers(1, 4),
    shuffle=st.booleans(),
)
def test_cut_lists_hold_their_first_elements_whatever_is_null(
    tmp_path_factory: Any, rows: list[Any], length: int, shuffle: bool
) -> None:
    file = tmp_path_factory.mktemp("cut") / "a.parquet"
    table = {"id": range(len(rows)), "x": pa.array(rows, pa.list_(pa.int64()))}
    pq.write_table(pa.table(table), file, row_group_size=4)
    options = {"nulls": {"x": 77}, "ragged": {"x": (length, 99, "cut")}}
    with make(file, shuffle=shuffle, shuffle_window=3, **options) as dataset:
        found = items_of(dataset, "x")
    for i, row in enumerate(rows):
        filled = [77 if v is None else v for v in row or []]
        assert found[i] == padded(filled, length, 99)


def test_a_longer_list_is_an_error_that_says_where_and_how_long(path: Path) -> None:
    dataset = make(path, columns=["n"], ragged={"n": (3, 0)})
    text = (
        r"column 'n' .* '.*a.parquet', row group 0: the longest list has 4 elements, more "
        r"than the 3 of ragged=\{'n': \(3, 0\)\}; give a greater length, or \(3, 0, "
        r'"cut"\)'
    )
    with dataset, pytest.raises(CastError, match=text) as caught:
        list(dataset)
    assert (caught.value.column, caught.value.row_group) == ("n", 0)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_nulls_in_padded_lists_are_an_error_without_a_policy(tmp_path: Path) -> None:
    for rows in ([[1], None], [[1], [None]]):
        file = tmp_path / "a.parquet"
        pq.write_table(pa.table({"x": pa.array(rows, pa.list_(pa.int8()))}), file)
        with (
            make(file, ragged={"x": (2, 0)}) as dataset,
            pytest.raises(NullError, match="column 'x' has 1 nulls"),
        ):
            list(dataset)


def test_padded_decimals_and_bools(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    money = pa.array([[Decimal("1.25")], []], pa.list_(pa.decimal128(9, 2)))
    flags = pa.array([[True, False], [True]], pa.list_(pa.bool_()))
    pq.write_table(pa.table({"m": money, "f": flags}), file)
    with make(file, ragged={"m": (2, 0), "f": (2, True)}) as dataset:
        batch = dataset.peek()
        assert batch["m"].tolist() == [[125, 0], [0, 0]]
        assert batch["f"].tolist() == [[True, False], [True, True]]
    with make(
        file, ragged={"m": (2, np.nan)}, dtypes={"m": "float32"}, columns=["m"]
    ) as dataset:
        assert dataset.peek()["m"][0, 0] == 1.25
        assert dataset.peek()["m"].isnan().sum() == 3


def test_padding_that_memory_cannot_hold_is_refused_before_reading(path: Path) -> None:
    options = {"columns": ["id", "n"], "memory_limit": "1 MiB"}
    make(path, **options, ragged={"n": (8, 0)}).close()
    with (
        make(path, **options, ragged={"n": (1 << 16, 0)}) as dataset,
        pytest.raises(PlanError, match=r"windows of .* in hand"),
    ):
        next(iter(dataset))


# ---- nested --------------------------------------------------------------------------


def test_lists_of_numbers_become_nested_tensors_and_others_stay(path: Path) -> None:
    with make(path, ragged="nested") as dataset:
        batches = list(dataset)
        assert batches[0]["n"].layout == torch.jagged
        assert isinstance(batches[0]["text"], Ragged)
        assert isinstance(batches[0]["deep"], Ragged)
        assert batches[0]["id"].shape == (16,)
    assert items_of(batches, "n") == dict(enumerate(LISTS))
    boxes = [[[v, -v] for v in row] for row in LISTS]
    assert items_of(batches, "box") == dict(enumerate(boxes))
    with make(path, ragged={"n": "nested", "box": "jagged"}) as dataset:
        batch = dataset.peek()
    assert batch["n"].is_nested
    assert isinstance(batch["box"], Ragged)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ragged", ["nested", {"n": (5, 0)}], ids=str)
def test_they_come_through_the_loader_and_go_on_after_a_state(
    path: Path, ragged: Any, num_workers: int
) -> None:
    options = {"columns": ["id", "n"], "ragged": ragged, "shuffle": True}
    with make(path, **options) as dataset, make(path, **options) as again:
        loader = DataLoader(dataset, num_workers=num_workers)
        found, states = [], []
        for batch in loader:
            found.append(batch)
            states.append(loader.state_dict())
        assert items_of(found, "n").keys() == set(range(ROWS))
        other = DataLoader(again, num_workers=num_workers)
        other.load_state_dict(states[2])
        assert items_of(list(other), "n") == items_of(found[3:], "n")


def test_torchs_own_loader_hands_them_on(path: Path) -> None:
    options: dict[str, Any] = {"columns": ["id", "n"], "ragged": "nested"}
    with make(path, **options) as dataset:
        loader = TorchDataLoader(dataset, batch_size=None)
        assert items_of(list(loader), "n") == dict(enumerate(LISTS))
    with make(path, **options, batch_size=None) as dataset:
        assert [row["n"].tolist() for row in dataset] == LISTS


@pytest.mark.cluster
@pytest.mark.parametrize("way", ["memory", "comm"])
def test_a_cluster_pads_and_nests_as_threads_do(
    path: Path, local_cluster: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", way)
    options = {
        "columns": ["id", "n", "box"],
        "ragged": {"n": (5, -7), "box": "nested"},
        "shuffle": True,
        "shuffle_window": 20,
        "client": local_cluster,
    }
    with make(path, **options) as dataset:
        batches = list(dataset)
    assert items_of(batches, "n") == {i: padded(r, 5, -7) for i, r in enumerate(LISTS)}
    boxes = [[[v, -v] for v in row] for row in LISTS]
    assert items_of(batches, "box") == dict(enumerate(boxes))


# ---- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("ragged", "kind", "text"),
    [
        (
            "padded",
            ConfigError,
            'ragged=\'padded\' must be "jagged", "nested", or a di',
        ),
        ({"n": 3}, ConfigError, r"ragged=\{'n': 3\} must be .* whole number from 1 up"),
        ({"n": (0, 0)}, ConfigError, "whole number from 1 up"),
        ({"n": (3, "x")}, ConfigError, "fill a number"),
        ({"n": (3, 0, "keep")}, ConfigError, 'or \\(length, fill, "cut"\\)'),
        (
            {"m": (3, 0)},
            ColumnError,
            "ragged names 'm', which is not among the columns",
        ),
        ({"id": (3, 0)}, ConfigError, "the column's rows are no lists of any length"),
        ({"text": (3, 0)}, ConfigError, r"only a list of numbers is padded, .* vocab"),
        (
            {"text": "nested"},
            ConfigError,
            "only a list of numbers becomes torch.nested",
        ),
        ({"deep": (3, 0)}, ConfigError, "the column has lists of lists"),
        (
            {"n": (3, 0.5)},
            ConfigError,
            "fill value does not fit the column's type int32",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_when_the_dataset_is_made(
    path: Path, ragged: Any, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        make(path, ragged=ragged)
    with pytest.raises(ConfigError, match="rows are not single numbers"):
        make(path, ragged={"n": (5, 0)}, features={"x": ["n"]})
