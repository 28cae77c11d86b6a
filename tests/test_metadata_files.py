"""`_metadata` and `_common_metadata`: in place of a folder, and in a folder."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import cluster
from dask_loader import ParquetDataset
from dask_loader.catalog import complete, summarized
from dask_loader.cli import main as commands
from dask_loader.errors import (
    BadFileError,
    ColumnError,
    ConfigError,
    DataChangedError,
    DataNotFoundError,
    ResumeError,
    SchemaError,
)

DATA = Path(__file__).parent / "data"
NUM_ROWS = 600
# Long before any file of a test.
OLD_NS = 10**18


def made(path: Any, **options: Any) -> ParquetDataset:
    given = {"client": "threads", "batch_size": 7, "footer_cache": False}
    return ParquetDataset(path, **{**given, **options})


def rows(path: Any, **options: Any) -> list[tuple[Any, ...]]:
    """Return all rows in their order, without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with made(path, **options) as dataset:
            return rows_of(dataset)


def rows_of(dataset: ParquetDataset) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for batch in dataset:
        columns = [
            v.tolist() if isinstance(v, torch.Tensor) else list(v)
            for v in batch.values()
        ]
        found += zip(*columns, strict=True)
    assert len(found) == dataset.num_rows
    return found


def table(first: int = 0, num_rows: int = NUM_ROWS) -> pa.Table:
    ids = range(first, first + num_rows)
    return pa.table(
        {
            "x": ids,
            "t": [f"text {i}" for i in ids],
            "d": pa.array([i % 5 for i in ids], pa.duration("s")),
            "k": [i % 3 for i in ids],
        }
    )


def summarize(folder: Path) -> Path:
    """Write `_metadata` for all files of a folder, in an order of its own."""
    footers = []
    for path in sorted(folder.rglob("*.parquet"), reverse=True):
        footers.append(pq.read_metadata(path))
        footers[-1].set_file_path(str(path.relative_to(folder)))
    schema = footers[0].schema.to_arrow_schema()
    pq.write_metadata(schema, folder / "_metadata", metadata_collector=footers)
    return folder / "_metadata"


