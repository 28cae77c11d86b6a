"""Whole epochs from S3 by s3fs and by pyarrow.fs, beside the same files on disk.

What docs/decisions/0001-object-stores.md decides by. The loader reads the same generated
sets, by threads of this process, from a small server in a process of its own:

- s3fs: `s3://` with storage_options, as users have it; answers tell their version
- look: s3fs with a look (HEAD) after reading instead
- arrow: `filesystem=pyarrow.fs.S3FileSystem(...)`; it asks for a file's length (HEAD)
  before each range
- mixed: ranges by pyarrow.fs from files that stay open, looks by opening them anew,
  which tells their ETags; listing by s3fs
- disk: the loader over the same files in the page cache
- LIMIT: pyarrow decodes those files with as many threads as cores, and nothing else

Runs take turns, so that whatever else the machine does meets all of them alike. CPU is
this process's, without the server's. With --wait-ms each answer comes later, as over a
network. The first request is timed in processes that are new
and have imported the client. Figures as JSON.

    python benchmarks/object_stores.py demo-data/stores --json stores.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from pyarrow import fs as arrow_fs
from report import machine

from dask_loader import DataLoader, ParquetDataset

BUCKET = "bucket"
CLIENTS = ("s3fs", "look", "arrow", "mixed")
_NEW_PROCESS = """
import sys, time
name, port, path, size = sys.argv[1], *map(str, sys.argv[2:4]), int(sys.argv[4])
sys.path.insert(0, {here!r})
import object_stores
if name == "s3fs":
    import s3fs
began = time.perf_counter()
object_stores.first_bytes(name, port, path, size)
print(time.perf_counter() - began)
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A set of float32 columns and what is read of it; a row group is a window or less."""

    name: str
    num_columns: int
    read: int
    rows: int
    files: int
    row_group_rows: int

    @property
    def columns(self) -> list[str]:
        """Columns to read: evenly spread over the file."""
        step = self.num_columns // self.read
        return [f"c{i:03}" for i in range(0, step * self.read, step)]


CASES = (
    Case(
        name="8 columns, groups of 0.5 MB",
        num_columns=8,
        read=8,
        rows=4_000_000,
        files=4,
        row_group_rows=16_384,
    ),
    Case(
        name="8 columns, groups of 8 MB",
        num_columns=8,
        read=8,
        rows=6_000_000,
        files=4,
        row_group_rows=262_144,
    ),
    Case(
        name="200 columns, groups of 13 MB",
        num_columns=200,
        read=200,
        rows=240_000,
        files=2,
        row_group_rows=16_384,
    ),
    Case(
        name="4 of 200 columns, groups of 52 MB",
        num_columns=200,
        read=4,
        rows=1_000_000,
        files=2,
        row_group_rows=65_536,
    ),
)


def make_data(folder: Path, case: Case) -> None:
    """Write a case's files unless they are there. Random floats do not compress."""
    if folder.exists():
        return
    part = folder.with_name(f".{folder.name}")
    part.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    per_file = case.rows // case.files
    for number in range(case.files):
        columns = {
            f"c{i:03}": rng.random(per_file, dtype=np.float32)
            for i in range(case.num_columns)
        }
        pq.write_table(
            pa.table(columns),
            part / f"part-{number:03}.parquet",
            row_group_size=case.row_group_rows,
            use_dictionary=False,
        )
    part.rename(folder)


