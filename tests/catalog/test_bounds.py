"""Statistics cut short, over which Arrow ends the process, are found before it does."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader import BadFileError, ParquetDataset
from dask_loader.catalog.bounds import BoundsCheck, kinds_of
from dask_loader.catalog.thrift import walk
from tests.catalog.compact import Struct, edit, meta_data
from tests.conformance.fuzzing import damage

WIDTHS = {"b": 1, "i": 4, "j": 8, "f": 4, "d": 8, "x": 6, "m": 13, "h": 2, "u": 4}
KINDS = {
    "b": "BOOLEAN",
    "i": "INT32",
    "j": "INT64",
    "f": "FLOAT",
    "d": "DOUBLE",
    "x": "FIXED_LEN_BYTE_ARRAY",
    "m": "FIXED_LEN_BYTE_ARRAY",
    "h": "FIXED_LEN_BYTE_ARRAY",
    "u": "INT32",
}
NUMBERS = {
    "b": pa.bool_(),
    "i": pa.int32(),
    "j": pa.int64(),
    "f": pa.float32(),
    "d": pa.float64(),
    "h": pa.float16(),
    "u": pa.uint8(),
}
TABLE = pa.table(
    {
        **{name: pa.array([0, 1, 1]).cast(kind) for name, kind in NUMBERS.items()},
        "x": pa.array([b"123456", b"abcdef", b"zzzzzz"], pa.binary(6)),
        "m": pa.array([Decimal(1), Decimal(2), Decimal(3)], pa.decimal128(30, 2)),
        "s": ["a", "b" * 200, "c"],
        "t": pa.array([datetime.datetime(2020, 1, 1)] * 3, pa.timestamp("us")),
    }
)
PAIRS = {"new": (5, 6), "old": (1, 2)}


def write(path: Path, table: pa.Table = TABLE, **options: Any) -> None:
    pq.write_table(table, path, **{"row_group_size": 2, **options})


def shortened(
    name: str, size: int, pair: tuple[int, ...] = (5, 6), group: int = 1
) -> Callable[[Struct], None]:
    """Return a change that gives a column bounds of a size."""

    def change(footer: Struct) -> None:
        chunk = meta_data(footer, group, TABLE.column_names.index(name))
        for number in pair:
            chunk[12][1][number] = 8, b"\1" * size

    return change


def read(path: Path, **options: Any) -> dict[str, list[Any]]:
    with ParquetDataset(
        path, client="threads", footer_cache=False, output_format="arrow", **options
    ) as dataset:
        found: dict[str, list[Any]] = pa.concat_tables(list(dataset)).to_pydict()
    return found


@pytest.mark.parametrize("name", WIDTHS)
def test_a_bound_too_short_for_its_type_is_refused_with_its_place(
    tmp_path: Path, name: str
) -> None:
    path, width = tmp_path / "a.parquet", WIDTHS[name]
    sizes = {0, 1, width - 1} - {width, *([0] if name in "xmh" else [])}
    for size in sizes:
        for pair in ((5, 6), (1, 2, 5, 6)):
            write(path)
            edit(path, shortened(name, size, pair))
            text = (
                f"the footer of {str(path)!r} is damaged: of row group 1 a minimum or "
                f"maximum of column {name!r} has {size} bytes, and {KINDS[name]} has "
                f"{width}; rewrite the file"
            )
            with pytest.raises(BadFileError, match=re.escape(text)) as caught:
                read(path)
            assert (caught.value.row_group, caught.value.column) == (1, name)
            # What is not read is not looked at.
            others = [column for column in TABLE.column_names if column != name]
            assert read(path, columns=others) == TABLE.select(others).to_pydict()


def test_filters_and_keys_ask_for_statistics_of_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "i=1" / "a.parquet"
    path.parent.mkdir()
    write(path)
    edit(path, shortened("j", 3))
    with pytest.raises(BadFileError, match="column 'j' has 3 bytes, and INT64 has 8"):
        read(path, columns=["f"], filters=[("j", ">", 0)])
    write(path)
    edit(path, shortened("i", 3))
    with pytest.raises(BadFileError, match="column 'i' has 3 bytes, and INT32 has 4"):
        read(tmp_path, columns=["f"], partitioning="hive")


@pytest.mark.parametrize("name", ["x", "m", "h"])
def test_empty_bounds_that_arrow_passes_over_count_as_none(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "a.parquet"
    write(path)
    edit(path, shortened(name, 0))
    assert read(path) == TABLE.to_pydict() == pq.read_table(path).to_pydict()
    kept = read(path, filters=[("j", ">", 0)])
    assert kept == TABLE.slice(1).to_pydict()


def test_bounds_that_arrow_does_not_decode_may_have_any_length(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    changes = [
        shortened(name, 3, (1, 2)) for name in ("j", "d", "m")
    ]  # orders are told
    changes += [shortened(name, 3, (5,)) for name in ("j",)]  # one alone
    changes += [shortened(name, size) for name in ("s", "t") for size in (0, 1, 9)[:2]]
    for change in changes[:3] + changes[4:6]:
        write(path)
        edit(path, change)
        assert read(path) == TABLE.to_pydict()
    write(path, TABLE.select(["t"]), use_deprecated_int96_timestamps=True)

    def shorten(footer: Struct) -> None:
        meta_data(footer, 0, 0)[12] = 12, {5: (8, b"1"), 6: (8, b"1")}

    edit(path, shorten)
    assert read(path) == TABLE.select(["t"]).to_pydict()


def test_without_orders_the_old_bounds_count(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for pair, refused in (((1, 2), True), ((5, 6), False)):
        write(path)

        def change(footer: Struct, pair: tuple[int, ...] = pair) -> None:
            shortened("j", 3, pair)(footer)
            del footer[7]

        edit(path, change)
        if refused:
            with pytest.raises(BadFileError, match="'j' has 3 bytes, and INT64 has 8"):
                read(path)
        else:
            assert read(path) == TABLE.to_pydict()


def tail_of(content: bytes) -> bytes:
    return content[-8 - int.from_bytes(content[-8:-4], "little") :]


class Files:
    """Many files alike, told as wide as the check learns them."""

    def __init__(self, folder: Path, table: pa.Table, **options: Any) -> None:
        path = folder / "alike.parquet"
        write(path, table, **options)
        self.content = path.read_bytes()
        schema = pq.read_metadata(path).schema
        self.kinds, self.leaves = kinds_of(schema), list(range(len(schema)))
        self.names = {leaf: str(leaf) for leaf in self.leaves}
        self.bounds = BoundsCheck()

    def check(self, content: bytes) -> bool:
        tail = tail_of(content)
        return self.bounds.check("a", tail, self.kinds, self.leaves, self.names)

    def learn(self) -> None:
        for _ in range(200):
            assert self.check(self.content)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False, "write_page_index": True},
        {"write_statistics": ["i", "s"], "data_page_version": "2.0"},
        {"sorting_columns": [pq.SortingColumn(0)], "store_schema": False},
    ],
)
def test_files_like_those_before_are_not_walked(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path, TABLE, **options)
    walks = []

    def counted(data: bytes) -> Any:
        walks.append(len(data))
        return walk(data)

    monkeypatch.setattr("dask_loader.catalog.bounds.walk", counted)
    files.learn()
    learnt = len(walks)
    assert 0 < learnt < 20
    rows = pa.concat_tables([TABLE.slice(1)] * 30).combine_chunks()
    write(tmp_path / "other.parquet", rows, **{"row_group_size": 7, **options})
    assert files.check((tmp_path / "other.parquet").read_bytes())
    assert len(walks) == learnt
    # Other names, order or types are walked.
    write(tmp_path / "other.parquet", rows.rename_columns([*"BIJFDHUXMST"]))
    assert files.check((tmp_path / "other.parquet").read_bytes())
    assert len(walks) == learnt + 1


@pytest.mark.parametrize("name", ["i", "j", "x", "m", "b"])
@pytest.mark.parametrize("group", [0, 1])
def test_short_bounds_are_found_among_files_alike(
    tmp_path: Path, name: str, group: int
) -> None:
    for number in range(40):
        write(tmp_path / f"{number}.parquet")
    size = WIDTHS[name] - 1
    edit(tmp_path / "33.parquet", shortened(name, size, group=group))
    with pytest.raises(BadFileError, match=f"33.parquet.*row group {group} .*{name!r}"):
        read(tmp_path)


def test_what_a_pattern_takes_for_sound_a_walk_finds_sound(tmp_path: Path) -> None:
    nested = TABLE.append_column("l", pa.array([[1], [], [2, 3]])).append_column(
        "r", pa.array([{"a": 1, "b": "x"}] * 3)
    )
    files = Files(tmp_path, nested, write_page_index=True)
    files.learn()
    shape = files.bounds._shape
    assert shape is not None
    accepted = different = 0
    for number in range(3000):
        content = damage(files.content, "footer", number)
        data = tail_of(content)[:-8]
        if not files.bounds._is_alike(data, shape):
            continue
        accepted += 1
        different += content != files.content
        for chunks in walk(data).groups:
            for chunk, (_, width) in zip(chunks, files.kinds, strict=True):
                assert chunk is not None
                assert width is None or set(chunk.lengths.values()) <= {width}
    assert accepted > 100
    assert different > 100


def test_a_footer_that_only_arrow_understands_is_refused() -> None:
    tail = b"\x1e" + b"\0" * 8
    text = "the footer of 'a' is damaged: there is no kind 14; rewrite"
    with pytest.raises(BadFileError, match=text):
        BoundsCheck().check("a", tail, (), [], {})
    # An encrypted one is not walked.
    assert BoundsCheck().check("a", tail[:-4] + b"PARE", (), [], {})
