"""What a user can get wrong; each mistake tells the value, the place and the way out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch.utils.data

from dask_loader import (
    BadFileError,
    ClosedError,
    ColumnError,
    ConfigError,
    DataChangedError,
    DataLoader,
    DataNotFoundError,
    NullError,
    ParquetDataset,
    PlanError,
    SchemaError,
    UnsupportedTypeError,
    WorldError,
)

Write = Callable[..., str]
Made = Callable[..., ParquetDataset]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write("a.parquet", {"x": [1]}, **writer_options) -> path."""

    def write_one(name: str, columns: Any = None, **options: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = (
            {"age": range(10), "city": ["a", "b"] * 5} if columns is None else columns
        )
        pq.write_table(pa.table(table), path, **options)
        return str(path)

    return write_one


def make(path: Any, **options: Any) -> ParquetDataset:
    return ParquetDataset(path, **{"client": "threads", **options})


def refused(kind: type[Exception], path: Any, *texts: str, **options: Any) -> Exception:
    """Check that making the dataset fails with this class and these texts."""
    with pytest.raises(kind) as caught:
        make(path, **options)
    assert type(caught.value) is kind
    for text in texts:
        assert text in str(caught.value)
    return caught.value


# ---- paths ----------------------------------------------------------------------------


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    path = f"{tmp_path}/no/such.parquet"
    refused(DataNotFoundError, path, f"there is nothing at {path!r}", "check the path")


def test_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    path = f"{tmp_path}/*.parquet"
    refused(DataNotFoundError, path, "nothing matches the pattern", repr(path))


def test_a_folder_without_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n")
    texts = (
        "holds no Parquet",
        repr(str(tmp_path)),
        "a.csv",
        "or the files themselves",
    )
    refused(DataNotFoundError, tmp_path, *texts)


@pytest.mark.parametrize("path", [None, 7, b"a.parquet", [None]])
def test_a_path_of_a_wrong_type(path: Any) -> None:
    refused(ConfigError, path, f"path={path!r} must be text, a pathlib.Path, or a list")


def test_an_empty_list_of_paths() -> None:
    refused(ConfigError, [], "path=[] is empty; name at least one file or folder")


def test_a_file_named_twice(write: Write) -> None:
    path = write("a.parquet")
    refused(ConfigError, [path, path], repr(path), "is named twice", "each file once")


def test_storage_options_that_are_no_dict(write: Write) -> None:
    text = "storage_options must be a dict with text keys, not str"
    refused(ConfigError, write("a.parquet"), text, storage_options="anon")


# ---- files ----------------------------------------------------------------------------


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    for content in (b"", b"x,y\n1,2\n", b"PAR1PAR1"):
        path = tmp_path / "a.parquet"
        path.write_bytes(content)
        texts = (
            f"{str(path)!r} is not a readable Parquet file",
            "remove or rewrite it",
        )
        error = refused(BadFileError, path, *texts)
        assert getattr(error, "path", None) == str(path)


def test_a_truncated_footer_in_a_later_file(write: Write, tmp_path: Path) -> None:
    write("1.parquet")
    path = write("2.parquet")
    os.truncate(path, os.path.getsize(path) - 10)
    refused(BadFileError, tmp_path, f"{path!r} is not a readable Parquet file")


def test_a_damaged_page_is_told_while_iterating(write: Write) -> None:
    columns = {"x": range(1000)}
    path = write("a.parquet", columns, write_page_checksum=True, compression="none")
    with open(path, "r+b") as file:
        file.seek(40)
        file.write(b"\xff" * 40)
    with (
        make(path) as dataset,
        pytest.raises(BadFileError, match="row group 0") as caught,
    ):
        list(dataset)
    assert repr(path) in str(caught.value)


def test_a_file_replaced_under_the_dataset(write: Write) -> None:
    path = write("a.parquet")
    with make(path) as dataset:
        os.replace(write("b.parquet", {"age": range(11), "city": ["x"] * 11}), path)
        with pytest.raises(
            DataChangedError, match="changed after the dataset was"
        ) as e:
            list(dataset)
        assert repr(path) in str(e.value)
        os.remove(path)
        with pytest.raises(DataChangedError, match="cannot be found now"):
            list(dataset)


def test_files_whose_schemas_disagree(write: Write, tmp_path: Path) -> None:
    first, other = write("1.parquet", {"x": [1]}), write("2.parquet", {"x": [0.5]})
    texts = ("disagree about column 'x'", repr(first), "int64", repr(other), "double")
    refused(SchemaError, tmp_path, *texts)
    other = write("2.parquet", {"x": [1], "y": [1]})
    refused(SchemaError, tmp_path, "column 'y'", repr(other), "columns=[...]")


# ---- columns --------------------------------------------------------------------------


def test_an_unknown_column(write: Write) -> None:
    path = write("a.parquet")
    texts = (f"columns names 'aeg', which {path!r}", "did you mean 'age'?")
    refused(ColumnError, path, *texts, columns=["city", "aeg"])


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (["age", "age"], "column 'age' stands twice in columns=['age', 'age']"),
        ("age", "columns='age' must be a list of names, such as columns=['age']"),
        ([], "columns=[] asks for no column"),
        ([3], "columns=[3] holds 3, which is not text"),
    ],
)
def test_columns_of_a_wrong_shape(write: Write, columns: Any, text: str) -> None:
    refused(ColumnError, write("a.parquet"), text, columns=columns)


