"""The first windows of a large dataset, begun while most footers are still unread."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import cluster
from dask_loader import DataLoader, ParquetDataset
from dask_loader.catalog import footers as footers_module
from dask_loader.engine import dask as dask_engine
from dask_loader.engine import threads as threads_engine
from dask_loader.engine.ahead import Ahead
from dask_loader.errors import BadFileError, ConfigError, NullError, SchemaError

NUM_FILES = 600
FILE_ROWS = 10
NUM_ROWS = NUM_FILES * FILE_ROWS
_DEADLINE_S = 180.0
# Windows of two files each.
OPTIONS: dict[str, Any] = {
    "shuffle_window": 25,
    "batch_size": 7,
    "footer_cache": False,
    "client": "threads",
}


def part(number: int) -> pa.Table:
    ids = np.arange(number * FILE_ROWS, (number + 1) * FILE_ROWS)
    texts = [f"row {i}" * (i % 3) for i in ids]
    return pa.table({"id": ids, "x": ids.astype(np.float32) / 7, "name": texts})


def path_of(folder: Path, number: int) -> Path:
    return folder / f"{number:03}.parquet"


def write_parts(folder: Path) -> Path:
    folder.mkdir()
    for number in range(NUM_FILES):
        pq.write_table(part(number), path_of(folder, number))
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that no test may change."""
    return write_parts(tmp_path_factory.mktemp("ahead") / "many")


@pytest.fixture
def mine(many: Path, tmp_path: Path) -> Path:
    """The same for a test to change; files are links until written anew."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(NUM_FILES):
        os.link(path_of(many, number), path_of(folder, number))
    return folder


def rewrite(folder: Path, number: int, table: pa.Table, **options: Any) -> None:
    path_of(folder, number).unlink()
    pq.write_table(table, path_of(folder, number), **options)


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Stream and number of each window that any engine was asked for."""
    asked: list[tuple[int, int]] = []

    def spy_on(engine: Any) -> None:
        submit = engine.submit

        def spy(self: Any, task: Any, *, stream: int, number: int) -> Any:
            asked.append((stream, number))
            return submit(self, task, stream=stream, number=number)

        monkeypatch.setattr(engine, "submit", spy)

    spy_on(threads_engine.ThreadsEngine)
    spy_on(dask_engine.DaskEngine)
    return asked


@pytest.fixture
def on_tail(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Any], None]:
    """on_tail(number, action): do something when a file's footer is about to be read."""
    actions: dict[str, Any] = {}
    read = footers_module._read_tail

    def spy(storage: Any, file: tuple[str, int]) -> bytes:
        actions.pop(os.path.basename(file[0]), lambda: None)()
        return read(storage, file)

    monkeypatch.setattr(footers_module, "_read_tail", spy)
    return lambda number, action: actions.update({f"{number:03}.parquet": action})


def ahead_of(dataset: ParquetDataset) -> Ahead:
    ahead = dataset._pipeline()._ahead
    assert ahead is not None
    return ahead


def plain(items: Any) -> list[dict[str, Any]]:
    """Batches as values that can be compared, types included."""
    return [
        {
            name: (value.dtype, value.tolist()) if hasattr(value, "dtype") else value
            for name, value in item.items()
        }
        for item in items
    ]


def ids(items: Any) -> list[int]:
    return [i for item in items for i in torch.as_tensor(item["id"]).flatten().tolist()]


