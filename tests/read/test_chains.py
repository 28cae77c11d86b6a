"""Row groups larger than a window are decoded once for all their windows."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader.errors import BadFileError, DataChangedError, NullError
from dask_loader.read import chains as chains_module
from dask_loader.read.chains import Chains
from dask_loader.read.files import OpenFiles
from dask_loader.read.task import WindowTask
from dask_loader.read.window import read_window
from dask_loader.transfer.window import WindowData

NUM_ROWS = 10_007


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Rows of each table that a cursor decoded, columns of a bundle together."""
    found: list[int] = []
    real = chains_module.kept_tables

    def counting(*arguments: Any, **options: Any) -> Iterator[pa.Table]:
        for table in real(*arguments, **options):
            found.append(table.num_rows)
            yield table

    monkeypatch.setattr(chains_module, "kept_tables", counting)
    return found


@pytest.fixture
def small_batches(monkeypatch) -> None:
    monkeypatch.setattr(chains_module, "_MAX_BATCH_ROWS", 97)


@pytest.fixture
def path(tmp_path: Path) -> str:
    rng = np.random.default_rng(1)
    vectors = pa.array(rng.random(NUM_ROWS * 3, dtype=np.float32))
    table = pa.table(
        {
            "id": np.arange(NUM_ROWS),
            "x": rng.standard_normal(NUM_ROWS),
            "name": [f"r{i}" * (i % 5) for i in range(NUM_ROWS)],
            "vec": pa.FixedSizeListArray.from_arrays(vectors, 3),
            "flag": rng.random(NUM_ROWS) < 0.5,
        }
    )
    pq.write_table(table, tmp_path / "huge.parquet", row_group_size=NUM_ROWS)
    return str(tmp_path / "huge.parquet")


Plan = Callable[..., WindowTask]
Cut = Callable[..., list[WindowTask]]


@pytest.fixture
def cut(plan: Plan) -> Cut:
    """cut(path, bounds, **plan options) -> the windows of a chain."""

    def cut_group(
        path: str,
        bounds: list[int],
        *,
        chain: str = "c",
        group: int = 0,
        **options: Any,
    ) -> list[WindowTask]:
        last = len(bounds) - 2
        return [
            replace(
                plan([path], [(group, start, stop)], **options),
                chain=chain,
                continues=number < last,
            )
            for number, (start, stop) in enumerate(pairwise(bounds))
        ]

    return cut_group


def read(chains: Chains, files: OpenFiles, task: WindowTask) -> WindowData:
    """Read a window as an engine does."""
    chain = chains.enter(task)
    try:
        return read_window(task, files, allocate, chain)
    finally:
        chains.leave(task)


def allocate(num_bytes: int) -> Any:
    return np.full(num_bytes, 0xA5, dtype=np.uint8)


def assert_same(got: WindowData, want: WindowData) -> None:
    assert got.num_rows == want.num_rows
    assert list(got.arrays) == list(want.arrays)
    for name, array in want.arrays.items():
        np.testing.assert_array_equal(got.arrays[name], array)
    assert {n: t.to_pylist() for n, t in got.texts.items()} == {
        n: t.to_pylist() for n, t in want.texts.items()
    }


def alone(task: WindowTask) -> WindowData:
    files = OpenFiles()
    try:
        return read_window(task, files, allocate)
    finally:
        files.close()


def is_held(path: str) -> bool:
    """Whether this process has the file open."""
    held = {
        os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
    }
    return os.path.realpath(path) in held


BOUNDS = [0, 1000, 1001, 3000, 9000, NUM_ROWS]


# ---- one thread -----------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, ("mixed", 1)])
@pytest.mark.parametrize("columns", [None, ("id",), ("name",), ("vec", "name")])
def test_windows_of_a_chain_are_those_that_are_read_alone(
    path, cut, files, decoded, small_batches, key, columns
):
    chains = Chains(files)
    tasks = cut(path, BOUNDS, key=key, columns=columns)
    for task in tasks:
        assert_same(read(chains, files, task), alone(task))
    assert len(chains) == 0
    assert sum(decoded) == NUM_ROWS
    assert max(decoded) <= 97


