"""Damaged files end in an error of ours or in all their rows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cluster
from dask_loader import DaskLoaderError
from tests.conformance.fuzzing import KINDS, NUM_FLIPS, damage, make, read, table

ROOT = Path(__file__).parents[2]
DEADLINE_S = 240.0


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
    assert found["refused"] + found["row group refused"] > 0
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
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "checked" in kind])
def test_of_400_flipped_bits_in_checked_pages_none_changes_a_value_unseen(
    kind: str,
) -> None:
    """They are checked without being asked for; what no reader needs may change."""
    found = verdicts(kind, "bits", NUM_FLIPS)
    assert set(found) <= {"equal", "refused", "row group refused"}
    assert found["row group refused"] > NUM_FLIPS / 2
    assert found.total() == NUM_FLIPS


@pytest.mark.slow
@pytest.mark.parametrize("part", ["pages", "footer"])
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_refused_or_keep_their_rows(
    kind: str, part: str
) -> None:
    check(kind, part, 150)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("zstd checked", 4),
        pytest.param("v2 checked", 20, marks=pytest.mark.slow),
        pytest.param("plain checked", 20, marks=pytest.mark.slow),
    ],
)
def test_damaged_files_read_by_dask_workers_end_in_an_error_or_in_their_rows(
    tmp_path: Path, local_cluster: cluster.Cluster, kind: str, last: int
) -> None:
    path = tmp_path / "damaged.parquet"
    content = make(kind, path)
    expected = table().to_pydict()
    options = {"client": local_cluster.address}
    refused = 0
    for number in range(last):
        path.write_bytes(damage(content, "pages", number))
        os.utime(path, ns=(number, number))
        outcome = within(DEADLINE_S, partial(read, path, **options))
        if isinstance(outcome, DaskLoaderError):
            refused += 1
            assert re.search(
                f"row group [0-2] of {re.escape(repr(str(path)))}", str(outcome)
            )
        else:
            assert outcome == expected
    assert refused
    path.write_bytes(content)
    assert read(path, **options) == expected


class Deadly:
    """Ends the worker that comes upon a certain row."""

    def __init__(self, row: int) -> None:
        self.row = row

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self.row in rows["row"].to_pylist():
            os.kill(os.getpid(), signal.SIGKILL)
        return rows


@pytest.mark.slow
@pytest.mark.cluster
def test_a_row_over_which_workers_die_is_an_error_and_the_cluster_goes_on(
    tmp_path: Path,
) -> None:
    path = tmp_path / "deadly.parquet"
    rows = pa.table({"row": range(400)})
    pq.write_table(rows, path, row_group_size=100)
    # Of a class that the workers cannot import.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with (
        ExitStack() as left,
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        cluster.launch("local", workers=2) as launched,
    ):
        left.callback(cloudpickle.unregister_pickle_by_value, sys.modules[__name__])
        options = {"client": launched.address, "shuffle_window": "1 KiB"}
        deadly = partial(read, path, transform=Deadly(250), **options)
        outcome = within(DEADLINE_S, deadly)
        assert isinstance(outcome, DaskLoaderError)
        text = f"row group 2 of {re.escape(repr(str(path)))} killed every Dask worker"
        assert re.search(text, str(outcome))
        whole = within(DEADLINE_S, partial(read, path, **options))
        assert whole == rows.to_pydict()


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """Return what comes of some work, or its error of ours; fail where it hangs."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return done.result(timeout=seconds)
    except DaskLoaderError as error:
        return error
