"""launch(): names it does not know are told from those it does."""

from __future__ import annotations

import re

import pytest

import cluster
from cluster import ClusterSpec, SpecError


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            "locla",
            "unknown kind of cluster 'locla'; did you mean 'local'? known: htcondor",
        ),
        ("yarn", "unknown kind of cluster 'yarn'; known: htcondor, local, lsf"),
        ("", "unknown kind of cluster ''; known: htcondor, local, lsf"),
        (None, "unknown kind of cluster None; known: htcondor, local, lsf"),
        (["local"], "unknown kind of cluster ['local']; did you mean"),
    ],
)
def test_an_unknown_kind_is_refused(kind: object, text: str) -> None:
    with pytest.raises(SpecError, match=re.escape(text)):
        cluster.launch(kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("worker", "; did you mean 'workers'? known: dashboard, local_directory, "),
        ("n_workers", "; did you mean 'workers'"),
        ("colour", "; known: dashboard, local_directory, memory_limit, "),
    ],
)
def test_an_unknown_option_is_refused(option: str, hint: str) -> None:
    text = f"unknown option for launch('local') '{option}'{hint}"
    with pytest.raises(SpecError, match=re.escape(text)):
        cluster.launch("local", **{option: 1})


def test_a_wrong_value_is_refused_before_anything_starts() -> None:
    with pytest.raises(SpecError, match="workers=-1"):
        cluster.launch("local", workers=-1)


def test_a_spec_must_be_one() -> None:
    with pytest.raises(SpecError, match=r"spec=2 must be a ClusterSpec; give single"):
        cluster.launch("local", 2)  # type: ignore[arg-type]


def test_options_go_before_the_spec() -> None:
    spec = ClusterSpec(workers=5, threads_per_worker=2)
    with cluster.launch("local", spec, workers=1) as c:
        assert list(c.client().nthreads().values()) == [2]
