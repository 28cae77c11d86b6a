"""Many footers, one catalog."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader.catalog.catalog import Catalog, read_catalog
from dask_loader.catalog.discover import discover
from dask_loader.catalog.storage import Storage
from dask_loader.errors import (
    BadFileError,
    ColumnError,
    ConfigError,
    SchemaError,
    UnsupportedTypeError,
)

Write = Callable[..., str]
Read = Callable[..., Catalog]


def test_row_groups_stand_in_the_files_order(write: Write, read: Read) -> None:
    first = write("1.parquet", {"x": range(25)}, row_group_size=10)
    other = write("2.parquet", {"x": pa.array([], pa.int64())})
    third = write("3.parquet", {"x": range(7)}, row_group_size=4)
    catalog = read(third, other, first)
    assert [f.path for f in catalog.files] == [third, other, first]
    assert catalog.file_index.tolist() == [0, 0, 1, 2, 2, 2]
    assert catalog.row_group.tolist() == [0, 1, 0, 0, 1, 2]
    assert catalog.num_rows.tolist() == [4, 3, 0, 10, 10, 5]
    assert catalog.num_bytes.tolist() == [32, 24, 0, 80, 80, 40]
    assert catalog.num_kept.tolist() == catalog.num_rows.tolist()
    assert catalog.total_rows == 32
    assert catalog.place(4) == (first, 1)
    for numbers in (catalog.file_index, catalog.row_group, catalog.num_kept):
        assert numbers.dtype == np.int64


def test_nulls_of_all_files_are_merged(write: Write, read: Read) -> None:
    plain = write("1.parquet", {"x": [1, 2], "y": [1, 2]}, row_group_size=1)
    some = write("2.parquet", {"x": [None, 2], "y": [1, 2]}, row_group_size=1)
    silent = write("3.parquet", {"x": [1, 2], "y": [1, 2]}, write_statistics=["y"])
    catalog = read(plain, some, silent)
    assert {k: v.tolist() for k, v in catalog.null_counts.items()} == {
        "x": [0, 0, 1, 0, -1]
    }


def test_a_chosen_order_of_columns_is_the_delivered_one(
    write: Write, read: Read
) -> None:
    columns = {
        "b": [1],
        "a": pa.array(["x"]),
        "c": pa.array([1], pa.timestamp("ms", "UTC")),
    }
    catalog = read(write("1.parquet", columns), columns=("c", "b"))
    assert [form.name for form in catalog.forms] == ["c", "b"]
    expected = pa.schema([("c", pa.timestamp("ms", "UTC")), ("b", pa.int64())])
    assert catalog.delivered_schema == expected


def test_very_many_footers_are_read_in_tasks_of_fifty(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask_loader.catalog.gather._MOST_HERE_BYTES", 60)
    for number in range(60):
        write(f"part.{number}.parquet", {"x": [number] * (number + 1)})
    found = discover(tmp_path)
    sizes = []

    def run(function: Any, items: Any) -> list[Any]:
        sizes.extend(len(item) for item in items)
        copies = pickle.loads(pickle.dumps((function, items)))  # as to a Dask worker
        return [pickle.loads(pickle.dumps(copies[0](item))) for item in copies[1]]

    catalog = read_catalog(
        found.storage, found.paths, columns=None, filters=[("x", "<", 50)], run=run
    )
    assert sizes == [50, 10]
    assert catalog.num_rows.tolist() == list(range(1, 61))
    assert catalog.num_kept.tolist() == [*range(1, 51), *[0] * 10]
    assert [Path(f.path).name for f in catalog.files][:11:5] == [
        "part.0.parquet",
        "part.5.parquet",
        "part.10.parquet",
    ]


def test_two_files_that_disagree_are_both_named(write: Write, read: Read) -> None:
    first = write("1.parquet", {"x": [1], "y": [1]})
    same = write("2.parquet", {"y": [1], "x": [1]})
    wrong = write("3.parquet", {"x": ["a"], "y": [1]})
    fewer = write("4.parquet", {"y": [1]})
    more = write("5.parquet", {"x": [1], "y": [1], "z": [1]})
    assert read(first, same).total_rows == 2
    for other, column in ((wrong, "x"), (fewer, "x"), (more, "z")):
        with pytest.raises(SchemaError, match=f"disagree about column '{column}'") as e:
            read(first, same, other)
        assert repr(first) in str(e.value)
        assert repr(other) in str(e.value)
        assert read(first, same, other, columns=("y",)).total_rows == 3


def test_a_column_that_only_the_filters_read_is_compared_too(
    write: Write, read: Read
) -> None:
    first, other = (
        write("1.parquet", {"x": [1], "y": [1]}),
        write("2.parquet", {"x": [1]}),
    )
    with pytest.raises(SchemaError, match=r"'y'.* is missing in"):
        read(first, other, columns=("x",), filters=[("y", "=", 1)])


def test_the_first_bad_argument_costs_one_footer(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask_loader.catalog.gather._MOST_HERE_BYTES", 0)
    long = pa.array([1]).cast(pa.decimal128(22, 2))
    write("1.parquet", {"x": [1], "l": long})
    (tmp_path / "2.parquet").write_text("no parquet")

    def never(function: Any, items: Any) -> list[Any]:
        raise AssertionError("all footers were asked for")

    found = discover(tmp_path)
    for columns, filters, error in (
        (("y",), None, ColumnError),
        (("x",), [("y", "=", 1)], ColumnError),
        (("x",), [("x", "=", "a")], ConfigError),
        (None, None, UnsupportedTypeError),
    ):
        with pytest.raises(error):
            read_catalog(
                found.storage, found.paths, columns=columns, filters=filters, run=never
            )


def test_a_bad_file_among_good_ones_is_named(write: Write, read: Read) -> None:
    good, bad = write("1.parquet"), write("2.parquet")
    with open(bad, "wb") as file:
        file.write(b"PAR1 and no more")
    with pytest.raises(BadFileError, match="is not a readable Parquet file") as caught:
        read(good, bad)
    assert caught.value.path == bad


def content_prints(catalog: Catalog) -> dict[str, str]:
    """What says whether data are the same; place and time only tell what happened."""
    prints = catalog.fingerprints()
    assert {"place", "stamps"} < set(prints)
    return {name: prints[name] for name in prints if name not in ("place", "stamps")}


def test_a_copy_elsewhere_has_the_same_fingerprint(
    write: Write, read: Read, tmp_path: Path
) -> None:
    paths = [
        write(f"d/{i}.parquet", {"x": range(i + 1), "y": ["a"] * (i + 1)})
        for i in (0, 1)
    ]
    shutil.copytree(tmp_path / "d", tmp_path / "copy")
    copies = [p.replace("/d/", "/copy/") for p in paths]
    chosen = {"columns": ("x",), "filters": [("y", "=", "a")]}
    here, there = read(*paths, **chosen), read(*copies, **chosen)
    assert content_prints(here) == content_prints(there)
    assert here.fingerprints()["place"] != there.fingerprints()["place"]


def test_what_is_read_otherwise_has_another_fingerprint(
    write: Write, read: Read
) -> None:
    one = write("1.parquet", {"x": range(10), "y": range(10)})
    two = write("2.parquet", {"x": range(10), "y": range(10)}, row_group_size=5)
    longer = write("3.parquet", {"x": range(11), "y": range(11)})
    retyped = write(
        "4.parquet", {"x": range(10), "y": pa.array(range(10), pa.uint64())}
    )
    catalogs = [
        read(one),
        read(two),
        read(longer),
        read(retyped),
        read(one, two),
        read(two, one),
        read(one, columns=("x",)),
        read(one, columns=("y", "x")),
        read(one, filters=[("x", ">", 1)]),
        read(one, filters=[("x", ">", 2)]),
    ]
    assert len({str(content_prints(catalog)) for catalog in catalogs}) == len(catalogs)


def test_a_catalog_pickles_small_beside_its_footers(tmp_path: Path, read: Read) -> None:
    columns = [f"c{i}" for i in range(100)]
    table = pa.table({name: pa.array(range(100)) for name in columns})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    catalog = read(str(tmp_path / "a.parquet"), filters=[("c0", ">", 3)])
    packed = pickle.dumps(catalog)
    assert len(packed) < 20_000
    copy = pickle.loads(packed)
    assert copy.fingerprints() == catalog.fingerprints()
    assert copy.storage == Storage("file")


def test_a_fingerprint_tells_files_columns_and_filters_apart(
    write: Write, read: Read
) -> None:
    one, two = write("1.parquet"), write("2.parquet", {"x": [1, 2]})
    base = content_prints(read(one))
    assert set(base) == {"files", "columns", "filters"}
    columns = {"x": [1], "y": [2]}
    wide = write("3.parquet", columns)
    for other, changed in (
        (content_prints(read(two)), {"files"}),
        (content_prints(read(one, filters=[("x", ">", 1)])), {"filters"}),
    ):
        assert {part for part in base if base[part] != other[part]} == changed
    narrow, all_of_it = read(wide, columns=("x",)), read(wide)
    differing = content_prints(narrow).items() ^ content_prints(all_of_it).items()
    assert {part for part, _ in differing} == {"columns"}


def test_counted_rows_take_the_place_of_what_statistics_left(
    write: Write, read: Read
) -> None:
    path = write("1.parquet", {"x": range(10)}, row_group_size=5)
    catalog = read(path, filters=[("x", ">", 6)])
    assert catalog.num_kept.tolist() == [0, 5]
    counted = catalog.with_kept(np.array([0, 3]))
    assert counted.total_rows == 3
    assert counted.num_rows.tolist() == [5, 5]
