"""Row groups larger than a window, read by threads and by Dask workers: decoded once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import cluster
from dask_loader import BadFileError, DataChangedError, DataLoader, ParquetDataset
from dask_loader.read import chains as chains_module
from dask_loader.read import pieces as pieces_module
from dask_loader.read.chains import Chains
from dask_loader.read.files import OpenFiles
from dask_loader.read.window import read_window

GROUPS = (9000, 7, 13_001)
NUM_ROWS = sum(GROUPS)
OPTIONS: dict[str, Any] = {"batch_size": 700, "shuffle_window": 1000, "num_splits": 1}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of one row group each, two of them larger than a window."""
    folder = tmp_path_factory.mktemp("huge")
    rng = np.random.default_rng(5)
    vectors = pa.array(rng.random(NUM_ROWS * 2, dtype=np.float32))
    table = pa.table(
        {
            "id": np.arange(NUM_ROWS),
            "x": rng.standard_normal(NUM_ROWS),
            "name": [f"row {i}" * (i % 3) for i in range(NUM_ROWS)],
            "vec": pa.FixedSizeListArray.from_arrays(vectors, 2),
        }
    )
    start = 0
    for number, rows in enumerate(GROUPS):
        part = table.slice(start, rows)
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=rows)
        start += rows
    return folder


def _count(found: list[tuple[int, int, tuple[str, ...]]]) -> tuple[Any, Any]:
    """Count what is decoded: (row group's rows, rows, columns) of each table."""
    real = pieces_module.kept_tables

    def counting(
        file: Any, task: Any, options: Any, forms: Any, **more: Any
    ) -> Iterator[pa.Table]:
        names = tuple(form.name for form in forms)
        for table in real(file, task, options, forms, **more):
            found.append((task.group_rows, table.num_rows, names))
            yield table

    return real, counting


@pytest.fixture
def decoded(monkeypatch) -> list[tuple[int, int, tuple[str, ...]]]:
    """What threads of this process decode."""
    found: list[tuple[int, int, tuple[str, ...]]] = []
    _, counting = _count(found)
    monkeypatch.setattr(chains_module, "kept_tables", counting)
    monkeypatch.setattr(pieces_module, "kept_tables", counting)
    monkeypatch.setattr(chains_module, "_MAX_BATCH_ROWS", 300)
    return found


def times_decoded(found: list[Any], columns: list[str]) -> dict[int, set[float]]:
    """How often each row group was decoded, by column."""
    times: dict[int, set[float]] = {}
    for rows in GROUPS:
        per_column = [
            sum(n for group, n, names in found if group == rows and name in names)
            for name in columns
        ]
        times[rows] = {total / rows for total in per_column}
    return times


@pytest.fixture
def use_threads(monkeypatch) -> Callable[[int], None]:
    def use(number: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(number)))

    return use


