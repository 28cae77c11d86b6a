"""Counting what filters keep: which files are read for it, by whom, and how often."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import distributed
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dask_loader import BadFileError, ParquetDataset, counting
from dask_loader.catalog.cache import FooterCache
from dask_loader.catalog.catalog import Catalog, read_catalog
from dask_loader.catalog.discover import discover
from dask_loader.counting import with_counted_rows
from dask_loader.engine.threads import ThreadsEngine
from dask_loader.read.nulls import NullPolicy
from dask_loader.read.task import ReadOptions, SliceTask

_DEADLINE_S = 180.0
_PROGRAM = Path(__file__).with_name("counting_process.py")
ABOVE_10 = [("x", ">", 10)]


class Recording(ThreadsEngine):
    """Threads that note the files of the row groups that they count."""

    def __init__(self) -> None:
        super().__init__(memory_limit=1 << 20, local_world_size=1)
        self.counted: list[str] = []
        self.after: Callable[[], None] = lambda: None

    def map(self, function: Any, items: Any, *, names: Any = None) -> list[Any]:
        slices: list[SliceTask] = [piece for item in items for piece in item]
        self.counted += [Path(piece.path).stem for piece in slices]
        found = super().map(function, items, names=names)
        self.after()
        return found

    def taken(self) -> list[str]:
        """Return what was counted since the last call."""
        counted, self.counted = self.counted, []
        return counted


@pytest.fixture(autouse=True)
def _files_settle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask_loader.catalog.storage.SETTLED_NS", 0)


@pytest.fixture
def engine() -> Iterator[Recording]:
    made = Recording()
    yield made
    made.close()


@pytest.fixture
def cache(tmp_path: Path) -> FooterCache:
    return FooterCache(str(tmp_path / "cache"))


def write(folder: Path, name: str, numbers: list[Any], **options: Any) -> None:
    folder.mkdir(exist_ok=True)
    texts = pa.array(["t"] * len(numbers), pa.string())
    table = pa.table({"x": pa.array(numbers, pa.int64()), "y": texts})
    pq.write_table(table, folder / f"{name}.parquet", row_group_size=5, **options)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files of two row groups, of no rows, and of three, the first of which is below 10."""
    folder = tmp_path / "data"
    write(folder, "a", [20, 1, 30, None, 2, 40, 3, 50])
    write(folder, "b", [])
    write(folder, "c", [0, 1, 2, 3, 4, 9, 99, 9, 99, 9, 99])
    return folder


def counted(
    path: Path,
    engine: ThreadsEngine,
    cache: FooterCache | None,
    *,
    filters: Any = ABOVE_10,
    columns: tuple[str, ...] | None = None,
    verify_checksums: bool = True,
) -> list[int]:
    """Count as a dataset does, and compare with what Arrow counts."""
    found = discover(path)
    catalog: Catalog = read_catalog(
        found.storage,
        found.paths,
        columns=columns,
        filters=filters,
        run=lambda function, items: [function(item) for item in items],
        cache=cache,
    )
    options = ReadOptions(
        storage=catalog.storage,
        forms=catalog.forms,
        nulls=NullPolicy(),
        expression=catalog.expression,
        filter_columns=catalog.filter_columns,
        verify_checksums=verify_checksums,
    )
    kept = with_counted_rows(catalog, options, engine, cache).num_kept.tolist()
    groups = [
        pq.ParquetFile(file).read_row_group(group)
        for file in found.paths
        for group in range(pq.ParquetFile(file).num_row_groups)
    ]
    assert kept == [group.filter(catalog.expression).num_rows for group in groups]
    return kept


# ---- what is remembered --------------------------------------------------------------


def test_row_groups_that_statistics_leave_are_counted_once(
    data: Path, engine: Recording, cache: FooterCache
) -> None:
    assert counted(data, engine, cache) == [2, 2, 0, 0, 2, 1]
    assert engine.taken() == ["a", "a", "c", "c"]
    for _ in range(2):
        assert counted(data, engine, cache) == [2, 2, 0, 0, 2, 1]
    assert engine.taken() == []


