"""transform=: what it is given, what it may return, where it runs."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dask_loader.read.pieces as pieces
from dask_loader import (
    ConfigError,
    DataLoader,
    NullError,
    ParquetDataset,
    ResumeError,
    TransformError,
    UnsupportedTypeError,
)

ROWS = 5000
SIDE = 4


def picture(table: pa.Table) -> pa.Table:
    """Columns of each kind: fixed, text, lists; and another order than the file's."""
    ids = table["id"].to_numpy()
    pixels = (ids[:, None] * 7 + np.arange(SIDE * SIDE)).astype(np.uint8).reshape(-1)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(pixels), SIDE)
    words = pc.cast(table["id"], pa.string())
    lists = pa.ListArray.from_arrays(
        np.concatenate([[0], np.cumsum(ids % 4)]).astype(np.int32),
        np.repeat(ids, ids % 4),
    )
    image = pa.FixedSizeListArray.from_arrays(flat, SIDE)
    return pa.table({"image": image, "words": words, "lists": lists, "id": table["id"]})


def check(batch: dict[str, Any]) -> None:
    """Every value is what the picture of its id has."""
    ids = batch["id"]
    assert batch["words"] == [str(i) for i in ids.tolist()]
    wanted = (ids[:, None] * 7 + torch.arange(SIDE * SIDE)).to(torch.uint8)
    assert torch.equal(batch["image"], wanted.reshape(-1, SIDE, SIDE))
    for row, number in enumerate(ids.tolist()):
        assert batch["lists"].row(row).tolist() == [number] * (number % 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("transform")
    rng = np.random.default_rng(1)
    ids = np.arange(ROWS)
    table = pa.table(
        {"id": ids, "x": rng.random(ROWS), "deep": [{"a": i} for i in ids]}
    )
    pq.write_table(table.slice(0, 3000), made / "a.parquet", row_group_size=1100)
    pq.write_table(table.slice(3000), made / "b.parquet", row_group_size=2000)
    return made


def dataset_of(path: Path, function: Any = picture, **options: Any) -> ParquetDataset:
    chosen = {"client": "threads", "columns": ["id"], "batch_size": 300, **options}
    return ParquetDataset(path, transform=function, **chosen)


MODES = {
    "in order": {},
    "mixed": {"shuffle": True, "shuffle_window": 700},
    "mixed, filtered, several splits": {
        "shuffle": True,
        "num_splits": 3,
        "shuffle_window": 400,
        "filters": [("x", ">", 0.4)],
    },
    "larger row groups than windows, filtered": {
        "shuffle_window": 300,
        "filters": [("x", "<", 0.6)],
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_each_row_comes_once_with_what_is_made_of_it(folder: Path, mode: str) -> None:
    options = MODES[mode]
    with dataset_of(folder, **options) as dataset:
        batches = list(dataset)
        assert list(batches[0]) == ["image", "words", "lists", "id"]
        for batch in batches:
            check(batch)
        ids = torch.cat([batch["id"] for batch in batches]).tolist()
    with ParquetDataset(folder, client="threads", batch_size=300, **options) as plain:
        wanted = torch.cat([batch["id"] for batch in plain]).tolist()
    assert sorted(ids) == sorted(wanted)
    assert len(set(ids)) == len(ids) > 2500


def test_the_schema_is_that_of_what_is_made(folder: Path) -> None:
    with dataset_of(folder) as dataset:
        assert dataset.schema.names == ["image", "words", "lists", "id"]
        assert dataset.schema.field("words").type == pa.string()
        assert "transform=picture makes image" in dataset.explain()
        assert "of id: about" in dataset.explain()


def test_it_is_given_the_columns_asked_for_flat(folder: Path) -> None:
    seen = []

    def look(table: pa.Table) -> pa.Table:
        seen.append(table.schema.names)
        return table.select(["deep.a"])

    with dataset_of(folder, look, columns=["x", "deep.a"]) as dataset:
        assert next(iter(dataset))["deep.a"].tolist() == list(range(300))
    assert {tuple(names) for names in seen} == {("x", "deep.a")}


def test_options_of_delivery_are_of_what_is_made(folder: Path) -> None:
    def make(table: pa.Table) -> pa.Table:
        ids = table["id"].to_numpy()
        holes = pa.array(ids, mask=ids % 5 == 0)
        return pa.table(
            {"a": ids, "b": ids * 2, "holes": holes, "w": pc.cast(holes, "string")}
        )

    with dataset_of(
        folder,
        make,
        features={"ab": ["a", "b"]},
        dtypes={"ab": torch.float32},
        nulls={"holes": -1, "w": "none"},
        provenance=True,
    ) as dataset:
        batch = next(iter(dataset))
    assert batch["ab"].dtype == torch.float32
    assert batch["ab"][:, 1].tolist() == [2.0 * i for i in range(300)]
    assert batch["holes"][:6].tolist() == [-1, 1, 2, 3, 4, -1]
    assert batch["w"][:2] == ["none", "1"]
    assert batch["__row__"].tolist() == list(range(300))


def test_a_resumed_run_goes_on_with_the_same_rows(folder: Path) -> None:
    options = MODES["mixed, filtered, several splits"]
    with dataset_of(folder, **options) as dataset:
        whole = [batch["id"].tolist() for batch in dataset]
    with dataset_of(folder, **options) as dataset:
        batches = iter(dataset)
        for _ in range(4):
            next(batches)
        state = dataset.state_dict()
        batches.close()  # type: ignore[attr-defined]
    with dataset_of(folder, **options) as dataset:
        dataset.load_state_dict(state)
        assert [batch["id"].tolist() for batch in dataset] == whole[4:]
    with dataset_of(folder, lambda t: t, **options) as dataset:
        with pytest.raises(ResumeError, match="columns"):
            dataset.load_state_dict(state)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_our_loader_and_single_rows_have_it_too(folder: Path, num_workers: int) -> None:
    with dataset_of(folder) as dataset:
        loader = DataLoader(dataset, num_workers=num_workers)
        for batch in loader:
            check(batch)
        del loader
    with dataset_of(folder, batch_size=None) as dataset:
        row = next(iter(dataset))
        assert row["image"].shape == (SIDE, SIDE)
        assert row["words"] == "0"


def test_a_dataset_with_a_local_function_pickles(folder: Path) -> None:
    more = 5
    with dataset_of(
        folder, lambda t: pa.table({"y": pc.add(t["id"], more)})
    ) as dataset:
        packed = pickle.dumps(dataset)
    with pickle.loads(packed) as copy:
        assert next(iter(copy))["y"].tolist() == list(range(5, 305))


def test_a_dataset_without_rows_is_tried_on_none(folder: Path) -> None:
    with dataset_of(folder, filters=[("x", ">", 2.0)]) as dataset:
        assert len(dataset) == 0
        assert dataset.schema.names == ["image", "words", "lists", "id"]
    with pytest.raises(TransformError, match="tried on no rows, failed on an empty"):
        dataset_of(
            folder, lambda t: pa.table({"a": [t["id"][0]]}), filters=[("x", ">", 2.0)]
        )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    piece_bytes=st.integers(200, 60_000),
    window=st.integers(100, 2500),
    shuffle=st.booleans(),
)
def test_rows_do_not_depend_on_the_pieces_that_they_come_in(
    folder: Path, piece_bytes: int, window: int, shuffle: bool
) -> None:
    options = {"shuffle": shuffle, "shuffle_window": window}
    with dataset_of(folder, **options) as dataset:
        wanted = [batch["id"] for batch in dataset]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_BYTES", piece_bytes)
        with dataset_of(folder, **options) as dataset:
            for batch, ids in zip(dataset, wanted, strict=True):
                check(batch)
                assert torch.equal(batch["id"], ids)


# ---- what is refused ----------------------------------------------------------------


def late(what: Callable[[pa.Table], Any]) -> Callable[[pa.Table], Any]:
    """A transform that goes wrong where ids of 4000 and more are."""

    def function(table: pa.Table) -> Any:
        ids = table["id"].to_numpy()
        return what(table) if (ids >= 4000).any() else pa.table({"x": ids})

    return function


def divide(table: pa.Table) -> pa.Table:
    return pa.table({"x": [12 / (i - 4321) for i in table["id"].to_pylist()]})


BAD = {
    "another number of rows": (
        lambda t: t.slice(1),
        "was given 16 rows and returned 15; a transform keeps every row",
    ),
    "no table": (lambda t: 3, "returned int, not a pyarrow.Table"),
    "no column": (lambda t: t.select([]), "made no column"),
    "a name twice": (
        lambda t: pa.Table.from_arrays([t["id"], t["id"]], names=["x", "x"]),
        "made two columns called 'x'",
    ),
    "an error": (lambda t: t["nope"], r"failed on row 0: KeyError: .*nope"),
    "a late error": (
        divide,
        r"row group 0 of '.*b\.parquet'.*failed on row 1321: ZeroDiv",
    ),
    "a late row": (late(lambda t: t.slice(1)), "returned 1999; a transform keeps"),
    "a late type": (
        late(lambda t: pa.table({"x": pc.cast(t["id"], pa.string())})),
        "made column 'x' as int64 of the dataset's first rows and as string of rows 0 to",
    ),
    "a late column": (
        late(lambda t: pa.table({"x": t["id"], "y": t["id"]})),
        "made a column 'y' of rows 0 to 2000 that it did not make",
    ),
    "a column less": (
        late(lambda t: pa.table({"y": t["id"]})),
        "made column 'x' as int64 of the dataset's first rows and as no such column",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_promise_is_told_with_its_place(folder: Path, name: str) -> None:
    function, text = BAD[name]
    with pytest.raises(TransformError, match=f"(?s)transform=.*{text}") as caught:
        with dataset_of(folder, function) as dataset:
            list(dataset)
    file = "b" if "late" in name or name == "a column less" else "a"
    assert str(caught.value.path).endswith(f"{file}.parquet")
    assert caught.value.row_group == 0


def test_an_error_shows_the_users_own_lines(folder: Path) -> None:
    with pytest.raises(
        TransformError, match=r"test_transform\.py.*in divide"
    ) as caught:
        with dataset_of(folder, divide) as dataset:
            list(dataset)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "read/transform.py" not in str(caught.value)


def test_what_is_no_function_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="transform='decode' must be a function"):
        dataset_of(folder, "decode")


def test_a_type_without_a_tensor_form_is_refused_at_once(folder: Path) -> None:
    def months(table: pa.Table) -> pa.Table:
        kind = pa.month_day_nano_interval()
        return pa.table({"m": pa.array([(1, 2, 3)] * len(table), kind)})

    with pytest.raises(
        UnsupportedTypeError, match="transform=months makes a column 'm' of type month"
    ):
        dataset_of(folder, months)


def test_a_column_of_any_type_may_be_given(tmp_path: Path) -> None:
    values = pa.array([10**30, 2, None], pa.decimal128(38, 0))
    pq.write_table(pa.table({"big": values}), tmp_path / "a.parquet")

    def logs(table: pa.Table) -> pa.Table:
        return pa.table({"log": pc.log10(table["big"].cast(pa.float64()))})

    with ParquetDataset(
        tmp_path, client="threads", transform=logs, nulls="nan"
    ) as dataset:
        found = next(iter(dataset))["log"]
    assert found[0] == pytest.approx(30.0)
    assert torch.isnan(found[2])


def test_nulls_that_it_makes_follow_the_policy(folder: Path) -> None:
    def holes(table: pa.Table) -> pa.Table:
        ids = table["id"].to_numpy()
        return pa.table({"h": pa.array(ids, mask=ids == 4444)})

    text = "'h' has 1 nulls in .* or make others in transform="
    with dataset_of(folder, holes) as dataset, pytest.raises(NullError, match=text):
        list(dataset)


def test_tensors_of_fixed_shape_keep_it(folder: Path) -> None:
    def tensors(table: pa.Table) -> pa.Table:
        values = np.arange(len(table) * 6, dtype=np.float32).reshape(len(table), 2, 3)
        return pa.table({"t": pa.FixedShapeTensorArray.from_numpy_ndarray(values)})

    with dataset_of(folder, tensors) as dataset:
        batch = next(iter(dataset))
    assert batch["t"].shape == (300, 2, 3)
    assert batch["t"][1].tolist() == [[6.0, 7.0, 8.0], [9.0, 10.0, 11.0]]


def test_rows_that_depend_on_others_are_warned_of(folder: Path) -> None:
    def centred(table: pa.Table) -> pa.Table:
        values = table["id"].to_numpy()
        return pa.table({"x": values - values.mean()})

    with pytest.warns(
        UserWarning, match="transform=centred made something else of a row"
    ):
        dataset_of(folder, centred).close()


def test_rows_grow_within_the_memory_limit_or_are_refused(folder: Path) -> None:
    def wide(table: pa.Table) -> pa.Table:
        values = pa.array(np.zeros(len(table) * 25_000, dtype=np.uint8))
        return pa.table({"wide": pa.FixedSizeListArray.from_arrays(values, 25_000)})

    # 5,000 rows of 25 kB are 125 MB, in one window of 40 kB before.
    with pytest.raises(ConfigError, match="memory_limit is 64 MiB"):
        with dataset_of(folder, wide, memory_limit="64 MiB", num_splits=1) as dataset:
            list(dataset)
    options = {"memory_limit": "64 MiB", "shuffle_window": 500}
    with dataset_of(folder, wide, **options) as dataset:
        assert sum(len(batch["wide"]) for batch in dataset) == ROWS


# ---- on a cluster -------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.parametrize("way", ["memory", "comm"])
def test_a_cluster_gives_what_threads_give(
    folder: Path, local_cluster: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", way)
    options = MODES["mixed, filtered, several splits"]
    with dataset_of(folder, **options) as dataset:
        wanted = list(dataset)
    ballast = np.zeros(1 << 20)  # more than goes with each task

    def heavy(table: pa.Table) -> pa.Table:
        assert len(ballast) == 1 << 20
        return picture(table)

    with dataset_of(folder, heavy, client=local_cluster, **options) as dataset:
        for batch, want in zip(dataset, wanted, strict=True):
            check(batch)
            assert torch.equal(batch["id"], want["id"])


@pytest.mark.cluster
def test_errors_on_a_cluster_are_the_same(folder: Path, local_cluster: Any) -> None:
    with dataset_of(folder, divide, client=local_cluster) as dataset:
        with pytest.raises(TransformError, match=BAD["a late error"][1]) as caught:
            list(dataset)
    assert "in divide" in str(caught.value)
    lock = threading.Lock()
    with pytest.raises(
        ConfigError, match="cannot be sent to the processes that run it"
    ):
        dataset_of(folder, lambda t: lock and t, client=local_cluster)


@pytest.mark.cluster
def test_a_module_that_workers_lack_is_named(
    folder: Path, local_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def same(table):\n    return table\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    try:
        text = (
            "cannot be loaded where it is to run.*only_here.*register_pickle_by_value"
        )
        with pytest.raises(TransformError, match=text):
            dataset_of(folder, only_here.same, client=local_cluster)
    finally:
        del sys.modules["only_here"]
