"""ParquetDataset as its users hold it."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import pickle
import tracemalloc
from itertools import chain
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from dask_loader import (
    ClosedError,
    ConfigError,
    DataChangedError,
    NullError,
    ParquetDataset,
    PlanError,
    WorldError,
)
from dask_loader.engine import worker
from dask_loader.metrics import LABELS

NUM_ROWS = 1009
OPTIONS = {"client": "threads", "batch_size": 50, "shuffle_window": 40}


@pytest.fixture(
    scope="module",
    params=["threads", pytest.param("cluster", marks=pytest.mark.cluster)],
)
def client(request) -> Any:
    if request.param == "threads":
        return "threads"
    return request.getfixturevalue("local_cluster")


def plain_of(path: Path, **options: Any) -> ParquetDataset:
    # Not a fixture: pytest would keep it alive until after the leak check.
    return ParquetDataset(path, **{**OPTIONS, **options})


def shuffled_of(path: Path, **options: Any) -> ParquetDataset:
    return plain_of(path, shuffle=True, seed=5, **options)


def ids(batches: Any) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def epoch_of(path: Path, epoch: int, **options: Any) -> list[list[int]]:
    with ParquetDataset(path, **{**OPTIONS, **options}) as dataset:
        dataset.set_epoch(epoch)
        return ids(dataset)


# ---- what it is ---------------------------------------------------------------------


def test_it_knows_its_rows_schema_world_and_length(small_data):
    with plain_of(small_data) as dataset:
        assert dataset.num_rows == NUM_ROWS
        assert dataset.schema == pq.read_schema(small_data / "part-0.parquet")
        assert dataset.batch_size == 50
        assert len(dataset) == 21
        assert (dataset.world.rank, dataset.world.world_size) == (0, 1)


def test_schema_and_batches_have_the_columns_asked_for_in_that_order(small_data):
    names = ["name", "f64", "id"]
    with ParquetDataset(small_data, columns=names, **OPTIONS) as dataset:
        assert dataset.schema.names == names
        assert list(dataset.peek()) == names


def test_num_rows_counts_what_the_filters_keep(small_data):
    table = pq.read_table(small_data, filters=[("u8", "<", 100)])
    with ParquetDataset(small_data, filters=[("u8", "<", 100)], **OPTIONS) as dataset:
        assert dataset.num_rows == table.num_rows
        assert len(dataset) == -(-table.num_rows // 50)
        rows = list(chain.from_iterable(ids(dataset)))
    assert rows == table["id"].to_pylist()


def test_explain_says_what_is_read_how_and_by_whom(small_data):
    with shuffled_of(small_data) as dataset:
        text = dataset.explain()
        assert "1009 rows in 17 row groups of 3 files" in text
        assert "shuffle=True seed=5" in text
        assert "rank 0 of 1 (default): 21 batches, 1009 rows" in text
        assert "threads in this process" in text


def test_explain_counts_no_epoch(small_data):
    with shuffled_of(small_data) as dataset:
        first = ids(dataset)
        dataset.set_epoch(0)
        dataset.explain()
        len(dataset)
        assert ids(dataset) == first


def test_stats_count_what_was_handed_out(small_data):
    with plain_of(small_data) as dataset:
        assert dataset.stats()["batches"] == 0
        list(dataset)
        stats = dataset.stats()
        assert set(stats) == {*LABELS, "wait_share"}
        assert stats["batches"] == 21
        assert stats["rows"] == NUM_ROWS
        assert stats["windows"] >= NUM_ROWS / 40
        assert stats["bytes"] > NUM_ROWS * 8
        assert 0 <= stats["wait_share"] <= 1
        list(dataset)
        assert dataset.stats()["rows"] == 2 * NUM_ROWS


def test_take_and_peek_show_the_first_of_epoch_0_and_count_no_epoch(small_data):
    with shuffled_of(small_data) as dataset:
        shown = dataset.take(3)
        assert ids([dataset.peek()]) == ids(shown[:1])
        first = ids(dataset)
        assert ids(shown) == first[:3]
        assert ids(dataset.take(1)) == first[:1]
        assert ids(dataset.take(0)) == []
        assert len(dataset.take(10**6)) == 21
        assert ids(dataset) != first


def test_take_and_peek_show_rows_without_a_batch_size(small_data):
    with ParquetDataset(
        small_data, client="threads", batch_size=None, columns=["id"]
    ) as dataset:
        assert dataset.take(2) == [{"id": 0}, {"id": 1}]
        assert dataset.peek() == {"id": 0}


def test_a_dataset_without_rows_has_no_batches(tmp_path):
    pq.write_table(pa.table({"id": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    with ParquetDataset(tmp_path / "a.parquet", shuffle=True, **OPTIONS) as dataset:
        assert (len(dataset), dataset.num_rows) == (0, 0)
        assert list(dataset) == []
        assert dataset.peek() is None
        assert dataset.take(3) == []
        assert dataset.to_delayed() == []
        assert "0 batches" in dataset.explain()


# ---- epochs -------------------------------------------------------------------------


def test_each_iteration_is_the_next_epoch_unless_one_is_set(small_data):
    with shuffled_of(small_data) as dataset:
        epochs = [ids(dataset) for _ in range(3)]
        assert len({str(epoch) for epoch in epochs}) == 3
        for number, epoch in enumerate(epochs):
            assert sorted(chain.from_iterable(epoch)) == list(range(NUM_ROWS))
            assert epoch == epoch_of(small_data, number, shuffle=True, seed=5)
        dataset.set_epoch(1)
        assert ids(dataset) == epochs[1]
        assert ids(dataset) == epochs[2]
        dataset.set_epoch(0)
        dataset.set_epoch(2)
        assert ids(dataset) == epochs[2]


def test_equal_seed_and_epoch_give_equal_batches_and_other_seeds_do_not(small_data):
    one = epoch_of(small_data, 4, shuffle=True, seed=1)
    assert one == epoch_of(small_data, 4, shuffle=True, seed=1)
    assert one != epoch_of(small_data, 4, shuffle=True, seed=2)
    assert one != epoch_of(small_data, 5, shuffle=True, seed=1)


def test_unshuffled_epochs_are_all_alike(small_data):
    with plain_of(small_data) as dataset:
        assert ids(dataset) == ids(dataset)


def test_an_epoch_begins_when_iter_is_called_not_at_the_first_next(small_data):
    with shuffled_of(small_data) as dataset:
        epochs = [ids(dataset), ids(dataset)]
        dataset.set_epoch(0)
        first = iter(dataset)
        second = iter(dataset)
        assert ids(second) == epochs[1]
        dataset.set_epoch(7)
        assert ids(first) == epochs[0]


def test_after_an_early_break_the_next_iteration_is_a_whole_new_epoch(small_data):
    with shuffled_of(small_data) as dataset:
        for _ in dataset:
            break
        assert ids(dataset) == epoch_of(small_data, 1, shuffle=True, seed=5)


@pytest.mark.parametrize("epoch", [-1, 1.0, "1", None, True])
def test_an_epoch_is_a_whole_number_from_0_up(small_data, epoch):
    with plain_of(small_data) as dataset:
        with pytest.raises(
            ConfigError, match=r"epoch=.* must be a whole number from 0"
        ):
            dataset.set_epoch(epoch)


def test_two_iterators_at_once_do_not_disturb_each_other(small_data, client):
    options = {**OPTIONS, "client": client}
    with ParquetDataset(small_data, shuffle=True, **options) as dataset:
        one, two = [], []
        for first, second in zip(dataset, dataset, strict=True):
            one.append(first)
            two.append(second)
    assert ids(one) == epoch_of(small_data, 0, shuffle=True)
    assert ids(two) == epoch_of(small_data, 1, shuffle=True)


# ---- tensors are the user's own -----------------------------------------------------


def in_place(batch: dict[str, Any]) -> None:
    """Overwrite everything, in several ways."""
    for name, column in batch.items():
        if isinstance(column, torch.Tensor):
            column.logical_not_() if name == "flag" else column.add_(1)
            column.numpy()[: len(column) // 2] = 0
            column.zero_()
        else:
            column.clear()


def copied(batch: dict[str, Any]) -> dict[str, Any]:
    return {
        name: column.clone() if isinstance(column, torch.Tensor) else list(column)
        for name, column in batch.items()
    }


def assert_same(got: list[dict], want: list[dict]) -> None:
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        for name, column in theirs.items():
            if isinstance(column, torch.Tensor):
                assert torch.equal(mine[name], column), name
            else:
                assert mine[name] == column, name


def digests(folder: Path) -> list[str]:
    files = sorted(folder.iterdir())
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@pytest.mark.parametrize(("shuffle", "uneven"), [(True, "pad"), (False, "exact")])
def test_writing_into_batches_changes_no_other_batch_no_later_epoch_and_no_file(
    small_data, client, shuffle, uneven
):
    before = digests(small_data)
    options = {**OPTIONS, "client": client, "shuffle": shuffle, "uneven": uneven}
    with ParquetDataset(small_data, rank=1, world_size=3, **options) as dataset:
        wanted = []
        for epoch in range(2):
            dataset.set_epoch(epoch)
            wanted.append([copied(batch) for batch in dataset])
        dataset.set_epoch(0)
        for want in wanted:
            got = []
            for batch in dataset:
                got.append(copied(batch))
                in_place(batch)
            assert_same(got, want)
    assert digests(small_data) == before


def test_writing_into_a_pad_changes_no_other_row(small_data):
    # 1009 rows over 8 ranks: the last step pads seven ranks.
    for rank in range(8):
        with ParquetDataset(small_data, rank=rank, world_size=8, **OPTIONS) as dataset:
            batches = list(dataset)
            want = [copied(batch) for batch in batches]
            in_place(batches[-1])
            assert_same(batches[:-1], want[:-1])


@pytest.mark.parametrize("limit", ["320 KB", "1 MiB", "2560 KB"])  # 2, 6, 16 windows
def test_a_kept_column_of_each_batch_stays_intact_and_holds_no_whole_windows(
    tmp_path, limit
):
    # 40 columns of which one is kept: were each a view, all windows would stay.
    num_rows, num_columns = 40_000, 40
    columns = {f"x{i}": np.arange(num_rows) * (i + 1) for i in range(num_columns)}
    path = tmp_path / "wide.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=500)
    with ParquetDataset(
        path,
        client="threads",
        batch_size=100,
        shuffle_window=500,
        memory_limit=limit,
    ) as dataset:
        for _ in range(2):
            # Slabs are within memory_limit; windows beyond them, and copies (which keep
            # a group of columns together), are NumPy's memory.
            tracemalloc.start()
            kept = [batch["x7"] for batch in dataset]
            held_bytes, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert torch.equal(torch.cat(kept), torch.arange(num_rows) * 8)
            assert held_bytes < num_rows * num_columns * 8 / 3
            del kept


def test_kept_batches_outlive_the_dataset(small_data):
    dataset = ParquetDataset(small_data, shuffle=True, **OPTIONS)
    batches = list(dataset)
    want = [copied(batch) for batch in batches]
    dataset.close()
    del dataset
    gc.collect()
    assert_same(batches, want)


# ---- pickle and fork ----------------------------------------------------------------


def test_a_pickled_dataset_goes_on_with_the_next_epoch(small_data):
    with shuffled_of(small_data) as dataset:
        first = ids(dataset)
        with pickle.loads(pickle.dumps(dataset)) as copy:
            assert ids(copy) == epoch_of(small_data, 1, shuffle=True, seed=5)
            assert copy.num_rows == NUM_ROWS
            copy.set_epoch(0)
            assert ids(copy) == first
        # The copy counted for itself, and closing it closed nothing of the original's.
        assert ids(dataset) == epoch_of(small_data, 1, shuffle=True, seed=5)


def test_a_pickle_holds_no_data_and_no_connection(small_data):
    with shuffled_of(small_data) as dataset:
        iterator = iter(dataset)
        next(iterator)
        assert len(pickle.dumps(dataset)) < 100_000
        iterator.close()


@pytest.mark.cluster
def test_a_pickled_dataset_of_a_cluster_connects_for_itself(small_data, local_cluster):
    options = {**OPTIONS, "client": local_cluster, "shuffle": True}
    with ParquetDataset(small_data, **options) as dataset:
        pickled = pickle.dumps(dataset)
    with pickle.loads(pickled) as copy:
        assert ids(copy) == epoch_of(small_data, 0, shuffle=True)


def _send_ids(dataset: ParquetDataset, pipe: Any) -> None:
    pipe.send(ids(dataset))
    pipe.close()


def test_a_dataset_in_use_works_in_a_forked_child_and_on_in_its_parent(
    small_data, client
):
    options = {**OPTIONS, "client": client, "shuffle": True}
    context = multiprocessing.get_context("fork")
    with ParquetDataset(small_data, **options) as dataset:
        batches = iter(dataset)
        mine = ids([next(batches)])
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_send_ids, args=(dataset, sender))
        child.start()
        sender.close()
        assert receiver.poll(60)
        theirs = receiver.recv()
        child.join(180)
        assert child.exitcode == 0
        mine += ids(batches)
        receiver.close()
        child.close()
    assert mine == epoch_of(small_data, 0, shuffle=True)
    assert theirs == epoch_of(small_data, 1, shuffle=True)


# ---- closing ------------------------------------------------------------------------


def test_a_closed_dataset_says_so_and_closes_twice(small_data):
    dataset = ParquetDataset(small_data, **OPTIONS)
    dataset.close()
    dataset.close()
    for use in (lambda: iter(dataset), dataset.peek, dataset.explain):
        with pytest.raises(ClosedError, match="was closed; make a new one"):
            use()
    assert dataset.num_rows == NUM_ROWS


def test_the_with_block_closes(small_data):
    with ParquetDataset(small_data, **OPTIONS) as dataset:
        assert isinstance(dataset, ParquetDataset)
    with pytest.raises(ClosedError):
        dataset.take(1)


def test_a_forgotten_dataset_closes_itself(small_data):
    # The leak check after the test is what looks.
    dataset = ParquetDataset(small_data, **OPTIONS)
    next(iter(dataset))
    del dataset


def test_a_dataset_that_could_not_be_made_leaves_nothing(small_data):
    with pytest.raises(ConfigError):
        ParquetDataset(small_data, nulls="maybe", **OPTIONS)


# ---- errors of the data -------------------------------------------------------------


@pytest.mark.parametrize("change", ["gone", "rewritten"])
def test_a_file_that_changes_after_the_dataset_was_made_is_named(tmp_path, change):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": np.arange(100)}), path)
    with ParquetDataset(path, **OPTIONS) as dataset:
        if change == "gone":
            path.unlink()
        else:
            pq.write_table(pa.table({"id": np.arange(1000)}), path)
        with pytest.raises(DataChangedError, match=r"a\.parquet") as caught:
            next(iter(dataset))
        assert caught.value.path == str(path)


def test_nulls_without_a_policy_are_refused_before_anything_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"id": [1, 2, 3, 4], "x": [0.5, None, None, 1.0]})
    pq.write_table(table, path, row_group_size=2)
    with pytest.raises(
        NullError,
        match=r"column 'x' has 1 nulls in .*a\.parquet', row group 0 \(2 in the whole",
    ) as caught:
        ParquetDataset(path, **OPTIONS)
    assert (caught.value.column, caught.value.row_group) == ("x", 0)
    with ParquetDataset(path, nulls={"x": -1}, **OPTIONS) as dataset:
        assert dataset.peek()["x"].tolist() == [0.5, -1, -1, 1.0]
    with ParquetDataset(path, columns=["id"], **OPTIONS) as dataset:
        assert dataset.peek()["id"].tolist() == [1, 2, 3, 4]


def test_a_plan_that_memory_limit_cannot_hold_is_refused_before_the_first_read(
    small_data,
):
    with (
        ParquetDataset(
            small_data,
            client="threads",
            shuffle=True,
            num_splits=64,
            shuffle_window="8 KiB",
            memory_limit="100 KiB",
        ) as dataset,
        pytest.raises(PlanError, match="64 windows of 8 KiB in hand"),
    ):
        iter(dataset)


# ---- to_delayed ---------------------------------------------------------------------


@pytest.fixture
def _no_files_kept_open(monkeypatch):
    """Partitions computed in this process use a worker's resources, kept for good."""
    monkeypatch.setattr(worker, "_resources", None)
    yield
    if worker._resources is not None:
        worker._resources.files.close()


