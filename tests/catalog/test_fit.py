"""Files that differ: one type for each column, whatever file comes first."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pyarrow as pa
import pytest

from dask_loader.catalog.fit import Agreement, agree, can_become, common_type
from dask_loader.catalog.schema import pack_schema
from dask_loader.errors import SchemaError

AGES = pa.schema([("age", pa.int64()), ("city", pa.string()), ("income", pa.float64())])
I8, I16, I32, I64 = pa.int8(), pa.int16(), pa.int32(), pa.int64()
U8, U16, U32, U64 = pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()
F16, F32, F64 = pa.float16(), pa.float32(), pa.float64()


def compare(
    *others: pa.Schema,
    names: Any = AGES.names,
    all_columns: bool = True,
    first: pa.Schema = AGES,
    given: pa.Schema | None = None,
) -> Agreement:
    schemas = [first, *others]
    return agree(
        first if given is None else given,
        [pack_schema(schema) for schema in schemas],
        [f"/{number}.parquet" for number in range(1, len(schemas) + 1)],
        names,
        all_columns=all_columns,
        given=given is not None,
    )


def test_order_nullability_and_metadata_may_differ() -> None:
    reordered = pa.schema([AGES.field(i) for i in (2, 0, 1)], metadata={"k": "v"})
    fields = [f.with_nullable(False).with_metadata({"k": "v"}) for f in AGES]
    assert compare(reordered, pa.schema(fields)) == Agreement({}, {})


def test_a_missing_column_names_both_files_and_offers_a_schema() -> None:
    with pytest.raises(
        SchemaError, match="files disagree about column 'city'"
    ) as caught:
        compare(AGES.remove(1))
    text = str(caught.value)
    assert "it has type string in '/1.parquet' and is missing in '/2.parquet'" in text
    assert "leave the column out with columns=[...]" in text
    assert "with schema= (a pyarrow schema: a column that a file lacks is null" in text
    assert (caught.value.path, caught.value.column) == ("/2.parquet", "city")


def test_types_without_one_in_common_name_both_files_and_both_types() -> None:
    other = AGES.set(0, pa.field("age", pa.string()))
    with pytest.raises(
        SchemaError, match="files disagree about column 'age'"
    ) as caught:
        compare(other)
    text = "has type int64 in '/1.parquet' and has type string in '/2.parquet'"
    assert text in str(caught.value)
    compare(other, names=["city"], all_columns=False)


def test_a_column_that_another_file_has_twice_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"'/2\.parquet' has 2 columns called 'age'"):
        compare(AGES.append(pa.field("age", pa.int64())))


def test_one_column_more_matters_only_where_all_are_read() -> None:
    more = AGES.append(pa.field("extra", pa.int8()))
    compare(more, all_columns=False)
    with pytest.raises(SchemaError, match=r"'extra': '/2\.parquet' has it, '/1") as e:
        compare(more)
    assert "name the columns to read with columns=[...]" in str(e.value)
    assert (e.value.path, e.value.column) == ("/2.parquet", "extra")


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        ([I32, I64], I64),
        ([I8, U8], I16),
        ([U8, U32], U32),
        ([U32, I8, I16], I64),
        ([U64, I8], None),
        ([F32, F64], F64),
        ([F16, F32], F32),
        ([I16, F32], F32),
        ([I32, F32], F64),
        ([I32, U32, F64], F64),
        ([I64, F64], None),
        ([I64, F32, I8], None),
        ([pa.null(), I32], I32),
        ([pa.null(), pa.null()], pa.null()),
        ([pa.null(), pa.string(), pa.large_string()], pa.large_string()),
        ([pa.binary(), pa.large_binary()], pa.large_binary()),
        ([pa.string(), pa.binary()], None),
        ([I64, pa.string()], None),
        ([pa.bool_(), I8], None),
        ([pa.timestamp("ms"), pa.timestamp("us")], None),
        ([pa.decimal128(5, 2), pa.decimal128(7, 2)], None),
    ],
)
def test_types_widen_to_one_that_holds_all_values_in_any_order(
    kinds: list[pa.DataType], common: pa.DataType | None
) -> None:
    for order in permutations(kinds):
        assert common_type(order) == common
        schemas = [pa.schema([("x", kind)]) for kind in order]
        if common is None:
            with pytest.raises(SchemaError, match="files disagree about column 'x'"):
                compare(*schemas[1:], first=schemas[0], names=["x"])
            continue
        found = compare(*schemas[1:], first=schemas[0], names=["x"])
        assert found.types == ({} if len(set(kinds)) == 1 else {"x": common})


@pytest.mark.parametrize(
    ("kind", "target", "becomes"),
    [
        (I32, I64, True),
        (I64, I32, False),
        (I64, F64, True),  # value by value
        (F64, F32, False),
        (pa.date32(), pa.timestamp("us"), True),
        (pa.date32(), pa.timestamp("us", "UTC"), False),
        (pa.timestamp("ms"), pa.timestamp("us"), True),
        (pa.timestamp("us"), pa.timestamp("ms"), False),
        (pa.timestamp("ms", "UTC"), pa.timestamp("ms"), False),
        (pa.large_string(), pa.string(), True),
        (pa.string(), I64, False),
        (pa.large_list(I32), pa.large_list(I64), True),
        (pa.large_list(I64), pa.large_list(pa.string()), False),
        (pa.decimal128(5, 2), pa.decimal128(9, 3), True),
        (pa.decimal128(5, 3), pa.decimal128(9, 2), False),
    ],
)
def test_a_given_schema_may_widen_more(
    kind: pa.DataType, target: pa.DataType, becomes: bool
) -> None:
    assert can_become(kind, target) == becomes
    given = pa.schema([("x", target)])
    first = pa.schema([("x", kind), ("other", pa.int8())])
    if becomes:
        found = compare(first=first, given=given, names=["x"], all_columns=False)
        assert found.types == {"x": target}
        return
    with pytest.raises(SchemaError, match="schema= gives column 'x' the type") as e:
        compare(first=first, given=given, names=["x"], all_columns=False)
    assert "which does not become that" in str(e.value)
    assert (e.value.path, e.value.column) == ("/1.parquet", "x")


def test_with_a_given_schema_columns_may_be_missing() -> None:
    lacking = AGES.remove(1)
    found = compare(lacking, given=AGES, all_columns=False)
    assert found.types == {"city": pa.string()}
    assert found.missing == {pack_schema(lacking): ("city",)}
