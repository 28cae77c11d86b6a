"""Every type of the table in docs/types.md, written, read, and compared with pyarrow."""

from __future__ import annotations

import datetime
import random
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from dask_loader import (
    CastError,
    ColumnError,
    ConfigError,
    DataLoader,
    NullError,
    ParquetDataset,
    Ragged,
)
from dask_loader.catalog.flat import flatten_table

DOCS = Path(__file__).parent.parent / "docs" / "types.md"
ROWS = 203
_ROW = re.compile(r"^\| `(pa\..*?)` \| (.*?) \|", re.MULTILINE)
TABLE = [(m[1], m[2]) for m in _ROW.finditer(DOCS.read_text())]


def test_the_table_has_rows() -> None:
    assert len(TABLE) > 40


# ---- values of any type -----------------------------------------------------------------


def value(kind: pa.DataType, rng: random.Random) -> Any:
    """Return a random Python value that pa.array takes for the type."""
    types = pa.types
    if types.is_null(kind):
        return None
    if types.is_boolean(kind):
        return rng.random() < 0.5
    if types.is_integer(kind):
        signed = types.is_signed_integer(kind)
        bits = kind.bit_width - signed
        return rng.randrange(-(2**bits) if signed else 0, 2**bits)
    if types.is_floating(kind):
        return np.float16(rng.gauss(0, 9)).item()
    if types.is_decimal(kind):
        digits = rng.randrange(10**kind.precision)
        return Decimal(digits).scaleb(-kind.scale) * rng.choice([-1, 1])
    if types.is_date(kind):
        return datetime.date(1900, 1, 1) + datetime.timedelta(rng.randrange(90_000))
    if types.is_temporal(kind):
        most = 86_400 * 10 ** {"s": 0, "ms": 3, "us": 6, "ns": 9}[kind.unit]
        # Arrow hands out nanoseconds as Python values only where they are microseconds.
        return rng.randrange(most) // 1000 * 1000
    if types.is_fixed_size_binary(kind):
        return rng.randbytes(kind.byte_width)
    if (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
    ):
        return rng.randbytes(rng.randrange(5))
    if types.is_fixed_size_list(kind):
        return [value(kind.value_type, rng) for _ in range(kind.list_size)]
    if hasattr(kind, "value_type") and not types.is_dictionary(kind):
        return [value(kind.value_type, rng) for _ in range(rng.randrange(5))]
    return "".join(rng.choice("ab\N{SNOWMAN}") for _ in range(rng.randrange(5)))


def array(kind: pa.DataType, *, nulls: bool = False) -> pa.Array:
    rng = random.Random(str(kind))
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(
            kind, array(kind.storage_type, nulls=nulls)
        )
    plain = plain_type(kind)
    values = [
        None if nulls and rng.random() < 0.3 else value(plain, rng) for _ in range(ROWS)
    ]
    made = pa.array(values, plain)
    if pa.types.is_dictionary(kind):  # Arrow casts to dictionaries of text only
        encoded = made.dictionary_encode()
        index = encoded.indices.cast(kind.index_type)
        return pa.DictionaryArray.from_arrays(index, encoded.dictionary)
    return made.cast(kind)


def plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    return kind


def expected(column: pa.ChunkedArray) -> list[Any]:
    """Return Arrow's own values, times and decimals as numbers."""
    return [number(v, column.type) for v in column.to_pylist()]


def number(item: Any, kind: pa.DataType) -> Any:
    if item is None:
        return None
    if isinstance(item, list):
        return [number(v, kind.value_type) for v in item]
    if pa.types.is_decimal(kind):
        return int(item.scaleb(kind.scale))
    if pa.types.is_temporal(kind):
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        return pa.scalar(item, kind).cast(width).as_py()
    return item


def delivered(column: Any) -> list[Any]:
    if isinstance(column, torch.Tensor):
        return list(column.numpy().tolist())
    if not isinstance(column, Ragged):
        return list(column)
    rows = (column.row(i) for i in range(len(column.offsets) - 1))
    return [delivered(row) for row in rows]


def described(column: Any) -> str:
    if isinstance(column, torch.Tensor):
        return f"tensor {str(column.dtype).removeprefix('torch.')}"
    if not isinstance(column, Ragged):
        return f"list of {type(column[0]).__name__}"
    inner = described(column.values)
    return f"Ragged {inner.removeprefix('tensor ').replace('list of', 'of')}".replace(
        "Ragged Ragged", "Ragged of Ragged"
    )


def make(path: Path, **options: Any) -> ParquetDataset:
    return ParquetDataset(path, **{"client": "threads", "batch_size": 64, **options})


