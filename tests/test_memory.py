"""Peak memory, as the kernel counts it, of a row group far larger than memory_limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cluster

_MIB = 1 << 20
_LIMIT_MIB = 64
# What decoding holds besides: a page and part of a batch of each of the 40 columns.
_BESIDES_MIB = 144
_ROWS = 2_500_000

# Reads an epoch in a process of its own, small data first, so that what is loaded and
# allocated once counts for nobody. Prints rows, their sum, and the growth of the peak.
_READER = """
import json, sys
from dask_loader import DataLoader, ParquetDataset
def peak():
    with open("/proc/self/status") as status:
        return next(int(l.split()[1]) for l in status if l.startswith("VmHWM")) / 1024
def read(path, **options):
    total = rows = 0
    with ParquetDataset(path, batch_size=4096, **options) as dataset:
        for batch in DataLoader(dataset):
            rows, total = rows + len(batch["id"]), total + int(batch["id"].sum())
            for column in batch.values():
                column.sum()
    return rows, total
small, large, client, shuffle, limit = sys.argv[1:]
options = {"client": client, "shuffle": shuffle == "True", "footer_cache": False}
read(small, **options)
before = peak()
rows, total = read(
    large, memory_limit=limit, shuffle_window="16 MiB", **options
)
print(json.dumps({"rows": rows, "total": total, "growth": peak() - before}))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A small set, and one file with one row group of 420 MB decoded."""
    found = []
    for name, rows in (("small", 20_000), ("large", _ROWS)):
        folder = tmp_path_factory.mktemp(name)
        rng = np.random.default_rng(0)
        columns = {f"c{i}": rng.standard_normal(rows, np.float32) for i in range(39)}
        table = pa.table({"id": np.arange(rows), **columns})
        pq.write_table(table, folder / "a.parquet", row_group_size=rows)
        found.append(str(folder))
    return found[0], found[1]


def read(folders: tuple[str, str], client: str, shuffle: bool) -> dict[str, float]:
    arguments = [*folders, client, str(shuffle), f"{_LIMIT_MIB} MiB"]
    ran = subprocess.run(
        [sys.executable, "-c", _READER, *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [False, True])
def test_threads_read_a_huge_row_group_within_the_limit(folders, shuffle) -> None:
    found = read(folders, "threads", shuffle)
    assert found["rows"] == _ROWS
    assert found["total"] == _ROWS * (_ROWS - 1) // 2
    assert found["growth"] <= _LIMIT_MIB + _BESIDES_MIB


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("shuffle", [False, True])
def test_dask_workers_read_a_huge_row_group_within_the_limit(folders, shuffle) -> None:
    with cluster.launch("local", workers=2) as started, started.client() as client:
        read((folders[0], folders[0]), started.address, shuffle)
        pids = client.run(_pid)
        before = {pid: peak_mib(pid) for pid in pids.values()}
        found = read(folders, started.address, shuffle)
        growth = [peak_mib(pid) - peak for pid, peak in before.items()]
    assert (found["rows"], found["total"]) == (_ROWS, _ROWS * (_ROWS - 1) // 2)
    assert found["growth"] <= _LIMIT_MIB + _BESIDES_MIB
    assert max(growth) <= _LIMIT_MIB + _BESIDES_MIB


def _pid() -> int:
    import os

    return os.getpid()
