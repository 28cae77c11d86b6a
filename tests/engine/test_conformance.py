"""What every engine promises, asked of each of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader.catalog.forms import Form
from dask_loader.engine.base import Engine
from dask_loader.engine.dask import DaskEngine
from dask_loader.engine.stream import WindowStream
from dask_loader.engine.threads import ThreadsEngine
from dask_loader.engine.where import Where
from dask_loader.errors import (
    BadFileError,
    ColumnError,
    DataChangedError,
    WindowError,
    WorldError,
)
from dask_loader.metrics import Meter
from dask_loader.read.files import OpenFiles
from dask_loader.read.window import read_window
from dask_loader.transfer.window import WindowData


def of_threads() -> Engine:
    return ThreadsEngine(memory_limit=1 << 24, local_world_size=1)


@pytest.fixture(
    scope="module",
    params=[
        "threads",
        *(
            pytest.param(f"dask, {way}", marks=pytest.mark.cluster)
            for way in ("memory", "files", "comm")
        ),
    ],
)
def make_engine(request, tmp_path_factory) -> Callable[[], Engine]:
    if request.param == "threads":
        return of_threads
    address = request.getfixturevalue("local_cluster").address
    _, way = request.param.split(", ")
    folder = tmp_path_factory.mktemp("shared")

    def of_dask() -> Engine:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DASK_LOADER_HAND_OVER", way)
            patch.setenv("DASK_LOADER_SHARED_FOLDER", str(folder))
            where = Where(address)
            return DaskEngine(where, worker_timeout_s=60, memory_limit=1 << 28)

    return of_dask


@pytest.fixture
def engine(make_engine) -> Iterator[Engine]:
    made = make_engine()
    yield made
    made.close()


def until(condition: Callable[[], bool]) -> bool:
    """Poll a condition of other threads, with a deadline."""
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def held(engine) -> int:
    gc.collect()
    return engine.held_bytes


def expected(task) -> WindowData:
    files = OpenFiles()
    try:
        return read_window(task, files, lambda size: np.empty(size, dtype=np.uint8))
    finally:
        files.close()


def stream_of(engine, tasks) -> WindowStream:
    return WindowStream(
        engine, iter(tasks), num_sharing=1, max_bytes=1 << 30, meter=Meter()
    )


def assert_same(got: WindowData, want: WindowData) -> None:
    assert got.num_rows == want.num_rows
    assert list(got.arrays) == list(want.arrays)
    for name, array in got.arrays.items():
        assert array.dtype == want.arrays[name].dtype
        assert array.flags.writeable
        np.testing.assert_array_equal(array, want.arrays[name])
    assert list(got.texts) == list(want.texts)
    for name, text in got.texts.items():
        assert text.equals(want.texts[name])


@pytest.fixture
def damaged(tmp_path, make_tasks):
    """Windows of which the second holds a row group with a flipped bit: row group 4."""
    path = tmp_path / "damaged.parquet"
    table = pa.table({"id": np.arange(900)})
    pq.write_table(
        table,
        path,
        row_group_size=100,
        use_dictionary=False,
        compression="none",
        write_page_checksum=True,
    )
    chunk = pq.read_metadata(path).row_group(4).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    return make_tasks(path)


def test_windows_come_in_order_and_are_what_read_window_returns(engine, tasks):
    stream = stream_of(engine, tasks)
    for number, task in enumerate(tasks):
        assert not stream.exhausted
        assert_same(stream.take(), expected(task))
        stream.release(number)
    assert stream.exhausted
    stream.close()


def test_a_window_is_its_takers_own(engine, tasks):
    first = engine.submit(tasks[0], stream=-1, number=0).result()
    for array in first.arrays.values():
        array[...] = 0
    second = engine.submit(tasks[0], stream=-1, number=1).result()
    assert_same(second, expected(tasks[0]))
    for array in first.arrays.values():
        assert not array.any()


def test_map_keeps_the_order_of_its_items(engine):
    assert engine.map(lambda x: x * x, range(40)) == [x * x for x in range(40)]
    assert engine.map(lambda x: x, []) == []


def test_map_with_names_is_map(engine):
    names = ["three", "one", "two"]
    assert engine.map(lambda x: x * x, [3, 1, 2], names=names) == [9, 1, 4]
    assert engine.map(lambda x: x, [], names=[]) == []
    assert engine.map(lambda x: -x, [1, 2], names=["minus one", "minus two"]) == [
        -1,
        -2,
    ]


def test_map_carries_our_errors_with_their_fields(engine):
    def fail(number: int) -> int:
        if number == 3:
            raise ColumnError("no such column", path="a", row_group=7, column="c")
        return number

    with pytest.raises(ColumnError, match="no such column") as caught:
        engine.map(fail, range(6))
    error = caught.value
    assert (error.path, error.row_group, error.column) == ("a", 7, "c")
    assert engine.map(lambda x: x, [1, 2]) == [1, 2]


def test_a_damaged_row_group_is_named_and_the_windows_around_it_arrive(engine, damaged):
    pending = [engine.submit(t, stream=-2, number=i) for i, t in enumerate(damaged)]
    assert pending[0].result().num_rows == damaged[0].num_rows
    with pytest.raises(BadFileError, match=r"row group 4 of '.*damaged") as caught:
        pending[1].result()
    assert caught.value.path == damaged[1].slices[1].path
    assert caught.value.row_group == 4
    assert pending[2].result().num_rows == damaged[2].num_rows


def test_a_changed_file_is_named(engine, tmp_path, make_tasks):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": np.arange(10)}), path)
    (task,) = make_tasks(path)
    path.unlink()
    with pytest.raises(DataChangedError, match=r"a\.parquet") as caught:
        engine.submit(task, stream=-3, number=0).result()
    assert caught.value.path == str(path)


def test_any_other_failure_is_a_window_error_that_names_file_and_row_group(
    engine, tasks
):
    options = replace(tasks[0].options, forms=(Form("not there", "int64"),))
    task = replace(tasks[0], options=options)
    with pytest.raises(
        WindowError, match=r"row group 0 of '.*part-0\.parquet'.* and 1 more.*not there"
    ):
        engine.submit(task, stream=-4, number=0).result()


def test_after_a_failed_window_the_stream_gives_up_and_the_engine_serves_on(
    engine, damaged, tasks
):
    stream = stream_of(engine, damaged)
    stream.take()
    with pytest.raises(BadFileError):
        stream.take()
    stream.close()
    assert stream.exhausted
    again = stream_of(engine, tasks)
    assert_same(again.take(), expected(tasks[0]))
    again.close()


def test_two_streams_of_one_engine_go_side_by_side(engine, tasks):
    one, two = stream_of(engine, tasks), stream_of(engine, tasks[::-1])
    for first, second in zip(tasks, tasks[::-1], strict=True):
        assert_same(one.take(), expected(first))
        assert_same(two.take(), expected(second))
    assert one.exhausted
    assert two.exhausted


def test_a_window_may_be_cancelled_before_after_and_twice(engine, tasks):
    given_up = [engine.submit(t, stream=-5, number=i) for i, t in enumerate(tasks)]
    for pending in given_up:
        pending.cancel()
        pending.cancel()
    taken = engine.submit(tasks[0], stream=-6, number=0)
    assert taken.result().num_rows == tasks[0].num_rows
    taken.cancel()


def test_close_works_twice_and_with_windows_under_way(make_engine, tasks):
    engine = make_engine()
    for number, task in enumerate(tasks * 5):
        engine.submit(task, stream=-7, number=number)
    engine.close()
    engine.close()


def test_windows_lie_in_shared_memory_where_it_is_asked_for(request, engine, tasks):
    way = request.node.callspec.params["make_engine"]
    engine.slots()
    window = engine.submit(tasks[0], stream=-11, number=0).result()
    shared = way in ("dask, memory", "dask, files")
    assert (window.home is not None) == shared


def test_an_engine_has_slots_and_a_name(engine):
    assert engine.slots() >= 1
    assert engine.name


def test_a_task_costs_at_least_what_arrives(engine, tasks):
    for number, task in enumerate(tasks):
        plain = replace(task, num_bytes=expected(task).num_bytes)
        assert engine.cost(plain) >= plain.num_bytes
        assert engine.submit(plain, stream=-8, number=number).result()


def test_held_bytes_are_those_of_windows_that_somebody_looks_at(engine, tasks):
    engine.slots()
    assert held(engine) == 0
    windows, sizes = [], []
    for number, task in enumerate(tasks):
        windows.append(engine.submit(task, stream=-9, number=number).result())
        fixed = sum(array.nbytes for array in windows[-1].arrays.values())
        sizes.append(fixed)
        assert held(engine) >= sum(sizes)
    least = windows[0].arrays["id"].nbytes  # each group may have memory of its own
    column = windows[0].arrays["id"][3:5]
    del windows
    assert held(engine) >= least
    assert column.tolist() == expected(tasks[0]).arrays["id"][3:5].tolist()
    del column
    assert until(lambda: held(engine) == 0)


def test_a_window_that_is_given_up_holds_nothing(engine, tasks):
    engine.slots()
    pending = [engine.submit(t, stream=-10, number=i) for i, t in enumerate(tasks)]
    for each in pending:
        each.cancel()
    del pending
    assert until(lambda: held(engine) == 0)


def test_an_engines_error_can_be_of_any_class_of_ours(engine):
    def fail(number: int) -> None:
        raise WorldError("rank too large", rank=number)

    with pytest.raises(WorldError, match="rank too large") as caught:
        engine.map(fail, [5])
    assert caught.value.rank == 5


def test_many_windows_go_through_few_slots(engine, tmp_path: Path, make_tasks):
    path = tmp_path / "many.parquet"
    pq.write_table(pa.table({"id": np.arange(6000)}), path, row_group_size=20)
    tasks = make_tasks(path)
    assert len(tasks) == 100
    stream = stream_of(engine, tasks)
    for number, task in enumerate(tasks):
        assert_same(stream.take(), expected(task))
        stream.release(number)
    stream.close()