class Mixed(AbstractFileSystem):  # type: ignore[misc]
    """Bytes and looks by pyarrow.fs, whose open files tell an ETag; listing by s3fs."""

    protocol = "mixed"

    def __init__(self, port: str, **options: Any) -> None:
        super().__init__(**options)
        self._lock = threading.Lock()
        self._files: dict[str, Any] = {}
        self._arrow = _arrow(port)
        self._s3fs = _s3fs(port)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> Any:
        """Read a range."""
        with self._lock:
            if path not in self._files:
                self._files[path] = self._arrow.open_input_file(path)
        first = start or 0
        return self._files[path].read_at((end or 0) - first, first)

    def info(self, path: str, **options: Any) -> Any:
        """Look at a file."""
        if path not in self._files:
            return self._s3fs.info(path, **options)
        with self._arrow.open_input_file(path) as file:
            tag = file.metadata()["ETag"].decode()
            return {"size": file.size(), "ETag": tag, "type": "file", "name": path}

    def find(self, path: str, *args: Any, **options: Any) -> Any:
        """List a folder."""
        return self._s3fs.find(path, *args, **options)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        """List a folder, without those in it."""
        return self._s3fs.ls(path, detail=detail, **options)

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget what was listed."""
        self._s3fs.invalidate_cache(path)


def _options(port: str) -> dict[str, Any]:
    return {
        "key": "an-id",
        "secret": "a-key",
        "endpoint_url": f"http://127.0.0.1:{port}",
    }


def _s3fs(port: str) -> Any:
    import s3fs  # type: ignore[import-untyped]

    return s3fs.S3FileSystem(**_options(port))


def _looking(port: str) -> Any:
    import s3fs

    class Looking(s3fs.S3FileSystem):  # type: ignore[misc]
        async def _cat_file(self, path: str, **options: Any) -> Any:
            return await super()._cat_file(path, **options)

    Looking.__qualname__ = "Looking"
    globals()["Looking"] = Looking  # so that it has a pickle
    return Looking(**_options(port))


def _arrow(port: str) -> Any:
    return arrow_fs.S3FileSystem(
        access_key="an-id",
        secret_key="a-key",
        endpoint_override=f"127.0.0.1:{port}",
        scheme="http",
        region="us-east-1",
    )


def first_bytes(name: str, port: str, path: str, num_bytes: int) -> None:
    """Read a file's last bytes by a client that is made for it."""
    if name == "s3fs":
        _s3fs(port).cat_file(path, start=num_bytes - 65_536, end=num_bytes)
    else:
        with _arrow(port).open_input_file(path) as file:
            file.read_at(65_536, num_bytes - 65_536)