def read(path: Path, **options: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    with make(path, **options) as dataset:
        for batch in dataset:
            for name, column in batch.items():
                found.setdefault(name, []).extend(delivered(column))
    return found


@pytest.mark.parametrize(("spelled", "form"), TABLE, ids=[row[0] for row in TABLE])
def test_a_type_arrives_in_its_form_with_every_value(
    tmp_path: Path, spelled: str, form: str
) -> None:
    kind = eval(spelled, {"pa": pa})  # a line of our own docs
    path = tmp_path / "a.parquet"
    table = pa.table({"id": range(ROWS), "x": array(kind)})
    pq.write_table(table, path, row_group_size=70)
    flat = flatten_table(pq.read_table(path))
    nulls = {"nulls": "nan"} if kind == pa.null() else {}
    with make(path, **nulls) as dataset:
        batch = dataset.peek()
        assert described(batch["x"]) == form
        assert dataset.schema.field("x").type == flat.schema.field("x").type
    wanted = expected(flat["x"])
    if kind == pa.null():
        assert np.isnan(read(path, **nulls)["x"]).all()
        return
    assert read(path)["x"] == wanted
    mixed = read(path, shuffle=True, shuffle_window=50)
    assert [wanted[i] for i in mixed["id"]] == mixed["x"]
    kept = read(path, filters=[("id", ">=", 30), ("id", "<", 170)])
    assert kept["x"] == wanted[30:170]


@pytest.mark.parametrize(("spelled", "form"), TABLE, ids=[row[0] for row in TABLE])
def test_nulls_of_a_type_are_an_error_or_what_the_user_says(
    tmp_path: Path, spelled: str, form: str
) -> None:
    kind = eval(spelled, {"pa": pa})  # a line of our own docs
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": array(kind, nulls=True)}), path, row_group_size=70)
    with pytest.raises(NullError, match=r"column 'x' has .*nulls in .*, row group 0"):
        read(path)
    fill: Any = {"str": "z", "bytes": b"z" * 16}.get(form.split()[-1], 1)
    wanted = expected(flatten_table(pq.read_table(path))["x"])
    found = read(path, nulls={"x": fill})["x"]
    for got, want in zip(found, wanted, strict=True):
        if want is not None:
            assert got == want
        elif form.startswith("Ragged"):
            assert got == []
        else:
            assert np.unique(np.array(got, dtype=object)).tolist() == [fill]
    if form == "list of str":
        assert read(path, nulls={"x": None})["x"] == wanted


# ---- nested -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nested") / "a.parquet"
    lists = [list(range(i % 4)) for i in range(ROWS)]
    kind = pa.struct([("a", pa.int64()), ("b", pa.struct([("c", pa.float32())]))])
    table = pa.table(
        {
            "id": range(ROWS),
            "s": pa.array([{"a": i, "b": {"c": i / 2}} for i in range(ROWS)], kind),
            "m": pa.array(
                [[(str(v), v) for v in row] for row in lists],
                pa.map_(pa.string(), pa.int32()),
            ),
            "l": pa.array([[{"x": v, "y": -v} for v in row] for row in lists]),
        }
    )
    pq.write_table(table, path, row_group_size=60)
    return path


def test_nested_columns_come_as_columns_of_their_own(nested: Path) -> None:
    found = read(nested, shuffle=True, shuffle_window=90)
    assert list(found) == ["id", "s.a", "s.b.c", "m.key", "m.value", "l.x", "l.y"]
    assert sorted(found["id"]) == list(range(ROWS))
    for i, *values in zip(*found.values(), strict=True):
        row = list(range(i % 4))
        text = [str(v) for v in row]
        assert values == [i, i / 2, text, row, row, [-v for v in row]]


def test_a_part_is_named_alone_and_others_are_not_read(nested: Path) -> None:
    found = read(nested, columns=["l.y", "s.b.c"], dtypes={"l.y": torch.float64})
    assert list(found) == ["l.y", "s.b.c"]
    assert found["l.y"][7] == [0.0, -1.0, -2.0]
    with make(nested, columns=["l.y"], dtypes={"l.y": "float64"}) as dataset:
        assert dataset.peek()["l.y"].values.dtype == torch.float64
    with pytest.raises(ColumnError, match=r"columns names 's.d'.*did you mean 's.a'"):
        make(nested, columns=["s.d"])
    with pytest.raises(ColumnError, match="columns names 's'"):
        make(nested, columns=["s"])


@pytest.mark.parametrize(
    "filters",
    [
        [("s.a", ">=", 100)],
        pc.field("s.a") >= 100,
        pc.field("s", "a") >= 100,
        pc.struct_field(pc.field("s"), "a") >= 100,
    ],
)
def test_filters_name_a_part_by_either_spelling(nested: Path, filters: Any) -> None:
    assert read(nested, columns=["id"], filters=filters)["id"] == list(range(100, ROWS))


def test_a_null_struct_is_a_null_in_each_part(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    kind = pa.struct([("a", pa.int64()), ("b", pa.string())])
    pq.write_table(pa.table({"s": pa.array([{"a": 1, "b": "x"}, None], kind)}), path)
    with pytest.raises(NullError, match=r"column 's.a' has 1 nulls"):
        make(path)
    assert read(path, nulls={"s.a": 7, "s.b": None}) == {
        "s.a": [1, 7],
        "s.b": ["x", None],
    }


def test_nulls_within_lists_are_an_error_or_filled(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [[1.5, None], [], None, [2.5]]
    texts = [["a", None], None, [], ["b"]]
    pq.write_table(
        pa.table({"f": pa.array(rows, pa.list_(pa.float32())), "t": texts}), path
    )
    with pytest.raises(NullError, match=r"column 'f' has 1 nulls.*nulls=\"nan\""):
        read(path, columns=["f"])
    assert read(path, columns=["f"], nulls={"f": 0})["f"] == [[1.5, 0], [], [], [2.5]]
    first, *rest = read(path, columns=["f"], nulls="nan")["f"]
    assert (first[0], np.isnan(first[1]), rest) == (1.5, True, [[], [], [2.5]])
    found = read(path, columns=["t"], nulls={"t": "?"})["t"]
    assert found == [["a", "?"], [], [], ["b"]]
    found = read(path, columns=["t"], nulls={"t": None})["t"]
    assert found == [["a", None], [], [], ["b"]]


def test_a_list_that_is_not_null_may_hold_the_only_nulls(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"f": pa.array([[1], [None]], pa.list_(pa.int8()))}), path)
    with pytest.raises(NullError, match="column 'f' has 1 nulls"):
        read(path)


# ---- casts ------------------------------------------------------------------------------


def test_decimals_are_rounded_where_floats_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    long = pa.array([Decimal("1e20"), Decimal("-0.25")], pa.decimal128(30, 2))
    short = pa.array([Decimal("12.34"), Decimal("0.5")], pa.decimal128(6, 2))
    pq.write_table(pa.table({"long": long, "short": short}), path)
    found = read(path, dtypes={"long": torch.float64, "short": torch.float32})
    assert found["long"] == [1e20, -0.25]
    assert found["short"] == pytest.approx([12.34, 0.5])
    assert read(path, columns=["short"])["short"] == [1234, 50]
    found = read(path, features={"x": ["long", "short"]}, dtypes={"x": "float64"})
    assert found["x"] == [[1e20, 12.34], [-0.25, 0.5]]


def test_lists_are_cast_as_their_numbers_are(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"l": [[1, 300], [2]]}), path)
    assert read(path, dtypes={"l": torch.int16})["l"] == [[1, 300], [2]]
    with pytest.raises(CastError, match=r"column 'l' .* as uint8, .*300 does not fit"):
        read(path, dtypes={"l": torch.uint8})
    with pytest.raises(ConfigError, match="a column of int64 is not cast to bool"):
        make(path, dtypes={"l": torch.bool})
    with pytest.raises(ConfigError, match="rows are not single numbers"):
        make(path, features={"x": ["l"]})