def partitions(dataset: ParquetDataset, epoch: int = 0) -> list[pa.Table]:
    (tables,) = dask.compute(dataset.to_delayed(epoch), scheduler="synchronous")
    return tables


@pytest.mark.usefixtures("_no_files_kept_open")
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("world_size", "num_splits"), [(1, None), (3, None), (3, 4)])
def test_delayed_partitions_hold_each_row_of_the_epoch_once_over_all_ranks(
    small_data, world_size, num_splits, shuffle
):
    rows = []
    for rank in range(world_size):
        with ParquetDataset(
            small_data,
            rank=rank,
            world_size=world_size,
            num_splits=num_splits,
            shuffle=shuffle,
            uneven="exact",
            **OPTIONS,
        ) as dataset:
            tables = partitions(dataset, epoch=2)
            dataset.set_epoch(2)
            mine = list(chain.from_iterable(ids(dataset)))
        assert all(isinstance(table, pa.Table) for table in tables)
        part = [i for table in tables for i in table["id"].to_pylist()]
        assert sorted(part) == sorted(mine)
        rows += part
    assert sorted(rows) == list(range(NUM_ROWS))


@pytest.mark.usefixtures("_no_files_kept_open")
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 3])
def test_with_a_split_for_each_rank_partitions_are_the_batches_end_to_end(
    small_data, world_size, shuffle
):
    whole = pq.read_table(small_data)
    for rank in range(world_size):
        with ParquetDataset(
            small_data,
            rank=rank,
            world_size=world_size,
            num_splits=world_size,
            shuffle=shuffle,
            uneven="exact",
            **OPTIONS,
        ) as dataset:
            table = pa.concat_tables(partitions(dataset))
            order = list(chain.from_iterable(ids(dataset)))
        assert table.schema == whole.schema
        assert table.equals(whole.take(order))