def test_a_name_that_stands_twice_in_the_file(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    refused(ColumnError, tmp_path, "has 2 columns called 'x'", "rename them")


def test_types_without_a_tensor_form(write: Write) -> None:
    for column in (
        pa.array([1, 2]).cast(pa.decimal128(22, 2)),
        pa.array([[1], [2]]).cast(pa.list_(pa.decimal256(40, 2))),
    ):
        path = write("a.parquet", {"x": column, "y": [1, 2]})
        texts = ("column 'x' has type", "has no tensor form; ", "columns=[...]")
        error = refused(UnsupportedTypeError, path, *texts)
        assert getattr(error, "path", None) == path
        make(path, columns=["y"]).close()


# ---- nulls ----------------------------------------------------------------------------


def test_nulls_without_a_policy_are_refused_before_anything_is_read(
    write: Write, tmp_path: Path
) -> None:
    write("1.parquet", {"f": [1.0, 2.0], "s": ["a", "b"]})
    path = write(
        "2.parquet", {"f": [1.0, None, None], "s": ["a", "b", "c"]}, row_group_size=2
    )
    texts = (
        f"column 'f' has 1 nulls in {path!r}, row group 0 (2 in the whole dataset)",
        "nulls=\"nan\" (for float columns), nulls={'f': value}",
        "filters=~pyarrow.compute.field('f').is_null()",
    )
    error = refused(NullError, tmp_path, *texts)
    assert getattr(error, "row_group", None) == 0
    make(tmp_path, nulls="nan").close()
    make(tmp_path, columns=["s"]).close()


def test_nulls_that_the_footer_does_not_tell_of_are_told_while_iterating(
    write: Write,
) -> None:
    path = write("a.parquet", {"x": [1, None]}, write_statistics=False)
    with (
        make(path) as dataset,
        pytest.raises(NullError, match="'x' has 1 nulls") as caught,
    ):
        list(dataset)
    assert f"in {path!r}, row group 0" in str(caught.value)


@pytest.mark.parametrize(
    ("nulls", "text"),
    [
        ("zero", 'nulls=\'zero\' must be "error", "nan"'),
        (None, "nulls=None must be"),
        ({"agee": 0}, "names 'agee', which is not among the columns"),
        ({"age": 0.5}, "nulls={'age': 0.5} does not fit the column's type int64"),
        ({"city": 3}, "nulls={'city': 3}: a text column takes text, bytes or None"),
    ],
)
def test_a_wrong_policy_for_nulls(write: Write, nulls: Any, text: str) -> None:
    refused(ConfigError, write("a.parquet"), text, nulls=nulls)


# ---- filters --------------------------------------------------------------------------


def test_a_filter_on_an_unknown_column(write: Write) -> None:
    path = write("a.parquet")
    texts = (f"filters names 'aeg', which {path!r}", "did you mean 'age'?")
    refused(ColumnError, path, *texts, filters=[("aeg", ">", 3)])
    expression = pc.field("aeg") > 3
    refused(ColumnError, path, *texts, filters=expression)


@pytest.mark.parametrize(
    ("filters", "text"),
    [
        ("age > 3", "must be a non-empty list of (column, op, value)"),
        ([], "filters=[] must be a non-empty list"),
        ([[]], "filters=[[]] holds no condition"),
        ([("age", "~", 3)], "uses the operator '~'; known are =, ==, !="),
        (
            [("age", 3)],
            "holds ('age', 3); each part must be a tuple (column, op, value)",
        ),
        ([("city", ">", 3)], "compare each column with a value of its own type"),
        ([("age", "in", 3)], "cannot be used"),
    ],
)
def test_a_wrong_filter(write: Write, filters: Any, text: str) -> None:
    refused(ConfigError, write("a.parquet"), text, filters=filters)


# ---- options --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("batch_size", 0, "must be at least 1 (rows, or None for rows)"),
        ("batch_size", -1, "must be at least 1"),
        ("batch_size", 2.5, "must be a whole number (rows, or None for rows)"),
        ("batch_size", True, "must be a whole number"),
        ("batch_size", "64", "must be a whole number"),
        ("shuffle", 1, "must be True or False"),
        ("shuffle", "yes", "must be True or False"),
        ("drop_last", None, "must be True or False"),
        ("verify_checksums", 0, "must be True or False"),
        ("seed", 1.0, "must be a whole number"),
        ("seed", True, "must be a whole number"),
        ("seed", None, "must be a whole number"),
        ("shuffle_window", 0, 'must be at least 1 (rows, or text such as "64 MiB")'),
        ("shuffle_window", -5, "must be at least 1"),
        ("shuffle_window", 1.5, "must be a whole number"),
        ("shuffle_window", True, "must be a whole number"),
        ("shuffle_window", None, "must be a whole number"),
        ("shuffle_window", "64 MB/s", "is not a size; give a whole number of bytes"),
        ("shuffle_window", "0 MiB", "is not a size"),
        ("shuffle_window", "", "is not a size"),
        ("uneven", "even", "must be one of ('pad', 'drop', 'exact')"),
        ("uneven", None, "must be one of"),
        ("num_splits", 0, "must be at least 1 (splits, or None)"),
        ("num_splits", 2.0, "must be a whole number (splits, or None)"),
        ("num_splits", False, "must be a whole number"),
        ("memory_limit", 0, "is not a size"),
        ("memory_limit", -1, "is not a size"),
        (
            "memory_limit",
            "1 GiBB",
            "is not a size; give a whole number of bytes or text",
        ),
        ("memory_limit", None, "is not a size"),
        ("memory_limit", True, "is not a size"),
        ("worker_timeout", 0, "is not a duration; give a number of seconds"),
        ("worker_timeout", "-1 s", "is not a duration"),
        (
            "worker_timeout",
            "soon",
            "is not a duration; give a number of seconds or text",
        ),
        ("worker_timeout", float("nan"), "is not a duration"),
        ("worker_timeout", None, "is not a duration"),
        ("footer_cache", None, "must be True, False or a folder"),
        ("footer_cache", 0, "must be True, False or a folder"),
        ("footer_cache", "", "must be True, False or a folder"),
    ],
)
def test_an_option_out_of_range_is_named_with_its_value(
    option: str, value: Any, text: str
) -> None:
    # Checked before the path, which is not there.
    refused(ConfigError, "/no/such", f"{option}={value!r} {text}", **{option: value})


