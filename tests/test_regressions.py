"""What was wrong once: the smallest example of each."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import dask
import distributed
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from dask_loader import (
    ClosedError,
    ColumnError,
    ConfigError,
    DataChangedError,
    DataLoader,
    ParquetDataset,
    ResumeError,
    SchedulerUnreachableError,
    SchemaError,
)
from dask_loader.catalog.discover import discover
from dask_loader.engine.where import resolve_client
from dask_loader.read.columns import copy_fixed


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_one(name: str, columns: Any, **options: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, **options)
        return str(path)

    return write_one


def make(path: Any, **options: Any) -> Any:
    return ParquetDataset(path, **{"client": "threads", **options})


# ---- rows lost or wrong, in silence ----


@pytest.mark.parametrize(
    ("values", "filters"),
    [
        ([np.nan, 1.0, 1.0], [("a", "!=", 1.0)]),
        ([np.nan, 1.0, 1.0], [("a", "not in", [1.0])]),
        ([np.nan, 2.0, 2.0], pc.field("a").is_nan()),
        ([np.nan, 1.0, 1.0], ~(pc.field("a") < 2)),
        ([np.nan, 1.0, 2.0], pc.field("a").is_null(nan_is_null=True)),
        ([0.0, 0.0, 0.0], [("a", "in", [0.0])]),
    ],
)
def test_statistics_of_floats_never_rule_out_rows_that_the_filters_keep(
    write: Any, values: Any, filters: Any
) -> None:
    table = pa.table({"a": values})
    expression = (
        filters
        if isinstance(filters, pc.Expression)
        else pq.filters_to_expression(filters)
    )
    with make(write("a.parquet", table), filters=filters) as dataset:
        assert dataset.num_rows == table.filter(expression).num_rows > 0


@pytest.mark.parametrize("option", ["shuffle", "drop_last"])
def test_our_dataloader_does_not_swallow_shuffle_and_drop_last(
    write: Any, option: str
) -> None:
    with make(write("a.parquet", {"x": [1]})) as dataset:
        with pytest.raises(ConfigError, match=f"{option}=True is the dataset's"):
            DataLoader(dataset, **{option: True})


def test_our_dataloader_does_not_swallow_batch_size_1(write: Any) -> None:
    with make(write("a.parquet", {"x": [1]})) as dataset:
        with pytest.raises(ConfigError, match="batch_size=1"):
            DataLoader(dataset, batch_size=1)


def test_partitions_of_two_datasets_have_names_of_their_own(write: Any) -> None:
    path = write("a.parquet", {"x": range(20)})
    with make(path) as a, make(path, shuffle=True, seed=3) as b:
        alone = b.to_delayed()[0].compute(scheduler="sync")
        _, together = dask.compute(
            a.to_delayed()[0], b.to_delayed()[0], scheduler="sync"
        )
        assert together.equals(alone)


def test_other_filters_have_another_fingerprint_however_long_their_lists(
    write: Any,
) -> None:
    path = write("a.parquet", {"x": range(200)})
    with (
        make(path, filters=[("x", "in", list(range(100)))]) as a,
        make(path, filters=[("x", "in", [*range(50), 150, *range(51, 100)])]) as b,
    ):
        with pytest.raises(ResumeError):
            b.load_state_dict(a.state_dict())


def test_other_values_have_another_fingerprint(write: Any) -> None:
    plain = {"compression": "none", "use_dictionary": False}
    one = write("1.parquet", {"x": np.arange(10)}, **plain)
    two = write("2.parquet", {"x": np.arange(10) + 5}, **plain)
    with make(one) as a, make(two) as b, pytest.raises(ResumeError):
        b.load_state_dict(a.state_dict())


def test_a_file_rewritten_with_the_old_length_and_time_is_told(write: Any) -> None:
    plain = {"compression": "none", "use_dictionary": False}
    path = write("a.parquet", {"x": np.arange(10)}, **plain)
    with make(path) as dataset:
        stat = os.stat(path)
        write("a.parquet", {"x": np.arange(10) + 1}, **plain)
        os.utime(
            path, ns=(stat.st_atime_ns, stat.st_mtime_ns)
        )  # as cp -p and rsync -t do
        with pytest.raises(DataChangedError):
            list(dataset)


def test_a_fill_that_a_float_column_cannot_hold_is_refused(write: Any) -> None:
    path = write("a.parquet", {"a": pa.array([1, None], pa.float32())})
    with pytest.raises(ConfigError, match="does not fit"):
        make(path, nulls={"a": 1e300})


def test_a_linked_folder_below_is_searched_or_refused(
    write: Any, tmp_path: Path
) -> None:
    write("real/a.parquet", {"x": [1]})
    write("data/b.parquet", {"x": [2]})
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "real")
    assert len(discover(tmp_path / "data").paths) == 2


# ---- memory ----

_GROWTH = """
import resource, sys
from dask_loader import ParquetDataset
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dataset = ParquetDataset(sys.argv[1], client="threads", batch_size=5,
                         shuffle_window="2 MiB", memory_limit="64 MiB")