@pytest.mark.usefixtures("_no_files_kept_open")
def test_partitions_leave_nulls_as_they_are_and_filters_at_work(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"id": [1, 2, 3, 4], "x": [0.5, None, None, 1.0]})
    pq.write_table(table, path)
    with ParquetDataset(
        path, nulls={"x": 0}, filters=[("id", ">", 1)], **OPTIONS
    ) as dataset:
        assert pa.concat_tables(partitions(dataset)).equals(table.slice(1))


@pytest.mark.usefixtures("_no_files_kept_open")
def test_partitions_leave_out_pads(small_data):
    rows = []
    for rank in range(8):
        with ParquetDataset(small_data, rank=rank, world_size=8, **OPTIONS) as dataset:
            rows += [i for t in partitions(dataset) for i in t["id"].to_pylist()]
    assert sorted(rows) == list(range(NUM_ROWS))


@pytest.mark.cluster
def test_partitions_compute_on_a_cluster(small_data, local_cluster):
    client = local_cluster.client()
    with ParquetDataset(small_data, shuffle=True, **OPTIONS) as dataset:
        delayed = dataset.to_delayed()
        assert len({part.key for part in delayed}) == len(delayed)
        sizes = [dask.delayed(len)(part) for part in delayed]
        assert sum(client.gather(client.compute(sizes))) == NUM_ROWS
        tables = client.gather(client.compute(delayed))
        order = list(chain.from_iterable(ids(dataset)))
    table = pa.concat_tables(tables)
    assert sorted(table["id"].to_pylist()) == sorted(order)
    client.close()


