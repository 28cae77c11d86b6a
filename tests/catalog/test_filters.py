"""Filters as users write them, and which row groups they leave over."""

from __future__ import annotations

from collections.abc import Callable
from os.path import getsize
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_loader.catalog.catalog import Catalog
from dask_loader.catalog.filters import filter_columns, filter_text, make_filter
from dask_loader.errors import ColumnError, ConfigError

Write = Callable[..., str]
Read = Callable[..., Catalog]

TABLE = pa.table(
    {
        "day": pa.array([1, 2, 3, 4, None], pa.int64()),
        "city": ["a", "b", "a", None, "c"],
        "price": [0.5, 1.5, None, 2.5, 3.5],
        "place": [{"lat": i, "lon": -i} for i in range(5)],
    }
)


def kept(filters: Any) -> list[int]:
    """Indices of TABLE's rows that the filters keep."""
    expression = make_filter(filters, TABLE.schema, path="/f")
    numbered = TABLE.append_column("row", pa.array(range(5)))
    rows: list[int] = numbered.filter(expression)["row"].to_pylist()
    return rows


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ([("day", "=", 2)], [1]),
        ([("day", "==", 2)], [1]),
        ([("day", "!=", 2)], [0, 2, 3]),
        ([("day", "<", 2)], [0]),
        ([("day", "<=", 2)], [0, 1]),
        ([("day", ">", 3)], [3]),
        ([("day", ">=", 3)], [2, 3]),
        ([("day", "in", [1, 3])], [0, 2]),
        ([("city", "not in", {"a"})], [1, 3, 4]),
        ([("day", ">", 1), ("city", "=", "a")], [2]),
        ([[("day", ">", 1), ("city", "=", "a")]], [2]),
        ([[("day", "=", 1)], [("city", "=", "b")], [("price", ">", 3.0)]], [0, 1, 4]),
        (pc.field("city").is_null() | (pc.field("place", "lat") == 0), [0, 3]),
        (pc.field("day") + 1 > pc.field("price") * 2, [0]),
    ],
)
def test_filters_keep_the_rows_that_pyarrow_keeps(
    filters: Any, rows: list[int]
) -> None:
    assert kept(filters) == rows


def test_no_filters_are_no_expression() -> None:
    assert make_filter(None, TABLE.schema, path="/f") is None
    assert filter_columns(None, TABLE.schema) == ()


def test_the_columns_that_an_expression_reads_are_found() -> None:
    for expression, names in (
        (pc.field("day") > 1, ("day",)),
        ((pc.field("price") > 1) & (pc.field("day") < 1), ("day", "price")),
        (pc.field("place", "lon") == 0, ("place",)),
        (
            pc.if_else(pc.field("city").is_null(), True, pc.field("day") > 1),
            ("day", "city"),
        ),
        (pc.scalar(True), ()),
    ):
        assert filter_columns(expression, TABLE.schema) == names
    only = pa.schema([("x", pa.int8())])
    assert filter_columns(pc.field("x") > 1, only) == ("x",)


@pytest.mark.parametrize(
    "filters", [[], (), "day > 1", {"day": 1}, (("day", "=", 1),), 3]
)
def test_filters_of_a_wrong_shape_are_refused(filters: Any) -> None:
    with pytest.raises(ConfigError, match="must be a non-empty list of") as caught:
        kept(filters)
    assert f"filters={filters!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("filters", "term"),
    [
        ([("day", "=")], ("day", "=")),
        ([["day", "=", 1]], "day"),
        ([("day", "=", 1), [("city", "=", "a")]], [("city", "=", "a")]),
        ([(1, "=", 1)], (1, "=", 1)),
        (["day"], "day"),
    ],
)
def test_a_condition_of_a_wrong_shape_is_named(filters: Any, term: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"must be a tuple \(column, op, value\)"
    ) as e:
        kept(filters)
    assert f"holds {term!r}; each part" in str(e.value)


@pytest.mark.parametrize("once", [iter([1, 2]), (i for i in (1, 2)), map(int, "12")])
def test_values_that_can_be_read_only_once_are_refused(once: Any) -> None:
    # They would be used up by the first look, and then keep no row.
    with pytest.raises(
        ConfigError,
        match="compares 'day' with an iterator, which can be read only once",
    ):
        kept([("day", "in", once)])


def test_lists_without_any_condition_are_refused() -> None:
    for filters in ([[]], [[], []]):
        with pytest.raises(ConfigError, match="holds no condition; leave it out"):
            kept(filters)


def test_an_unknown_operator_is_named_beside_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="uses the operator '=>'; known are =, ==, !="
    ) as e:
        kept([("day", "=>", 1)])
    assert "not in" in str(e.value)


def test_an_unknown_column_offers_near_names() -> None:
    with pytest.raises(
        ColumnError, match="filters names 'dya', which '/f' does not"
    ) as e:
        kept([[("city", "=", "a")], [("dya", "=", 1)]])
    assert str(e.value).endswith("did you mean 'day'?")


def test_an_expression_with_an_unknown_column_is_refused() -> None:
    with pytest.raises(ColumnError, match="filters names 'dya'") as caught:
        kept(pc.field("dya") == 1)
    assert "did you mean 'day'?" in str(caught.value)