next(iter(dataset))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("kind", ["binary", "fixed-size list"])
def test_wide_rows_stay_within_memory_limit(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "a.parquet")
    if kind == "binary":
        column = pa.array([os.urandom(256 << 10) for _ in range(400)])
    else:
        numbers = np.zeros(500 * 150528, dtype=np.uint8)  # images of 224 x 224 x 3
        column = pa.FixedSizeListArray.from_arrays(pa.array(numbers), 150528)
    pq.write_table(pa.table({"x": column}), path)
    command = [sys.executable, "-c", _GROWTH, path]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(output) < 300


def test_repeated_texts_are_planned_with_their_decoded_size(write: Any) -> None:
    path = write("a.parquet", {"x": ["x" * 1000] * 100_000})
    with make(
        path, batch_size=10, shuffle_window="4 MiB", memory_limit="32 MiB"
    ) as dataset:
        items = iter(dataset)
        next(items)
        items.close()
        stats = dataset.stats()
    assert stats["bytes"] / stats["windows"] < 16 << 20


# ---- torch ----


def test_writing_into_one_column_leaves_gradients_of_another_alone(write: Any) -> None:
    path = write("a.parquet", {f"c{i}": np.arange(8.0) for i in range(16)})
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    with make(path, batch_size=4) as dataset:
        batch = dataset.peek()
    loss = (weight * batch["c0"]).sum()
    batch["c1"].mul_(2)
    loss.backward()


def test_writing_into_one_batch_leaves_gradients_of_another_alone(write: Any) -> None:
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    with make(write("a.parquet", {"x": np.arange(8.0)}), batch_size=4) as dataset:
        first, second = list(dataset)
    loss = (weight * first["x"]).sum()
    second["x"].mul_(2)
    loss.backward()


def test_a_column_may_be_multiplied_in_place_by_a_parameter(write: Any) -> None:
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    with make(write("a.parquet", {"x": np.arange(8.0)}), batch_size=4) as dataset:
        batch = dataset.peek()
    batch["x"].mul_(weight)


# ---- the wrong error, or a bare one ----


def test_storage_options_may_hold_dicts() -> None:
    with fsspec.filesystem("memory").open("/d1.parquet", "wb") as file:
        pq.write_table(pa.table({"x": [1]}), file)
    options = {"client_kwargs": {"endpoint_url": "http://minio"}}
    with make("memory://d1.parquet", storage_options=options) as dataset:
        assert dataset.peek()["x"].tolist() == [1]


def test_a_list_of_lists_may_be_null_as_a_whole() -> None:
    kind = pa.list_(pa.list_(pa.int64(), 2), 1)
    out = np.zeros((2, 1, 2), dtype=np.int64)
    assert copy_fixed(pa.array([[[1, 2]], None], kind), out, 7) > 0
    assert out.tolist() == [[[1, 2]], [[7, 7]]]


@pytest.mark.parametrize(
    "options", [{"shuffle": True}, {"filters": [("n", ">", 0)]}, {"nulls": {"s": "z"}}]
)
@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view()])
def test_string_views_are_read_in_every_way(
    write: Any, kind: Any, options: Any
) -> None:
    texts = ["a", None if "nulls" in options else "b"]
    path = write(
        "a.parquet", {"s": pa.array(texts).cast(pa.binary()).cast(kind), "n": [1, 2]}
    )
    with make(path, **options) as dataset:
        assert len(dataset.peek()["s"]) == 2


def test_names_that_differ_by_a_trailing_number_can_be_sorted(
    write: Any, tmp_path: Path
) -> None:
    for name in ("part", "part1"):
        write(name, {"x": [1]})
    assert len(discover(f"{tmp_path}/part*").paths) == 2


def test_two_stars_may_match_a_folder_and_its_files(write: Any, tmp_path: Path) -> None:
    write("s/a.parquet", {"x": [1]})
    assert len(discover(f"{tmp_path}/**").paths) == 1


def test_a_glob_leaves_out_hidden_names_as_a_folder_does(
    write: Any, tmp_path: Path
) -> None:
    write("a.parquet", {"x": [1]})
    for name in ("_SUCCESS", ".a.parquet.crc", "_metadata"):
        (tmp_path / name).write_text("")
    with make(f"{tmp_path}/*") as dataset:
        assert dataset.num_rows == 1


def test_files_that_disagree_about_a_filter_column_are_named(
    write: Any, tmp_path: Path
) -> None:
    write("a.parquet", {"x": [1]})
    write("b.parquet", {"x": ["a"]})
    with pytest.raises(SchemaError):
        make(tmp_path, filters=[("x", "==", 1)])


def test_a_filter_that_arrow_cannot_simplify_still_filters(write: Any) -> None:
    path = write("a.parquet", {"t": pa.array([1, 2], pa.timestamp("us"))})
    with make(path, filters=pc.field("t").isin([1])) as dataset:
        assert dataset.num_rows == 1


