"""How windows come from Dask workers, and what becomes of them if the way is barred."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader import ConfigError, ParquetDataset
from dask_loader.engine.dask import DaskEngine
from dask_loader.engine.where import Where
from dask_loader.errors import WindowError
from dask_loader.read.files import OpenFiles
from dask_loader.read.task import WindowTask
from dask_loader.read.window import read_window
from dask_loader.transfer.shared import TEXT_BYTES, Loan, header_of
from dask_loader.transfer.window import WindowData
from dask_loader.transfer.writer import Mappings
from tests.asking import workers_of

pytestmark = pytest.mark.cluster

MIB = 1 << 20


@pytest.fixture
def make_engine(local_cluster, monkeypatch) -> Iterator[Callable[..., DaskEngine]]:
    """make_engine(way) -> an engine that has asked its workers, closed at the end."""
    made: list[DaskEngine] = []

    def make(way: str | None = None, **environ: str) -> DaskEngine:
        if way is not None:
            monkeypatch.setenv("DASK_LOADER_HAND_OVER", way)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        where = Where(local_cluster.address)
        made.append(DaskEngine(where, worker_timeout_s=60, memory_limit=64 * MIB))
        assert made[-1].slots() == 2
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def client(local_cluster) -> Iterator[distributed.Client]:
    made = local_cluster.client()
    yield made
    made.close()


def get(engine: DaskEngine, tasks: list[WindowTask], stream: int) -> list[WindowData]:
    pending = [engine.submit(t, stream=stream, number=i) for i, t in enumerate(tasks)]
    return [each.result() for each in pending]


def assert_right(windows: list[WindowData], tasks: list[WindowTask]) -> None:
    files = OpenFiles()
    for window, task in zip(windows, tasks, strict=True):
        want = read_window(task, files, lambda size: np.empty(size, dtype=np.uint8))
        assert list(window.arrays) == list(want.arrays)
        for name, array in window.arrays.items():
            np.testing.assert_array_equal(array, want.arrays[name])
            assert array.flags.writeable
            assert array.ctypes.data % 64 == 0 or window.home is None
        assert {n: t.to_pylist() for n, t in window.texts.items()} == {
            n: t.to_pylist() for n, t in want.texts.items()
        }
    files.close()


# ---- the ways -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "place"),
    [
        (None, "anonymous shared memory"),
        ("auto", "anonymous shared memory"),
        ("memory", "anonymous shared memory"),
        ("files", "files in "),
        ("comm", None),
    ],
)
def test_windows_come_the_way_that_was_asked_for(
    make_engine, tasks, tmp_path, way, place
):
    engine = make_engine(way, DASK_LOADER_SHARED_FOLDER=str(tmp_path))
    found = engine._sharing.place
    windows = get(engine, tasks, 0)
    assert_right(windows, tasks)
    if place is None:
        assert found is None
        assert all(window.home is None for window in windows)
        return
    assert found.startswith(place)
    for window in windows:
        root = str(tmp_path) if place == "files in " else "/proc/self/fd/"
        assert window.home.path.replace(f"/{_pid()}/", "/self/").startswith(root)


def _pid() -> int:
    import os

    return os.getpid()


def test_slabs_are_used_again_once_windows_are_gone(make_engine, tasks):
    engine = make_engine("memory")
    nonces = set()
    for _ in range(10):
        windows = get(engine, tasks, 0)
        nonces |= {window.home.nonce for window in windows}
        del windows
        gc.collect()
    assert len(nonces) <= len(tasks) + 1  # the probe's
    assert engine.held_bytes == 0


def test_a_wrong_way_is_refused_before_anything_is_connected(small_data, monkeypatch):
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", "magic")
    with pytest.raises(
        ConfigError, match="DASK_LOADER_HAND_OVER='magic' must be one of"
    ):
        ParquetDataset(small_data, client="tcp://127.0.0.1:9")


# ---- workers that cannot open slabs ---------------------------------------------------


def _bar(dask_worker: Any) -> None:
    # On a worker: as on another host, no path of the consumer's leads anywhere.
    from dask_loader.transfer import writer

    def fail(path: str) -> int:
        raise FileNotFoundError(path)

    dask_worker.barred, writer._open = writer._open, fail


def _unbar(dask_worker: Any) -> None:
    from dask_loader.transfer import writer

    writer._open = dask_worker.barred


@pytest.fixture
def barred(client) -> Iterator[str]:
    """The address of a worker that cannot open any slab."""
    address, _ = sorted(workers_of(client))
    client.run(_bar, workers=[address])
    yield address
    client.run(_unbar, workers=[address])


def test_a_worker_that_cannot_open_slabs_sends_windows_while_the_other_shares(
    make_engine, client, barred, tasks
):
    engine = make_engine("auto")
    shares = engine._sharing._shares
    assert {address for address, can in shares.items() if not can} == {barred}
    assert engine._sharing.place == "anonymous shared memory"
    ways = set()
    deadline = time.monotonic() + 60
    stream = 0
    while ways != {True, False}:  # until either has had a window
        assert time.monotonic() < deadline
        windows = get(engine, tasks, stream)
        assert_right(windows, tasks)
        ways |= {window.home is None for window in windows}
        stream += 1
    del windows
    gc.collect()
    assert engine.held_bytes == 0


def test_where_no_worker_can_open_slabs_all_windows_are_sent(
    make_engine, client, tasks
):
    client.run(_bar)
    try:
        engine = make_engine("auto")
        assert engine._sharing.place is None
        windows = get(engine, tasks, 0)
        assert_right(windows, tasks)
        assert all(window.home is None for window in windows)
    finally:
        client.run(_unbar)


def test_a_worker_that_can_open_slabs_no_more_sends_windows(make_engine, client, tasks):
    engine = make_engine("memory")
    client.run(_bar)
    try:
        windows = get(engine, tasks, 0)
        assert_right(windows, tasks)
        assert all(window.home is None for window in windows)
        del windows
        gc.collect()
        assert engine.held_bytes == 0
    finally:
        client.run(_unbar)


def _always_busy(dask_worker: Any) -> None:
    from contextlib import contextmanager

    from dask_loader.transfer.writer import Mappings, Outcome, Writing

    @contextmanager
    def writing(self: Any, name: Any) -> Iterator[Any]:
        yield Writing(Outcome.BUSY)

    dask_worker.writing, Mappings.writing = Mappings.writing, writing


def _never_busy(dask_worker: Any) -> None:
    from dask_loader.transfer.writer import Mappings

    Mappings.writing = dask_worker.writing


def test_a_window_of_which_every_slab_is_busy_is_an_error_and_keeps_nothing(
    make_engine, client, tasks
):
    engine = make_engine("memory")
    client.run(_always_busy)
    try:
        with pytest.raises(WindowError) as caught:
            get(engine, tasks[:1], 0)
    finally:
        client.run(_never_busy)
    text = str(caught.value)
    assert "row group 0 of '" in text
    assert "5 Dask workers in turn stopped or left while they read it" in text
    assert "set DASK_LOADER_HAND_OVER=comm to do without shared memory" in text
    assert engine.held_bytes == 0
    assert_right(get(engine, tasks, 1), tasks)


# ---- texts ------------------------------------------------------------------------------


def test_texts_too_long_for_their_slab_arrive_and_later_slabs_are_larger(
    make_engine, tmp_path, make_tasks
):
    path = tmp_path / "long.parquet"
    texts = [f"{i:04} " * 1000 for i in range(3600)]
    pq.write_table(pa.table({"id": range(3600), "s": texts}), path, row_group_size=300)
    # 900 rows a window, 64 bytes a row reckoned, 5 kB had.
    tasks = make_tasks(path)
    engine = make_engine("memory")
    windows = [get(engine, [task], i)[0] for i, task in enumerate(tasks)]
    assert_right(windows, tasks)
    assert windows[0].home is None
    assert all(window.home is not None for window in windows[1:])
    assert windows[1].home.num_bytes > 3 * MIB
    kept = windows[1].texts["s"][7:9]
    wanted = kept.to_pylist()
    del windows
    gc.collect()
    assert 3 * MIB < engine.held_bytes < 8 * MIB
    for stream in range(5):
        get(engine, tasks, 10 + stream)
    assert kept.to_pylist() == wanted


def test_a_dictionary_of_long_texts_changes_no_batch_and_memory_is_shared_again(
    local_cluster, tmp_path
):
    rng = np.random.default_rng(0)
    words = [f"{i} " * 300 for i in range(3)]
    path = tmp_path / "dictionary.parquet"
    table = pa.table(
        {"id": range(20_000), "s": [words[i] for i in rng.integers(0, 3, 20_000)]}
    )
    pq.write_table(table, path, row_group_size=1000)
    options = {"batch_size": 500, "shuffle_window": 1000, "shuffle": True}
    with ParquetDataset(path, client="threads", **options) as dataset:
        wanted = [(b["id"].tolist(), b["s"]) for b in dataset]
    with ParquetDataset(path, client=local_cluster, **options) as dataset:
        for _ in range(2):
            dataset.set_epoch(0)
            assert [(b["id"].tolist(), b["s"]) for b in dataset] == wanted
        engine = dataset._pipeline().engine
        task = replace(_first_task(dataset), chain=None)
        assert get(engine, [task], 99)[0].home is not None


def _first_task(dataset: ParquetDataset) -> WindowTask:
    run = dataset._course.plan_whole(dataset.world, 0)
    return dataset._pipeline().partitions(run)[0][0]


def test_windows_in_slabs_that_somebody_wrote_to_are_read_again(
    make_engine, tasks, monkeypatch
):
    accept, mappings, values = Loan.accept, Mappings(), [-1, 1 << 40, 64, 1 << 20]

    def tampered(loan: Loan) -> Any:
        if values:
            header_of(mappings.map_for_reading(loan.name))[TEXT_BYTES] = values.pop()
        return accept(loan)

    monkeypatch.setattr(Loan, "accept", tampered)
    engine = make_engine("memory")
    assert_right(get(engine, tasks, 0), tasks)
    assert not values
    mappings.drop_idle(0.0)


# ---- no room -----------------------------------------------------------------------


def test_where_there_is_no_room_for_slabs_it_is_said_and_windows_are_right(
    tiny_tmpfs: Path, make_engine, tasks
):
    engine = make_engine("files", DASK_LOADER_SHARED_FOLDER=str(tiny_tmpfs))
    with pytest.warns(
        RuntimeWarning,
        match=r"no room for \d+ bytes of shared memory in files in .*tiny \(.*No space "
        r"left on.*\); windows come over the network instead",
    ):
        windows = get(engine, tasks * 3, 0)
    ways = [window.home is None for window in windows]
    assert 0 < sum(ways) < len(ways)
    assert_right(windows, tasks * 3)
