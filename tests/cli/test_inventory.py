"""Which rows must come, as pyarrow alone reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader import BadFileError
from dask_loader.catalog.provenance import FILE, PADDED, ROW, ROW_GROUP
from dask_loader.catalog.storage import Storage
from dask_loader.cli.inventory import UNKNOWN, Inventory, Place, take_inventory

DATA = Path(__file__).parents[1] / "data"
IDS = np.arange(100)


def take(paths: list[Path], filters: Any = None) -> Inventory:
    return take_inventory(Storage("file"), [str(path) for path in paths], filters)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    table = pa.table(
        {
            "id": IDS,
            "n": pa.array([None if i % 4 == 0 else i for i in IDS]),
            "f": [float("nan") if i % 9 == 0 else float(i) for i in IDS],
            "a.b": [f"{i % 7}" for i in IDS],
        }
    )
    found = [tmp_path / "a.parquet", tmp_path / "empty.parquet", tmp_path / "b.parquet"]
    for path, start, stop in zip(found, (0, 40, 40), (40, 40, 100), strict=True):
        pq.write_table(table.slice(start, stop - start), path, row_group_size=17)
    return found


def test_rows_are_numbered_through_all_files_and_row_groups(paths):
    inventory = take(paths)
    assert inventory.num_expected == 100
    assert inventory.starts.tolist() == [0, 17, 34, 40, 40, 57, 74, 91, 100]
    assert inventory.first_groups.tolist() == [0, 3, 4, 8]
    assert inventory.place(0) == Place(str(paths[0]), 0, 0)
    assert inventory.place(39) == Place(str(paths[0]), 2, 5)
    assert inventory.place(40) == Place(str(paths[2]), 0, 0)
    assert inventory.place(99) == Place(str(paths[2]), 3, 8)
    assert str(inventory.place(57)) == f"row 0 of row group 1 of {str(paths[2])!r}"


def test_a_batchs_rows_are_found_by_their_place_and_others_are_unknown(paths):
    inventory = take(paths)
    a, empty, b = map(str, paths)
    batch = {
        FILE: [a, a, a, a, a, empty, b, b, b, "c"],
        ROW_GROUP: np.array([0, 2, 2, 3, -1, 0, 3, 3, 0, 0], np.int32),
        ROW: np.array([16, 5, 6, 0, 0, 0, 8, 9, -1, 0]),
        PADDED: np.array([True] + [False] * 9),
    }
    numbers, padded = inventory.numbers(batch)
    x = UNKNOWN
    assert numbers.tolist() == [16, 39, x, x, x, x, 99, x, x, x]
    assert padded.tolist() == batch[PADDED].tolist()


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ([("id", ">", 30)], IDS > 30),
        ([("n", ">", 50), ("id", "<", 90)], (IDS > 50) & (IDS < 90) & (IDS % 4 > 0)),
        ([[("id", "<", 3)], [("id", ">", 97)]], (IDS < 3) | (IDS > 97)),
        ([("n", "!=", 5)], (IDS != 5) & (IDS % 4 > 0)),
        ([("f", "!=", 5.0)], IDS != 5),
        ([("f", "<", 50.0)], (IDS < 50) & (IDS % 9 > 0)),
        ([("n", "not in", [1, 2])], ~np.isin(IDS, [1, 2])),
        ([("a.b", "in", ["1", "2"])], np.isin(IDS % 7, [1, 2])),
        ([("id", ">", 1000)], IDS < 0),
    ],
)
def test_rows_that_the_filters_keep_are_expected(paths, filters, kept):
    inventory = take(paths, filters)
    assert inventory.expected.tolist() == kept.tolist()
    assert inventory.num_expected == int(kept.sum())


def test_files_of_others_are_read(tmp_path):
    inventory = take([DATA / "alltypes_plain.parquet"], [("bool_col", "==", True)])
    table = pq.read_table(DATA / "alltypes_plain.parquet")
    assert inventory.expected.tolist() == table["bool_col"].to_pylist()


def test_a_file_that_cannot_be_read_is_named(paths):
    paths[2].write_bytes(paths[2].read_bytes()[:-20])
    with pytest.raises(
        BadFileError, match=r"b\.parquet' is not a readable Parquet file"
    ):
        take(paths)