# ---- other ways out ---------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_lists_travel_from_workers_and_come_as_single_rows(
    nested: Path, num_workers: int
) -> None:
    with make(nested, shuffle=True, shuffle_window=50) as dataset:
        for batch in DataLoader(dataset, num_workers=num_workers):
            for row, i in enumerate(batch["id"].tolist()):
                assert batch["l.x"].row(row).tolist() == list(range(i % 4))
                assert batch["m.key"].row(row) == [str(v) for v in range(i % 4)]
    with make(nested, batch_size=None, columns=["id", "l.x", "m.key"]) as dataset:
        for single in dataset:
            i = int(single["id"])
            assert isinstance(single["l.x"], np.ndarray)
            assert single["l.x"].tolist() == list(range(i % 4))
            assert single["m.key"] == [str(v) for v in range(i % 4)]


@pytest.mark.cluster
@pytest.mark.parametrize("way", ["memory", "comm"])
def test_nested_columns_come_from_a_cluster_as_from_threads(
    nested: Path, local_cluster: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", way)
    options = {"shuffle": True, "shuffle_window": 50}
    assert read(nested, client=local_cluster, **options) == read(nested, **options)


def test_a_batch_of_lists_outlives_the_dataset_and_is_the_users(nested: Path) -> None:
    with make(nested, batch_size=ROWS, columns=["l.x"]) as dataset:
        first = next(iter(dataset))["l.x"]
        first.values.zero_()
        again = dataset.peek()["l.x"]
    assert int(again.values.sum()) > 0
    assert int(first.values.sum()) == 0


def test_a_column_of_lists_becomes_a_torch_nested_tensor(nested: Path) -> None:
    with make(nested, batch_size=8, columns=["l.x", "m.key"]) as dataset:
        batch = dataset.peek()
    rows = batch["l.x"].nested().unbind()
    assert [row.tolist() for row in rows] == [list(range(i % 4)) for i in range(8)]
    with pytest.raises(TypeError, match="holds lists of numbers only"):
        batch["m.key"].nested()


def test_to_delayed_keeps_arrows_types_of_flat_columns(nested: Path) -> None:
    with make(nested) as dataset:
        tables = [part.compute(scheduler="sync") for part in dataset.to_delayed()]
    wanted = flatten_table(pq.read_table(nested))
    assert pa.concat_tables(tables).to_pydict() == wanted.to_pydict()