def test_drop_last_with_single_rows() -> None:
    text = (
        "drop_last=True needs a batch_size: with batch_size=None rows come one by one"
    )
    refused(ConfigError, "/no/such", text, drop_last=True, batch_size=None)


def test_an_option_that_does_not_exist(write: Write) -> None:
    with pytest.raises(TypeError, match="batchsize"):
        make(write("a.parquet"), batchsize=3)


def test_more_windows_than_memory_limit_holds(write: Write) -> None:
    path = write("a.parquet", {"x": range(100_000)})
    options = {"memory_limit": "100 KiB", "shuffle_window": "64 KiB", "num_splits": 4}
    with (
        make(path, shuffle=True, **options) as dataset,
        pytest.raises(PlanError, match="this rank needs 4 windows of 64 KiB") as e,
    ):
        next(iter(dataset))
    assert "memory_limit is 100 KiB; raise memory_limit, or make num_splits" in str(
        e.value
    )


@pytest.mark.parametrize(
    ("rank", "world_size", "text"),
    [
        (2, 2, "rank=2 (from arguments) must be at least 0 and below world_size=2"),
        (-1, 2, "rank=-1 (from arguments) must be at least 0"),
        (0, 0, "world_size=0 (from arguments) must be at least 1"),
        (0, None, "rank=0 and world_size=None go together: give both or neither"),
        (None, 2, "rank=None and world_size=2 go together"),
        ("0", 2, "rank='0' (from arguments) is not a whole number"),
        (0, 2.0, "world_size=2.0 (from arguments) is not a whole number"),
        (True, 2, "rank=True (from arguments) is not a whole number"),
    ],
)
def test_a_wrong_world(rank: Any, world_size: Any, text: str) -> None:
    refused(WorldError, "/no/such", text, rank=rank, world_size=world_size)