def test_a_name_that_stands_twice_and_is_not_read_does_not_matter_to_filters(
    tmp_path: Path,
) -> None:
    table = pa.Table.from_arrays(
        [pa.array([i]) for i in range(3)], names=["x", "x", "y"]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with make(tmp_path, columns=["y"], filters=[("y", ">", 1)]) as dataset:
        assert dataset.num_rows == 1


def test_partitions_of_files_with_other_nullability(write: Any, tmp_path: Path) -> None:
    schema = pa.schema([pa.field("x", pa.int64(), nullable=False)])
    pq.write_table(pa.table({"x": [1]}, schema=schema), tmp_path / "a.parquet")
    write("b.parquet", {"x": [2]})
    with make(tmp_path) as dataset:
        (partition,) = dataset.to_delayed()
    assert partition.compute(scheduler="sync").num_rows == 2


def test_nested_nullability_may_differ_too(write: Any, tmp_path: Path) -> None:
    for name, nullable in (("a", True), ("b", False)):
        kind = pa.list_(pa.field("element", pa.float32(), nullable=nullable), 2)
        write(f"{name}.parquet", {"x": pa.array([[1, 2]], kind)})
    with make(tmp_path) as dataset:
        assert dataset.num_rows == 2


def test_a_dataset_closed_in_mid_iteration_says_so(write: Any) -> None:
    dataset = make(
        write("a.parquet", {"x": np.arange(100_000)}),
        batch_size=100,
        shuffle_window=1000,
    )
    items = iter(dataset)
    next(items)
    dataset.close()
    with pytest.raises(ClosedError):
        list(items)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_memory_limit_of_inf_or_nan_is_refused_in_words(value: float) -> None:
    with pytest.raises(ConfigError, match="memory_limit"):
        make("/no/such", memory_limit=value)


def test_a_huge_epoch_is_refused_in_words(write: Any) -> None:
    with make(write("a.parquet", {"x": [1]})) as dataset, pytest.raises(ConfigError):
        dataset.set_epoch(2**63)


@pytest.mark.parametrize(
    ("column", "fill"),
    [
        (pa.array(["x", None]), b"\xff"),
        (pa.array([b"xx", None], pa.binary(2)), b"qqq"),
        (pa.array([1, None], pa.float32()), np.str_("abc")),
    ],
)
def test_a_fill_that_does_not_fit_is_refused_before_reading(
    write: Any, column: Any, fill: Any
) -> None:
    path = write("a.parquet", {"a": column})
    with pytest.raises(ConfigError):
        make(path, nulls={"a": fill}).close()


def test_checking_a_fill_warns_of_nothing(write: Any) -> None:
    path = write("a.parquet", {"a": [1, None]})
    with warnings.catch_warnings(), pytest.raises(ConfigError):
        warnings.simplefilter("error")
        make(path, nulls={"a": float("nan")})


def test_an_expression_on_an_unknown_column_offers_near_names(write: Any) -> None:
    with pytest.raises(ColumnError, match="did you mean 'age'"):
        make(write("a.parquet", {"age": [1]}), filters=pc.field("aeg") > 1)


def test_a_collate_function_is_refused_rather_than_dropped(write: Any) -> None:
    with make(write("a.parquet", {"x": [1]})) as dataset:
        with pytest.raises(ConfigError, match="collate_fn"):
            DataLoader(dataset, collate_fn=lambda batch: "mine")


class HoldBack:
    """A worker_init_fn that makes worker 1 wait for an event."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def __call__(self, worker: int) -> None:
        if worker == 1:
            assert self.event.wait(180)


def test_two_iterations_with_workers_do_not_take_each_others_epoch(write: Any) -> None:
    path = write("a.parquet", {"id": range(1000)}, row_group_size=50)
    options = {"batch_size": 16, "shuffle": True, "shuffle_window": 50, "num_splits": 4}
    context = torch.multiprocessing.get_context("fork")
    event = context.Event()
    with make(path, **options) as dataset:
        first = iter(DataLoader(dataset, num_workers=2, worker_init_fn=HoldBack(event)))
        second = iter(DataLoader(dataset, num_workers=2))
        seen = [next(second)["id"]]
        event.set()
        ids = torch.cat([batch["id"] for batch in first])
        seen += [batch["id"] for batch in second]
    assert sorted(ids.tolist()) == sorted(torch.cat(seen).tolist()) == list(range(1000))


def test_windows_that_outnumber_batches_are_no_reason_to_warn(write: Any) -> None:
    path = write("a.parquet", {"id": range(1000)}, row_group_size=50)
    with make(path, batch_size=500, shuffle_window=50) as dataset:
        loader = DataLoader(dataset, num_workers=2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(loader) == len(list(loader)) == 2


def test_a_listener_that_says_nothing_is_no_scheduler(
    write: Any, monkeypatch: Any
) -> None:
    path = write("a.parquet", {"x": [1]})
    monkeypatch.setattr("dask_loader.engine.connection._CONNECT_TIMEOUT_S", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(SchedulerUnreachableError, match="within 1 s"):
            ParquetDataset(path, client=address)


def test_an_active_asynchronous_client_is_refused_not_passed_over(
    local_cluster: Any,
) -> None:
    async def ask() -> None:
        async with distributed.Client(local_cluster.address, asynchronous=True):
            with pytest.raises(ConfigError, match="is asynchronous; pass its"):
                resolve_client(None)

    asyncio.run(ask())
