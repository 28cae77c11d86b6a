"""Any nesting of any types, with nulls at each level, against Arrow's own values."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_loader import ParquetDataset, Ragged

# Arrow type, what is written, what becomes of nulls.
LEAVES: list[tuple[pa.DataType, st.SearchStrategy[Any], Any]] = [
    (pa.int8(), st.integers(-128, 127), -1),
    (pa.uint64(), st.integers(0, 2**64 - 1), 2**63),
    (pa.float32(), st.floats(width=32, allow_nan=False), 0.5),
    (pa.bool_(), st.booleans(), True),
    (
        pa.decimal128(9, 2),
        st.integers(-(10**8), 10**8).map(lambda i: Decimal(i) / 100),
        7,
    ),
    (pa.timestamp("us", "Asia/Tokyo"), st.integers(0, 10**15), 5),
    (pa.string(), st.text("ab\N{SNOWMAN}", max_size=3), "?"),
    (pa.binary(), st.binary(max_size=3), b"?"),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from("abc"), "?"),
]
CONTAINERS: list[Callable[[pa.DataType], pa.DataType]] = [
    pa.list_,
    pa.large_list,
    lambda kind: pa.list_(kind, 2),
]


@st.composite
def columns(draw: Any) -> tuple[pa.Array, Any]:
    """Return an array of a random nesting, and a value for its nulls."""
    leaf, values, fill = draw(st.sampled_from(LEAVES))
    # None is a quarter of each level.
    items: st.SearchStrategy[Any] = st.one_of(values, values, values, st.none())
    kind, plain = leaf, leaf.value_type if pa.types.is_dictionary(leaf) else leaf
    for make in draw(st.lists(st.sampled_from(CONTAINERS), max_size=3)):
        kind, plain = make(kind), make(plain)
        length = 2 if pa.types.is_fixed_size_list(kind) else None
        lists = st.lists(items, min_size=length or 0, max_size=length or 3)
        items = st.one_of(lists, lists, lists, st.none())
    rows = draw(st.lists(items, min_size=1, max_size=12))
    return pa.array(rows, plain).cast(kind), fill


def wanted(item: Any, kind: pa.DataType, fill: Any) -> Any:
    """Return what is delivered: nulls filled, null lists empty or full of the filling."""
    if pa.types.is_fixed_size_list(kind):
        if item is None:
            item = [] if is_loose(kind) else [None] * kind.list_size
        return [wanted(part, kind.value_type, fill) for part in item]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [wanted(part, kind.value_type, fill) for part in item or []]
    if item is None:
        return fill
    if pa.types.is_decimal(kind):
        return int(item.scaleb(kind.scale))
    if pa.types.is_timestamp(kind):
        return pa.scalar(item, kind).value
    return item


def is_loose(kind: pa.DataType) -> bool:
    while pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    texts = (pa.string(), pa.binary())
    return kind in texts or pa.types.is_nested(kind) or pa.types.is_dictionary(kind)


def delivered(column: Any) -> list[Any]:
    if isinstance(column, Ragged):
        return [delivered(column.row(i)) for i in range(len(column.offsets) - 1)]
    return list(column) if isinstance(column, list) else list(column.numpy().tolist())


@settings(max_examples=150, deadline=None)
@given(column=columns(), shuffle=st.booleans(), batch_size=st.integers(1, 7))
def test_every_nesting_with_nulls_at_each_level_is_as_arrow_has_it(
    tmp_path_factory: Any, column: tuple[pa.Array, Any], shuffle: bool, batch_size: int
) -> None:
    array, fill = column
    path: Path = tmp_path_factory.mktemp("nested") / "a.parquet"
    table = pa.table({"id": range(len(array)), "x": array})
    pq.write_table(table, path, row_group_size=5)
    found: dict[int, Any] = {}
    with ParquetDataset(
        path,
        nulls={"x": fill},
        batch_size=batch_size,
        shuffle=shuffle,
        shuffle_window=4,
        client="threads",
        footer_cache=False,
    ) as dataset:
        for batch in dataset:
            rows = zip(batch["id"].tolist(), delivered(batch["x"]), strict=True)
            found.update(rows)
    expected = [wanted(item, array.type, fill) for item in array.to_pylist()]
    assert [found[i] for i in range(len(array))] == expected
    path.unlink()


def annotated(kind: pa.DataType, item: Any, mark: bytes) -> bytes:
    """Return a file whose one column "x" has a logical type that Arrow does not write."""
    sink = pa.BufferOutputStream()
    table = pa.table({"x": pa.array([item], kind)})
    pq.write_table(table, sink, store_schema=False)
    raw = sink.getvalue().to_pybytes()
    footer = raw[-8 - int.from_bytes(raw[-8:-4], "little") : -8]
    end = footer.index(b"\x18\x01x\x15\x04") + 5  # name, number of children
    marked = footer[:end] + mark + footer[end:]
    return (
        raw[: -8 - len(footer)] + marked + len(marked).to_bytes(4, "little") + b"PAR1"
    )


def test_a_variant_comes_as_its_two_parts(tmp_path: Path) -> None:
    kind = pa.struct(
        [pa.field(name, pa.binary(), nullable=False) for name in ("metadata", "value")]
    )
    item = {"metadata": b"\x01\0\0", "value": b"\x0c\x07"}
    # Field 10, logicalType: field 16 of the union, an empty VariantType.
    path = tmp_path / "a.parquet"
    path.write_bytes(annotated(kind, item, b"\x5c\x0c\x20\x00\x00"))
    assert "Variant" in str(pq.ParquetFile(path).schema)
    with ParquetDataset(path, client="threads") as dataset:
        assert dataset.peek() == {f"x.{name}": [value] for name, value in item.items()}
