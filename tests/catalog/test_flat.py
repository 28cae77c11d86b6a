"""Nested columns as the flat ones that are delivered, checked against Arrow's own lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader.catalog.flat import flat_columns, flat_schema, flatten_table

WORDS = pa.dictionary(pa.int32(), pa.string())
TENSOR = pa.fixed_shape_tensor(pa.float32(), [2, 3])
PAIRS = pa.struct([("x", pa.int64()), ("y", pa.list_(pa.string()))])
# name: array, and its flat columns as Python values
COLUMNS: dict[str, tuple[pa.Array, dict[str, list[Any]]]] = {
    "number": (pa.array([1, None, 3, 4]), {"": [1, None, 3, 4]}),
    "words": (
        pa.array(["x", None, "y", "x"]).dictionary_encode(),
        {"": ["x", None, "y", "x"]},
    ),
    "struct": (
        pa.array(
            [{"a": 1, "b": {"c": [2, 3]}}, None, {"a": None, "b": None}, {"a": 4}],
            pa.struct(
                [("a", pa.int8()), ("b", pa.struct([("c", pa.list_(pa.int8()))]))]
            ),
        ),
        {".a": [1, None, None, 4], ".b.c": [[2, 3], None, None, None]},
    ),
    "map": (
        pa.array(
            [[("a", 1)], None, [], [("b", None), ("c", 3)]],
            pa.map_(pa.string(), pa.int32()),
        ),
        {
            ".key": [["a"], None, [], ["b", "c"]],
            ".value": [[1], None, [], [None, 3]],
        },
    ),
    "pairs": (
        pa.array(
            [[{"x": 1, "y": ["a"]}], [], None, [None, {"x": 2, "y": None}]],
            pa.list_(PAIRS),
        ),
        {
            ".x": [[1], [], None, [None, 2]],
            ".y": [[["a"]], [], None, [None, None]],
        },
    ),
    "lists": (
        pa.array([[[1], []], [[2, 3], None], None, []], pa.list_(pa.list_(pa.int8()))),
        {"": [[[1], []], [[2, 3], None], None, []]},
    ),
    "view": (
        pa.array([[1], None, [2, 3], []], pa.list_view(pa.int32())),
        {"": [[1], None, [2, 3], []]},
    ),
    "words in lists": (
        pa.array([["x"], [], None, ["x", "y"]]).cast(pa.list_(WORDS)),
        {"": [["x"], [], None, ["x", "y"]]},
    ),
    "text view": (
        pa.array(["a", "b", None, "d"], pa.string_view()),
        {"": ["a", "b", None, "d"]},
    ),
    "fixed": (
        pa.array([[1, 2], None, [3, 4], [5, None]], pa.list_(pa.int32(), 2)),
        {"": [[1, 2], None, [3, 4], [5, None]]},
    ),
    "tensor": (
        pa.ExtensionArray.from_storage(
            TENSOR,
            pa.array([[i] * 6 if i else None for i in range(4)], TENSOR.storage_type),
        ),
        {"": [None] + [[[i] * 3] * 2 for i in (1, 2, 3)]},
    ),
    "uuid": (pa.array([b"%016d" % i for i in range(4)], pa.uuid()), {"": ...}),
    "json": (
        pa.array(["{}", "1", None, "[]"], pa.json_()),
        {"": ["{}", "1", None, "[]"]},
    ),
    "bool8": (
        pa.ExtensionArray.from_storage(
            pa.bool8(), pa.array([1, 0, None, 1], pa.int8())
        ),
        {"": [True, False, None, True]},
    ),
}
COLUMNS["uuid"] = (COLUMNS["uuid"][0], {"": [b"%016d" % i for i in range(4)]})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pq.ParquetFile]:
    path: Path = tmp_path_factory.mktemp("flat") / "a.parquet"
    pq.write_table(pa.table({n: array for n, (array, _) in COLUMNS.items()}), path)
    with pq.ParquetFile(path) as opened:
        yield opened


def test_each_flat_column_has_a_leaf_of_its_own_in_order(file: pq.ParquetFile) -> None:
    columns = flat_columns(file.schema_arrow)
    assert [c.leaf for c in columns] == list(range(file.metadata.num_columns))
    group = file.metadata.row_group(0)
    for column in columns:
        leaf = group.column(column.leaf).path_in_schema
        assert leaf.split(".")[0] == column.name.split(".")[0]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_flattened_with_its_nulls(file: pq.ParquetFile, name: str) -> None:
    wanted = {f"{name}{part}": values for part, values in COLUMNS[name][1].items()}
    table = flatten_table(file.read(columns=[name]))
    table.validate(full=True)
    assert table.to_pydict() == wanted
    schema = flat_schema(pa.schema([file.schema_arrow.field(name)]))
    assert table.schema.remove_metadata().types == schema.types
    assert table.schema.names == schema.names
    # Slices keep their parents' buffers, and several chunks come of several batches.
    whole = file.read(columns=[name])
    parts = pa.concat_tables([whole.slice(2), whole.slice(1, 2)])
    flat = flatten_table(parts)
    flat.validate(full=True)
    assert flat.to_pydict() == {k: [*v[2:], *v[1:3]] for k, v in wanted.items()}


@pytest.mark.parametrize("name", ["struct", "map", "pairs"])
def test_a_part_of_a_nested_column_can_be_read_alone(
    file: pq.ParquetFile, name: str
) -> None:
    for column in flat_columns(file.schema_arrow):
        if column.name.split(".")[0] == name:
            table = file.reader.read_row_group(0, column_indices=[column.leaf])
            part = column.name.removeprefix(name)
            wanted = {column.name: COLUMNS[name][1][part]}
            assert flatten_table(table).to_pydict() == wanted


def test_columns_that_are_flat_stay_the_very_same() -> None:
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    assert flatten_table(table) is table
    schema = pa.schema([pa.field("a", pa.int8(), nullable=False)])
    assert flat_schema(schema) == schema


def test_a_tensor_whose_axes_are_permuted_keeps_what_is_stored() -> None:
    kind = pa.fixed_shape_tensor(pa.int8(), [2, 3], permutation=[1, 0])
    (column,) = flat_columns(pa.schema([("t", kind)]))
    assert column.type.list_size == 6
