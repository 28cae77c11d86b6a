"""`_metadata` taken apart: footers for its files, digests, and refusals."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_loader.catalog.footers import parse_schema, read_tail
from dask_loader.catalog.promise import (
    Facts,
    file_of,
    is_promise,
    leaf_paths,
    require_kept,
    schema_digest,
)
from dask_loader.catalog.storage import Storage
from dask_loader.catalog.structs import read_structs
from dask_loader.catalog.summary import Summary, is_summary, parse_summary
from dask_loader.errors import BadFileError, DataChangedError

LOCAL = Storage("file")
TABLE = pa.table(
    {
        "x": range(40),
        "t": [str(i) * 5 for i in range(40)],
        "l": [[i, None] for i in range(40)],
        "s": [{"a": i, "b": {"c": 0.5 * i}} for i in range(40)],
    }
)


def footer_of(table: pa.Table, named: str | None, **options: Any) -> Any:
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"row_group_size": 7, **options})
    found = pq.read_metadata(io.BytesIO(sink.getvalue()))
    if named is not None:
        found.set_file_path(named)
    return found


def joined(*footers: Any) -> bytes:
    whole = footers[0]
    for other in footers[1:]:
        whole.append_row_groups(other)
    sink = io.BytesIO()
    whole.write_metadata_file(sink)
    return sink.getvalue()


def parsed(*names: str | None) -> Summary:
    return parse_summary(
        "/d/_metadata", joined(*(footer_of(TABLE.slice(0, 9), n) for n in names))
    )


def test_each_file_gets_the_footer_that_it_has_itself(tmp_path: Path) -> None:
    footers, paths = [], []
    for number in range(3):
        file = tmp_path / f"k={number}/f.parquet"
        file.parent.mkdir()
        # From none to 40 row groups: lists are written in another way from 15 on.
        part = TABLE.slice(0, 20 * number)
        pq.write_table(part, file, row_group_size=1 if number == 2 else 7)
        footers.append(pq.read_metadata(file))
        footers[-1].set_file_path(str(file.relative_to(tmp_path)))
        paths.append(str(file))
    summary = parse_summary(f"{tmp_path}/_metadata", joined(*footers))
    assert list(summary.parts) == [p for p in paths if p in summary.parts]
    assert {paths[1], paths[2]} <= summary.parts.keys()
    for path in summary.parts:
        own = read_tail(LOCAL, path, Path(path).stat().st_size)
        made = pq.read_metadata(pa.BufferReader(summary.tail(path)))
        its = pq.read_metadata(path)
        assert made.num_rows == its.num_rows == summary.parts[path].num_rows
        assert made.schema.equals(its.schema)
        assert made.metadata == its.metadata
        for index in range(its.num_row_groups):
            group, other = made.row_group(index).to_dict(), its.row_group(index)
            for column in group["columns"]:
                column["file_path"] = ""
            assert group == other.to_dict()
        schema = parse_schema(LOCAL, path, summary.tail(path))
        digest = summary.digest(path, schema_digest(schema))
        assert is_promise(digest)
        require_kept(digest, path, own, parse_schema(LOCAL, path, own))


def test_row_groups_of_several_files_may_be_mixed() -> None:
    summary = parsed("b.parquet", "./a//b.parquet", "b.parquet", "a/b.parquet")
    assert list(summary.parts) == ["/d/b.parquet", "/d/a/b.parquet"]
    assert [part.num_rows for part in summary.parts.values()] == [18, 18]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"row_group_size": 8}, "row groups, or rows in them"),
        ({"compression": "gzip"}, "places, sizes or codecs"),
        ({"use_dictionary": False}, "places, sizes or codecs"),
        ({"values": 1}, "statistics"),
        ({"type": pa.int32()}, "columns, or types"),
    ],
    ids=str,
)
def test_what_a_file_says_otherwise_is_told(change: dict[str, Any], what: str) -> None:
    digest, _, _ = digest_of(pa.table({"x": pa.array([5, 6, 7] * 7, pa.int64())}))
    change = dict(change)
    other = pa.table({"x": pa.array([5, 6, 7 + change.pop("values", 0)] * 7)})
    kind = change.pop("type", pa.int64())
    _, own, schema = digest_of(other.cast(pa.schema({"x": kind})), **change)
    with pytest.raises(DataChangedError, match=rf"'a\.parquet' is not .* {what}"):
        require_kept(digest, "a.parquet", own, schema)


def digest_of(table: pa.Table, **options: Any) -> tuple[str, bytes, pa.Schema]:
    """Return what `_metadata` promises of a file, and a footer and schema as it has."""
    data = joined(footer_of(table, "a", **options))
    summary = parse_summary("/d/_metadata", data)
    tail = summary.tail("/d/a")
    schema = parse_schema(LOCAL, "", tail)
    return summary.digest("/d/a", schema_digest(schema)), tail, schema


def test_statistics_that_metadata_left_out_may_be_there() -> None:
    table = pa.table({"x": pa.array([5, 6, 7])})
    bare, _, _ = digest_of(table, write_statistics=False)
    assert bare.endswith(":")
    full, tail, schema = digest_of(table)
    place = full.rindex(":") + 1
    require_kept(full[:place], "a", tail, schema)
    with pytest.raises(DataChangedError, match="other statistics"):
        require_kept(full[:place] + "0", "a", tail, schema)


def test_a_footer_that_is_none_is_refused_when_it_is_compared() -> None:
    with pytest.raises(BadFileError, match=r"'a' is not a readable Parquet file"):
        require_kept("promise:::", "a", b"\x19garbage" * 3, pa.schema({}))
    with pytest.raises(BadFileError, match="it has no schema"):
        require_kept("promise:::", "a", b"\0" + bytes(8), pa.schema({}))


@pytest.mark.parametrize(
    "named", ["../a", "/a", "b/../../a", "s3://b/a", "file:/a", "C:/a", "b\\a", "a\0"]
)
def test_paths_that_lead_out_of_the_folder_are_refused(named: str) -> None:
    data = joined(footer_of(TABLE, "a"), footer_of(TABLE, named))
    with pytest.raises(BadFileError, match=r"row group 6: .* leads out of the folder"):
        parse_summary("/d/_metadata", data)


def test_row_groups_that_name_no_file_are_refused() -> None:
    with pytest.raises(BadFileError, match=r"row group 2: it names no file .*set_file"):
        parsed("a", None)
    for named in (".", "_metadata", "./_common_metadata"):
        with pytest.raises(BadFileError, match="which is no file with rows"):
            parsed(named)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is not a Parquet file"),
        (b"PAR1" + bytes(20) + b"PAR2", "is not a Parquet file"),
        (b"PARE" + bytes(20) + b"PARE", "it is encrypted"),
        (b"PAR1\0\x09\0\0\0PAR1", "its footer should have 9 bytes"),
        (b"PAR1\0\x01\0\0\0PAR1", "it has no schema"),
        (b"PAR1\x29\x0c\0\x03\0\0\0PAR1", "it has no list of row groups"),
        (b"PAR1\x49\x1c\0\x03\0\0\0PAR1", "a row group has no columns"),
        (b"PAR1\x49\x15\0\x03\0\0\0PAR1", "other things than structures"),
        (b"PAR1\x49\xfc\x03\0\0\0PAR1", "within a structure|should have"),
        (b"PAR1\x1b\0\x02\0\0\0PAR1", "it holds a map"),
        (b"PAR1\x1e\0\x02\0\0\0PAR1", "no kind 14"),
        (b"PAR1\x18\x7f\0\x03\0\0\0PAR1", "a text ends beyond the end"),
        (b"PAR1\x16" + b"\xff" * 11 + b"\x0c\0\0\0PAR1", "too long"),
        (b"PAR1" + b"\x1c" * 40 + b"\x28\0\0\0PAR1", "nested too deeply"),
        (b"PAR1\x19\xf5\xff\x01\0\x05\0\0\0PAR1", "a list has 255 items"),
    ],
)
def test_bytes_that_are_no_summary_are_refused(data: bytes, text: str) -> None:
    with pytest.raises(BadFileError, match=f"'/d/_metadata' cannot stand .*({text})"):
        parse_summary("/d/_metadata", data)


def test_files_of_other_columns_than_the_schema_are_refused() -> None:
    # Arrow joins no such footers, other writers do: here, a schema in place of another.
    one = parsed("a")
    other = parse_summary("/d/_metadata", joined(footer_of(TABLE.select(["x"]), "a")))
    _, start, stop = one.fields[2]
    _, begin, end = other.fields[2]
    footer = one.footer[:start] + other.footer[begin:end] + one.footer[stop:]
    data = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(
        BadFileError, match="row group 0 has other columns than the sch"
    ):
        parse_summary("/d/_metadata", data)


def test_schemas_that_are_no_tree_are_refused() -> None:
    leaf: dict[int, Any] = {4: b"x"}
    assert leaf_paths([{4: b"root", 5: 1}, leaf]) == [(b"x",)]
    assert leaf_paths([{4: b"root", 5: 2}, {4: b"g", 5: 1}, leaf, leaf]) == [
        (b"g", b"x"),
        (b"x",),
    ]
    for elements, text in (
        ([{5: 1}], "without a name"),
        ([{4: b"root", 5: 1}], "ends too early"),
        ([{4: b"root", 5: 1}, leaf, leaf], "belong to none"),
    ):
        with pytest.raises(ValueError, match=text):
            leaf_paths(elements)
    with pytest.raises(ValueError, match="other things than structures"):
        read_structs(b"\x15\x02", 0)
    with pytest.raises(ValueError, match="within a list"):
        read_structs(b"\xfc", 0)


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        ({3: None}, "encrypted, or is not described"),
        ({3: {}}, "of which column it is"),
        ({3: {3: [b"x", []]}}, "of which column it is"),
        ({3: {3: [b"x"]}}, "a number that must be there is None"),
        ({3: {3: [b"x"], 9: 4, 7: -1}}, "a number that must be there is -1"),
    ],
)
def test_row_groups_that_say_too_little_are_refused(chunk: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Facts().add({1: [chunk], 3: 1})


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([b"a", b"b"], "lie in different files"),
        ([b"a", [1]], "lie in different files"),
        ([[1], b"a"], "is no text"),
        ([b"\xff"], "utf-8"),
    ],
)
def test_row_groups_of_no_one_file_are_refused(names: list[Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        file_of({1: [{1: name} for name in names]})


def test_only_the_name_makes_a_summary() -> None:
    assert is_summary("/a/_metadata")
    assert is_summary("_metadata")
    assert not is_summary("/a/_metadata/b.parquet")
    assert not is_summary("/a/_common_metadata")


WHOLE = joined(*(footer_of(TABLE, f"k={k}/f.parquet") for k in range(3)))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(4, len(WHOLE) - 9), st.integers(0, 255))))
def test_damaged_bytes_are_refused_or_read_but_nothing_else(
    flips: list[tuple[int, int]],
) -> None:
    data = bytearray(WHOLE)
    for place, value in flips:
        data[place] = value
    try:
        summary = parse_summary("/d/_metadata", bytes(data))
    except BadFileError:
        return
    assert all(path.startswith("/d/") for path in summary.parts)
    assert all(summary.tail(path).endswith(b"PAR1") for path in summary.parts)


def test_what_spark_wrote_is_what_its_files_say() -> None:
    folder = Path(__file__).parents[1] / "data" / "hive_spark"
    summary = parse_summary(f"{folder}/_metadata", (folder / "_metadata").read_bytes())
    assert len(summary.parts) == 48
    assert sum(part.num_rows for part in summary.parts.values()) == 2000
    there = [path for path in summary.parts if Path(path).exists()]
    assert len(there) == 8
    for path in there:
        own = read_tail(LOCAL, path, Path(path).stat().st_size)
        schema = parse_schema(LOCAL, path, summary.tail(path))
        digest = summary.digest(path, schema_digest(schema))
        require_kept(digest, path, own, parse_schema(LOCAL, path, own))