def same(got: list[Any], want: list[Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return len(got) == len(want) and all(
        list(a) == list(b) and all(equal(a[name], b[name]) for name in b)
        for a, b in zip(got, want, strict=True)
    )


@pytest.fixture
def without_chains(path, monkeypatch) -> Callable[..., list[Any]]:
    """Batches of an epoch whose every window is decoded by itself."""

    def read(**options: Any) -> list[Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Chains, "enter", lambda *_: None)
            with ParquetDataset(path, client="threads", **OPTIONS | options) as dataset:
                return list(dataset)

    return read


# ---- threads ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [1, 2, 4])
@pytest.mark.parametrize("shuffle", [False, True])
def test_threads_decode_each_row_group_once_in_an_epoch(
    path, decoded, use_threads, without_chains, num_threads, shuffle
):
    use_threads(num_threads)
    wanted = without_chains(shuffle=shuffle)
    assert max(times_decoded(decoded, ["id"])[GROUPS[0]]) > 3
    decoded.clear()
    with ParquetDataset(path, client="threads", shuffle=shuffle, **OPTIONS) as dataset:
        assert f"{num_threads} threads" in dataset._pipeline().engine.name
        assert same(list(dataset), wanted)
        times = times_decoded(decoded, ["id", "x", "name", "vec"])
        assert set().union(*times.values()) == {1.0}
        assert len(dataset._pipeline().engine._chains) == 0


@pytest.mark.parametrize("num_splits", [2, 3, 8])
@pytest.mark.parametrize("shuffle", [False, True])
def test_each_split_decodes_a_row_group_that_it_shares_at_most_once(
    path, decoded, use_threads, without_chains, num_splits, shuffle
):
    use_threads(2)
    options = {"num_splits": num_splits, "shuffle": shuffle}
    wanted = without_chains(**options)
    decoded.clear()
    with ParquetDataset(path, client="threads", **OPTIONS | options) as dataset:
        run = dataset._course.plan_whole(dataset.world, 0)
        touched: dict[int, set[int]] = {}
        for split in range(num_splits):
            for window in run.epoch.split(split).windows:
                for piece in window:
                    touched.setdefault(GROUPS[piece.group], set()).add(split)
        assert same(list(dataset), wanted)
    for rows, times in times_decoded(decoded, ["id", "name"]).items():
        assert max(times) <= len(touched[rows])
    total = sum(n for _, n, names in decoded if "id" in names)
    assert NUM_ROWS <= total <= sum(r * len(touched[r]) for r in GROUPS)


@pytest.mark.parametrize("columns", [["id"], ["id", "name"], None])
def test_filters_keep_their_rows_and_each_row_group_is_decoded_once(
    path, decoded, use_threads, without_chains, columns
):
    use_threads(2)
    options = {
        "columns": columns,
        "filters": [("x", ">", 0.3), ("id", ">=", 100)],
        "shuffle_window": 300,
        "shuffle": True,
    }
    wanted = without_chains(**options)
    with ParquetDataset(path, client="threads", **OPTIONS | options) as dataset:
        decoded.clear()
        got = list(dataset)
        # The tables are counted after filtering.
        assert sum(n for _, n, names in decoded if "id" in names) == dataset.num_rows
    assert same(got, wanted)


@pytest.mark.parametrize("batches_before", [1, 6, 15])
def test_an_epoch_that_goes_on_in_the_middle_decodes_no_row_twice(
    path, decoded, without_chains, batches_before
):
    wanted = without_chains(shuffle=True)
    with ParquetDataset(path, client="threads", shuffle=True, **OPTIONS) as dataset:
        batches = iter(dataset)
        for _ in range(batches_before):
            next(batches)
        state = dataset.state_dict()
        batches.close()
    decoded.clear()
    with ParquetDataset(path, client="threads", shuffle=True, **OPTIONS) as dataset:
        dataset.load_state_dict(state)
        assert same(list(dataset), wanted[batches_before:])
    for times in times_decoded(decoded, ["id", "x", "name", "vec"]).values():
        assert max(times) <= 1.0


def test_two_epochs_at_the_same_time_do_not_meet(path, decoded, without_chains):
    wanted = without_chains(shuffle=True)
    decoded.clear()
    with ParquetDataset(path, client="threads", shuffle=True, **OPTIONS) as dataset:
        one = iter(dataset)
        got = [next(one) for _ in range(5)]
        dataset.set_epoch(0)
        two = iter(dataset)
        other = []
        for batch in two:
            other.append(batch)
            got.extend([x for x in [next(one, None)] if x is not None])
        got += one
        assert same(got, wanted)
        assert same(other, wanted)
    assert set().union(*times_decoded(decoded, ["id"]).values()) == {2.0}


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.slow
def test_dataloader_workers_see_the_same_batches(path, without_chains, context):
    wanted = without_chains(shuffle=True)
    with ParquetDataset(path, client="threads", shuffle=True, **OPTIONS) as dataset:
        loader = DataLoader(dataset, num_workers=2, multiprocessing_context=context)
        assert same(list(loader), wanted)


# ---- what stays open --------------------------------------------------------------------


def is_held(path: Path) -> bool:
    """Whether this process has the file open."""
    held = {
        os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
    }
    return os.path.realpath(path) in held


def test_an_epoch_that_is_abandoned_leaves_no_chain_and_closing_no_file(path):
    with ParquetDataset(path, client="threads", **OPTIONS) as dataset:
        batches = iter(dataset)
        for _ in range(4):
            next(batches)
        chains = dataset._pipeline().engine._chains
        assert len(chains) == 1
        batches.close()
        # A thread may still be at a window.
        assert len(chains) <= 1
    assert len(chains) == 0
    assert not is_held(path)


def test_closing_in_the_middle_of_an_epoch_leaves_no_chain_and_no_file(path):
    dataset = ParquetDataset(path, client="threads", **OPTIONS)
    batches = iter(dataset)
    for _ in range(4):
        next(batches)
    chains = dataset._pipeline().engine._chains
    assert len(chains) == 1
    dataset.close()
    assert len(chains) == 0
    assert not is_held(path)
    batches.close()
    assert len(chains) == 0


def test_an_error_in_the_middle_of_a_chain_leaves_no_chain_and_no_file(tmp_path):
    file = tmp_path / "damaged.parquet"
    pq.write_table(
        pa.table({"id": np.arange(10_000)}),
        file,
        row_group_size=10_000,
        use_dictionary=False,
        compression="none",
        write_page_checksum=True,
        data_page_size=4096,
    )
    chunk = pq.read_metadata(file).row_group(0).column(0)
    content = bytearray(file.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    file.write_bytes(content)
    with ParquetDataset(file, client="threads", **OPTIONS) as dataset:
        got = []
        with pytest.raises(BadFileError, match=r"row group 0 of .*damaged"):
            got.extend(batch["id"].tolist() for batch in dataset)
        assert list(chain.from_iterable(got)) == list(range(len(got) * 700))
        chains = dataset._pipeline().engine._chains
    assert len(chains) == 0
    assert not is_held(file)


# ---- Dask workers -----------------------------------------------------------------------


def _start_counting(dask_worker: Any, count: Any) -> None:
    from dask_loader.engine.worker import resources
    from dask_loader.read import chains, pieces

    # Killed consumers of other tests on this cluster may have left some.
    resources().chains.drop_idle()
    dask_worker.decoded = []
    real, counting = count(dask_worker.decoded)
    dask_worker.uncounted = (real, chains._MAX_BATCH_ROWS)
    chains.kept_tables = pieces.kept_tables = counting
    chains._MAX_BATCH_ROWS = 300


def _counted(dask_worker: Any) -> list[Any]:
    found = list(dask_worker.decoded)
    dask_worker.decoded.clear()
    return found


def _stop_counting(dask_worker: Any) -> None:
    from dask_loader.read import chains, pieces

    real, chains._MAX_BATCH_ROWS = dask_worker.uncounted
    chains.kept_tables = pieces.kept_tables = real


def _num_chains(dask_worker: Any) -> int:
    from dask_loader.engine.worker import resources

    return len(resources().chains)


@pytest.fixture
def counting_client(local_cluster) -> Iterator[distributed.Client]:
    client = local_cluster.client()
    client.run(_start_counting, count=_count)
    yield client
    client.run(_stop_counting)
    client.close()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("way", ["memory", "comm"])
def test_a_cluster_of_two_decodes_each_row_group_once_in_an_epoch(
    path, local_cluster, counting_client, without_chains, monkeypatch, shuffle, way
):
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", way)
    wanted = without_chains(shuffle=shuffle)
    with ParquetDataset(
        path, client=local_cluster, shuffle=shuffle, **OPTIONS
    ) as dataset:
        assert same(list(dataset), wanted)
        found = list(chain.from_iterable(counting_client.run(_counted).values()))
        times = times_decoded(found, ["id", "x", "name", "vec"])
        assert set().union(*times.values()) == {1.0}
        assert set(counting_client.run(_num_chains).values()) == {0}


@pytest.mark.slow
@pytest.mark.cluster
def test_splits_with_filters_on_a_cluster_are_as_on_threads(
    path, local_cluster, counting_client, without_chains
):
    options = {
        "num_splits": 3,
        "shuffle": True,
        "filters": [("x", ">", -0.5)],
        "shuffle_window": 400,
    }
    wanted = without_chains(**options)
    with ParquetDataset(path, client=local_cluster, **OPTIONS | options) as dataset:
        assert same(list(dataset), wanted)


@pytest.mark.slow
@pytest.mark.cluster
def test_an_abandoned_epoch_leaves_no_chain_on_the_workers(
    path, local_cluster, counting_client
):
    with ParquetDataset(path, client=local_cluster, **OPTIONS) as dataset:
        batches = iter(dataset)
        for _ in range(4):
            next(batches)
        assert sum(counting_client.run(_num_chains).values()) == 1
        batches.close()
        assert _ends(counting_client)


def _ends(client: distributed.Client) -> bool:
    import time

    deadline = time.monotonic() + 60
    while any(client.run(_num_chains).values()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_that_dies_in_the_middle_of_a_chain_changes_no_batch(
    path, without_chains, num_workers
):
    options = {"batch_size": 100, "shuffle": True, "shuffle_window": 500}
    wanted = without_chains(**options)
    with (
        cluster.launch("local", workers=num_workers) as failing,
        ParquetDataset(path, client=failing, **OPTIONS | options) as dataset,
    ):
        client = failing.client()
        engine = dataset._pipeline().engine
        got = []
        for number, batch in enumerate(dataset):
            got.append(batch)
            if number in (20, 110):
                # The worker that the rest of the chain is bound to.
                (home,) = set(engine._homes.values())
                pid = client.run(os.getpid, workers=[home])[home]
                os.kill(pid, signal.SIGKILL)
    assert same(got, wanted)


def test_a_row_group_that_is_given_up_may_have_lost_its_file(tmp_path):
    path = tmp_path / "gone.parquet"
    pq.write_table(pa.table({"id": np.arange(5000)}), path)
    files = OpenFiles()
    chains = Chains(files)
    with ParquetDataset(path, client="threads", shuffle_window=400) as dataset:
        run = dataset._course.plan_next(dataset.world)
        task = dataset._pipeline().partitions(run)[0][0]
        chain = chains.enter(task)
        window = read_window(task, files, lambda n: np.empty(n, np.uint8), chain)
        chains.leave(task)
    assert window.arrays["id"].tolist() == list(range(task.num_rows))
    assert len(chains) == 1
    path.unlink()
    chains.close()
    files.close()
    assert len(chains) == 0


def test_a_file_that_is_gone_between_windows_of_a_row_group_is_named(tmp_path):
    path = tmp_path / "gone.parquet"
    pq.write_table(pa.table({"id": np.arange(50_000)}), path)
    with ParquetDataset(
        path, client="threads", batch_size=100, shuffle_window=400
    ) as dataset:
        batches = iter(dataset)
        next(batches)
        path.unlink()
        with pytest.raises(DataChangedError, match=r"gone\.parquet"):
            list(batches)