def source_of(name: str, port: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the path that a contestant reads, and what else a dataset is given."""
    inside = f"{BUCKET}/{folder.name}"
    if name == "s3fs":
        return f"s3://{inside}/", {"storage_options": _options(port)}
    if name == "arrow":
        return inside, {"filesystem": _arrow(port)}
    if name == "mixed":
        return inside, {"filesystem": Mixed(port)}
    if name == "look":
        return inside, {"filesystem": _looking(port)}
    return str(folder), {}


def epoch(dataset: ParquetDataset) -> tuple[float, float, int]:
    """Return seconds, CPU seconds and rows of one epoch."""
    began, used = time.perf_counter(), time.process_time()
    num_rows = 0
    for batch in DataLoader(dataset):
        num_rows += len(next(iter(batch.values())))
    return time.perf_counter() - began, time.process_time() - used, num_rows


def decode_alone(folder: Path, columns: list[str]) -> tuple[float, float, int]:
    """Return seconds, CPU seconds and rows of decoding the files, warm, and no more."""
    files = sorted(folder.iterdir())
    footers = {file: pq.read_metadata(file) for file in files}
    places = [(f, g) for f, m in footers.items() for g in range(m.num_row_groups)]

    def decode(place: tuple[Path, int]) -> int:
        file = pq.ParquetFile(place[0], memory_map=True, metadata=footers[place[0]])
        with file:
            table = file.read_row_group(place[1], columns=columns, use_threads=False)
        return int(table.num_rows)

    began, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        num_rows = sum(pool.map(decode, places))
    return time.perf_counter() - began, time.process_time() - used, num_rows


def measure(case: Case, folder: Path, port: str, *, runs: int) -> dict[str, Any]:
    """Time epochs of a case in turns, after one of each that is not counted."""
    make_data(folder, case)
    jobs: dict[str, Callable[[], tuple[float, float, int]]] = {}
    datasets = []
    for name in (*CLIENTS, "disk"):
        path, given = source_of(name, port, folder)
        dataset = ParquetDataset(
            path,
            columns=case.columns,
            batch_size=4096,
            shuffle=True,
            client="threads",
            footer_cache=False,
            **given,
        )
        datasets.append(dataset)
        jobs[name] = lambda dataset=dataset: epoch(dataset)  # type: ignore[misc]
    jobs["LIMIT"] = lambda: decode_alone(folder, case.columns)
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in jobs}
    for number in range(runs + 1):
        # Each time another one begins.
        names = [*jobs][number % len(jobs) :] + [*jobs][: number % len(jobs)]
        for name in names:
            seconds, cpu, num_rows = jobs[name]()
            if num_rows != case.rows:
                raise SystemExit(f"{name}: {num_rows} rows instead of {case.rows}")
            if number:
                found[name].append((seconds, cpu, num_rows))
    for dataset in datasets:
        dataset.close()
    gb = case.rows * len(case.columns) * 4 / 1e9
    return {
        "case": case.name,
        "decoded_gb": gb,
        "results": {
            name: {
                "gb_s": gb / statistics.median(s for s, _, _ in timed),
                "gb_s_least": gb / max(s for s, _, _ in timed),
                "gb_s_most": gb / min(s for s, _, _ in timed),
                "cpu_s_gb": statistics.median(c for _, c, _ in timed) / gb,
                "cpu_s_gb_least": min(c for _, c, _ in timed) / gb,
                "cpu_s_gb_most": max(c for _, c, _ in timed) / gb,
            }
            for name, timed in found.items()
        },
    }


def first_requests(folder: Path, port: str, *, runs: int) -> dict[str, list[float]]:
    """Return seconds from making a client to its first bytes, in new processes."""
    file = next(iter(sorted(folder.iterdir())))
    program = _NEW_PROCESS.format(here=str(Path(__file__).parent))
    path = f"{BUCKET}/{folder.name}/{file.name}"
    found: dict[str, list[float]] = {"s3fs": [], "arrow": []}
    for _ in range(runs):
        for name, seconds in found.items():
            argv = [sys.executable, "-c", program, name, port, path]
            answer = subprocess.run(
                [*argv, str(file.stat().st_size)],
                check=True,
                capture_output=True,
                text=True,
            )
            seconds.append(float(answer.stdout))
    return found


@contextmanager
def serving(folder: Path, wait_ms: float) -> Iterator[str]:
    """Serve a folder in a process of its own, each answer after a wait; yields the port."""
    program = Path(__file__).with_name("static_s3.py")
    with subprocess.Popen(
        [sys.executable, str(program), str(folder), str(wait_ms)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()


def main(argv: list[str] | None = None) -> int:
    """Make the data, measure, print tables and perhaps write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where the generated sets are kept")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--cases", nargs="*", type=int, default=range(len(CASES)))
    parser.add_argument("--wait-ms", type=float, default=0.0, help="before each answer")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    report: dict[str, Any] = {"machine": machine(), "runs": args.runs, "cases": []}
    report["wait_ms"] = args.wait_ms
    folders = {i: args.folder / BUCKET / f"case-{i}" for i in args.cases}
    (args.folder / BUCKET).mkdir(parents=True, exist_ok=True)
    with serving(args.folder, args.wait_ms) as port:
        for i, folder in folders.items():
            found = measure(CASES[i], folder, port, runs=args.runs)
            report["cases"].append(found)
            print(f"{found['case']}: {found['decoded_gb']:.2f} GB decoded")
            for name, r in found["results"].items():
                print(
                    f"  {name:6} {r['gb_s']:.2f} GB/s [{r['gb_s_least']:.2f}-"
                    f"{r['gb_s_most']:.2f}], {r['cpu_s_gb']:.2f} CPU s/GB "
                    f"[{r['cpu_s_gb_least']:.2f}-{r['cpu_s_gb_most']:.2f}]",
                    flush=True,
                )
        first = first_requests(next(iter(folders.values())), port, runs=args.runs)
    for name, seconds in first.items():
        print(
            f"first request, {name}: {statistics.median(seconds) * 1e3:.0f} ms "
            f"[{min(seconds) * 1e3:.0f}-{max(seconds) * 1e3:.0f}]"
        )
    report["first_request_s"] = first
    if args.json:
        args.json.write_text(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