def test_a_mesh_that_is_none_or_goes_with_a_rank() -> None:
    text = "mesh=3 is neither a torch DeviceMesh nor a process group"
    refused(WorldError, "/no/such", text, mesh=3)
    text = "mesh=3 already says the rank; leave out rank=0 and world_size=1"
    refused(WorldError, "/no/such", text, mesh=3, rank=0, world_size=1)


@pytest.mark.parametrize(
    ("client", "text"),
    [
        (3, 'client=3 is none of None, "threads", a scheduler address'),
        ("", "client='' is empty; give \"threads\", or an address"),
        ("  ", "client='  ' is empty"),
        (["threads"], "is none of None"),
    ],
)
def test_a_client_that_is_none(client: Any, text: str) -> None:
    refused(ConfigError, "/no/such", text, client=client)


# ---- the dataset in use ---------------------------------------------------------------


@pytest.mark.parametrize("epoch", [-1, 0.5, True, None, "1"])
def test_a_wrong_epoch(write: Write, epoch: Any) -> None:
    with make(write("a.parquet")) as dataset:
        for owner in (dataset, DataLoader(dataset)):
            with pytest.raises(
                ConfigError, match="must be a whole number from 0 up"
            ) as e:
                owner.set_epoch(epoch)
            assert f"epoch={epoch!r}" in str(e.value)


def test_a_closed_dataset_cannot_be_read(write: Write) -> None:
    dataset = make(write("a.parquet"))
    dataset.close()
    dataset.close()
    for use in (
        lambda: list(dataset),
        lambda: dataset.take(1),
        lambda: dataset.peek(),
        lambda: dataset.to_delayed(),
        lambda: dataset.explain(),
        lambda: list(DataLoader(dataset)),
    ):
        with pytest.raises(ClosedError, match="was closed; make a new one"):
            use()
    assert len(dataset) == 1  # what needs no reading still answers
    assert dataset.num_rows == 10


@pytest.mark.parametrize("batch_size", [1, 4])
def test_torchs_dataloader_must_not_batch_batches_again(
    write: Write, batch_size: int
) -> None:
    with make(write("a.parquet"), batch_size=5) as dataset:
        loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size)
        with pytest.raises(
            ConfigError, match="would batch these batches of 5 rows"
        ) as e:
            list(loader)
        assert "batch_size=None, use dask_loader.DataLoader" in str(e.value)
        assert len(list(torch.utils.data.DataLoader(dataset, batch_size=None))) == 2


def test_torchs_dataloader_batches_single_rows(write: Write) -> None:
    with make(write("a.parquet"), batch_size=None, columns=["age"]) as dataset:
        batches = list(torch.utils.data.DataLoader(dataset, batch_size=4))
    assert [batch["age"].tolist() for batch in batches] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


@pytest.mark.parametrize(("option", "value"), [("batch_size", 4), ("shuffle", "yes")])
def test_our_dataloader_refuses_what_is_the_datasets(
    write: Write, option: str, value: Any
) -> None:
    with make(write("a.parquet")) as dataset:
        with pytest.raises(
            ConfigError, match="is the dataset's: give it to Parquet"
        ) as e:
            DataLoader(dataset, **{option: value})
        assert f"{option}={value!r}" in str(e.value)


def test_our_dataloader_takes_datasets_of_ours_with_a_batch_size(write: Write) -> None:
    with pytest.raises(
        ConfigError, match=r"dataset=\[1, 2\] is not a dask_loader\.Parq"
    ):
        DataLoader([1, 2])  # type: ignore[arg-type]
    with (
        make(write("a.parquet"), batch_size=None) as dataset,
        pytest.raises(ConfigError, match=r"yields single rows \(batch_size=None\)"),
    ):
        DataLoader(dataset)
