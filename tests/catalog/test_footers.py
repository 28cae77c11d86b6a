"""What is taken from one file's footer."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dask_loader.catalog.footers import (
    FooterQuery,
    footer_digest,
    null_column,
    parse_schema,
    read_footers,
    read_tails,
)
from dask_loader.catalog.forms import form_of
from dask_loader.catalog.storage import Storage
from dask_loader.errors import BadFileError, DataChangedError

Write = Callable[..., str]
LOCAL = Storage("file")


def files_of(*paths: str) -> list[tuple[str, int]]:
    return [(path, os.path.getsize(path)) for path in paths]


def schema_of(path: str) -> pa.Schema:
    (tail,) = read_tails(LOCAL, files_of(path))
    return parse_schema(Storage("file"), path, tail)


def footer_of(
    path: str, columns: list[str], expression: pc.Expression = None
) -> SimpleNamespace:
    """What a query takes from one file, as lists."""
    schema = schema_of(path)
    query = FooterQuery(
        storage=LOCAL,
        forms=tuple(form_of(schema.field(name)) for name in columns),
        expression=expression,
        filter_columns=("i",) if expression is not None else (),
    )
    (row,) = read_footers(query, files_of(path)).to_pylist()
    nulls = {c: row[null_column(c)] for c in columns if null_column(c) in row}
    survivors = [i for i, alive in enumerate(row["survives"]) if alive]
    return SimpleNamespace(**row, null_counts=nulls, survivors=survivors)


def test_rows_and_decoded_bytes_are_told_for_each_row_group(write: Write) -> None:
    columns = {
        "i": pa.array(range(25), pa.int32()),
        "flag": pa.array([True] * 25),
        "half": pa.array([0.5] * 25, pa.float16()),
        "day": pa.array([1] * 25, pa.date32()),
        "list": pa.array([[1.0, 2.0]] * 25, pa.list_(pa.float32(), 2)),
    }
    path = write("a.parquet", columns, row_group_size=10)
    footer = footer_of(path, list(columns))
    assert footer.num_rows == [10, 10, 5]
    row_bytes = 4 + 1 + 2 + 8 + 8
    assert footer.num_bytes == [10 * row_bytes, 10 * row_bytes, 5 * row_bytes]
    assert footer_of(path, ["i"]).num_bytes == [40, 40, 20]
    assert footer.survivors == [0, 1, 2]


def test_text_counts_with_its_encoded_size_and_offsets(write: Write) -> None:
    texts = [f"{i:0100}" for i in range(30)]
    columns = {"s": texts, "b": [t.encode() for t in texts], "i": range(30)}
    path = write("a.parquet", columns, row_group_size=20, use_dictionary=False)
    for column in ("s", "b"):
        sizes = footer_of(path, [column]).num_bytes
        assert 20 * 104 <= sizes[0] <= 20 * 104 + 400
        assert 10 * 104 <= sizes[1] <= 10 * 104 + 400
    both = footer_of(path, ["s", "i"]).num_bytes
    assert both[0] == footer_of(path, ["s"]).num_bytes[0] + 20 * 8


def test_nulls_are_told_for_columns_that_have_any(write: Write) -> None:
    columns = {
        "i": pa.array([1, None, None, 4], pa.int64()),
        "full": [1, 2, 3, 4],
        "s": ["a", "b", "c", None],
        "list": pa.array([[1, 2], [1, None], None, [1, 2]], pa.list_(pa.int8(), 2)),
    }
    path = write("a.parquet", columns, row_group_size=2)
    counts = footer_of(path, list(columns)).null_counts
    assert counts == {"i": [1, 1], "s": [0, 1], "list": [1, 1]}


def test_a_footer_without_statistics_says_so(write: Write) -> None:
    path = write("a.parquet", {"i": [1, None], "j": [1, 2]}, write_statistics=["j"])
    assert footer_of(path, ["i", "j"]).null_counts == {"i": [-1]}


def test_statistics_rule_row_groups_out(write: Write) -> None:
    path = write("a.parquet", {"i": [3, None, 1, 7], "j": range(4)}, row_group_size=2)
    assert footer_of(path, ["j"], pc.field("i") > 2).survivors == [0, 1]
    assert footer_of(path, ["j"], pc.field("i") > 5).survivors == [1]


def test_files_without_rows_or_row_groups_are_files(
    write: Write, tmp_path: object
) -> None:
    empty = write("a.parquet", {"i": pa.array([], pa.int64())})
    assert footer_of(empty, ["i"]).num_rows == [0]
    none = f"{tmp_path}/none.parquet"
    pq.ParquetWriter(none, pa.schema([("i", pa.int64())])).close()
    assert footer_of(none, ["i"]).num_rows == []
    assert footer_of(none, ["i"], pc.field("i") > 0).survivors == []


def test_footers_come_in_the_order_of_the_paths(write: Write) -> None:
    paths = [write(f"{n}.parquet", {"i": range(n)}) for n in (3, 1, 2)]
    footers = read_footers(FooterQuery(storage=LOCAL), files_of(*paths))
    assert footers["num_rows"].to_pylist() == [[3], [1], [2]]
    assert footers["digest"].to_pylist() == [footer_digest(LOCAL, p) for p in paths]


def test_a_footer_longer_than_one_read_is_read_whole(write: Write) -> None:
    columns = {f"column {i:04}": [i] for i in range(1000)}
    path = write("a.parquet", columns)
    (tail,) = read_tails(LOCAL, files_of(path))
    assert len(tail) > 1 << 17
    assert parse_schema(Storage("file"), path, tail).names == list(columns)
    assert footer_of(path, ["column 0999"]).digest == footer_digest(LOCAL, path)


def test_files_elsewhere_are_read_side_by_side_and_in_order() -> None:
    system, storage = fsspec.filesystem("memory"), Storage("memory")
    files = []
    for count in range(1, 9):
        path = f"/tails/{count}.parquet"
        with system.open(path, "wb") as file:
            pq.write_table(pa.table({"i": range(count)}), file)
        files.append((path, system.info(path)["size"]))
    query = FooterQuery(storage=storage)
    found = read_footers(query, files)
    assert found["num_rows"].to_pylist() == [[count] for count in range(1, 9)]
    with pytest.raises(DataChangedError, match="cannot be found now"):
        read_footers(query, [*files, ("/tails/gone", 100), *files])
    system.rm("/tails", recursive=True)


def test_a_footer_that_claims_more_than_the_file_is_named(write: Write) -> None:
    path = write("a.parquet")
    with open(path, "r+b") as file:
        file.seek(-8, 2)
        file.write((1 << 30).to_bytes(4, "little"))
    size = os.path.getsize(path)
    with pytest.raises(
        BadFileError,
        match=f"should have {(1 << 30) + 8} bytes, the whole file has {size}",
    ):
        footer_of(path, ["x"])


def test_what_is_no_parquet_is_a_bad_file(write: Write) -> None:
    path = write("a.parquet", {"i": range(1000)})
    with open(path, "rb") as file:
        whole = file.read()
    for content in (b"", b"PAR1", b"a,b\n1,2\n", whole[:-1], whole[: len(whole) // 2]):
        with open(path, "wb") as file:
            file.write(content)
        with pytest.raises(BadFileError, match="is not a readable Parquet file") as e:
            read_footers(FooterQuery(storage=LOCAL), files_of(path))
        assert repr(path) in str(e.value)
        assert "remove or rewrite it, or leave it out of the path" in str(e.value)
        assert e.value.path == path
        assert e.value.__cause__ is not None


def test_a_folder_in_place_of_a_file_is_a_bad_file(tmp_path: object) -> None:
    with pytest.raises(BadFileError, match="is not a readable Parquet file"):
        schema_of(str(tmp_path))
