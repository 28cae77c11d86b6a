"""ClusterSpec, as a table of what it takes and what it refuses."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from cluster import ClusterSpec, SpecError

_WHOLE = "must be a whole number, at least"
_SECONDS = "must be a number of seconds above 0"
_SIZE = "is not a size"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", 0),
        ("workers", 64),
        ("threads_per_worker", 1),
        ("memory_limit", "auto"),
        ("memory_limit", None),
        ("memory_limit", 2**30),
        ("memory_limit", "2 GiB"),
        ("memory_limit", "500e6"),
        ("local_directory", None),
        ("local_directory", "/scratch"),
        ("local_directory", Path("/scratch")),
        ("dashboard", True),
        ("start_timeout_s", 1),
        ("start_timeout_s", 0.5),
    ],
)
def test_what_is_taken(name: str, value: object) -> None:
    assert getattr(ClusterSpec(**{name: value}), name) == value  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("workers", -1, f"workers=-1 {_WHOLE} 0"),
        ("workers", True, f"workers=True {_WHOLE} 0"),
        ("workers", 2.0, rf"workers=2\.0 {_WHOLE} 0"),
        ("workers", "2", f"workers='2' {_WHOLE} 0"),
        ("workers", None, f"workers=None {_WHOLE} 0"),
        ("threads_per_worker", 0, f"threads_per_worker=0 {_WHOLE} 1"),
        ("threads_per_worker", False, f"threads_per_worker=False {_WHOLE} 1"),
        ("memory_limit", 0, rf"memory_limit=0 {_SIZE} \(not above 0\); give bytes"),
        ("memory_limit", -5, rf"memory_limit=-5 {_SIZE} \(not above 0\)"),
        ("memory_limit", True, rf"memory_limit=True {_SIZE} \(neither"),
        ("memory_limit", 0.5, rf"memory_limit=0\.5 {_SIZE} \(neither"),
        ("memory_limit", "", rf"memory_limit='' {_SIZE} \(no number in it\)"),
        ("memory_limit", "GB", rf"memory_limit='GB' {_SIZE} \(no number in it\)"),
        (
            "memory_limit",
            "2 lots",
            rf"memory_limit='2 lots' {_SIZE} \(Could not interpret",
        ),
        ("memory_limit", "0 GB", rf"memory_limit='0 GB' {_SIZE} \(not above 0\)"),
        ("local_directory", "", "local_directory='' must be the path of a folder"),
        ("local_directory", 3, "local_directory=3 must be the path of a folder"),
        ("dashboard", None, "dashboard=None must be True or False"),
        ("dashboard", ":8787", "dashboard=':8787' must be True or False"),
        ("start_timeout_s", 0, f"start_timeout_s=0 {_SECONDS}"),
        ("start_timeout_s", -1.0, rf"start_timeout_s=-1\.0 {_SECONDS}"),
        ("start_timeout_s", float("inf"), f"start_timeout_s=inf {_SECONDS}"),
        ("start_timeout_s", float("nan"), f"start_timeout_s=nan {_SECONDS}"),
        ("start_timeout_s", True, f"start_timeout_s=True {_SECONDS}"),
        ("start_timeout_s", "60 s", f"start_timeout_s='60 s' {_SECONDS}"),
    ],
)
def test_what_is_refused(name: str, value: object, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        ClusterSpec(**{name: value})  # type: ignore[arg-type]


def test_a_copy_with_a_wrong_value_is_refused_too() -> None:
    with pytest.raises(SpecError, match="workers=-1"):
        replace(ClusterSpec(), workers=-1)


def test_it_is_frozen_and_pickles() -> None:
    spec = ClusterSpec(workers=3)
    with pytest.raises(FrozenInstanceError):
        spec.workers = 4  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(spec)) == spec
