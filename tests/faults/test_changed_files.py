"""Files that change under a dataset: a grid of what happens to one, and when.

Each cell ends with the plan's rows of the old version, or with an error that names the
file after a beginning of just these rows: never rows of both, never fewer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cluster
from dask_loader import (
    BadFileError,
    DaskLoaderError,
    DataChangedError,
    ParquetDataset,
    ResumeError,
    SchemaError,
)

ROOT = Path(__file__).parents[2]
NUM_FILES, FILE_ROWS, GROUP_ROWS, BATCH_ROWS = 3, 300, 100, 30
VICTIM = 1
# Of old files: a change within the tick of a file system's clock would keep their times.
LONG_AGO_NS = 1_000_000_000 * 10**9

Rows = list[tuple[int, int]]


def write(path: Path, number: int, version: int, num_rows: int = FILE_ROWS) -> None:
    """Write a file; each value tells its row and the version of the file."""
    ids = np.arange(num_rows) + number * FILE_ROWS
    columns = {"id": ids, "value": ids * 10 + version, "more": ids * 0.5}
    pq.write_table(
        pa.table(columns),
        path,
        row_group_size=GROUP_ROWS if num_rows < 10 * FILE_ROWS else num_rows,
        use_dictionary=False,
        compression="none",
    )


def replace(path: Path) -> None:
    write(path.with_suffix(".new"), VICTIM, 1)
    os.replace(path.with_suffix(".new"), path)


def drift(path: Path) -> None:
    """Replace a file by one with as many rows and another schema."""
    columns = {"value": ["text"] * FILE_ROWS, "id": [0.5] * FILE_ROWS}
    pq.write_table(pa.table(columns), path.with_suffix(".new"), row_group_size=100)
    os.replace(path.with_suffix(".new"), path)


def rewrite(path: Path) -> None:
    """Write over a file as it lies there, with as many bytes."""
    write(path.with_suffix(".new"), VICTIM, 1)
    content = path.with_suffix(".new").read_bytes()
    path.with_suffix(".new").unlink()
    assert len(content) == path.stat().st_size
    with open(path, "r+b") as file:
        file.write(content)


def grow(path: Path) -> None:
    """Write over a file a longer one, whose first rows are the same."""
    write(path.with_suffix(".new"), VICTIM, 0, FILE_ROWS + 50)
    path.write_bytes(path.with_suffix(".new").read_bytes())
    path.with_suffix(".new").unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


EVENTS: dict[str, Callable[[Path], None]] = {
    "replaced": replace,
    "drifted": drift,
    "rewritten": rewrite,
    "grown": grow,
    "truncated": truncate,
    "removed": Path.unlink,
}


@dataclass(frozen=True)
class Happens:
    """A transform that lets something happen while a window is read, once."""

    event: Callable[[Path], None]
    path: Path

    def __call__(self, rows: pa.Table) -> pa.Table:
        first = rows["id"][0].as_py()
        once = self.path.with_suffix(".happened")
        if first >= VICTIM * FILE_ROWS and not once.exists():
            once.touch()
            self.event(self.path)
        return rows


def take(batches: Iterator[Any], most: int | None = None) -> Rows:
    """Return the rows of some batches, or of all."""
    found: Rows = []
    for number, batch in enumerate(batches, 1):
        found += zip(batch["id"].tolist(), batch["value"].tolist(), strict=True)
        if number == most:
            break
    return found


@dataclass
class Cell:
    """One cell of the grid: a dataset, and what may happen to one of its files."""

    folder: Path
    event: Callable[[Path], None]
    options: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / f"{VICTIM}.parquet"

    def dataset(self, **more: Any) -> ParquetDataset:
        options = {
            "batch_size": BATCH_ROWS,
            "shuffle": True,
            "shuffle_window": GROUP_ROWS,
            "footer_cache": False,
            "client": "threads",
        }
        return ParquetDataset(self.folder, **options | self.options | more)

    def happen(self) -> None:
        self.event(self.path)


# Each yields the rows that came, so that they are known where an error follows.
Phase = Callable[[Cell], Iterator[Rows]]


def after_making(cell: Cell) -> Iterator[Rows]:
    with cell.dataset() as dataset:
        cell.happen()
        for batch in dataset:
            yield take(iter([batch]))


def before_the_first_batch(cell: Cell) -> Iterator[Rows]:
    with cell.dataset() as dataset:
        batches = iter(dataset)
        cell.happen()
        for batch in batches:
            yield take(iter([batch]))


def between_batches(cell: Cell) -> Iterator[Rows]:
    """Other windows are read ahead meanwhile."""
    with cell.dataset() as dataset:
        batches = iter(dataset)
        yield take(batches, 2)
        cell.happen()
        for batch in batches:
            yield take(iter([batch]))


def while_a_window_is_read(cell: Cell) -> Iterator[Rows]:
    with cell.dataset(transform=Happens(cell.event, cell.path)) as dataset:
        for batch in dataset:
            yield take(iter([batch]))


def in_the_second_epoch(cell: Cell) -> Iterator[Rows]:
    with cell.dataset(shuffle=False) as dataset:
        first = take(iter(dataset))
        assert [row for row, _ in first] == list(range(len(first)))
        cell.happen()
        for batch in dataset:
            yield take(iter([batch]))


PHASES: tuple[Phase, ...] = (
    after_making,
    before_the_first_batch,
    between_batches,
    while_a_window_is_read,
    in_the_second_epoch,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    for number in range(NUM_FILES):
        write(made / f"{number}.parquet", number, 0)
        os.utime(made / f"{number}.parquet", ns=(LONG_AGO_NS, LONG_AGO_NS))
    return made


def check(cell: Cell, phase: Phase) -> DaskLoaderError | None:
    """See that what came is what was planned, up to an error."""
    ordered = phase is in_the_second_epoch
    with cell.dataset(**({"shuffle": False} if ordered else {})) as dataset:
        expected = take(iter(dataset))
    assert sorted(expected) == [(i, i * 10) for i in range(len(expected))]
    found: Rows = []
    error: DaskLoaderError | None = None
    try:
        for rows in phase(cell):
            found += rows
    except DaskLoaderError as caught:
        error = caught
    assert found == expected[: len(found)]
    if error is None:
        assert len(found) == len(expected)
        return None
    assert error.path == str(cell.path)
    assert repr(str(cell.path)) in str(error)
    return error


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
@pytest.mark.parametrize("event", EVENTS)
def test_a_file_that_changes_gives_its_old_rows_or_an_error_that_names_it(
    folder: Path, event: str, phase: Phase
) -> None:
    error = check(Cell(folder, EVENTS[event], {}), phase)
    if phase in (after_making, while_a_window_is_read, in_the_second_epoch):
        assert error is not None  # nothing of it was read before
    if error is not None:
        assert type(error) is DataChangedError
        assert "make the dataset again" in str(error)


@pytest.mark.parametrize("event", EVENTS)
def test_a_file_that_changes_in_the_midst_of_a_row_group_is_told(
    tmp_path: Path, event: str
) -> None:
    """It is cut into many windows, of which the first was handed out."""
    write(tmp_path / f"{VICTIM}.parquet", VICTIM, 0, 100 * FILE_ROWS)
    os.utime(tmp_path / f"{VICTIM}.parquet", ns=(LONG_AGO_NS, LONG_AGO_NS))
    expected = [(i + FILE_ROWS, (i + FILE_ROWS) * 10) for i in range(100 * FILE_ROWS)]

    def happens(path: Path) -> None:
        if event == "rewritten":
            write(path.with_suffix(".new"), VICTIM, 1, 100 * FILE_ROWS)
            content = path.with_suffix(".new").read_bytes()
            with open(path, "r+b") as file:
                file.write(content)
        else:
            EVENTS[event](path)

    options = {"shuffle": False, "shuffle_window": BATCH_ROWS}
    cell = Cell(tmp_path, happens, options)
    found: Rows = []
    with cell.dataset() as dataset:
        batches = iter(dataset)
        found += take(batches, 1)
        cell.happen()
        with pytest.raises(DataChangedError, match="make the dataset again") as caught:
            for batch in batches:
                found += take(iter([batch]))
    assert found == expected[: len(found)]
    assert caught.value.path == str(cell.path)


@pytest.mark.parametrize(
    ("event", "kind", "text"),
    [
        ("replaced", ResumeError, "the checkpoint was made with other"),
        ("drifted", SchemaError, "has"),
        ("rewritten", ResumeError, "the checkpoint was made with other"),
        ("grown", ResumeError, "the checkpoint was made with other"),
        ("truncated", BadFileError, "is not a readable Parquet file"),
        ("removed", ResumeError, "num_files was 3 and is 2"),
    ],
)
def test_a_file_that_changes_before_a_resume_is_told(
    folder: Path, event: str, kind: type[Exception], text: str
) -> None:
    cell = Cell(folder, EVENTS[event], {})
    with cell.dataset() as dataset:
        take(iter(dataset), 3)
        state = dataset.state_dict()
    cell.happen()
    with pytest.raises(kind, match=text) as caught, cell.dataset() as dataset:
        dataset.load_state_dict(state)
    if kind is BadFileError:
        assert caught.value.path == str(cell.path)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("event", "phase"),
    [
        ("replaced", after_making),
        ("rewritten", between_batches),
        ("truncated", between_batches),
        ("removed", in_the_second_epoch),
    ],
)
def test_a_file_that_changes_under_dask_workers_is_told_as_in_threads(
    folder: Path, local_cluster: cluster.Cluster, event: str, phase: Phase
) -> None:
    cell = Cell(folder, EVENTS[event], {"client": local_cluster.address})
    error = check(cell, phase)
    if phase is not between_batches:
        assert error is not None
    assert error is None or type(error) is DataChangedError


# ---- in a process of its own -----------------------------------------------------------


def told(phase: str, path: Path) -> list[Any]:
    """Return what changing_process.py tells of its error."""
    command = [sys.executable, "-m", "tests.faults.changing_process", phase, str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
    found: list[Any] = json.loads(done.stdout)
    return found


def test_a_file_cut_short_while_a_window_of_it_is_decoded_ends_no_process(
    tmp_path: Path,
) -> None:
    """Were it mapped, the kernel would end the process (SIGBUS)."""
    path = tmp_path / "a.parquet"
    numbers = np.random.default_rng(0).random((3, 1_200_000))
    columns = {"id": numbers[0], "b": numbers[1], "c": numbers[2]}
    # Its one row group is decoded in two parts: first 16 MiB, then the rest.
    pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False)
    name, text, named, _, rows = told("truncated", path)
    assert (name, named, rows) == ("DataChangedError", str(path), 0)
    assert "changed after the dataset was made: it had" in text
    assert "and has 4096" in text


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["forbidden", "unreadable"])
def test_a_file_that_may_not_be_read_any_more_is_named_with_what_to_do(
    folder: Path, phase: str
) -> None:
    path = folder / "1.parquet"
    name, text, named, _, rows = told(phase, path)
    assert (name, named, rows) == ("BadFileError", str(path), 0)
    assert f"{str(path)!r} may not be read by this user: " in text
    assert "Permission denied" in text
    assert "give it the right to, or leave the file out of the path" in text
