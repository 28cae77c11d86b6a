"""Directories of files as people have them: keys, files that differ, bad files."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dask_loader import ParquetDataset
from dask_loader.cli import main as commands
from dask_loader.errors import (
    BadFileError,
    CastError,
    ConfigError,
    DataNotFoundError,
    NullError,
    ResumeError,
    SchemaError,
)

SPARK = Path(__file__).parent / "data" / "hive_spark"
SPARK_FILES = f"{SPARK}/*/*/*.parquet"
NOTHING = "__HIVE_DEFAULT_PARTITION__"
DAYS = ["2026-01-01", "2026-01-02", NOTHING]
FILL = {"nulls": {"day": None}}


def write(path: Path, columns: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, **options)
    return path


def made(path: Any, **options: Any) -> ParquetDataset:
    given = {"client": "threads", "batch_size": 7, "footer_cache": False}
    return ParquetDataset(path, **{**given, **options})


def rows(path: Any, **options: Any) -> list[dict[str, Any]]:
    """Return all rows as plain values."""
    found: list[dict[str, Any]] = []
    with made(path, **options) as dataset:
        for batch in dataset:
            columns = {
                n: v.tolist() if isinstance(v, torch.Tensor) else list(v)
                for n, v in batch.items()
            }
            found += [
                dict(zip(columns, row, strict=True))
                for row in zip(*columns.values(), strict=True)
            ]
        assert len(found) == dataset.num_rows
    return found


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days (one null) of two hours, each file 10 rows in row groups of 4."""
    folder = tmp_path_factory.mktemp("hive")
    for number, day in enumerate(DAYS):
        for hour in (1, 2):
            x = pa.array(range(10)).cast(pa.int32())
            id_ = pa.array(range(10)).cast(pa.int64())
            table = {"id": pc.add(id_, number * 100 + hour * 10), "x": x}
            write(
                folder / f"day={day}/hour={hour:02}/a.parquet", table, row_group_size=4
            )
    (folder / "_SUCCESS").touch()
    (folder / "_temporary/0").mkdir(parents=True)
    (folder / "_temporary/0/b.parquet").touch()
    return folder


# ---- keys ------------------------------------------------------------------------------


def test_keys_of_directories_are_columns_after_the_files_own(hive: Path) -> None:
    with made(hive, **FILL) as dataset:
        assert dataset.schema == pa.schema(
            {
                "id": pa.int64(),
                "x": pa.int32(),
                "day": pa.string(),
                "hour": pa.int64(),
            }
        )
        first = dataset.peek()
        assert list(first) == ["id", "x", "day", "hour"]
        assert first["hour"].dtype == torch.int64
    expected = pads.dataset(hive, partitioning="hive").to_table().to_pylist()
    assert sorted(rows(hive, **FILL), key=str) == sorted(expected, key=str)
    assert rows(hive, shuffle=True, **FILL) != rows(hive, **FILL)
    assert set(rows(hive, partitioning=None)[0]) == {"id", "x"}


@pytest.mark.parametrize(
    ("options", "names", "total"),
    [
        ({"columns": ["hour"]}, {"hour"}, 60),
        ({"columns": ["hour", "day"], **FILL, "shuffle": True}, {"hour", "day"}, 60),
        ({"columns": ["x"], "filters": [("hour", "=", 1)]}, {"x"}, 30),
        ({"columns": ["hour"], "filters": [("x", "<", 3)]}, {"hour"}, 18),
        ({"columns": ["x"], "filters": [("x", "<", 3), ("hour", "=", 2)]}, {"x"}, 9),
        ({"columns": ["hour"], "filters": [("day", "=", "2026-01-02")]}, {"hour"}, 20),
        ({"features": {"f": ["x", "hour"]}, **FILL}, {"id", "f", "day"}, 60),
        ({"columns": ["hour"], "dtypes": {"hour": "float32"}}, {"hour"}, 60),
        (
            {"columns": ["hour"], "provenance": True},
            {"hour", "__file__", "__row__", "__row_group__", "__padded__"},
            60,
        ),
    ],
)
def test_keys_can_be_used_as_columns_can(
    hive: Path, options: dict[str, Any], names: set[str], total: int
) -> None:
    found = rows(hive, **options)
    assert set(found[0]) == names
    assert len(found) == total


