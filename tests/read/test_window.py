"""read_window against pyarrow's own reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dask_loader.errors import BadFileError
from dask_loader.plan.order import permutation
from dask_loader.read.files import OpenFiles
from dask_loader.read.task import WindowTask
from dask_loader.read.window import read_table, read_window
from dask_loader.transfer.window import WindowData

Write = Callable[..., str]
Plan = Callable[..., WindowTask]
Allocate = Callable[[int], Any]

NUM_ROWS = 100
RNG = np.random.default_rng(7)
INTS = RNG.integers(0, 100, NUM_ROWS)
FLOATS = RNG.normal(size=NUM_ROWS)
WORDS = [f"wörd {i}" * (i % 3) for i in range(NUM_ROWS)]


def _fixed(values: Any, kind: pa.DataType, *lengths: int) -> pa.Array:
    array = pa.array(np.resize(np.asarray(values), NUM_ROWS * int(np.prod(lengths))))
    array = array.cast(kind)
    for length in lengths:
        array = pa.FixedSizeListArray.from_arrays(array, length)
    return array


COLUMNS: dict[str, pa.Array] = {
    **{
        f"{sign}{bits}": pa.array(INTS).cast(f"{sign}{bits}")
        for sign in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
    "uint64 high": pa.array([2**64 - 1 - int(i) for i in INTS], pa.uint64()),
    "int64 low": pa.array([-(2**63) + int(i) for i in INTS], pa.int64()),
    "float16": pa.array(FLOATS.astype(np.float16)),
    "float32": pa.array(FLOATS.astype(np.float32)),
    "float64": pa.array(FLOATS),
    "bool": pa.array(INTS % 3 == 0),
    "date32": pa.array(INTS).cast(pa.int32()).cast(pa.date32()),
    "time32": pa.array(INTS).cast(pa.int32()).cast(pa.time32("ms")),
    "time64": pa.array(INTS).cast(pa.time64("us")),
    "timestamp": pa.array(INTS - 50).cast(pa.timestamp("ns")),
    "timestamp tz": pa.array(INTS).cast(pa.timestamp("ms", "Asia/Tokyo")),
    "duration": pa.array(INTS).cast(pa.duration("ms")),
    "list": _fixed(FLOATS, pa.float32(), 3),
    "list of bool": _fixed(INTS % 2 == 0, pa.bool_(), 5),
    "list of dates": _fixed(INTS.astype(np.int32), pa.date32(), 2),
    "list of lists": _fixed(INTS, pa.int16(), 2, 3),
    "list of one": _fixed(INTS, pa.uint8(), 1),
    "string": pa.array(WORDS),
    "large_string": pa.array(WORDS, pa.large_string()),
    "binary": pa.array([w.encode() for w in WORDS]),
    "large_binary": pa.array([w.encode() for w in WORDS], pa.large_binary()),
    "fixed_size_binary": pa.array(
        [w[:5].ljust(5).encode()[:5] for w in WORDS], pa.binary(5)
    ),
    "string_view": pa.array(WORDS, pa.string_view()),
}
# Slices that begin and end inside row groups of 30 rows, one whole, some of one row.
RANGES = [(0, 7, 30), (1, 0, 30), (2, 29, 30), (3, 0, 1), (3, 4, 9), (5, 3, 12)]
# Arrow can neither gather nor filter a string_view.
MIXABLE = [name for name in COLUMNS if name != "string_view"]


@pytest.fixture(scope="module")
def two_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """COLUMNS twice, the second time backwards, in row groups of 30 rows."""
    folder = tmp_path_factory.mktemp("types")
    table = pa.table(COLUMNS)
    paths = [str(folder / "1.parquet"), str(folder / "2.parquet")]
    pq.write_table(table, paths[0], row_group_size=30)
    backwards = pa.table(
        {
            n: c.take(pa.array(range(99, -1, -1)))
            for n, c in COLUMNS.items()
            if n in MIXABLE
        }
        | {"string_view": pa.array(WORDS[::-1], pa.string_view())}
    )
    pq.write_table(backwards, paths[1], row_group_size=30, compression="zstd")
    return paths


def rows_of(paths: list[str], ranges: list[tuple[int, int, int]]) -> pa.Table:
    """What pyarrow reads for these ranges; each file has four row groups."""
    parts = []
    for group, start, stop in ranges:
        with pq.ParquetFile(paths[group // 4]) as file:
            table = file.read_row_group(group % 4)
        parts.append(table.slice(start, stop - start))
    return pa.concat_tables(parts)


def plain(kind: pa.DataType) -> pa.DataType:
    """The integers behind dates and times."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_type), kind.list_size)
    if pa.types.is_temporal(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return kind


def values(column: pa.ChunkedArray) -> list[Any]:
    return column.cast(plain(column.type)).to_pylist()


def check(window: WindowData, expected: pa.Table) -> None:
    assert window.num_rows == expected.num_rows
    assert {*window.arrays, *window.texts} == {*expected.column_names}
    for name, array in window.arrays.items():
        assert array.shape[0] == window.num_rows
        assert array.flags.writeable, name
        assert array.flags.c_contiguous, name
        assert array.tolist() == values(expected[name]), name
    for name, text in window.texts.items():
        assert text.to_pylist() == expected[name].to_pylist(), name


def test_every_type_is_read_as_pyarrow_reads_it(
    two_files: list[str], plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    task = plan(two_files)
    window = read_window(task, files, allocate)
    check(window, pa.concat_tables(map(pq.read_table, two_files)))
    for form in task.options.forms:
        if form.is_fixed:
            assert window.arrays[form.name].dtype == form.dtype
            assert window.arrays[form.name].shape == (200, *form.shape)


def test_slices_begin_and_end_inside_row_groups_of_several_files(
    two_files: list[str], plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    window = read_window(plan(two_files, RANGES), files, allocate)
    check(window, rows_of(two_files, RANGES))


def test_slices_come_in_the_order_asked_for(
    two_files: list[str], plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    ranges = [*RANGES[::-1], (0, 0, 3), (0, 2, 4)]
    window = read_window(plan(two_files, ranges), files, allocate)
    check(window, rows_of(two_files, ranges))


def test_a_key_mixes_all_columns_alike_and_always_alike(
    two_files: list[str], plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    expected = rows_of(two_files, RANGES).select(MIXABLE)
    key = ("window", 7, 0, 3)
    order = permutation(expected.num_rows, *key)
    assert order.tolist() != list(range(expected.num_rows))
    task = plan(two_files, RANGES, columns=tuple(MIXABLE), key=key)
    for _ in range(2):
        check(read_window(task, files, allocate), expected.take(pa.array(order)))


@pytest.mark.parametrize("key", [None, ("k", 1)])
def test_filters_keep_rows_and_slices_count_the_kept_ones(
    two_files: list[str],
    plan: Plan,
    files: OpenFiles,
    allocate: Allocate,
    key: tuple[object, ...] | None,
) -> None:
    filters = (pc.field("int32") < 50) & pc.field("bool").is_valid()
    ranges, parts = [], []
    for group in range(8):
        part = rows_of(two_files, [(group, 0, 30)]).select(MIXABLE).filter(filters)
        low, high = min(1, part.num_rows), max(part.num_rows - 1, 1)
        ranges.append((group, low, high))
        parts.append(part.slice(low, high - low))
    expected = pa.concat_tables(parts)
    assert 20 < expected.num_rows < 150
    if key is not None:
        expected = expected.take(pa.array(permutation(expected.num_rows, *key)))
    task = plan(two_files, ranges, columns=tuple(MIXABLE), filters=filters, key=key)
    check(read_window(task, files, allocate), expected)


def test_columns_that_only_the_filters_read_are_not_delivered(
    two_files: list[str], plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    whole = rows_of(two_files, [(0, 0, 30)]).select(["string", "list", "float64"])
    expected = whole.filter(pc.field("float64") > 0)
    ranges = [(0, 0, expected.num_rows)]
    task = plan(
        two_files, ranges, columns=("string", "list"), filters=[("float64", ">", 0)]
    )
    check(read_window(task, files, allocate), expected.select(["string", "list"]))


def test_a_chosen_column_is_found_behind_nested_and_dotted_ones(
    write: Write, plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    columns = {
        "s": pa.array([{"a": 1, "b": 2}, {"a": 3, "b": 4}]),
        "s.c": [7, 8],
        "m": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        "last": ["x", "y"],
    }
    path = write("a.parquet", columns)
    for filters in (None, [("s.c", ">", 0)]):
        task = plan([path], columns=("last", "s.c"), filters=filters)
        window = read_window(task, files, allocate)
        assert window.arrays["s.c"].tolist() == [7, 8]
        assert window.texts["last"].to_pylist() == ["x", "y"]


def test_files_may_have_their_columns_in_another_order(
    write: Write, plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    first = write(
        "1.parquet", {"x": [1, 2], "l": pa.array([[{"a": 1}], []]), "y": ["a", "b"]}
    )
    other = write("2.parquet", {"y": ["c"], "x": [3]})
    for filters in (None, [("x", ">", 0)]):
        task = plan([first, other], columns=("x", "y"), filters=filters)
        window = read_window(task, files, allocate)
        assert window.arrays["x"].tolist() == [1, 2, 3]
        assert window.texts["y"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize("filters", [None, [("x", ">=", 0)]])
@pytest.mark.parametrize("key", [None, (1,)])
def test_row_groups_without_rows_are_passed_over(
    tmp_path: Path,
    plan: Plan,
    files: OpenFiles,
    allocate: Allocate,
    filters: Any,
    key: tuple[object, ...] | None,
) -> None:
    path = str(tmp_path / "a.parquet")
    full = pa.table(
        {
            "x": [1, 2],
            "s": ["a", "b"],
            "l": pa.array([[1], [2]], pa.list_(pa.int8(), 1)),
        }
    )
    with pq.ParquetWriter(path, full.schema) as writer:
        for table in (full.slice(0, 0), full, full.slice(0, 0), full, full.slice(0, 0)):
            writer.write_table(table)
    window = read_window(plan([path], filters=filters, key=key), files, allocate)
    assert sorted(window.arrays["x"].tolist()) == [1, 1, 2, 2]
    assert sorted(window.texts["s"].to_pylist()) == ["a", "a", "b", "b"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One row group of 24 MiB a column: more than the 16 MiB that are decoded at once."""
    path = str(tmp_path_factory.mktemp("large") / "a.parquet")
    numbers = np.arange(3 << 20)
    table = pa.table({"x": numbers, "s": pa.array(numbers % 7).cast(pa.string())})
    pq.write_table(table, path, row_group_size=3 << 20, compression="none")
    return path


@pytest.mark.parametrize("filters", [None, [("x", ">", 99)]])
@pytest.mark.parametrize("start", [0, (2 << 20) + 5])
def test_a_row_group_larger_than_a_piece_is_read_in_pieces(
    large: str,
    plan: Plan,
    files: OpenFiles,
    allocate: Allocate,
    filters: Any,
    start: int,
) -> None:
    skipped = 100 if filters else 0
    stop = (3 << 20) - skipped - 3
    task = plan([large], [(0, start, stop)], filters=filters)
    window = read_window(task, files, allocate)
    expected = np.arange(start + skipped, stop + skipped)
    assert np.array_equal(window.arrays["x"], expected)
    texts = window.texts["s"]
    assert len(texts) == stop - start
    ends = [0, 1, len(texts) // 2, len(texts) - 1]
    assert [texts[i].as_py() for i in ends] == [str(expected[i] % 7) for i in ends]


def test_a_table_keeps_types_nulls_and_the_rows_asked_for(
    write: Write, plan: Plan, files: OpenFiles
) -> None:
    columns = {
        "x": pa.array([1, None, 3, 4], pa.int16()),
        "t": pa.array([1, 2, None, 4], pa.timestamp("ms", "UTC")),
        "l": pa.array([[1, None], None, [3, 4], [5, 6]], pa.list_(pa.float32(), 2)),
        "s": ["a", None, "c", "d"],
    }
    table = pa.table(columns).replace_schema_metadata({"pandas": "{}"})
    path = write("a.parquet", table, row_group_size=3)
    bare = table.replace_schema_metadata(None)
    whole = read_table(plan([path]), files, ((0, 4),))
    assert whole.equals(bare)
    assert whole.schema.metadata is None
    some = read_table(plan([path]), files, ((0, 1), (2, 4)))
    assert some.equals(bare.take([0, 2, 3]))
    mixed = read_table(plan([path], key=("k",)), files, ((1, 4),))
    assert mixed.equals(bare.take(permutation(4, "k").tolist()[1:]))
    kept = plan(
        [path], [(0, 0, 2), (1, 0, 1)], filters=[("x", ">", 1)], columns=("s", "l")
    )
    with pytest.raises(BadFileError, match="gave 1 rows where 2 were planned"):
        read_table(kept, files, ((0, 3),))
    kept = plan(
        [path], [(0, 0, 1), (1, 0, 1)], filters=[("x", ">", 1)], columns=("s", "l")
    )
    assert read_table(kept, files, ((0, 2),)).equals(bare.select(["s", "l"]).slice(2))


def test_a_window_of_a_remote_file_is_read_through_fsspec(
    plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    import fsspec

    from dask_loader.catalog.storage import Storage
    from dask_loader.read.nulls import NullPolicy
    from dask_loader.read.task import ReadOptions, SliceTask

    system, table = (
        fsspec.filesystem("memory"),
        pa.table({"x": range(10), "s": list("abcdefghij")}),
    )
    with system.open("/window.parquet", "wb") as file:
        pq.write_table(table, file, row_group_size=6)
    storage = Storage("memory")
    stamp = storage.stamp("/window.parquet")
    task = WindowTask(
        options=ReadOptions(
            storage=storage, forms=_forms(table.schema), nulls=NullPolicy()
        ),
        slices=(
            SliceTask("/window.parquet", stamp, 0, 6, 2, 6),
            SliceTask("/window.parquet", stamp, 1, 4, 0, 3),
        ),
        num_rows=7,
        key=None,
        num_bytes=0,
    )
    check(read_window(task, files, allocate), table.slice(2, 7))
    system.rm("/window.parquet")


def _forms(schema: pa.Schema) -> Any:
    from dask_loader.catalog.forms import form_of

    return tuple(form_of(field) for field in schema)