def test_a_chain_that_begins_and_ends_within_a_row_group_decodes_no_row_twice(
    path, cut, files, decoded, small_batches
):
    chains = Chains(files)
    for task in cut(path, [2500, 3000, 5000, 5100]):
        assert_same(read(chains, files, task), alone(task))
    assert len(chains) == 0
    assert 5100 <= sum(decoded) < 5100 + 97


@pytest.mark.parametrize("columns", [("id",), None])
def test_filtered_rows_are_counted_after_filtering(
    path, cut, files, decoded, small_batches, columns
):
    filters = [("id", ">=", 1234), ("flag", "==", True)]
    table = pq.read_table(path, filters=filters)
    kept = table.num_rows
    bounds = [0, kept // 3, kept // 3 + 1, kept]
    chains = Chains(files)
    tasks = cut(path, bounds, filters=filters, columns=columns)
    found = [read(chains, files, task) for task in tasks]
    ids = np.concatenate([window.arrays["id"] for window in found])
    assert ids.tolist() == table["id"].to_pylist()
    for window, task in zip(found, tasks, strict=True):
        assert_same(window, alone(task))
    assert sum(decoded) <= NUM_ROWS
    assert len(chains) == 0


def test_columns_of_several_bundles_go_on_each_from_its_place(
    tmp_path, cut, files, decoded, monkeypatch
):
    from dask_loader.read import pieces

    monkeypatch.setattr(pieces, "DECODING_BYTES", 20_000)
    path = str(tmp_path / "wide.parquet")
    columns = {f"x{i}": np.arange(4000) * (i + 1) for i in range(7)}
    pq.write_table(pa.table(columns), path, row_group_size=4000)
    chains = Chains(files)
    tasks = cut(path, [0, 1000, 2000, 3000, 4000])
    for task in tasks:
        assert_same(read(chains, files, task), alone(task))
    # Two columns of 8,000 bytes to a bundle: four bundles.
    assert sum(decoded) == 4 * 4000
    assert len(chains) == 0


def test_windows_that_differ_by_a_row_have_the_same_bundles(
    tmp_path, cut, files, decoded, monkeypatch
):
    # Three columns of 1,000 rows fit into a bundle, of 1,001 rows two.
    from dask_loader.read import pieces

    monkeypatch.setattr(pieces, "DECODING_BYTES", 24_000)
    path = str(tmp_path / "wide.parquet")
    columns = {f"x{i}": np.arange(4003) * (i + 1) for i in range(7)}
    pq.write_table(pa.table(columns), path, row_group_size=4003)
    for key in (None, ("mixed", 3)):
        decoded.clear()
        chains = Chains(files)
        for task in cut(path, [0, 1000, 2001, 3002, 4003], key=key):
            assert_same(read(chains, files, task), alone(task))
        assert sum(decoded) % 4003 == 0
        assert len(decoded) > 0
        assert len(chains) == 0


# ---- out of order ---------------------------------------------------------------------


def test_a_window_that_is_read_a_second_time_is_decoded_anew(
    path, cut, files, decoded, small_batches
):
    chains = Chains(files)
    tasks = cut(path, BOUNDS)
    for number in (0, 1, 2, 1, 0, 3, 2, 4):
        assert_same(read(chains, files, tasks[number]), alone(tasks[number]))
    assert len(chains) == 0


def test_windows_may_be_skipped_as_by_one_of_several_dataloader_workers(
    path, cut, files, decoded, small_batches
):
    chains = Chains(files)
    tasks = cut(path, list(range(0, NUM_ROWS, 500)))
    for task in tasks[::3]:
        assert_same(read(chains, files, task), alone(task))
    assert sum(decoded) <= NUM_ROWS
    chains.end("c")
    assert len(chains) == 0


def test_two_chains_over_the_same_rows_do_not_meet(
    path, cut, files, decoded, small_batches
):
    chains = Chains(files)
    one, two = cut(path, BOUNDS, chain="1/c"), cut(path, BOUNDS, chain="2/c")
    for first, second in zip(one, two, strict=True):
        assert_same(read(chains, files, first), alone(first))
        assert_same(read(chains, files, second), alone(second))
    assert sum(decoded) == 2 * NUM_ROWS
    assert len(chains) == 0


def test_a_task_without_a_chain_has_none(path, plan, files):
    chains = Chains(files)
    task = plan([path])
    assert chains.enter(task) is None
    chains.leave(task)
    assert len(chains) == 0


# ---- threads ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [1, 2, 4])
@pytest.mark.parametrize("key", [None, ("mixed", 2)])
def test_threads_go_through_a_chain_together_and_decode_each_row_once(
    path, cut, files, decoded, small_batches, num_threads, key, monkeypatch
):
    from dask_loader.read import pieces

    monkeypatch.setattr(pieces, "DECODING_BYTES", 3000)
    chains = Chains(files)
    tasks = cut(path, list(range(0, NUM_ROWS, 250)) + [NUM_ROWS], key=key)
    # Announced in order, as a stream submits them; taken in order, done in any.
    entered = [(task, chains.enter(task)) for task in tasks]
    found: dict[int, WindowData] = {}
    queue = iter(enumerate(entered))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number, (task, chain) = next(queue, (None, (None, None)))
            if number is None:
                return
            try:
                found[number] = read_window(task, files, allocate, chain)
            finally:
                chains.leave(task)

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == len(tasks)
    for number, task in enumerate(tasks):
        assert_same(found[number], alone(task))
    assert sum(decoded) % NUM_ROWS == 0
    num_bundles = sum(decoded) // NUM_ROWS
    assert 1 < num_bundles <= 5
    assert len(chains) == 0


def test_a_window_that_is_given_up_is_not_waited_for(
    path, cut, files, decoded, small_batches
):
    chains = Chains(files)
    tasks = cut(path, BOUNDS)
    for task in tasks:
        chains.enter(task)
    chains.leave(tasks[0])  # never read
    chains.leave(tasks[1])
    chain = chains.enter(tasks[2])
    chains.leave(tasks[2])
    assert_same(read_window(tasks[2], files, allocate, chain), alone(tasks[2]))
    for task in tasks:
        chains.leave(task)
        chains.leave(task)
    assert len(chains) == 0


# ---- bounds and closing ------------------------------------------------------------------


def test_no_more_than_8_chains_stand_open(tmp_path, cut, files, decoded, small_batches):
    path = str(tmp_path / "many.parquet")
    pq.write_table(pa.table({"id": np.arange(12_000)}), path, row_group_size=1000)
    chains = Chains(files)
    runs = [
        cut(path, [0, 400, 700, 1000], chain=f"c{group}", group=group)
        for group in range(12)
    ]
    for number in range(3):
        for tasks in runs:
            assert_same(read(chains, files, tasks[number]), alone(tasks[number]))
            assert len(chains) <= 8
    assert len(chains) == 0


def test_an_open_chain_holds_its_file_until_it_is_ended(path, cut):
    files = OpenFiles()
    chains = Chains(files)
    tasks = cut(path, BOUNDS, chain="engine/3/0/0")
    read(chains, files, tasks[0])
    files.close()
    assert is_held(path)
    chains.end("engine/4/")
    assert (len(chains), is_held(path)) == (1, True)
    chains.end("engine/3/")
    assert (len(chains), is_held(path)) == (0, False)


def test_a_chain_that_is_ended_while_it_is_read_is_closed_after_that(path, cut):
    files = OpenFiles()
    chains = Chains(files)
    tasks = cut(path, BOUNDS)
    chain = chains.enter(tasks[0])
    chains.end("c")
    assert len(chains) == 1
    read_window(tasks[0], files, allocate, chain)
    chains.leave(tasks[0])
    assert len(chains) == 0
    files.close()
    assert not is_held(path)


def test_a_window_that_begins_after_its_streams_end_leaves_no_chain(path, cut):
    files = OpenFiles()
    chains = Chains(files)
    late, other = cut(path, BOUNDS, chain="t/1/c"), cut(path, BOUNDS, chain="t/11/c")
    chains.end("t/1/")
    assert_same(read(chains, files, late[0]), alone(late[0]))
    assert len(chains) == 0
    read(chains, files, other[0])
    assert len(chains) == 1
    for number in range(1000):  # what is remembered is bounded
        chains.end(f"u/{number}/")
    assert len(chains._ended) < 100
    chains.close()
    assert len(chains) == 0
    files.close()
    assert not is_held(path)


def test_idle_chains_are_dropped_and_busy_ones_are_not(path, cut):
    files = OpenFiles()
    chains = Chains(files)
    idle, busy = cut(path, BOUNDS, chain="idle"), cut(path, BOUNDS, chain="busy")
    read(chains, files, idle[0])
    chains.enter(busy[0])
    chains.drop_idle(3600)
    assert len(chains) == 2
    chains.drop_idle()
    assert len(chains) == 1
    chains.leave(busy[0])
    chains.drop_idle()
    assert len(chains) == 0
    # What was dropped is decoded anew.
    assert_same(read(chains, files, idle[1]), alone(idle[1]))
    chains.drop_idle()
    files.close()
    assert not is_held(path)


# ---- errors ------------------------------------------------------------------------------


def test_a_damaged_page_in_the_middle_is_named_and_windows_before_it_are_right(
    tmp_path, cut, small_batches
):
    path = tmp_path / "damaged.parquet"
    pq.write_table(
        pa.table({"id": np.arange(NUM_ROWS)}),
        path,
        row_group_size=NUM_ROWS,
        use_dictionary=False,
        compression="none",
        write_page_checksum=True,
        data_page_size=4096,
    )
    chunk = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    files = OpenFiles()
    chains = Chains(files)
    tasks = cut(str(path), [0, 1000, 4000, 6000, NUM_ROWS])
    for task in tasks[:2]:
        assert read(chains, files, task).arrays["id"][0] == task.slices[0].start
    for task in (*tasks[2:], tasks[2]):
        with pytest.raises(
            BadFileError, match=r"cannot decode row group 0 of .*damaged"
        ):
            read(chains, files, task)
    assert read(chains, files, tasks[1]).arrays["id"][0] == 1000
    chains.end("c")
    files.close()
    assert len(chains) == 0
    assert not is_held(str(path))


def test_a_file_that_changes_in_the_middle_is_named(path, cut, files):
    chains = Chains(files)
    tasks = cut(path, BOUNDS)
    read(chains, files, tasks[0])
    with open(path, "ab") as file:
        file.write(b"more")
    with pytest.raises(DataChangedError, match="huge"):
        read(chains, files, tasks[1])
    chains.end("c")
    assert len(chains) == 0


def test_rows_that_are_missing_are_an_error_not_a_wait(path, cut, files):
    chains = Chains(files)
    tasks = cut(path, [0, 5000, NUM_ROWS + 1])
    read(chains, files, tasks[0])
    with pytest.raises(BadFileError, match=r"gave 10007 rows where 10008 were planned"):
        read(chains, files, tasks[1])
    assert len(chains) == 0


def test_after_an_error_of_one_window_the_next_ones_are_right(tmp_path, cut, files):
    path = str(tmp_path / "nulls.parquet")
    ids = [None if row == 2000 else row for row in range(NUM_ROWS)]
    pq.write_table(pa.table({"id": ids}), path, row_group_size=NUM_ROWS)
    chains = Chains(files)
    tasks = cut(path, BOUNDS)
    for number, task in enumerate(tasks):
        if number == 2:
            with pytest.raises(NullError, match="column 'id' has 1 nulls"):
                read(chains, files, task)
        else:
            found = read(chains, files, task).arrays["id"].tolist()
            assert found == ids[task.slices[0].start : task.slices[0].stop]
    assert len(chains) == 0
