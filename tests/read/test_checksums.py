"""Rows that nothing verified are counted, wherever they are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader import DataLoader, ParquetDataset
from dask_loader.read.checksums import has_checksum

NUM_ROWS = 2000
ROW_GROUP_ROWS = 500
NUM_UNCHECKED = 1100


def _write(path: Path, rows: range, **options: Any) -> None:
    table = pa.table(
        {"id": rows, "s": [f"row {i}" for i in rows], "x": np.sqrt(np.array(rows))}
    )
    pq.write_table(table, path, row_group_size=ROW_GROUP_ROWS, **options)


@pytest.fixture(scope="module", params=["1.0", "2.0"])
def mixed(request, tmp_path_factory) -> Path:
    """A file whose pages have checksums, and one whose pages have none."""
    folder = tmp_path_factory.mktemp("mixed")
    options = {"data_page_version": request.param}
    checked = range(NUM_ROWS - NUM_UNCHECKED)
    _write(folder / "a.parquet", checked, write_page_checksum=True, **options)
    _write(folder / "b.parquet", range(checked.stop, NUM_ROWS), **options)
    return folder


@pytest.fixture
def in_memory(mixed) -> Iterator[str]:
    """The same files in a file system that is not local."""
    files = fsspec.filesystem("memory")
    for file in mixed.iterdir():
        files.pipe(f"/mixed/{file.name}", file.read_bytes())
    yield "memory://mixed"
    files.rm("/mixed", recursive=True)


def _unchecked(path: Any, **options: Any) -> float:
    with ParquetDataset(path, batch_size=100, **options) as dataset:
        assert sum(len(batch["s"]) for batch in dataset) == dataset.num_rows
        return dataset.stats()["unchecked_rows"]


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, NUM_UNCHECKED),
        ({"shuffle": True}, NUM_UNCHECKED),
        ({"shuffle_window": 120}, NUM_UNCHECKED),
        ({"shuffle_window": 120, "shuffle": True, "num_splits": 2}, NUM_UNCHECKED),
        ({"columns": ["s"], "nulls": "mask"}, NUM_UNCHECKED),
        ({"filters": [("id", "<", NUM_ROWS - 100)]}, NUM_UNCHECKED - 100),
        ({"output_format": "arrow"}, NUM_UNCHECKED),
        ({"verify_checksums": False}, NUM_ROWS),
    ],
    ids=str,
)
def test_rows_of_pages_without_checksums_are_counted(mixed, in_memory, options, want):
    assert _unchecked(mixed, client="threads", **options) == want
    assert _unchecked(in_memory, client="threads", **options) == want


def test_what_dask_workers_read_is_counted_whichever_way_it_comes(
    mixed, local_cluster, monkeypatch
):
    for way in ("memory", "comm"):
        monkeypatch.setenv("DASK_LOADER_HAND_OVER", way)
        for options in ({}, {"columns": ["s"]}, {"shuffle_window": 120}):
            found = _unchecked(mixed, client=local_cluster, **options)
            assert found == NUM_UNCHECKED, (way, options)


def test_what_dataloader_workers_read_is_counted(mixed):
    with ParquetDataset(mixed, client="threads", batch_size=100) as dataset:
        loader = DataLoader(dataset, num_workers=2)
        assert sum(len(batch["id"]) for batch in loader) == NUM_ROWS
        assert dataset.stats()["unchecked_rows"] == NUM_UNCHECKED
        del loader


def test_where_no_page_is_read_nothing_is_unchecked(tmp_path):
    (tmp_path / "day=3").mkdir()
    _write(tmp_path / "day=3" / "a.parquet", range(1000))
    for columns, want in ((["day", "id"], 1000), (["day"], 0)):
        with ParquetDataset(
            tmp_path, client="threads", batch_size=100, columns=columns
        ) as dataset:
            assert sum(len(batch["day"]) for batch in dataset) == 1000
            assert dataset.stats()["unchecked_rows"] == want


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_a_header_tells_whether_it_has_a_checksum(tmp_path, version, dictionary):
    for wanted in (True, False):
        _write(
            tmp_path / "a.parquet",
            range(1000),
            write_page_checksum=wanted,
            data_page_version=version,
            use_dictionary=dictionary,
        )
        content = (tmp_path / "a.parquet").read_bytes()
        assert has_checksum(content[4:28]) is wanted
        # Cut short anywhere: there is none until the checksum's field begins.
        found = [has_checksum(content[4 : 4 + n]) for n in range(24)]
        assert found == sorted(found)
        assert found[-1] is wanted


@pytest.mark.parametrize("header", [b"", b"PAR1", b"\x15" + b"\xff" * 23, b"\x00" * 24])
def test_what_is_no_header_has_no_checksum(header):
    assert not has_checksum(header)
