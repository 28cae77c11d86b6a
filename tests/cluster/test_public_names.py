"""What `import cluster` offers, and what it must not load."""

from __future__ import annotations

import pytest

import cluster


def test_every_public_name_is_there_and_listed_in_order() -> None:
    assert sorted(cluster.__all__) == cluster.__all__
    for name in cluster.__all__:
        assert getattr(cluster, name).__name__ == name
    assert set(cluster.__all__) <= set(dir(cluster))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(
        AttributeError, match=r"module 'cluster' has no attribute 'lanch'"
    ):
        cluster.lanch  # type: ignore[attr-defined]  # noqa: B018


def test_importing_loads_neither_dask_nor_torch(run_script) -> None:
    ran = run_script(
        "import cluster, sys\n"
        'print(sorted({"dask", "distributed", "torch"} & set(sys.modules)))\n'
        "for name in cluster.__all__:\n"
        "    getattr(cluster, name)\n"
        'print(sorted({"dask_loader", "torch"} & set(sys.modules)))\n'
    )
    assert (ran.code, ran.out, ran.err) == (0, "[]\n[]\n", "")
