"""What copying batches to a device costs a training step, where there is a device.

A step of known length (matrix products, after reading every column of its batch) runs in
three ways, which take turns:

  alone    on one batch that lies on the device
  loader   on the batches of DataLoader(dataset, device=...)
  plain    on host batches, each copied by `.to(device)` when it is used

The first batch is not timed: the time it takes to open the files is not the copy's. The
goal is a "loader" ratio below 1.05. Where "wait_share" is not near 0, the data came too
late for the copies to be measured: make the step longer or the batch smaller.

    python benchmarks/device_overlap.py > device_overlap.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dask_loader import ConfigError, DataLoader, ParquetDataset
from dask_loader.batch.device import resolve_device

Step = Callable[[dict[str, Any]], None]
# Products that are timed to know how many make a step.
_NUM_TRIALS = 50


def main(argv: list[str] | None = None) -> int:
    """Measure and print JSON; 2 where there is no such device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="in each repeat")
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--side", type=int, default=2048, help="of the step's matrices")
    parser.add_argument("--batch-size", type=int, default=16384)
    parser.add_argument("--columns", type=int, default=40, help="of float32")
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument(
        "--sync", action="store_true", help="wait for each step, as reading a loss does"
    )
    args = parser.parse_args(argv)
    try:
        resolve_device(args.device)
    except ConfigError as error:
        print(f"no device to measure: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        write_numbers(
            Path(folder),
            num_rows=args.batch_size * (args.steps + 1),
            num_columns=args.columns,
        )
        with ParquetDataset(
            folder,
            batch_size=args.batch_size,
            shuffle=args.shuffle,
            client="threads",
        ) as dataset:
            loader = DataLoader(dataset, device=args.device)
            print(json.dumps(measure(dataset, loader, args), indent=2))
    return 0


def measure(
    dataset: ParquetDataset, loader: DataLoader, args: argparse.Namespace
) -> dict[str, Any]:
    """Return medians over the repeats; the first one only warms up."""
    device = torch.device(args.device)
    resident = to_device(dataset.peek(), device)
    step, num_products = make_step(device, args)
    run = partial(seconds_a_step, step=step, device=device, sync=args.sync)
    plain = DataLoader(dataset)
    rounds: list[dict[str, float]] = []
    for number in range(args.repeats + 1):
        before = dataset.stats()
        found = {
            "alone": run([resident] * len(loader)),
            "loader": run(loader),
        }
        after = dataset.stats()
        found["plain"] = run(to_device(batch, device) for batch in plain)
        total = after["total_s"] - before["total_s"]
        found["wait_share"] = (after["wait_s"] - before["wait_s"]) / total
        if number:
            rounds.append(found)
    ratios = {
        way: [found[way] / found["alone"] for found in rounds]
        for way in ("loader", "plain")
    }
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "ratio": statistics.median(ratios["loader"]),
        "ratio_plain": statistics.median(ratios["plain"]),
        "ratios": ratios["loader"],
        "wait_share": statistics.median(found["wait_share"] for found in rounds),
        "step_ms_alone": 1e3 * statistics.median(found["alone"] for found in rounds),
        "products_a_step": num_products,
        "batch_bytes": sum(column.nbytes for column in resident.values()),
        "steps": args.steps,
        "shuffle": args.shuffle,
        "sync": args.sync,
    }


def seconds_a_step(
    batches: Iterable[dict[str, Any]], *, step: Step, device: torch.device, sync: bool
) -> float:
    """Run a step on each batch; the time starts when the first one is done."""
    synchronize = torch.get_device_module(device).synchronize
    num_timed, began = -1, 0.0
    for batch in batches:
        step(batch)
        num_timed += 1
        if num_timed == 0:
            synchronize()
            began = time.perf_counter()
        elif sync:
            synchronize()
    synchronize()
    return (time.perf_counter() - began) / num_timed


def make_step(device: torch.device, args: argparse.Namespace) -> tuple[Step, int]:
    """Return a step of about step_ms, and the products that make it so long."""
    synchronize = torch.get_device_module(device).synchronize
    # Of norm 1, so that powers of it stay as they are.
    matrix = torch.eye(args.side, device=device)
    product = torch.empty_like(matrix)

    def multiply(num_products: int) -> None:
        for _ in range(num_products):
            torch.mm(matrix, matrix, out=product)

    multiply(_NUM_TRIALS)
    synchronize()
    began = time.perf_counter()
    multiply(_NUM_TRIALS)
    synchronize()
    each_ms = 1e3 * (time.perf_counter() - began) / _NUM_TRIALS
    num_products = max(1, round(args.step_ms / each_ms))
    total = torch.zeros((), device=device)

    def step(batch: dict[str, Any]) -> None:
        for column in batch.values():
            total.add_(column.sum())
        multiply(num_products)

    return step, num_products


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Copy a batch and wait for it, as most training loops do."""
    return {name: column.to(device) for name, column in batch.items()}


def write_numbers(folder: Path, *, num_rows: int, num_columns: int) -> None:
    """Write one file of float32 columns that decodes as fast as can be."""
    rng = np.random.default_rng(0)
    rows_a_group = 131_072
    schema = pa.schema([(f"x{i:02}", pa.float32()) for i in range(num_columns)])
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    with pq.ParquetWriter(folder / "numbers.parquet", schema, **options) as writer:
        for start in range(0, num_rows, rows_a_group):
            rows = min(rows_a_group, num_rows - start)
            columns = [rng.random(rows, dtype=np.float32) for _ in schema]
            writer.write_table(pa.table(columns, schema=schema))


def device_name(device: torch.device) -> str:
    """Name the device as its maker does, if torch knows."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(name(device)) if name else str(device)


if __name__ == "__main__":
    sys.exit(main())