def test_nulls_of_keys_are_told_of_without_reading(hive: Path) -> None:
    with pytest.raises(NullError, match="column 'day' has 4 nulls") as caught:
        made(hive)
    assert "(20 in the whole dataset)" in str(caught.value)
    # Not where the filters leave no such row.
    made(hive, filters=[("day", "!=", "x")]).close()
    assert {row["day"] for row in rows(hive, nulls={"day": "none"})} == {
        "2026-01-01",
        "2026-01-02",
        "none",
    }


def test_types_of_keys_can_be_given(hive: Path) -> None:
    given = {"day": pa.date32(), "hour": "int8"}
    with made(hive, partitioning=given, nulls={"day": -1}) as dataset:
        assert dataset.schema.field("day").type == pa.date32()
        assert dataset.peek()["hour"].dtype == torch.int8
    filters = [("day", ">", date(2026, 1, 1))]
    found = rows(hive, partitioning=given, filters=filters, columns=["day"])
    assert found == [{"day": 20455}] * 20


def test_directories_of_values_alone(tmp_path: Path) -> None:
    for year in (2025, 2026):
        write(tmp_path / f"{year}/a b/f.parquet", {"x": [year]})
    assert rows(tmp_path, partitioning=["year", "word"]) == [
        {"x": year, "year": year, "word": "a b"} for year in (2025, 2026)
    ]


def test_what_lies_below_the_common_folder_of_a_list_or_glob_counts(hive: Path) -> None:
    def keys(path: Any) -> list[str]:
        with made(path, nulls={}) as dataset:
            return [n for n in dataset.schema.names if n not in ("id", "x")]

    one = hive / "day=2026-01-01"
    assert keys(one) == ["hour"]
    assert keys(one / "hour=01/a.parquet") == []
    assert keys([one, hive / "day=2026-01-02"]) == ["day", "hour"]
    assert keys([one / "hour=01", one / "hour=02"]) == ["hour"]
    assert keys([one / f"hour=0{h}/a.parquet" for h in (1, 2)]) == ["hour"]
    assert keys(str(hive / "day=2026*/*/*.parquet")) == ["day", "hour"]
    assert keys(str(hive / "day=2026-01-01/*/a.parquet")) == ["hour"]
    assert keys(str(one / "**/*.parquet")) == ["hour"]