def test_a_warm_start_of_a_dataset_reads_no_filter_column(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    run = ThreadsEngine.map

    def spy(self: ThreadsEngine, function: Any, items: Any, **names: Any) -> Any:
        asked.append(len(items))
        return run(self, function, items, **names)

    monkeypatch.setattr(ThreadsEngine, "map", spy)
    for starts, footer_cache in enumerate((tmp_path / "c", tmp_path / "c", False), 1):
        with ParquetDataset(
            data, filters=ABOVE_10, footer_cache=footer_cache, client="threads"
        ) as dataset:
            assert dataset.num_rows == 7
            assert sum(len(batch["x"]) for batch in dataset) == 7
        assert len(asked) == {1: 1, 2: 1, 3: 2}[starts]


def test_what_is_delivered_of_the_rows_does_not_matter(
    data: Path, engine: Recording, cache: FooterCache
) -> None:
    counted(data, engine, cache)
    engine.taken()
    counted(data, engine, cache, columns=("y",))
    counted(data, engine, cache, verify_checksums=False)
    assert engine.taken() == []


def test_each_filter_has_counts_of_its_own(
    data: Path, engine: Recording, cache: FooterCache
) -> None:
    long = [*range(500), 7777, *range(1000, 1500)]
    other = [*range(500), 99, *range(1000, 1500)]  # printed, it looks the same
    queries: list[Any] = [
        ABOVE_10,
        [("x", ">", 11)],
        [("x", ">", 10), ("y", "=", "t")],
        pc.field("x") > 10,
        pc.field("x").isin(long),
        pc.field("x").isin(other),
    ]
    for filters in queries:
        counted(data, engine, cache, filters=filters)
        assert engine.taken()
    for filters in queries:
        counted(data, engine, cache, filters=filters)
        assert engine.taken() == []
    counted(data, engine, cache, filters=[("x", "in", {20, 30, 99})])
    engine.taken()
    counted(data, engine, cache, filters=[("x", "in", {99, 30, 20})])
    assert engine.taken() == []


def test_only_files_that_are_new_or_changed_are_counted(
    data: Path, engine: Recording, cache: FooterCache
) -> None:
    counted(data, engine, cache)
    engine.taken()
    write(data, "aa", [11, 12])
    assert counted(data, engine, cache) == [2, 2, 2, 0, 0, 2, 1]
    assert engine.taken() == ["aa"]
    write(data, "c", [12, 1])
    assert counted(data, engine, cache) == [2, 2, 2, 0, 1]
    assert engine.taken() == ["c"]
    (data / "a.parquet").unlink()
    assert counted(data, engine, cache) == [2, 0, 1]
    assert engine.taken() == []


def test_a_file_rewritten_with_its_old_length_and_time_is_counted_anew(
    data: Path, engine: Recording, cache: FooterCache
) -> None:
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    write(data, "c", [1, 20, 30], **plain)
    counted(data, engine, cache)
    before = os.stat(data / "c.parquet")
    write(data, "c", [1, 2, 30], **plain)
    os.utime(data / "c.parquet", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(data / "c.parquet").st_size == before.st_size
    engine.taken()
    assert counted(data, engine, cache) == [2, 2, 0, 1]
    assert engine.taken() == ["c"]


def test_a_file_that_changes_while_it_is_counted_is_not_remembered(
    data: Path, engine: Recording, cache: FooterCache
) -> None:
    engine.after = lambda: os.utime(data / "a.parquet", ns=(0, 0))
    counted(data, engine, cache)
    (file,) = Path(cache.folder).glob("*.counts")
    assert [path[-9:] for path in _kept(file)["path"].to_pylist()] == [b"c.parquet"]
    engine.after = lambda: None
    engine.taken()
    counted(data, engine, cache)
    assert engine.taken() == ["a", "a"]


def test_a_file_that_was_just_written_is_not_remembered(
    data: Path,
    engine: Recording,
    cache: FooterCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dask_loader.catalog.storage.SETTLED_NS", 3600 * 10**9)
    for _ in range(2):
        counted(data, engine, cache)
        assert engine.taken() == ["a", "a", "c", "c"]


def test_without_a_cache_each_start_counts(data: Path, engine: Recording) -> None:
    for _ in range(2):
        counted(data, engine, None)
        assert engine.taken() == ["a", "a", "c", "c"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_cache_that_is_damaged_counts_as_absent(
    data: Path, engine: Recording, cache: FooterCache, damage: str
) -> None:
    counted(data, engine, cache)
    (file,) = Path(cache.folder).glob("*.counts")
    whole = bytearray(file.read_bytes())
    if damage == "cut":
        del whole[-1]
    elif damage == "flipped":
        whole[len(whole) // 2] ^= 4
    else:
        (footers,) = Path(cache.folder).glob("*.footers")
        whole = bytearray(footers.read_bytes())
    file.write_bytes(whole)
    engine.taken()
    for times in (1, 0):
        counted(data, engine, cache)
        assert engine.taken() == ["a", "a", "c", "c"] * times


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("num_kept", lambda kept: [[6, 2], *kept[1:]]),  # more than there are
        ("num_kept", lambda kept: [[-1, 2], *kept[1:]]),
        ("num_kept", lambda kept: [[2], *kept[1:]]),  # of a row group too few
        ("num_kept", lambda kept: [[2, None], *kept[1:]]),
        ("num_kept", lambda kept: [None, *kept[1:]]),
        ("digest", lambda digests: ["0" * 32, *digests[1:]]),
    ],
)
def test_counts_that_cannot_be_true_are_counted_anew(
    data: Path, engine: Recording, cache: FooterCache, column: str, change: Any
) -> None:
    counted(data, engine, cache)
    (file,) = Path(cache.folder).glob("*.counts")
    _rewrite(file, column, change)
    engine.taken()
    counted(data, engine, cache)
    assert engine.taken() == ["a", "a"]
    counted(data, engine, cache)
    assert engine.taken() == []


def _kept(file: Path) -> pa.Table:
    from dask_loader.catalog.cache import _unpack

    return _unpack(file.read_bytes(), file.name)


def _rewrite(file: Path, column: str, change: Any) -> None:
    from dask_loader.catalog.cache import _pack

    table = _kept(file)
    place, kind = table.schema.get_field_index(column), table.schema.field(column).type
    values = pa.array(change(table[column].to_pylist()), kind)
    file.write_bytes(_pack(table.set_column(place, column, values), file.name))


def test_an_error_while_counting_is_the_same_at_each_start_and_leaves_no_turn(
    data: Path, engine: Recording, cache: FooterCache
) -> None:
    path = data / "a.parquet"
    whole = bytearray(path.read_bytes())
    whole[4:60] = b"\xff" * 56
    path.write_bytes(whole)
    for _ in range(2):
        with pytest.raises(BadFileError, match=r"row group 0 of '.*a\.parquet'"):
            counted(data, engine, cache)
        assert not [*Path(cache.folder).glob("*turn*")]


# ---- several processes -----------------------------------------------------------------


class Processes:
    """Processes that count the same, and wait for the gate while they do."""

    def __init__(self, data: Path, cache: FooterCache, folder: Path) -> None:
        self._log, self._gate = folder / "log", folder / "gate"
        command = [sys.executable, _PROGRAM, data, cache.folder, self._log, self._gate]
        self.running = [
            subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]

    def counting(self) -> list[int]:
        """Return the processes that have begun to count, in order."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [int(line.split()[0]) for line in lines]

    def one_counts_and_one_waits(self) -> tuple[subprocess.Popen, subprocess.Popen]:
        """Wait until it is so."""
        assert until(lambda: len(self.counting()) > 0)
        first, second = sorted(
            self.running, key=lambda process: process.pid != self.counting()[0]
        )
        assert until(lambda: _has_open(second.pid, ".turn-for-counts"))
        return first, second

    def open_the_gate(self) -> None:
        self._gate.touch()


def until(condition: Callable[[], bool]) -> bool:
    """Poll a condition of another process, which has no event to wait for."""
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _has_open(pid: int, ending: str) -> bool:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(link).endswith(ending):
                return True
        except FileNotFoundError:  # closed meanwhile
            continue
    return False


@pytest.fixture
def processes(data: Path, cache: FooterCache, tmp_path: Path) -> Iterator[Processes]:
    made = Processes(data, cache, tmp_path)
    yield made
    for process in made.running:
        process.kill()
        process.communicate()


def test_of_two_processes_that_start_together_one_counts(processes: Processes) -> None:
    processes.one_counts_and_one_waits()
    processes.open_the_gate()
    for process in processes.running:
        rows, _ = process.communicate(timeout=_DEADLINE_S)
        assert (process.returncode, rows) == (0, "7\n")
    assert len(processes.counting()) == 1


def test_when_the_process_that_counts_dies_the_next_one_counts(
    processes: Processes,
) -> None:
    first, second = processes.one_counts_and_one_waits()
    first.send_signal(signal.SIGKILL)
    assert until(lambda: processes.counting()[1:] == [second.pid])
    processes.open_the_gate()
    rows, _ = second.communicate(timeout=_DEADLINE_S)
    assert (second.returncode, rows) == (0, "7\n")


def test_a_process_that_hangs_while_it_counts_holds_nobody_up_for_ever(
    processes: Processes,
    data: Path,
    cache: FooterCache,
    engine: Recording,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(counting, "_LONGEST_WAIT_S", 0.2)
    first, _ = processes.one_counts_and_one_waits()
    first.send_signal(signal.SIGSTOP)
    assert counted(data, engine, cache) == [2, 2, 0, 0, 2, 1]
    assert engine.taken() == ["a", "a", "c", "c"]
    assert f"process {first.pid} has worked on" in caplog.text
    assert "is waited for no longer" in caplog.text
    # What was counted here is there for those that start now.
    counted(data, engine, cache)
    assert engine.taken() == []


# ---- several clients of one cluster ----------------------------------------------------


@pytest.fixture
def client(local_cluster: Any) -> Iterator[distributed.Client]:
    made = local_cluster.client()
    yield made
    made.close()


@pytest.mark.cluster
def test_ranks_on_several_hosts_that_start_together_have_the_cluster_count_once(
    local_cluster: Any,
    client: distributed.Client,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counting, "_COUNT_BYTES", 1)  # a task for each row group
    go_on = distributed.Event("count", client=client)
    busy = client.map(
        lambda _: distributed.Event("count").wait(_DEADLINE_S), range(2), pure=False
    )
    assert until(lambda: sum(map(len, client.processing().values())) == 2)

    def num_rows(rank: int) -> int:
        with ParquetDataset(
            data,
            filters=ABOVE_10,
            client=local_cluster.address,
            rank=rank,
            world_size=2,
            footer_cache=tmp_path / f"host {rank}",
        ) as dataset:
            return dataset.num_rows

    def wanted() -> list[int]:
        return client.run_on_scheduler(
            lambda dask_scheduler: [
                len(task.who_wants)
                for key, task in dask_scheduler.tasks.items()
                if str(key).startswith("count_rows-")
            ]
        )

    with ThreadPoolExecutor(2) as threads:
        try:
            ranks = threads.map(num_rows, range(2))
            assert until(lambda: wanted() == [2, 2, 2, 2])
        finally:
            go_on.set()
        assert list(ranks) == [7, 7]
    assert until(lambda: wanted() == [])
    client.gather(busy)
