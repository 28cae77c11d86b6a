"""Casts, as a table: what may become what, and which numbers are refused."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_loader.read.cast import MisfitError, cast_into

DTYPES = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "float32", "float64",
]  # fmt: skip


def cast(values, dtype: str, *, valid=None, exact: bool = False) -> np.ndarray:
    out = np.zeros(len(values), dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cast_into(np.asarray(values), out, valid=valid, exact=exact)
    return out


def allowed(source: str, target: str) -> bool:
    """Pairs that a dataset accepts; the others are refused when it is made."""
    old, new = np.dtype(source).kind, np.dtype(target).kind
    return old == new or old == "b" or (old in "iu" and new in "iuf")


PAIRS = [(a, b) for a in DTYPES for b in DTYPES if allowed(a, b)]


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("exact", [False, True])
def test_small_numbers_go_through_every_cast(source, target, exact) -> None:
    values = np.array([0, 1, 1, 0]).astype(source)
    found = cast(values, target, exact=exact)
    assert found.dtype == target
    assert found.tolist() == values.tolist()


@pytest.mark.parametrize(
    ("values", "target", "worst"),
    [
        (np.array([1, 128]), "int8", "128"),
        (np.array([-129, 0]), "int8", "-129"),
        (np.array([-1]), "uint8", "-1"),
        (np.array([-1]), "uint64", "-1"),
        (np.array([2**63], dtype="uint64"), "int64", str(2**63)),
        (np.array([2**31]), "int32", str(2**31)),
        (np.array([70000]), "float16", "70000"),
        (np.array([1e5]), "float16", "100000.0"),
        (np.array([1.0, -1e39]), "float32", "-1e+39"),
    ],
)
def test_a_number_that_does_not_fit_is_named(values, target, worst) -> None:
    with pytest.raises(
        MisfitError, match=f"^{re.escape(worst)} does not fit {target}, which"
    ):
        cast(values, target)


def test_floats_are_rounded_and_keep_nan_and_infinity() -> None:
    values = np.array([0.1, np.nan, np.inf, -np.inf, 3.4e38])
    found = cast(values, "float32")
    assert np.array_equal(found, values.astype(np.float32), equal_nan=True)
    with pytest.raises(MisfitError, match=r"^3.5e\+38 does not fit float32"):
        cast(np.array([np.nan, 3.5e38]), "float32")


@pytest.mark.parametrize(
    ("target", "digits"), [("float16", 11), ("float32", 24), ("float64", 53)]
)
def test_exact_refuses_integers_that_a_float_rounds(target, digits) -> None:
    last = 2**digits
    assert cast(np.array([last, -last]), target, exact=True).tolist() == [last, -last]
    with pytest.raises(MisfitError, match=rf"^{last + 1} does not fit .* exactly$"):
        cast(np.array([last + 1]), target, exact=True)
    if target != "float16":  # in range, so it may be rounded where that was asked for
        assert cast(np.array([last + 1]), target)[0] == float(last)


def test_what_is_not_valid_may_be_anything() -> None:
    values = np.array([5, 1000, 7])
    found = cast(values, "int8", valid=np.array([True, False, True]))
    assert found[[0, 2]].tolist() == [5, 7]
    with pytest.raises(MisfitError, match="1000 does not fit int8"):
        cast(values, "int8", valid=np.array([True, True, False]))


def test_nothing_is_cast_to_nothing() -> None:
    assert cast(np.array([], dtype="int64"), "int8").tolist() == []


@given(
    values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8),
    target=st.sampled_from([d for d in DTYPES if np.dtype(d).kind in "iuf"]),
    exact=st.booleans(),
)
def test_an_integer_arrives_as_it_was_or_is_refused(values, target, exact) -> None:
    try:
        found = cast(np.array(values), target, exact=exact)
    except MisfitError:
        if np.dtype(target).kind in "iu":
            info = np.iinfo(target)
            assert min(values) < info.min or max(values) > info.max
        return
    if np.dtype(target).kind in "iu" or exact:
        assert [int(x) for x in found.tolist()] == values
    else:
        assert np.isfinite(found).all()
