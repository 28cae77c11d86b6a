"""Directory keys: names, types and values out of paths."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from dask_loader.catalog.keys import (
    Keys,
    Partitioning,
    check_partitioning,
    find_keys,
)
from dask_loader.errors import ColumnError, ConfigError, SchemaError

NONE = pa.schema([])


def found(
    *paths: str, partitioning: Any = "hive", columns: pa.Schema = NONE
) -> Keys | None:
    return find_keys(check_partitioning(partitioning), "/b", paths, columns)


@pytest.mark.parametrize(
    ("values", "kind", "texts"),
    [
        (["1", "22"], pa.int64(), ["1", "22"]),
        (["01", "-2"], pa.int64(), ["01", "-2"]),
        (["1", "x"], pa.string(), ["1", "x"]),
        (["1", "1.5"], pa.string(), ["1", "1.5"]),
        (["1", "9" * 19], pa.string(), ["1", "9" * 19]),
        (["", "1"], pa.string(), ["", "1"]),
        (["a%20b%2Fc", "%C3%A9"], pa.string(), ["a b/c", "é"]),
        (["1", "__HIVE_DEFAULT_PARTITION__"], pa.int64(), ["1", None]),
        (["__HIVE_DEFAULT_PARTITION__"], pa.string(), [None]),
        (["a=b"], pa.string(), ["a=b"]),
    ],
)
def test_all_values_decide_the_type_in_any_order(
    values: list[str], kind: pa.DataType, texts: list[str | None]
) -> None:
    paths = [f"/b/k={value}/f.parquet" for value in values]
    for order in (paths, paths[::-1]):
        keys = found(*order)
        assert keys is not None
        assert keys.fields == (("k", kind),)
        assert [keys.texts(path)[0] for path in paths] == texts
        as_arrow = pa.array(texts).cast(kind)
        assert keys.table(paths)["k"].to_pylist() == as_arrow.to_pylist()
    assert len(pickle.dumps(keys)) < 1000


def test_only_directories_below_the_given_folder_that_are_keys_count() -> None:
    keys = find_keys(Partitioning(), "/x=1", ["/x=1/plain/y=2/z=3/f.parquet"], NONE)
    assert keys is not None
    assert keys.fields == (("y", pa.int64()), ("z", pa.int64()))
    assert find_keys(Partitioning(), "/x=1", ["/x=1/y=2.parquet"], NONE) is None
    assert find_keys(None, "/b", ["/b/y=2/f.parquet"], NONE) is None


def test_types_can_be_given() -> None:
    path = "/b/year=2026/day=2026-01-02/f.parquet"
    hive = pads.partitioning(pa.schema([("day", pa.date32())]), flavor="hive")
    text = pa.dictionary(pa.int32(), pa.string())
    for given, kinds in (
        ({"day": pa.date32()}, [pa.int64(), pa.date32()]),
        ({"year": "int16", "day": "string"}, [pa.int16(), pa.string()]),
        ({"year": text}, [pa.string(), pa.string()]),
        (hive, [pa.int64(), pa.date32()]),
    ):
        keys = found(path, partitioning=given)
        assert keys is not None
        assert list(keys.types) == kinds


def test_directories_may_hold_values_alone() -> None:
    path = "/b/2026/ab%20c/part/f.parquet"
    schema = pa.schema([("year", pa.int16()), ("word", pa.string())])
    for given, year in (
        (["year", "word"], pa.int64()),
        (pads.DirectoryPartitioning(schema), pa.int16()),
    ):
        keys = found(path, partitioning=given)
        assert keys is not None
        assert keys.fields == (("year", year), ("word", pa.string()))
        assert keys.texts(path) == ("2026", "ab c")


def test_a_key_that_is_a_column_too_has_its_type() -> None:
    columns = pa.schema([("x", pa.int8()), ("day", pa.date32())])
    keys = found("/b/day=2026-01-02/f.parquet", columns=columns)
    assert keys is not None
    assert keys.add_to(columns) == columns
    twice = pa.schema([("day", pa.int8()), ("day", pa.int8())])
    with pytest.raises(
        ColumnError, match="'day' is a key of directories and 2 columns"
    ):
        found("/b/day=1/f.parquet", columns=twice)


@pytest.mark.parametrize(
    ("paths", "partitioning", "text"),
    [
        (
            ["/b/x=1/f", "/b/y=1/f"],
            "hive",
            r"'/b/x=1/f' has \['x'\], '/b/y=1/f' has \['y'\]; move one of them",
        ),
        (["/b/x=1/f", "/b/f"], "hive", r"'/b/x=1/f' has \['x'\], '/b/f' has \[\]"),
        (["/b/x=1/x=2/f"], "hive", "the directories of '/b/x=1/x=2/f' give key 'x' tw"),
        (["/b/x=%FF/f"], "hive", "the directory '%FF' of '/b/x=%FF/f' is no URL-enc"),
        (
            ["/b/x=a/f"],
            {"x": pa.int32()},
            "key 'x' should have type int32, and the directories of '/b/x=a/f' say 'a'",
        ),
        (
            ["/b/1/f"],
            ["x", "y"],
            r"partitioning=\['x', 'y'\] needs 2 directories below '/b', and '/b/1/f'",
        ),
    ],
)
def test_paths_that_do_not_fit_are_named(
    paths: list[str], partitioning: Any, text: str
) -> None:
    with pytest.raises(SchemaError, match=text) as caught:
        found(*paths, partitioning=partitioning)
    assert caught.value.path == paths[-1]


def test_a_type_for_a_key_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="gives key 'z' the type int32, and no dir"):
        found("/b/x=1/f", partitioning={"z": "int32"})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("dir", "partitioning='dir' must be \"hive\", None to ignore"),
        ([], r"partitioning=\[\] must be"),
        (["a", "a"], "a list of different names"),
        (["a", 1], "must be"),
        (pads.partitioning(flavor="hive"), "must be"),
        ({"a": "no type"}, r"partitioning=\{'a': 'no type'\} must give the name of a"),
        ({1: pa.int8()}, r"partitioning=\{1: .*\} must give"),
    ],
)
def test_a_wrong_partitioning_is_refused(given: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_partitioning(given)