def test_a_pattern_does_not_find_what_is_hidden_unless_it_spells_it(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a/x.parquet", {"x": [1]})
    write(tmp_path / "_temporary/0/x.parquet", {"x": [2]})
    for pattern in ("*", "**/*.parquet", "*/*"):
        assert rows(str(tmp_path / pattern)) == [{"x": 1}]
    assert rows(str(tmp_path / "_temporary/*/x.parquet")) == [{"x": 2}]


def test_a_key_that_is_a_column_too_is_the_directorys_in_the_columns_type(
    tmp_path: Path,
) -> None:
    day = pa.array([date(2026, 1, 2)] * 2)
    write(tmp_path / "day=2026-01-02/a.parquet", {"day": day, "x": [1, 2]})
    with made(tmp_path) as dataset:
        assert dataset.schema == pa.schema({"day": pa.date32(), "x": pa.int64()})
    assert rows(tmp_path, filters=[("day", "=", date(2026, 1, 2))]) == [
        {"day": 20455, "x": 1},
        {"day": 20455, "x": 2},
    ]
    write(tmp_path / "day=2026-01-03/a.parquet", {"day": day, "x": [3, 4]})
    with pytest.raises(SchemaError, match=r"column 'day' of .* has other values") as e:
        made(tmp_path)
    assert "than the directory, which says '2026-01-03'" in str(e.value)
    assert len(rows(tmp_path, partitioning=None)) == 4


FILTERS = st.recursive(
    st.sampled_from(
        [
            *(pc.field("day") == day for day in ("2026-01-01", "2026-01-02", "no")),
            *(pc.field("hour") >= hour for hour in range(4)),
            *(pc.field("x") > x for x in range(-1, 11, 2)),
            pc.field("day") != "2026-01-01",
            pc.field("day").is_null(),
            pc.field("day").isin(["2026-01-02", "no"]),
            pc.field("x") == pc.field("hour"),
            pc.field("id") < 115,
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=5,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(expression=FILTERS)
def test_filters_keep_the_rows_that_arrow_keeps(hive: Path, expression: Any) -> None:
    kinds = pa.schema([("day", pa.string()), ("hour", pa.int64())])
    arrow = pads.dataset(hive, partitioning=pads.partitioning(kinds, flavor="hive"))
    expected = arrow.to_table(filter=expression, columns=["id"])["id"].to_pylist()
    found = rows(hive, columns=["id"], filters=expression)
    assert sorted(row["id"] for row in found) == sorted(expected)


def test_explain_says_what_filters_spare_and_how(hive: Path) -> None:
    filters = [
        ("day", "=", "2026-01-01"),
        ("x", ">", 3),
        ("x", "!=", 8),
        ("x", "!=", 9),
    ]
    with made(hive, filters=filters, columns=["x"]) as dataset:
        text = dataset.explain()
    assert "filters: 8 of 60 rows are kept" in text
    assert (
        "never read by the keys of their directories: 12 row groups, 4 whole files, "
        "40 rows, 160 B" in text
    )
    assert "never read by statistics: 2 row groups, 0 whole files, 8 rows, 32 B" in text
    assert "never read as the filters keep none of their rows" in text
    with made(hive, filters=[("hour", "=", 1)], columns=["x"]) as dataset:
        text = dataset.explain()
    assert "directories: 9 row groups, 3 whole files, 30 rows, 120 B" in text


def test_files_that_keys_rule_out_are_not_opened_for_rows(tmp_path: Path) -> None:
    for k in (1, 2):
        write(tmp_path / f"k={k}/a.parquet", {"x": [k] * 50}, compression="none")
    path = tmp_path / "k=2/a.parquet"
    data = bytearray(path.read_bytes())
    data[4:40] = bytes(36)  # pages that no one can decode
    path.write_bytes(data)
    assert len(rows(tmp_path, filters=[("k", "<", 2)])) == 50
    assert len(rows(tmp_path, filters=[("k", "<", 2), ("x", "=", 1)])) == 50
    with pytest.raises(BadFileError, match="k=2"):
        rows(tmp_path)


def test_states_tell_the_values_of_keys_apart(tmp_path: Path) -> None:
    for k in (1, 2):
        write(tmp_path / f"k={k}/a.parquet", {"x": [k] * 50})
    where = {"columns": ["x"], "filters": [("k", "<", 2)]}
    with (
        made(tmp_path) as dataset,
        made(tmp_path, columns=["x"]) as plain,
        made(tmp_path, **where) as filtered,
    ):
        next(iter(dataset))
        next(iter(plain))
        next(iter(filtered))
        of_filtered = filtered.state_dict()
        state = json.loads(json.dumps(dataset.state_dict()))
        without = plain.state_dict()
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.peek()["k"].tolist() == [1] * 7
        copy.close()
    (tmp_path / "k=1").rename(tmp_path / "k=0")
    with made(tmp_path) as moved, made(tmp_path, columns=["x"]) as plain:
        with pytest.raises(ResumeError, match="files"):
            moved.load_state_dict(state)
        plain.load_state_dict(without)  # keys are not read
    (tmp_path / "k=2").rename(tmp_path / "k=1")
    (tmp_path / "k=0").rename(tmp_path / "k=2")
    with made(tmp_path, **where) as moved, pytest.raises(ResumeError, match="files"):
        moved.load_state_dict(of_filtered)


def test_files_of_spark_come_as_arrow_reads_them() -> None:
    paths = sorted(str(path) for path in SPARK.rglob("part*.parquet"))
    arrow = pads.dataset(paths, partitioning="hive", partition_base_dir=str(SPARK))
    expected = arrow.to_table().to_pylist()
    # Its _metadata names all 48 files that Spark wrote; 8 of them are here.
    with pytest.raises(DataNotFoundError, match=r"40 files that .*_metadata' names"):
        made(SPARK)
    found = rows(SPARK_FILES, batch_size=1000)
    assert len(found) == len(expected) > 300
    assert [row["num"] for row in found] == [row["num"] for row in expected]
    assert [(r["cat"], r["catnum"]) for r in found] == [
        (r["cat"], r["catnum"]) for r in expected
    ]
    kept = rows(SPARK_FILES, filters=[("cat", "=", "freda"), ("catnum", "in", [2, 3])])
    assert len(kept) == sum(r["cat"] == "freda" and r["catnum"] == 2 for r in expected)


def test_the_commands_know_keys() -> None:
    where = '[["catnum", "=", 2], ["num", ">", 0]]'
    for command in ("verify", "plan"):
        result = CliRunner().invoke(
            commands, [command, SPARK_FILES, "--filters", where, "--client", "threads"]
        )
        assert result.exit_code == 0, result.output


# ---- files that differ -----------------------------------------------------------------


def test_columns_widen_whatever_file_comes_first(tmp_path: Path) -> None:
    narrow = {"x": pa.array([1, 2], pa.int32()), "t": pa.array(["a", "b"])}
    wide = {"t": pa.array(["c"], pa.large_string()), "x": pa.array([2**40])}
    empty = {"x": pa.nulls(0), "t": pa.nulls(0)}
    write(tmp_path / "0.parquet", narrow)
    write(tmp_path / "1.parquet", wide)
    write(tmp_path / "2.parquet", empty)
    found = [{"x": 1, "t": "a"}, {"x": 2, "t": "b"}, {"x": 2**40, "t": "c"}]
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        paths = [tmp_path / f"{number}.parquet" for number in order]
        with made(paths) as dataset:
            assert dataset.schema.field("x").type == pa.int64()
            assert dataset.peek()["x"].dtype == torch.int64
        assert sorted(rows(paths), key=lambda row: row["x"]) == found
        for filters, expected in (
            ([("x", ">", 1)], found[1:]),
            ([("x", ">", 2**33)], found[2:]),
            ([("x", "<", 2**33)], found[:2]),
            ([("t", "in", ["a", "c"])], found[::2]),
        ):
            kept = rows(paths, filters=filters)
            assert sorted(kept, key=lambda row: row["x"]) == expected


def test_a_filter_on_a_widened_float_compares_as_the_wider_type(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", {"x": pa.array([0.1, 0.25], pa.float32())})
    write(tmp_path / "1.parquet", {"x": pa.array([0.1, 0.5], pa.float64())})
    single = float(np.float32(0.1))  # a little more than 0.1
    for paths in ("01", "10"):
        files = [tmp_path / f"{number}.parquet" for number in paths]
        found = rows(files, filters=[("x", ">", 0.1), ("x", "<", 0.2)])
        assert found == [{"x": single}]


def test_a_given_schema_fills_what_files_lack_and_leaves_out_what_they_have_more(
    tmp_path: Path,
) -> None:
    write(
        tmp_path / "k=1/0.parquet", {"x": pa.array([1, 2], pa.int16()), "more": [0, 0]}
    )
    write(tmp_path / "k=1/1.parquet", {"y": ["a"], "x": pa.array([3], pa.int32())})
    schema = pa.schema({"x": pa.float64(), "y": pa.string(), "l": pa.list_(pa.int32())})
    with pytest.raises(NullError, match=r"column 'y' has 2 nulls in .*0\.parquet"):
        made(tmp_path, schema=schema, columns=["x", "y"])
    fill = {"schema": schema, "columns": ["x", "y", "k"], "nulls": {"y": ""}}
    assert rows(tmp_path, **fill) == [
        {"x": 1.0, "y": "", "k": 1},
        {"x": 2.0, "y": "", "k": 1},
        {"x": 3.0, "y": "a", "k": 1},
    ]
    for filters, expected in (
        ([("y", "=", "a")], [3.0]),
        (pc.field("y").is_null(), [1.0, 2.0]),
        ([("y", "=", "a"), ("k", "=", 2)], []),
        ([("x", ">", 1.5)], [2.0, 3.0]),
    ):
        found = rows(tmp_path, **fill, filters=filters)
        assert [row["x"] for row in found] == expected
    with pytest.raises(SchemaError, match=r"schema= gives column 'x' the type int8"):
        made(tmp_path, schema=pa.schema({"x": pa.int8()}))
    with pytest.raises(NullError, match="column 'l' has 2 nulls"):
        made(tmp_path, schema=schema, columns=["l"])


def test_a_value_that_does_not_fit_the_given_type_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "0.parquet", {"x": [1, 2**60 + 1]})
    with made(path, schema=pa.schema({"x": pa.float64()})) as dataset:
        with pytest.raises(
            CastError, match=r"column 'x' has type int64 in .* and does"
        ):
            list(dataset)
    assert rows(path, schema=pa.schema({"x": pa.int64()}))[0] == {"x": 1}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"schema": {"x": "int8"}}, "must be a pyarrow.Schema with a column"),
        ({"schema": pa.schema([])}, "must be a pyarrow.Schema with a column"),
        (
            {"schema": pa.schema([("x", pa.int8()), ("x", pa.int8())])},
            "schema= has two columns called 'x'",
        ),
        ({"on_bad_files": "ignore"}, "on_bad_files='ignore' must be 'error' or 'skip'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        made("/nowhere", **options)


# ---- bad and empty files -----------------------------------------------------------------


def test_bad_files_are_an_error_or_left_out_with_a_warning(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.parquet", {"x": [number]})
    (tmp_path / "0.parquet").write_bytes(b"")
    cut = tmp_path / "2.parquet"
    cut.write_bytes(cut.read_bytes()[:-5])
    with pytest.raises(BadFileError, match=r"'.*0\.parquet' is not a readable"):
        made(tmp_path)
    with pytest.warns(UserWarning, match=r"2 of 3 files are left out") as caught:
        found = rows(tmp_path, on_bad_files="skip")
    assert found == [{"x": 1}]
    text = str(caught[0].message)
    assert "0.parquet" in text
    assert "2.parquet" in text
    assert caught[0].filename == __file__
    with (
        pytest.warns(UserWarning, match="left out"),
        made(tmp_path, on_bad_files="skip") as dataset,
    ):
        assert "left out as they cannot be read: 2 files" in dataset.explain()
    (tmp_path / "1.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadFileError, match=r"0\.parquet"):
        made(tmp_path, on_bad_files="skip")


def test_good_files_are_not_warned_of(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", {"x": [1]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows(tmp_path, on_bad_files="skip") == [{"x": 1}]


def _no_groups(path: Path, table: pa.Table) -> None:
    with pq.ParquetWriter(path, table.schema):
        pass


def _empty_group(path: Path, table: pa.Table) -> None:
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table.slice(0, 0))
        writer.write_table(table)


@pytest.mark.parametrize("empty", [_no_groups, _empty_group], ids=["none", "empty"])
def test_files_and_row_groups_without_rows(
    tmp_path: Path, empty: Callable[[Path, pa.Table], None]
) -> None:
    table = pa.table({"x": [1, 2, 3], "t": ["a", "b", "c"]})
    for k in (1, 2):
        (tmp_path / f"k={k}").mkdir()
    empty(tmp_path / "k=1/a.parquet", table)
    _no_groups(tmp_path / "k=2/b.parquet", table)
    expected = [1, 2, 3] if empty is _empty_group else []
    for options in (
        {},
        {"shuffle": True},
        {"filters": [("x", ">", 0)]},
        {"filters": [("k", "<", 2)]},
        {"filters": [("k", "<", 2), ("x", ">", 0)]},
    ):
        found = rows(tmp_path, **options)
        assert sorted(row["x"] for row in found) == expected
        with made(tmp_path, **options) as dataset:
            assert len(dataset) == (1 if expected else 0)
            assert dataset.schema.names == ["x", "t", "k"]
            assert "rows" in dataset.explain()


def test_metadata_files_are_not_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"x": [1]})
    schema = pq.read_schema(path)
    pq.write_metadata(schema, tmp_path / "_metadata")
    pq.write_metadata(schema, tmp_path / "_common_metadata")
    (tmp_path / ".a.parquet.crc").touch()
    (tmp_path / "b.parquet.tmp").touch()
    with pytest.warns(UserWarning, match="stale: it does not name 1 files"):
        assert rows(tmp_path) == [{"x": 1}]
    path.unlink()
    with pytest.raises(DataNotFoundError, match="holds no Parquet"):
        made(tmp_path)


def test_a_first_file_of_nulls_takes_the_others_type_and_its_bytes(
    tmp_path: Path,
) -> None:
    write(tmp_path / "0.parquet", {"t": pa.nulls(3), "l": pa.nulls(3)})
    texts, lists = ["a" * 1000] * 50, pa.array([[1, 2]] * 50)
    write(tmp_path / "1.parquet", {"t": texts, "l": lists}, use_dictionary=False)
    given = {"columns": ["t"], "nulls": {"t": "none"}}
    with made(tmp_path, **given, shuffle_window="10 KB", shuffle=True) as dataset:
        assert "decoded" in dataset.explain()
        assert int(dataset._catalog.num_bytes.sum()) > 50_000
    assert rows(tmp_path, **given)[2:4] == [{"t": "none"}, {"t": "a" * 1000}]
    kept = rows(tmp_path, columns=["t"], filters=[("t", "in", ["a" * 1000])])
    assert len(kept) == 50
    found = rows(tmp_path, columns=["t"], filters=~pc.field("l").is_null())
    assert len(found) == 50


def test_a_folder_of_a_remote_file_system_has_keys_too() -> None:
    system = fsspec.filesystem("memory")
    for k in ("a", "b%20c"):
        with system.open(f"/layouts/x=1/k={k}/f.parquet", "wb") as file:
            pq.write_table(pa.table({"y": [1]}), file)
    try:
        assert rows("memory://layouts/x=1") == [
            {"y": 1, "k": "a"},
            {"y": 1, "k": "b c"},
        ]
        assert set(rows("memory://layouts/*/*/f.parquet")[0]) == {"y", "x", "k"}
    finally:
        system.rm("/layouts", recursive=True)


@pytest.mark.slow
def test_ten_thousand_small_files_come_once_each_with_their_keys(
    tmp_path: Path,
) -> None:
    days, of_day = 100, 100
    for day in range(days):
        folder = tmp_path / f"data/day={day}"
        folder.mkdir(parents=True)
        for number in range(of_day):
            first = (day * of_day + number) * 2
            table = pa.table({"id": [first, first + 1]})
            pq.write_table(table, folder / f"{number}.parquet", compression="none")
    num_rows = 2 * days * of_day
    cache = tmp_path / "cache"
    for footer_cache, shuffle in ((False, True), (cache, False), (cache, True)):
        options = {"footer_cache": footer_cache, "batch_size": 1000}
        with made(
            tmp_path / "data", shuffle=shuffle, shuffle_window=500, **options
        ) as dataset:
            batches = list(dataset)
        ids = torch.cat([batch["id"] for batch in batches])
        keys = torch.cat([batch["day"] for batch in batches])
        assert torch.equal(keys, ids // (2 * of_day))
        assert torch.equal(ids.sort().values, torch.arange(num_rows))
        assert torch.equal(ids, torch.arange(num_rows)) != shuffle
    filters = [("day", "in", [7, 70]), ("id", ">=", 10_000)]
    with made(tmp_path / "data", filters=filters, footer_cache=cache) as dataset:
        assert dataset.num_rows == 2 * of_day
        assert {int(day) for batch in dataset for day in batch["day"]} == {70}


def test_a_transform_is_given_keys_and_filled_columns(hive: Path) -> None:
    schema = pa.schema({"id": pa.int64(), "more": pa.string()})

    def work(table: pa.Table) -> pa.Table:
        assert table.schema.names == ["more", "hour", "id"]
        assert table["more"].null_count == table.num_rows
        return pa.table({"sum": pc.add(table["id"], table["hour"])})

    columns = ["more", "hour", "id"]
    for filters in (None, [("hour", "=", 2)], [("hour", "=", 2), ("id", "<", 200)]):
        options = {"schema": schema, "columns": columns, "filters": filters}
        found = rows(hive, transform=work, shuffle=True, **options)
        plain = rows(hive, nulls={"more": ""}, **options)
        expected = [row["id"] + row["hour"] for row in plain]
        assert sorted(row["sum"] for row in found) == sorted(expected)


def test_arrow_tables_have_keys_and_widened_columns_too(tmp_path: Path) -> None:
    write(tmp_path / "k=1/0.parquet", {"x": pa.array([1], pa.int32()), "l": [[1, 2]]})
    write(tmp_path / "k=2/1.parquet", {"x": pa.array([2], pa.int64()), "l": [[3]]})
    with made(tmp_path, output_format="arrow") as dataset:
        table = pa.Table.from_batches(
            [b for batch in dataset for b in batch.to_batches()]
        )
    assert table.to_pylist() == [
        {"x": 1, "l": [1, 2], "k": 1},
        {"x": 2, "l": [3], "k": 2},
    ]
    write(tmp_path / "k=2/2.parquet", {"x": pa.array([5], pa.int64())})
    schema = pa.schema({"x": pa.int64(), "l": pa.list_(pa.int64())})
    given = {"output_format": "arrow", "schema": schema, "filters": [("k", ">", 1)]}
    with made(tmp_path, **given) as dataset:
        found = [row for batch in dataset for row in batch.to_pylist()]
    assert found == [{"x": 2, "l": [3], "k": 2}, {"x": 5, "l": None, "k": 2}]


def test_masks_tell_of_nulls_of_keys_and_of_columns_that_files_lack(hive: Path) -> None:
    schema = pa.schema({"id": pa.int64(), "more": pa.int8()})
    options = {"schema": schema, "nulls": "mask", "columns": ["id", "more", "day"]}
    found = rows(hive, **options)
    assert not any(row["more__valid"] for row in found)
    assert [row["day__valid"] for row in found] == [True] * 40 + [False] * 20
    kept = rows(hive, filters=[("hour", "=", 1), ("id", ">", 205)], **options)
    assert [(row["id"], row["day__valid"]) for row in kept] == [
        (number, False) for number in range(210, 220)
    ]


# ---- with other options ----------------------------------------------------------------


def test_filters_on_keys_stand_beside_nested_columns(tmp_path: Path) -> None:
    for day in ("x", "y"):
        columns = {"id": [1, 2], "s": [{"a": 1, "b": 5}, {"a": 2, "b": 6}]}
        write(tmp_path / f"day={day}/a.parquet", columns)
    wanted = [("day", ">=", "y"), ("s.a", "!=", 1)]
    assert rows(tmp_path, filters=wanted) == [{"id": 2, "s.a": 2, "s.b": 6, "day": "y"}]


def test_tables_have_one_type_where_files_have_dictionaries_that_differ(
    tmp_path: Path,
) -> None:
    narrow, wide = (
        pa.dictionary(kind, pa.string()) for kind in (pa.int8(), pa.int32())
    )
    for number, kind in enumerate((narrow, pa.string(), wide)):
        columns = {"id": [number], "t": pa.array([f"v{number}"]).cast(kind)}
        write(tmp_path / f"{number}.parquet", columns)
    write(tmp_path / "3.parquet", {"id": [3]})
    fields = {"id": pa.int64(), "t": pa.string(), "s": pa.struct({"a": pa.int8()})}
    with made(tmp_path, schema=pa.schema(fields), output_format="arrow") as dataset:
        (batch,) = dataset
    assert batch.schema == pa.schema(fields)
    assert batch["t"].to_pylist() == ["v0", "v1", "v2", None]
    assert batch["s"].to_pylist() == [None] * 4
    (tmp_path / "3.parquet").unlink()
    with made(tmp_path, output_format="arrow") as dataset:
        (batch,) = dataset
    assert batch["t"].type == pa.string()
    assert batch["t"].to_pylist() == ["v0", "v1", "v2"]
    given = pa.schema({"id": pa.int64(), "t": narrow})
    with pytest.raises(
        SchemaError, match=r"the type dictionary<.* does not become that"
    ):
        made(tmp_path, schema=given, output_format="arrow")
