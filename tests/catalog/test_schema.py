"""Columns asked for, and files that agree or not."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from dask_loader.catalog.schema import (
    check_columns,
    choose_columns,
    pack_schema,
    require_column,
    unpack_schema,
)
from dask_loader.errors import ColumnError

AGES = pa.schema([("age", pa.int64()), ("city", pa.string()), ("income", pa.float64())])


def test_a_list_of_names_is_kept_in_order() -> None:
    assert check_columns(["b", "a"]) == ("b", "a")
    assert check_columns(("b",)) == ("b",)
    assert check_columns(None) is None
    assert choose_columns(AGES, ("income", "age"), path="/f") == ("income", "age")
    assert choose_columns(AGES, None, path="/f") == ("age", "city", "income")


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ("age", r"columns='age' must be a list of names, such as columns=\['age'\]"),
        (
            {"age"},
            r"columns=\{'age'\} must be a list of names, such as columns=\['x', 'y'\]",
        ),
        ([], r"columns=\[\] asks for no column; name one, or leave it out"),
        (["age", 3], r"columns=\['age', 3\] holds 3, which is not text"),
        (
            ["a", "b", "a"],
            r"column 'a' stands twice in columns=\['a', 'b', 'a'\]; a batch",
        ),
    ],
)
def test_a_wrong_list_of_columns_is_refused(columns: Any, text: str) -> None:
    with pytest.raises(ColumnError, match=text):
        check_columns(columns)


def test_an_unknown_column_offers_near_names() -> None:
    with pytest.raises(
        ColumnError, match="columns names 'icome', which '/f' does"
    ) as e:
        choose_columns(AGES, ("age", "icome"), path="/f")
    assert str(e.value).endswith("did you mean 'income'?")
    assert (e.value.path, e.value.column) == ("/f", "icome")


def test_an_unknown_column_with_no_near_name_lists_some() -> None:
    with pytest.raises(ColumnError, match=r"it has 'age', 'city', 'income'$"):
        require_column(AGES, "zzz", "filters", path="/f")
    wide = pa.schema([(f"c{i:03}", pa.int8()) for i in range(20)])
    with pytest.raises(ColumnError, match=r"'c000', .*'c007' and 12 more$"):
        require_column(wide, "zzz", "columns", path="/f")


def test_a_name_that_stands_twice_in_the_file_is_refused_only_if_it_is_read() -> None:
    twice = pa.schema([("x", pa.int8()), ("y", pa.int8()), ("x", pa.int8())])
    assert choose_columns(twice, ("y",), path="/f") == ("y",)
    for columns in (None, ("y", "x")):
        with pytest.raises(
            ColumnError, match="'/f' has 2 columns called 'x'"
        ) as caught:
            choose_columns(twice, columns, path="/f")
        assert "leave them out with columns=[...]" in str(caught.value)
        assert caught.value.column == "x"


def test_a_packed_schema_comes_back_without_its_metadata() -> None:
    schema = pa.schema([("x", pa.list_(pa.float16(), 2))], metadata={"pandas": "{}"})
    assert unpack_schema(pack_schema(schema)).equals(schema.remove_metadata(), True)
