"""features= and dtypes=: how columns are delivered, and every refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dask_loader.catalog.delivery import Delivery, check_delivery, deliver
from dask_loader.catalog.forms import Form
from dask_loader.errors import ColumnError, ConfigError

FORMS = [
    Form("a", "float32"),
    Form("b", "int16"),
    Form("c", "float64"),
    Form("flag", "bool"),
    Form("list", "float32", (4,)),
    Form("text", ""),
]


def delivered(features=None, dtypes=None) -> list[tuple[str, str, str, bool]]:
    found = deliver(FORMS, check_delivery(features, dtypes))
    return [(form.name, form.dtype, form.feature, form.exact) for form in found]


def test_nothing_asked_changes_nothing() -> None:
    assert deliver(FORMS, Delivery()) == tuple(FORMS)


def test_a_features_columns_come_together_in_its_order_at_the_first_ones_place() -> (
    None
):
    found = delivered({"x": ["c", "b"]})
    assert [name for name, *_ in found] == ["a", "c", "b", "flag", "list", "text"]
    assert [feature for _, _, feature, _ in found] == ["", "x", "x", "", "", ""]


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (["a"], "float32"),
        (["a", "b"], "float32"),  # an int16 has no more digits
        (["a", "b", "c"], "float64"),
        (["b", "flag"], "int16"),
        (["flag"], "bool"),
    ],
)
def test_a_feature_has_the_promoted_dtype_and_changes_no_number(names, dtype) -> None:
    found = {name: rest for name, *rest in delivered({"x": names})}
    assert all(found[name] == [dtype, "x", True] for name in names)


def test_a_dtype_may_be_given_for_columns_and_features() -> None:
    found = {
        name: rest
        for name, *rest in delivered(
            {"x": ["a", "b"]}, {"x": torch.float16, "c": "float32", "list": np.float64}
        )
    }
    assert found["a"] == found["b"] == ["float16", "x", False]
    assert found["c"] == ["float32", "", False]
    assert found["list"] == ["float64", "", False]


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (torch.float32, "float32"),
        (torch.int64, "int64"),
        (torch.bool, "bool"),
        ("uint8", "uint8"),
        (np.int32, "int32"),
        (np.dtype("f8"), "float64"),
        (float, "float64"),
    ],
)
def test_dtypes_may_be_torchs_or_numpys(given, dtype) -> None:
    assert check_delivery(None, {"a": given}).dtypes == (("a", dtype),)


def test_the_columns_of_features_are_read_too() -> None:
    delivery = check_delivery({"x": ["b", "a"], "y": ["c"]}, None)
    assert delivery.columns(("a", "flag")) == ("a", "flag", "b", "c")
    assert delivery.columns(None) is None


@pytest.mark.parametrize(
    ("features", "dtypes", "error", "text"),
    [
        (["a"], None, ConfigError, r"features=\['a'\] must be a dict, or None"),
        (None, "float32", ConfigError, "dtypes='float32' must be a dict, or None"),
        ({1: ["a"]}, None, ConfigError, "1 is not a name"),
        ({"": ["a"]}, None, ConfigError, "'' is not a name"),
        ({"x": "a"}, None, ConfigError, r"features={'x': 'a'} must name columns"),
        ({"x": []}, None, ConfigError, r"features={'x': \[\]} must name columns"),
        ({"x": [1]}, None, ConfigError, r"features={'x': \[1\]} must name columns"),
        ({"x": ["a", "a"]}, None, ColumnError, "'a' is named twice in features"),
        ({"x": ["a"], "y": ["a"]}, None, ColumnError, "for 'x' and 'y'"),
        (None, {"a": torch.bfloat16}, ConfigError, "no dtype that NumPy and torch"),
        (None, {"a": "datetime64[s]"}, ConfigError, "no dtype that NumPy and torch"),
        (None, {"a": "nonsense"}, ConfigError, r"dtypes={'a': 'nonsense'} is no dtype"),
        (None, {"a": object()}, ConfigError, "is no dtype that NumPy and torch share"),
        (None, {"a": torch.complex64}, ConfigError, "is no dtype that NumPy"),
        ({"x": ["z"]}, None, ColumnError, "names column 'z', which is not there"),
        ({"b": ["a"]}, None, ColumnError, "give the feature another name"),
        ({"x": ["list"]}, None, ConfigError, "rows are not single numbers"),
        ({"x": ["text"]}, None, ConfigError, "only numbers can be stacked"),
        ({"x": ["a"]}, {"a": "float64"}, ConfigError, "give the dtype to the feature"),
        (None, {"z": "int8"}, ColumnError, "dtypes names 'z', which is neither"),
        (None, {"c": "int64"}, ConfigError, "a column of float64 is not cast to int64"),
        (None, {"b": "bool"}, ConfigError, "a column of int16 is not cast to bool"),
        (None, {"text": "int8"}, ConfigError, "a column of text or bytes is not cast"),
        ({"x": ["c"]}, {"x": "int8"}, ConfigError, "floats do not become integers"),
    ],
)
def test_what_cannot_be_delivered_is_refused(features, dtypes, error, text) -> None:
    with pytest.raises(error, match=text):
        delivered(features, dtypes)


def test_a_feature_may_take_the_name_of_its_own_column() -> None:
    assert ("a", "float32", "a", True) in delivered({"a": ["a", "b"]})