def without(path: Any, **options: Any) -> list[dict[str, Any]]:
    """The batches of a dataset that begins nothing early."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ahead, "start", lambda self, tasks: None)
        with ParquetDataset(path, **{**OPTIONS, **options}) as dataset:
            return plain(dataset)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle_window": "1 KiB", "num_splits": 1, "batch_size": 64},
        {"batch_size": None},
        {"shuffle_window": 4},  # each file is cut into three windows
        {"columns": ["x", "name"], "dtypes": {"x": torch.float64}},
        {"nulls": {"x": float("nan")}},
    ],
)
def test_the_same_batches_come_with_and_without(
    options: dict[str, Any], many: Path, submitted: list[tuple[int, int]]
) -> None:
    expected = without(str(many), **options)
    submitted.clear()
    with ParquetDataset(str(many), **{**OPTIONS, **options}) as dataset:
        assert [number for _, number in submitted] == [0, 1]
        assert not ahead_of(dataset).is_empty
        assert plain(dataset) == expected
        # They were taken over: nothing was asked for twice.
        assert [number for _, number in submitted] == list(range(len(submitted)))
        assert len({stream for stream, _ in submitted}) == 1
        assert ahead_of(dataset).is_empty
        assert plain(dataset) == expected


@pytest.mark.cluster
@pytest.mark.parametrize("options", [{}, {"shuffle_window": 4}])
def test_the_same_batches_come_with_and_without_from_a_cluster(
    options: dict[str, Any],
    many: Path,
    local_cluster: cluster.Cluster,
    submitted: list[tuple[int, int]],
) -> None:
    options = {**OPTIONS, "client": local_cluster, "batch_size": 64, **options}
    expected = without(str(many), **{**options, "client": "threads"})[:20]
    submitted.clear()
    with ParquetDataset(str(many), **options) as dataset:
        assert [number for _, number in submitted] == [0, 1]
        found = plain(islice(dataset, len(expected)))
        assert found == expected
        assert [number for _, number in submitted] == list(range(len(submitted)))
        assert len({stream for stream, _ in submitted}) == 1


def test_a_window_is_read_before_the_last_footer_is(
    many: Path, on_tail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, waited = threading.Event(), []
    read = threads_engine.read_window

    def spy(*arguments: Any) -> Any:
        window = read(*arguments)
        arrived.set()
        return window

    monkeypatch.setattr(threads_engine, "read_window", spy)
    on_tail(NUM_FILES - 1, lambda: waited.append(arrived.wait(_DEADLINE_S)))
    with ParquetDataset(str(many), **OPTIONS) as dataset:
        assert waited == [True]
        assert ids(dataset) == list(range(NUM_ROWS))


@pytest.mark.cluster
def test_a_window_arrives_from_a_cluster_before_the_last_footer_is_read(
    many: Path,
    on_tail: Any,
    local_cluster: cluster.Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrived, waited = threading.Event(), []
    accept = dask_engine.DaskEngine._accept

    def spy(*arguments: Any) -> Any:
        window = accept(*arguments)
        arrived.set()
        return window

    monkeypatch.setattr(dask_engine.DaskEngine, "_accept", spy)
    on_tail(NUM_FILES - 1, lambda: waited.append(arrived.wait(_DEADLINE_S)))
    options = {**OPTIONS, "client": local_cluster, "batch_size": 500}
    with ParquetDataset(str(many), **options) as dataset:
        assert waited == [True]
        assert ids(dataset) == list(range(NUM_ROWS))


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"filters": [("id", ">=", 0)]},
        {"rank": 0, "world_size": 2},
        {"num_splits": 2},
        {"shuffle_window": "64 MiB"},  # the files that are read might all be one window
        {"memory_limit": 100},
    ],
)
def test_nothing_is_begun_where_the_order_or_the_memory_does_not_allow_it(
    options: dict[str, Any], many: Path, submitted: list[tuple[int, int]]
) -> None:
    with ParquetDataset(str(many), **{**OPTIONS, **options}):
        assert submitted == []


def test_nothing_is_begun_for_few_footers(
    many: Path, submitted: list[tuple[int, int]]
) -> None:
    few = [str(path_of(many, number)) for number in range(500)]
    with ParquetDataset(few, **OPTIONS):
        assert submitted == []


def test_nothing_is_begun_for_remembered_footers(
    many: Path,
    tmp_path: Path,
    submitted: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dask_loader.catalog.storage.SETTLED_NS", 0)
    options = {**OPTIONS, "footer_cache": tmp_path / "cache"}
    for expected in ([0, 1], []):
        submitted.clear()
        with ParquetDataset(str(many), **options) as dataset:
            assert [number for _, number in submitted] == expected
            assert ids(dataset) == list(range(NUM_ROWS))


@pytest.mark.cluster
def test_nobody_is_waited_for_where_a_cluster_has_no_worker(
    many: Path, submitted: list[tuple[int, int]]
) -> None:
    with cluster.launch("local", workers=0) as empty:
        with ParquetDataset(str(many), **{**OPTIONS, "client": empty}) as dataset:
            assert len(dataset) == -(-NUM_ROWS // 7)
            assert submitted == []


@pytest.fixture
def remote(many: Path) -> Iterator[str]:
    """70 of the files in memory."""
    memory = fsspec.filesystem("memory")
    for number in range(70):
        content = path_of(many, number).read_bytes()
        memory.pipe_file(f"/ahead/{number:03}.parquet", content)
    yield "memory://ahead"
    memory.rm("/ahead", recursive=True)


def test_of_remote_files_fewer_are_many(
    remote: str, submitted: list[tuple[int, int]]
) -> None:
    few = [f"{remote}/{number:03}.parquet" for number in range(64)]
    with ParquetDataset(few, **OPTIONS):
        assert submitted == []
    with ParquetDataset(remote, **OPTIONS) as dataset:
        assert [number for _, number in submitted] == [0, 1]
        assert ids(dataset) == list(range(70 * FILE_ROWS))


# ---- given up -------------------------------------------------------------------------


def seek_far(dataset: ParquetDataset) -> int:
    dataset.seek(0, 100)
    return 700


def load_far(dataset: ParquetDataset) -> int:
    dataset.load_state_dict({**dataset.state_dict(), "rows": 700})
    return 700


@pytest.mark.parametrize("go", [seek_far, load_far])
def test_another_position_first_gives_them_up(
    go: Callable[[ParquetDataset], int], many: Path, submitted: list[tuple[int, int]]
) -> None:
    with ParquetDataset(str(many), **OPTIONS) as dataset:
        (early,) = {stream for stream, _ in submitted}
        first = go(dataset)
        batches = iter(dataset)
        assert next(batches)["id"][0] == first
        assert ahead_of(dataset).is_empty
        assert [stream for stream, _ in submitted].count(early) == 2
        assert ids(batches) == list(range(first + 7, NUM_ROWS))
        assert ids(dataset) == list(range(NUM_ROWS))


def test_a_later_epoch_in_the_same_order_may_take_them(many: Path) -> None:
    with ParquetDataset(str(many), **OPTIONS) as dataset:
        dataset.set_epoch(3)
        assert ids(dataset) == list(range(NUM_ROWS))
        assert ahead_of(dataset).is_empty


def test_a_look_takes_them_and_counts_no_epoch(many: Path) -> None:
    with ParquetDataset(str(many), **OPTIONS) as dataset:
        assert dataset.peek()["id"].tolist() == list(range(7))
        assert ahead_of(dataset).is_empty
        assert dataset.state_dict()["epoch"] == 0
        assert ids(dataset) == list(range(NUM_ROWS))


def test_close_without_an_iteration_leaves_nothing(many: Path) -> None:
    dataset = ParquetDataset(str(many), **OPTIONS)
    ahead, engine = ahead_of(dataset), dataset._pipeline().engine
    assert not ahead.is_empty
    dataset.close()
    dataset.close()
    assert ahead.is_empty
    assert engine.held_bytes == 0


@pytest.mark.cluster
def test_close_without_an_iteration_leaves_nothing_of_a_clusters(
    many: Path, local_cluster: cluster.Cluster
) -> None:
    options = {**OPTIONS, "client": local_cluster}
    dataset = ParquetDataset(str(many), **options)
    ahead, engine = ahead_of(dataset), dataset._pipeline().engine
    assert not ahead.is_empty
    dataset.close()
    assert ahead.is_empty
    assert engine.held_bytes == 0


def test_a_pickle_takes_none_along(many: Path) -> None:
    with ParquetDataset(str(many), **OPTIONS) as dataset:
        ahead = ahead_of(dataset)
        with pickle.loads(pickle.dumps(dataset)) as copy:
            assert ahead.is_empty
            assert copy._pipeline()._ahead is None
            assert ids(copy) == list(range(NUM_ROWS))


def test_a_fork_takes_none_along(many: Path) -> None:
    with ParquetDataset(str(many), **OPTIONS) as dataset:
        ahead = ahead_of(dataset)
        loader = DataLoader(dataset, num_workers=1, multiprocessing_context="fork")
        assert not ahead.is_empty
        batches = iter(loader)
        assert next(batches)["id"].tolist() == list(range(7))
        assert ahead.is_empty
        assert ids(batches) == list(range(7, NUM_ROWS))


def spoil_type(folder: Path) -> None:
    table = part(NUM_FILES - 1)
    rewrite(folder, NUM_FILES - 1, table.set_column(1, "x", table["id"]))


def spoil_footer(folder: Path) -> None:
    path_of(folder, NUM_FILES - 1).unlink()
    path_of(folder, NUM_FILES - 1).write_bytes(b"nothing of the kind")


def spoil_nulls(folder: Path) -> None:
    table = part(NUM_FILES - 1)
    none = pa.array([None] * FILE_ROWS, pa.float32())
    rewrite(folder, NUM_FILES - 1, table.set_column(1, "x", none))


LATE_FAULTS = [
    (spoil_type, SchemaError, "files disagree about column 'x'"),
    (spoil_footer, BadFileError, r"599\.parquet' is not a readable Parquet file"),
    (spoil_nulls, NullError, "column 'x' has 10 nulls"),
]


@pytest.mark.parametrize(("spoil", "error", "text"), LATE_FAULTS)
def test_what_is_wrong_with_a_late_file_is_said_by_the_constructor(
    spoil: Any, error: Any, text: str, mine: Path, submitted: list[tuple[int, int]]
) -> None:
    spoil(mine)
    with pytest.raises(error, match=text):
        ParquetDataset(str(mine), **OPTIONS)
    assert [number for _, number in submitted] == [0, 1]


@pytest.mark.cluster
@pytest.mark.parametrize(("spoil", "error", "text"), LATE_FAULTS[:1])
def test_what_is_wrong_with_a_late_file_leaves_nothing_on_a_cluster(
    spoil: Any, error: Any, text: str, mine: Path, local_cluster: cluster.Cluster
) -> None:
    spoil(mine)
    with pytest.raises(error, match=text):
        ParquetDataset(str(mine), **{**OPTIONS, "client": local_cluster})


def test_what_is_wrong_with_an_early_file_or_an_argument_begins_nothing(
    mine: Path, submitted: list[tuple[int, int]]
) -> None:
    with pytest.raises(ConfigError, match="'nope', which is not among the columns"):
        ParquetDataset(str(mine), nulls={"nope": 0}, **OPTIONS)
    table = part(5)
    rewrite(mine, 5, table.set_column(1, "x", table["id"]))
    with pytest.raises(SchemaError, match=r"has type int64 in '.*005\.parquet'"):
        ParquetDataset(str(mine), **OPTIONS)
    assert submitted == []


def test_a_damaged_page_is_said_when_its_windows_turn_comes(mine: Path) -> None:
    options = {"use_dictionary": False, "compression": "none"}
    rewrite(mine, 2, part(2), write_page_checksum=True, **options)
    path = path_of(mine, 2)
    chunk = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with ParquetDataset(str(mine), **{**OPTIONS, "batch_size": 20}) as dataset:
        batches = iter(dataset)
        assert next(batches)["id"].tolist() == list(range(20))
        with pytest.raises(BadFileError, match=r"row group 0 of '.*002\.parquet'"):
            next(batches)


def test_a_fault_that_is_mended_before_its_windows_turn_is_never_seen(
    mine: Path, on_tail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, away = path_of(mine, 0), mine.parent / "away"
    failed, waited = threading.Event(), []
    read = threads_engine.read_window

    def spy(*arguments: Any) -> Any:
        try:
            return read(*arguments)
        except Exception:
            failed.set()
            raise

    def mend() -> None:
        waited.append(failed.wait(_DEADLINE_S))
        away.rename(first)

    monkeypatch.setattr(threads_engine, "read_window", spy)
    on_tail(50, lambda: first.rename(away))  # its footer was read
    on_tail(NUM_FILES - 1, mend)
    with ParquetDataset(str(mine), **OPTIONS) as dataset:
        assert waited == [True]
        assert ids(dataset) == list(range(NUM_ROWS))
