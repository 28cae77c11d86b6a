"""Damaged files end in an error of ours or in all their rows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import cluster
from dask_loader import DaskLoaderError
from tests.conformance.fuzzing import KINDS, ROWS, damage, make, read

ROOT = Path(__file__).parents[2]


def verdicts(kind: str, part: str, last: int) -> Counter[str]:
    """Read damages in a child; one that it dies of is told with its number."""
    command = [sys.executable, "-m", "tests.conformance.fuzzing", kind, part, "0"]
    done = subprocess.run(
        [*command, str(last)], capture_output=True, text=True, cwd=ROOT, timeout=240
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (lines[-1], done.stderr[-300:])
    faults = [line for line in lines if "WRONG" in line]
    assert not faults
    return Counter(line.partition(":")[2] for line in lines)


def check(kind: str, part: str, last: int) -> None:
    found = verdicts(kind, part, last)
    assert found["refused"] > 0
    assert found["equal"] > 0
    if part == "pages":
        assert found["other rows"] == 0
        if "checked" in kind:
            assert found["other values"] == 0
    assert found.total() == last


@pytest.mark.parametrize(
    ("kind", "part"), [("v2 checked", "pages"), ("snappy", "footer")]
)
def test_damaged_files_are_refused_or_keep_their_rows(kind: str, part: str) -> None:
    check(kind, part, 40)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["pages", "footer"])
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_refused_or_keep_their_rows(
    kind: str, part: str
) -> None:
    check(kind, part, 150)


@pytest.mark.slow
@pytest.mark.cluster
def test_damaged_files_read_by_dask_workers_end_in_an_error_or_in_their_rows(
    tmp_path: Path, local_cluster: cluster.Cluster
) -> None:
    path = tmp_path / "damaged.parquet"
    content = make("zstd checked", path)
    sound = read(path, client="threads")
    options = {"client": local_cluster.address}
    for number in range(12):
        path.write_bytes(damage(content, "pages", number))
        os.utime(path, ns=(number, number))
        try:
            found = read(path, **options)
        except DaskLoaderError as error:
            refused = str(error)
        else:
            refused = ""
            assert found == sound
        assert not refused or path.name in refused
    path.write_bytes(content)
    assert len(read(path, **options)["i"]) == ROWS