def age(folder: Path) -> None:
    """Make all data files older than `_metadata`."""
    for path in folder.rglob("*.parquet"):
        os.utime(path, ns=(OLD_NS, OLD_NS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six files below `k=0`, `k=1`, `k=2`, and `_metadata` as pyarrow writes it."""
    footers: list[Any] = []
    root = tmp_path / "data"
    for half in range(2):
        pq.write_to_dataset(
            table(half * NUM_ROWS // 2, NUM_ROWS // 2),
            root,
            partition_cols=["k"],
            metadata_collector=footers,
            basename_template=f"part-{half}-{{i}}.parquet",
            existing_data_behavior="overwrite_or_ignore",
            row_group_size=30,
        )
    schema = table(0, 1).drop(["k"]).schema
    pq.write_metadata(schema, root / "_metadata", metadata_collector=footers)
    pq.write_metadata(schema, root / "_common_metadata")
    age(root)
    return root


WAYS: list[dict[str, Any]] = [
    {},
    {"shuffle": True, "seed": 3, "num_splits": 3, "shuffle_window": 40},
    {"filters": [("x", ">", 250), ("k", "in", [0, 2])]},
    {"filters": [("k", "=", 1)], "columns": ["k", "x"]},
    {"shuffle_window": 8, "columns": ["x"], "shuffle": True},
    {"schema": pa.schema({"x": pa.float64(), "y": pa.int8()}), "nulls": {"y": 0}},
    {"partitioning": None, "columns": ["x", "d"]},
    {"vocabulary": {"t": True}, "filters": [("x", "<", 20)]},
    {"output_format": "arrow", "columns": ["x"], "batch_size": 50},
]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_metadata_gives_the_rows_and_the_order_of_its_folder(
    folder: Path, options: dict[str, Any]
) -> None:
    if options.get("output_format") == "arrow":
        with (
            made(folder, **options) as one,
            made(folder / "_metadata", **options) as two,
        ):
            assert list(one) == list(two)
        return
    expected = rows(folder, **options)
    assert rows(folder / "_metadata", **options) == expected
    assert expected


@pytest.mark.parametrize("is_newer", [False, True])
def test_what_fastparquet_wrote_and_added_to_is_read(
    tmp_path: Path, is_newer: bool
) -> None:
    copy = shutil.copytree(DATA / "hive_fastparquet", tmp_path / "copy")
    if not is_newer:
        age(copy)
    expected = rows(copy, nulls={"s": ""})
    assert sorted(row[0] for row in expected) == list(range(60))
    assert rows(copy / "_metadata", nulls={"s": ""}) == expected


def test_no_data_file_is_opened_until_its_rows_are_read(folder: Path) -> None:
    expected = rows(folder)
    for path in folder.rglob("*.parquet"):
        path.write_bytes(b"x" * path.stat().st_size)
    age(folder)
    with made(str(folder / "_metadata"), filters=[("k", "=", 1)]) as dataset:
        assert "rows" in dataset.explain()
    with made(f"file://{folder}/_metadata") as dataset:
        assert dataset.num_rows == len(expected) == NUM_ROWS
        with pytest.raises(BadFileError, match=r"k=0/part-0-0\.parquet"):
            list(dataset)


@pytest.mark.parametrize("change", ["groups", "values", "codec"])
def test_a_file_that_is_not_the_described_one_is_told_before_its_rows_are_used(
    folder: Path, change: str
) -> None:
    path = folder / "k=1" / "part-0-0.parquet"
    whole = pq.read_table(path, partitioning=None)
    if change == "values":
        whole = whole.set_column(0, "x", pa.array([2**40 + i for i in range(100)]))
    pq.write_table(
        whole,
        path,
        row_group_size=10 if change == "groups" else 30,
        compression="none" if change == "codec" else "snappy",
    )
    # It may be newer than _metadata: it is looked into at once.
    with pytest.raises(DataChangedError, match=r"part-0-0.*stale: name the folder in"):
        made(folder / "_metadata")
    # It says that it is older: it is looked into when its rows are read.
    age(folder)
    with (
        made(folder / "_metadata", columns=["x"]) as dataset,
        pytest.raises(DataChangedError, match=r"part-0-0.*own footer has other "),
    ):
        list(dataset)


def test_files_that_are_newer_and_say_the_same_are_read(folder: Path) -> None:
    expected = rows(folder)
    for path in folder.rglob("*.parquet"):
        os.utime(path)
    assert rows(folder / "_metadata") == expected
    next(folder.rglob("*.parquet")).write_bytes(b"x" * 9999)
    with pytest.raises(BadFileError, match="is not a readable Parquet file"):
        made(folder / "_metadata")


def test_a_file_that_is_shorter_than_described_is_told_at_once(folder: Path) -> None:
    path = folder / "k=2" / "part-1-0.parquet"
    path.write_bytes(path.read_bytes()[:500])
    age(folder)
    with pytest.raises(DataChangedError, match=r"has 500 bytes.* ends at byte \d+"):
        made(folder / "_metadata")


def test_files_that_are_missing_or_not_named_are_told(folder: Path) -> None:
    path = folder / "k=2" / "part-1-0.parquet"
    shutil.copy(path, folder / "k=2" / "more.parquet")
    with pytest.warns(UserWarning, match=r"1 Parquet files .*more\.parquet") as caught:
        made(folder / "_metadata").close()
    assert caught[0].filename == __file__
    path.unlink()
    with pytest.raises(DataNotFoundError, match=r"1 files that .*not there.*part-1-0"):
        made(folder / "_metadata")


def test_what_does_not_go_with_metadata_is_refused(folder: Path) -> None:
    path = folder / "_metadata"
    with pytest.raises(ConfigError, match="beside other files"):
        made([path, folder / "k=1" / "part-0-0.parquet"])
    with pytest.raises(ConfigError, match="on_bad_files='skip' looks at each"):
        made(path, on_bad_files="skip")
    with pytest.raises(ConfigError, match="footers of encrypted files must be read"):
        made(path, decryption=lambda _: None)
    with pytest.raises(ColumnError, match="'no'"):
        made(path, columns=["no"])
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 :] = b"\xff" * len(whole[len(whole) // 2 :])
    path.write_bytes(whole)
    with pytest.raises(BadFileError, match="cannot stand for the files of a folder"):
        made(path)


def test_a_footer_in_metadata_that_cannot_be_is_refused_by_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise BadFileError("the footer of 'a' is damaged", row_group=1, column="x")

    monkeypatch.setattr(summarized, "parse_footers", refuse)
    with pytest.raises(
        BadFileError, match=r"as '.*_metadata' has it, the footer"
    ) as told:
        made(folder / "_metadata")
    assert (told.value.row_group, told.value.column) == (1, "x")


def test_states_go_on_from_metadata_to_metadata_and_not_to_the_folder(
    folder: Path, tmp_path: Path
) -> None:
    options = {"shuffle": True, "shuffle_window": 50}
    with made(folder / "_metadata", **options) as dataset:
        batches = iter(dataset)
        for _ in range(20):
            next(batches)
        state = dataset.state_dict()
        left = [batch["x"].tolist() for batch in batches]
    copy = shutil.copytree(folder, tmp_path / "copy")
    with made(copy / "_metadata", **options) as dataset:
        dataset.load_state_dict(state)
        assert [batch["x"].tolist() for batch in dataset] == left
    with (
        made(folder, **options) as dataset,
        pytest.raises(ResumeError, match="footers"),
    ):
        dataset.load_state_dict(state)


def test_metadata_without_row_groups_is_a_dataset_without_rows(folder: Path) -> None:
    schema = table(0, 1).schema
    pq.write_metadata(schema, folder / "_metadata")
    with pytest.warns(UserWarning, match="6 Parquet files"):
        dataset = made(folder / "_metadata")
    with dataset:
        assert len(dataset) == 0
        assert dataset.schema.names == schema.names
    assert rows(folder / "_common_metadata") == []


def test_remote_files_are_compared_by_the_times_of_their_store() -> None:
    system = fsspec.filesystem("memory")
    footers = []
    try:
        for k in range(3):
            name = f"k={k}/f.parquet"
            with system.open(f"/summed/{name}", "wb") as file:
                pq.write_table(table(k * 10, 10).drop(["k"]), file)
            with system.open(f"/summed/{name}", "rb") as file:
                footers.append(pq.read_metadata(file))
            footers[-1].set_file_path(name)
        with system.open("/summed/_metadata", "wb") as file:
            pq.write_metadata(
                table(0, 1).drop(["k"]).schema, file, metadata_collector=footers
            )
        path = "memory://summed/_metadata"
        expected = rows("memory://summed")
        assert rows(path) == expected
        assert len(expected) == 30
        with system.open("/summed/k=1/f.parquet", "wb") as file:
            pq.write_table(table(10, 10).drop(["k"]), file)
        assert rows(path) == expected
        with system.open("/summed/k=1/f.parquet", "wb") as file:
            pq.write_table(table(0, 10).drop(["k"]), file)
        with pytest.raises(DataChangedError, match=r"k=1/f\.parquet.*footer has other"):
            made(path)
        system.rm("/summed/k=1/f.parquet")
        with pytest.raises(DataNotFoundError, match=r"1 files that .*k=1/f\.parquet"):
            made(path)
        with pytest.raises(DataNotFoundError, match=r"1 files that .*k=1/f\.parquet"):
            made("memory://summed")
    finally:
        system.rm("/summed", recursive=True)


def test_dask_workers_compare_too(folder: Path, local_cluster: cluster.Cluster) -> None:
    options = {"client": local_cluster.scheduler_address, "shuffle_window": 100}
    expected = rows(folder)
    assert rows(folder / "_metadata", **options) == expected
    path = folder / "k=1" / "part-0-0.parquet"
    whole = pq.read_table(path, partitioning=None)
    whole = whole.set_column(0, "x", pa.array([7] * len(whole)))
    whole = whole.append_column("more", pa.array(range(len(whole))))
    pq.write_table(whole, path, row_group_size=30)
    age(folder)
    with (
        made(folder / "_metadata", **options) as dataset,
        pytest.raises(DataChangedError, match=r"part-0-0.*other columns, or types"),
    ):
        list(dataset)


# ---- in a folder -----------------------------------------------------------------------


def test_a_folder_that_lacks_a_file_of_its_metadata_is_refused(folder: Path) -> None:
    path = folder / "k=1" / "part-1-0.parquet"
    hidden = path.with_name("_part")
    path.rename(hidden)
    with pytest.raises(
        DataNotFoundError, match=r"1 files that .*rows would be missing"
    ):
        made(folder)
    # Lists and globs say themselves which files are meant.
    assert len(rows([folder / "k=0", folder / "k=1"])) == 300
    assert len(rows(f"{folder}/*")) == 500
    (folder / "_metadata").unlink()
    assert len(rows(folder)) == 500
    shutil.copy(hidden, path)
    summarize(folder)
    path.unlink()
    path.with_name("part-1-0").mkdir()
    footer = pq.read_metadata(hidden)
    footer.set_file_path("k=1/_part")
    pq.write_metadata(
        footer.schema.to_arrow_schema(),
        folder / "_metadata",
        metadata_collector=[footer],
    )
    with pytest.raises(
        DataNotFoundError, match=r"_part', which is not read for its na"
    ):
        made(folder)


def test_what_metadata_says_is_remembered_until_it_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask_loader.catalog.storage.SETTLED_NS", 0)
    read: list[str] = []
    real = summarized.read_summary

    def reading(storage: Any, path: str) -> Any:
        read.append(path)
        return real(storage, path)

    monkeypatch.setattr(complete, "read_summary", reading)
    options = {"footer_cache": tmp_path / "cache"}
    for _ in range(3):
        assert len(rows(folder, **options)) == NUM_ROWS
    assert len(read) == 1
    summarize(folder)
    assert len(rows(folder, **options)) == NUM_ROWS
    assert len(read) == 2
    (folder / "k=1" / "part-0-0.parquet").unlink()
    with pytest.raises(DataNotFoundError, match="rows would be missing"):
        made(folder, **options)
    assert len(read) == 2
    with pytest.raises(DataNotFoundError, match="not there"):
        made(folder / "_metadata", **options)


def _add(folder: Path) -> None:
    shutil.copy(folder / "k=0/part-0-0.parquet", folder / "k=0/more.parquet")


def _lengthen(folder: Path) -> None:
    whole = table(5, 70).drop(["k"])
    pq.write_table(whole, folder / "k=0/part-0-0.parquet")


def _damage(folder: Path) -> None:
    (folder / "_metadata").write_bytes(b"PAR1 no")


def _lead_out(folder: Path) -> None:
    footer = pq.read_metadata(folder / "k=0/part-0-0.parquet")
    footer.set_file_path("../a.parquet")
    footer.write_metadata_file(folder / "_metadata")


@pytest.mark.parametrize(
    ("change", "text", "num_rows"),
    [
        (_add, r"stale: it does not name 1 files: .*more", 700),
        (_lengthen, r"stale: it has another number of rows for 1 files: .*part-0", 570),
        (_damage, r"whether files are missing cannot be told: .*not a Parquet", 600),
        (_lead_out, r"whether files are missing cannot be told: .*leads out", 600),
    ],
)
def test_a_stale_metadata_is_warned_of_and_all_rows_come(
    folder: Path, change: Callable[[Path], None], text: str, num_rows: int
) -> None:
    change(folder)
    with pytest.warns(UserWarning, match=text) as caught:
        dataset = made(folder)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with dataset:
        assert len(rows_of(dataset)) == num_rows


def test_files_without_rows_need_not_be_named(folder: Path) -> None:
    pq.write_table(table(0, 0).drop(["k"]), folder / "k=0" / "empty.parquet")
    assert len(rows(folder)) == NUM_ROWS


def test_common_metadata_is_named_where_it_helps(folder: Path) -> None:
    (folder / "_metadata").unlink()
    bare = table(0, 9).drop(["k", "t"])
    pq.write_table(bare, folder / "k=1" / "part-0-0.parquet")
    with pytest.raises(SchemaError, match=r"_common_metadata' may hold it: pyarrow"):
        made(folder)
    schema = pq.read_schema(folder / "_common_metadata")
    assert len(rows(folder, schema=schema, nulls={"t": ""})) == 509
    for path in folder.rglob("*.parquet"):
        path.unlink()
    with pytest.raises(
        DataNotFoundError, match=r"_common_metadata' itself is a dataset"
    ):
        made(folder)


# ---- commands --------------------------------------------------------------------------


def run(*given: Any) -> Any:
    return CliRunner().invoke(commands, [str(part) for part in given])


def test_the_commands_read_metadata_and_take_keys_and_a_schema(
    folder: Path, tmp_path: Path
) -> None:
    where = ("--filters", '[["k", "<", 2], ["x", ">", 9]]')
    for command in ("plan", "verify"):
        result = run(command, folder / "_metadata", *where, "--world-size", 2)
        assert result.exit_code == 0, result.output
    for k in range(3):
        (folder / f"k={k}").rename(tmp_path / f"{k}")
    shutil.rmtree(folder)
    pq.write_table(table(0, 9).select(["d"]), tmp_path / "1" / "bare.parquet")
    common = tmp_path / "_common_metadata"
    pq.write_metadata(pa.schema({"x": pa.float64(), "t": pa.string()}), common)
    options = ("--partitioning", "key,", "--schema", common)
    result = run("verify", tmp_path, *options)
    assert result.exit_code == 1
    assert "partitioning=['key', '']" in result.output
    where = ("--filters", '[["key", ">", 0], ["x", ">", 9]]')
    options = ("--partitioning", "key", "--schema", common)
    for command in ("plan", "verify"):
        result = run(command, tmp_path, *options, *where)
        assert result.exit_code == 0, result.output
    assert "609 rows in" in result.output
    assert "394 of them to be read" in result.output
    result = run("plan", tmp_path, "--partitioning", "none", "--schema", common)
    assert result.exit_code == 0, result.output
    result = run("plan", tmp_path, "--schema", tmp_path / "none")
    assert result.exit_code == 1
    assert "there is nothing at" in result.output
