"""How fast batches arrive, beside what decoding alone takes, in one run.

LIMIT is as many long-lived threads as there are cores, each calling read_row_group on
files in the page cache, and nothing else. Every other row makes all batches; "unread" is
the loader alone, the others also read every column of every batch once (a sum, as a
training step would at the least). The ways take turns, so that a slow minute of the
machine hits all of them; the first round only warms up. Figures are medians.

    python examples/make_dataset.py /tmp/bench --rows 6000000
    python benchmarks/throughput.py /tmp/bench
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import cluster
from dask_loader import DataLoader, ParquetDataset


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder with Parquet files of numbers")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=2, help="Dask workers")
    parser.add_argument("--only", nargs="*", help="names of ways, all where left out")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(argv)
    groups = row_groups(args.data)
    num_bytes = decoded_bytes(groups)
    threads = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        dask_cluster = stack.enter_context(
            cluster.launch("local", workers=args.workers)
        )
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        ways: dict[str, Callable[[], Any]] = {"LIMIT": lambda: decode(pool, groups)}
        for where, client in (("threads", "threads"), ("cluster", dask_cluster)):
            for shuffle in (False, True):
                dataset = ParquetDataset(
                    args.data,
                    batch_size=args.batch_size,
                    shuffle=shuffle,
                    client=client,
                )
                stack.enter_context(dataset)
                name = f"{where}{', shuffled' if shuffle else ''}"
                ways[name] = partial(consume, dataset, read=True)
                ways[f"{name}, unread"] = partial(consume, dataset, read=False)
        chosen = {n: w for n, w in ways.items() if not args.only or n in args.only}
        chosen["LIMIT"] = ways["LIMIT"]
        seconds = measure(chosen, args.repeats)
    report = summarise(seconds, num_bytes)
    print(f"{num_bytes / 1e9:.2f} GB decoded, {threads} cores, {args.repeats} repeats")
    print(f"{'':26} {'GB/s':>6} {'[min - max]':>14} {'of LIMIT':>9} {'CPU s/GB':>9}")
    for name, row in report.items():
        print(
            f"{name:26} {row['gb_s']:6.2f} [{row['min']:5.2f} -{row['max']:5.2f}] "
            f"{row['of_limit']:9.2f} {row['cpu_s_gb']:9.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def row_groups(folder: str) -> list[tuple[str, int]]:
    """Return (file, row group) of all files, in order."""
    files = sorted(str(path) for path in Path(folder).rglob("*.parquet"))
    if not files:
        sys.exit(f"no Parquet in {folder!r}; see examples/make_dataset.py")
    counts = [pq.ParquetFile(f).num_row_groups for f in files]
    return [(f, g) for f, n in zip(files, counts, strict=True) for g in range(n)]


def decoded_bytes(groups: list[tuple[str, int]]) -> int:
    """Return the bytes of all row groups in Arrow's memory."""
    return sum(pq.ParquetFile(f).read_row_group(g).nbytes for f, g in groups)


def decode(pool: ThreadPoolExecutor, groups: list[tuple[str, int]]) -> None:
    """Decode everything and keep nothing."""

    def one(place: tuple[str, int]) -> None:
        pq.ParquetFile(place[0], memory_map=True).read_row_group(
            place[1], use_threads=False
        )

    list(pool.map(one, groups))


def consume(dataset: ParquetDataset, *, read: bool) -> float:
    """Take an epoch's batches, and read every column of each if asked to."""
    total = 0.0
    for batch in DataLoader(dataset):
        if read:
            for column in batch.values():
                total += float(column.sum())
    return total


def measure(
    ways: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, list[tuple[float, float]]]:
    """Run the ways in turn; return (seconds, CPU seconds of this process) of each."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, way in ways.items():
            began, cpu = time.perf_counter(), time.process_time()
            way()
            if round_number:  # the first warms up
                spent = time.process_time() - cpu
                taken[name].append((time.perf_counter() - began, spent))
    return taken


def summarise(
    seconds: dict[str, list[tuple[float, float]]], num_bytes: int
) -> dict[str, dict[str, float]]:
    """Return medians, extremes and ratios to LIMIT for each way."""
    gb = num_bytes / 1e9
    limit = gb / statistics.median(wall for wall, _ in seconds["LIMIT"])
    report = {}
    for name, runs in seconds.items():
        walls = [wall for wall, _ in runs]
        rate = gb / statistics.median(walls)
        report[name] = {
            "gb_s": rate,
            "min": gb / max(walls),
            "max": gb / min(walls),
            "of_limit": rate / limit,
            "cpu_s_gb": statistics.median(cpu for _, cpu in runs) / gb,
        }
    return report


if __name__ == "__main__":
    sys.exit(main())
