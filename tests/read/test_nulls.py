"""What becomes of nulls: refused by name, or replaced as the user said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dask_loader.catalog.forms import Form
from dask_loader.errors import ConfigError, NullError
from dask_loader.read.files import OpenFiles
from dask_loader.read.nulls import NullPolicy, make_null_policy, null_error
from dask_loader.read.task import WindowTask
from dask_loader.read.window import read_window

Write = Callable[..., str]
Plan = Callable[..., WindowTask]
Allocate = Callable[[int], Any]

FORMS = (
    Form("i", "int8"),
    Form("u", "uint64"),
    Form("f", "float32"),
    Form("b", "bool"),
    Form("t", "int64"),
    Form("s", ""),
    Form("l", "float16", (3,)),
)
COLUMNS = {
    "i": pa.array([1, None, 3, None], pa.int8()),
    "u": pa.array([2**64 - 1, None, 3, 4], pa.uint64()),
    "f": pa.array([None, 0.5, float("nan"), 1.5], pa.float32()),
    "h": pa.array([None, 0.5, 1.0, None], pa.float64()).cast(pa.float16()),
    "b": pa.array([True, None, False, None]),
    "t": pa.array([None, 2, 3, 4], pa.timestamp("ms")),
    "d": pa.array([1, 2, 3, None], pa.date32()),
    "s": pa.array(["a", None, "", "d"]),
    "y": pa.array([b"a", None, b"", None]),
    "l": pa.array([[1, 2], None, [None, 4], [5, 6]], pa.list_(pa.float32(), 2)),
}
FILLS = {
    "i": -128,
    "u": 2**64 - 1,
    "f": -1.5,
    "h": 0.25,
    "b": True,
    "t": -(2**63),
    "d": 7,
    "s": "?",
    "y": b"none",
    "l": 9,
}
FILLED = {
    "i": [1, -128, 3, -128],
    "u": [2**64 - 1, 2**64 - 1, 3, 4],
    "h": [0.25, 0.5, 1.0, 0.25],
    "b": [True, True, False, True],
    "t": [-(2**63), 2, 3, 4],
    "d": [1, 2, 3, 7],
    "l": [[1, 2], [9, 9], [9, 4], [5, 6]],
    "s": ["a", "?", "", "d"],
    "y": [b"a", b"none", b"", b"none"],
}


def delivered(window: Any) -> dict[str, list[Any]]:
    found = {name: array.tolist() for name, array in window.arrays.items()}
    return found | {name: text.to_pylist() for name, text in window.texts.items()}


@pytest.mark.parametrize("filters", [None, [("i", "not in", [77])]])
@pytest.mark.parametrize("key", [None, ("k",)])
def test_nulls_of_every_type_take_the_users_fill(
    write: Write,
    plan: Plan,
    files: OpenFiles,
    allocate: Allocate,
    filters: Any,
    key: Any,
) -> None:
    path = write("a.parquet", COLUMNS, row_group_size=3)
    task = plan([path], nulls=FILLS, filters=filters, key=key)
    found = delivered(read_window(task, files, allocate))
    order = range(4)
    if key is not None:
        from dask_loader.plan.order import permutation

        order = permutation(4, *key).tolist()
    for name, expected in FILLED.items():
        assert found[name] == [expected[i] for i in order], name
    floats = [found["f"][list(order).index(i)] for i in range(4)]
    assert [floats[0], floats[1], floats[3]] == [-1.5, 0.5, 1.5]
    assert np.isnan(floats[2])


def test_none_keeps_the_nulls_of_text(
    write: Write, plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    path = write("a.parquet", {name: COLUMNS[name] for name in ("s", "y")})
    for key in (None, ("k",)):
        task = plan([path], nulls={"s": None, "y": None}, key=key)
        found = delivered(read_window(task, files, allocate))
        assert sorted(found["s"], key=str) == sorted(["a", None, "", "d"], key=str)
        assert sorted(found["y"], key=str) == sorted([b"a", None, b"", None], key=str)


def test_nan_fills_floats_and_refuses_all_others(
    write: Write, plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    floats = {name: COLUMNS[name] for name in ("f", "h", "l")}
    task = plan([write("a.parquet", floats)], nulls="nan")
    window = read_window(task, files, allocate)
    assert np.isnan(window.arrays["f"]).tolist() == [True, False, True, False]
    assert np.isnan(window.arrays["h"]).tolist() == [True, False, False, True]
    assert np.isnan(window.arrays["l"]).tolist() == [
        [False, False],
        [True, True],
        [True, False],
        [False, False],
    ]
    path = write("b.parquet", {name: COLUMNS[name] for name in ("f", "i")})
    with pytest.raises(NullError, match="column 'i' has 2 nulls"):
        read_window(plan([path], nulls="nan"), files, allocate)


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("filters", [None, [("x", ">=", 0)]])
def test_nulls_without_a_policy_are_refused_with_their_place(
    write: Write,
    plan: Plan,
    files: OpenFiles,
    allocate: Allocate,
    name: str,
    filters: Any,
) -> None:
    column = COLUMNS[name]
    whole = pa.table({"x": range(4), name: column.drop_null().take(pa.array([0] * 4))})
    some = pa.table({"x": range(4), name: column})
    first, path = write("1.parquet", whole), write("2.parquet", some, row_group_size=2)
    # The first row group of the second file that has nulls (in the list: elements too).
    group = 0 if column.slice(0, 2).null_count else 1
    task = plan([first, path], columns=(name, "x"), filters=filters)
    for key in (None, ("k",)):
        with pytest.raises(NullError, match=f"column '{name}' has 1 nulls") as caught:
            read_window(
                plan([first, path], columns=(name, "x"), filters=filters, key=key),
                files,
                allocate,
            )
    assert f"in {path!r}, row group {group}" in str(caught.value)
    assert f"nulls={{'{name}': value}}" in str(caught.value)
    assert f"pyarrow.compute.field('{name}').is_null()" in str(caught.value)
    error = caught.value
    assert (error.path, error.row_group, error.column) == (path, group, name)
    assert task.options.nulls == NullPolicy()


def test_filters_that_drop_the_nulls_leave_none_to_refuse(
    write: Write, plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    path = write("a.parquet", {"i": COLUMNS["i"]})
    task = plan([path], [(0, 0, 2)], filters=[("i", ">", 0)])
    assert read_window(task, files, allocate).arrays["i"].tolist() == [1, 3]


def test_rows_outside_the_slice_may_be_null(
    write: Write, plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    path = write("a.parquet", {"x": [None, 1, 2, None], "s": [None, "a", "b", None]})
    window = read_window(plan([path], [(0, 1, 3)]), files, allocate)
    assert delivered(window) == {"x": [1, 2], "s": ["a", "b"]}


def test_the_text_offers_nan_for_floats_only() -> None:
    place = {"path": "/f.parquet", "row_group": 3}
    assert 'nulls="nan"' in str(null_error(Form("f", "float16"), 2, **place))
    for form in (Form("i", "int8"), Form("s", "")):
        assert "nan" not in str(null_error(form, 2, **place))
    unknown = str(null_error(Form("i", "int8"), -1, **place))
    assert "column 'i' has nulls in '/f.parquet', row group 3; choose" in unknown
    total = str(null_error(Form("i", "int8"), 2, where=" (9 in all)", **place))
    assert "row group 3 (9 in all); choose" in total


@pytest.mark.parametrize("nulls", [None, "zero", 0, ["nan"], "NaN"])
def test_an_unknown_policy_is_refused(nulls: Any) -> None:
    with pytest.raises(ConfigError, match='must be "error", "nan"') as caught:
        make_null_policy(nulls, FORMS)
    assert f"nulls={nulls!r}" in str(caught.value)


def test_a_fill_for_a_column_that_is_not_delivered_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="names 'x', which is not among the"
    ) as caught:
        make_null_policy({"i": 1, "x": 2}, FORMS)
    assert "['i', 'u', 'f', 'b', 't', 's', 'l']" in str(caught.value)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("i", 128),
        ("i", -129),
        ("i", 1.5),
        ("i", "1"),
        ("i", None),
        ("i", 10**30),
        ("u", -1),
        ("u", 2**64),
        ("u", float(2**64)),
        ("t", float(2**63)),
        ("f", "nan"),
        ("f", None),
        ("b", 2),
        ("b", 0.5),
        ("l", [0, 0, 0]),
    ],
)
def test_a_fill_that_the_column_cannot_hold_is_refused(column: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="does not fit the column's type") as caught:
        make_null_policy({column: value}, FORMS)
    assert f"nulls={{{column!r}: {value!r}}}" in str(caught.value)
    assert "a value that it can hold exactly" in str(caught.value)


@pytest.mark.parametrize("value", [0, 1.5, ["a"]])
def test_a_fill_for_text_must_be_text(value: Any) -> None:
    text = "a text column takes text, bytes or None"
    with pytest.raises(ConfigError, match=text) as caught:
        make_null_policy({"s": value}, FORMS)
    assert f"nulls={{'s': {value!r}}}" in str(caught.value)


def test_a_fill_that_fits_is_kept() -> None:
    fills = {
        "i": -128,
        "u": 2**64 - 1,
        "f": 1,
        "b": 1,
        "t": np.int64(3),
        "s": None,
        "l": 0.5,
    }
    policy = make_null_policy(fills, FORMS)
    assert {f.name: policy.fill_for(f) for f in FORMS} == {
        name: (True, value) for name, value in fills.items()
    }
    assert make_null_policy("error", FORMS).fill_for(FORMS[0]) == (False, None)
    allowed, fill = make_null_policy("nan", FORMS).fill_for(Form("f", "float64"))
    assert allowed
    assert np.isnan(fill)
    assert make_null_policy("nan", FORMS).fill_for(FORMS[0]) == (False, None)