# ---- rank and world size ------------------------------------------------------------


def test_rank_and_world_size_come_from_the_environment(small_data, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with ParquetDataset(small_data, **OPTIONS) as dataset:
        assert (dataset.world.rank, dataset.world.world_size) == (1, 3)
        mine = ids(dataset)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert mine == epoch_of(small_data, 0, rank=1, world_size=3)


def test_a_rank_is_resolved_when_it_is_needed_not_frozen(small_data, monkeypatch):
    with ParquetDataset(small_data, **OPTIONS) as dataset:
        assert len(dataset) == 21
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "3")
        assert len(dataset) == 7


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rank": 3, "world_size": 3}, "rank=3 .* below world_size=3"),
        ({"rank": -1, "world_size": 3}, "rank=-1"),
        ({"rank": 0}, "go together"),
        ({"rank": 0, "world_size": 0}, "world_size=0"),
        ({"mesh": "dp"}, "neither a torch DeviceMesh nor a process group"),
    ],
)
def test_a_wrong_rank_is_refused_when_the_dataset_is_made(small_data, options, match):
    with pytest.raises(WorldError, match=match):
        ParquetDataset(small_data, **options, **OPTIONS)


@pytest.fixture
def process_group():
    """A real gloo group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_torch_distributed_and_meshes_say_the_rank(small_data, process_group):
    grid = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
    flat = init_device_mesh("cpu", (1,))
    for mesh, source in (
        (None, "torch.distributed"),
        (process_group, "mesh"),
        (flat, "mesh"),
        (grid["dp"], "mesh"),
    ):
        with ParquetDataset(small_data, mesh=mesh, **OPTIONS) as dataset:
            world = dataset.world
            assert (world.rank, world.world_size, world.source) == (0, 1, source)
            assert sum(map(len, ids(dataset))) == NUM_ROWS
            with pickle.loads(pickle.dumps(dataset)) as copy:
                assert sum(map(len, ids(copy))) == NUM_ROWS
    with pytest.raises(WorldError, match=r"has 2 dimensions.*mesh\[\"dp\"\]"):
        ParquetDataset(small_data, mesh=grid, **OPTIONS)


def test_disagreeing_with_torch_distributed_is_refused(small_data, process_group):
    with pytest.raises(
        WorldError,
        match=r"rank=0 and world_size=2 .*torch\.distributed says rank 0 of 1",
    ) as caught:
        ParquetDataset(small_data, rank=0, world_size=2, **OPTIONS)
    assert caught.value.rank == 0


def test_a_mesh_and_a_rank_together_are_refused(small_data, process_group):
    with pytest.raises(WorldError, match="already says the rank"):
        ParquetDataset(small_data, mesh=process_group, rank=0, world_size=1, **OPTIONS)


# ---- double batching ----------------------------------------------------------------


def test_a_fetcher_that_would_batch_again_is_refused(small_data):
    with plain_of(small_data) as dataset:

        def fetch(dataset: ParquetDataset, *, auto_collation: bool) -> Any:
            # As in torch's and torchdata's fetchers.
            return iter(dataset)

        with pytest.raises(
            ConfigError, match="would batch these batches of 50 rows again"
        ):
            fetch(dataset, auto_collation=True)
        fetch(dataset, auto_collation=False)


def test_rows_may_be_batched_by_a_fetcher(small_data):
    auto_collation = True
    with ParquetDataset(small_data, client="threads", batch_size=None) as dataset:
        assert next(iter(dataset))["id"] == 0
    assert auto_collation
