"""How long the first batch takes: of a new epoch, and of one resumed far into it.

Each run makes a dataset anew, loads a state unless it begins at 0, and stops its clock with
the first batch in hand. Positions take turns, so that whatever else the machine does meets
all of them alike. Threads in this process; generated data of many small row groups; the
footers come from a cache, as in any start but the first. Figures as JSON.

    python benchmarks/resume.py --json resume.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report import machine

from dask_loader import DataLoader, ParquetDataset

COLUMNS = 8
BATCH_SIZE = 1024
# Of an epoch; the first one is the beginning, which the others are compared with.
POSITIONS = (0.0, 0.5, 0.9, 0.99)


def make_data(folder: Path, *, files: int, row_groups: int, rows: int) -> None:
    """Write so many files of so many row groups of so many rows each."""
    rng = np.random.default_rng(0)
    for number in range(files):
        num_rows = row_groups * rows
        columns: dict[str, Any] = {
            f"c{i}": rng.random(num_rows, dtype=np.float32) for i in range(COLUMNS)
        }
        columns["id"] = np.arange(num_rows) + number * num_rows
        pq.write_table(
            pa.table(columns), folder / f"part-{number:03}.parquet", row_group_size=rows
        )


def first_batch(
    data: Path, cache: Path, state: dict[str, Any] | None, *, shuffle: bool
) -> tuple[float, float, dict[str, Any]]:
    """Begin, and stop at the first batch.

    Returns:
        Seconds from nothing to the first batch, CPU seconds of all threads in them, and
        the state then.
    """
    began, used = time.perf_counter(), time.process_time()
    with ParquetDataset(
        data,
        batch_size=BATCH_SIZE,
        shuffle=shuffle,
        shuffle_window="1 MiB",
        client="threads",
        footer_cache=cache,
    ) as dataset:
        loader = DataLoader(dataset)
        if state is not None:
            loader.load_state_dict(state)
        batches = iter(loader)
        next(batches)
        seconds = time.perf_counter() - began
        return seconds, time.process_time() - used, loader.state_dict()


def measure(data: Path, cache: Path, *, runs: int, shuffle: bool) -> dict[str, Any]:
    """Time each position `runs` times, in turns."""
    *_, state = first_batch(data, cache, None, shuffle=shuffle)
    # A state is plain numbers: this is what a run that came so far would have saved.
    steps = state["num_rows"] // BATCH_SIZE
    states = {p: {**state, "rows": int(p * steps) * BATCH_SIZE} for p in POSITIONS}
    seconds: dict[float, list[tuple[float, float]]] = {p: [] for p in POSITIONS}
    for _ in range(runs):
        for position in POSITIONS:
            given = states[position] if position else None
            wall, cpu, _ = first_batch(data, cache, given, shuffle=shuffle)
            seconds[position].append((wall, cpu))
    return {
        "shuffle": shuffle,
        "rows": state["num_rows"],
        "positions": [
            {
                "position": position,
                "median_s": statistics.median(wall for wall, _ in found),
                "min_s": min(wall for wall, _ in found),
                "max_s": max(wall for wall, _ in found),
                "median_cpu_s": statistics.median(cpu for _, cpu in found),
            }
            for position, found in seconds.items()
        ],
    }


def main(argv: list[str] | None = None) -> int:
    """Make the data, measure, print a table and perhaps write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--row-groups", type=int, default=200, help="in each file")
    parser.add_argument("--rows", type=int, default=500, help="in each row group")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        data, cache = Path(folder, "data"), Path(folder, "cache")
        data.mkdir()
        make_data(data, files=args.files, row_groups=args.row_groups, rows=args.rows)
        found = [
            measure(data, cache, runs=args.runs, shuffle=shuffle)
            for shuffle in (False, True)
        ]
    for case in found:
        start = case["positions"][0]["median_s"]
        print(f"{case['rows']:,} rows, shuffle={case['shuffle']}")
        for at in case["positions"]:
            print(
                f"  at {at['position']:4.0%}: first batch after {at['median_s']:.3f} s "
                f"({at['min_s']:.3f}-{at['max_s']:.3f}), {at['median_s'] / start:.2f} of "
                f"a start; {at['median_cpu_s']:.3f} s of CPU"
            )
    report = {
        "machine": machine(),
        "runs": args.runs,
        "row_groups": args.files * args.row_groups,
        "cases": found,
    }
    if args.json:
        args.json.write_text(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