@pytest.mark.parametrize(
    "filters", [[("city", ">", 3)], [("day", "=", "x")], pc.field("day") + 1]
)
def test_a_value_of_the_wrong_type_is_refused(filters: Any) -> None:
    with pytest.raises(ConfigError, match="do not fit the columns of '/f'") as caught:
        kept(filters)
    assert "compare each column with a value of its own type" in str(caught.value)


@pytest.mark.parametrize(
    "filters", [[("day", "in", 3)], [("day", "=", object())], [[("day", "=", 1)], []]]
)
def test_what_pyarrow_cannot_turn_into_an_expression_is_refused(filters: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be used: ") as caught:
        kept(filters)
    assert "filters=" in str(caught.value)


def test_statistics_rule_row_groups_out(write: Write, read: Read) -> None:
    path = write("a.parquet", {"x": range(100), "y": [0] * 100}, row_group_size=10)
    catalog = read(path, filters=[("x", ">=", 35), ("x", "<", 60)])
    assert catalog.num_kept.tolist() == [0, 0, 0, 10, 10, 10, 0, 0, 0, 0]
    assert catalog.filter_columns == ("x",)
    assert read(path, filters=[("y", "=", 1)]).total_rows == 0


def test_without_statistics_no_row_group_is_ruled_out(write: Write, read: Read) -> None:
    path = write(
        "a.parquet", {"x": range(20)}, row_group_size=10, write_statistics=False
    )
    catalog = read(path, filters=[("x", ">", 100)])
    assert catalog.num_kept.tolist() == [10, 10]


_ITEMS = st.lists(st.sampled_from([None, 0, 1, 2, 3]), min_size=1, max_size=12)
_X = pc.field("x")
_CONDITIONS = {
    "less": _X < 2,
    "not less": ~(_X < 2),
    "other": _X != 1,
    "one of": _X.isin([1]),
    "none of": ~_X.isin([1]),
    "none of with null": ~_X.isin(pa.array([1, None], pa.int64())),
    "null": _X.is_null(),
    "no null": _X.is_valid(),
    "or": (_X < 1) | (_X > 2),
    "sum": _X + 1 > 3,
    "coalesce": pc.coalesce(_X, pc.scalar(5)) > 4,
    "like": pc.starts_with(_X.cast("string"), "3"),
}


@settings(max_examples=25, deadline=None)
@given(items=_ITEMS, rows=st.integers(1, 4), text=st.booleans())
def test_no_row_that_the_filters_keep_lies_in_a_row_group_ruled_out(
    items: list[int | None],
    rows: int,
    text: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    import pyarrow.parquet as pq

    from dask_loader.catalog.footers import FooterQuery, read_footers
    from dask_loader.catalog.storage import Storage

    table = pa.table({"x": pa.array(items, pa.int64())})
    path = str(tmp_path_factory.mktemp("kept") / "a.parquet")
    pq.write_table(table, path, row_group_size=rows, use_dictionary=text)
    for name, expression in _CONDITIONS.items():
        query = FooterQuery(
            storage=Storage("file"), expression=expression, filter_columns=("x",)
        )
        (alive,) = read_footers(query, [(path, getsize(path))])["survives"].to_pylist()
        survivors = {i for i, kept in enumerate(alive) if kept}
        parts = [table.slice(i, rows) for i in range(0, len(items), rows)]
        needed = {i for i, part in enumerate(parts) if part.filter(expression).num_rows}
        assert needed <= survivors, name


def test_filters_that_differ_have_texts_that_differ() -> None:
    one, two = ("day", "=", 1), ("city", "=", "a")
    many = list(range(100))
    texts = []
    for filters in (
        None,
        [one],
        [one, two],
        [[one], [two]],
        [[one, two], [two]],
        [[one], [two, two]],
        [("day", "in", [1, 2])],
        [("day", "in", (2, 1))],
        [("day", "in", many)],
        [("day", "in", [*many[:50], 500, *many[51:]])],
        pc.field("day").isin(many),
        pc.field("day").isin([*many[:50], 500, *many[51:]]),
    ):
        expression = make_filter(filters, TABLE.schema, path="/f")
        texts.append(filter_text(filters, expression, TABLE.schema))
    assert len(set(texts)) == len(texts)


def test_filters_that_are_the_same_have_the_same_text() -> None:
    def text(filters: Any) -> str:
        expression = make_filter(filters, TABLE.schema, path="/f")
        return filter_text(filters, expression, TABLE.schema)

    one, two = ("day", "=", 1), ("city", "=", "a")
    assert text([one, two]) == text([[one, two]])
    assert text([("city", "in", {"a", "b"})]) == text([("city", "in", {"b", "a"})])


def test_a_column_that_is_named_by_its_number_is_refused() -> None:
    schema = pa.schema({"a": pa.int64(), "s": pa.struct({"b": pa.int64()})})
    for wrong in (pc.field(0) > 5, (pc.field("a") > 5) & (pc.field(0) < 9)):
        with pytest.raises(
            ConfigError, match=r"by its number \(FieldPath\(0\)\), which"
        ):
            make_filter(wrong, schema, path="/f")
    fine = pc.struct_field(pc.field("s"), [0]) > 5
    assert make_filter(fine, schema, path="/f") is fine
    schema = pa.schema({"a": pa.string()})
    assert make_filter(pc.field("a") == "FieldPath(0)", schema, path="/f") is not None
