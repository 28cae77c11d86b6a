"""Train the same model on 1, 2 and 4 ranks: the loss curves agree.

    python examples/flights.py demo-data/flights
    python examples/elastic.py demo-data/flights --label late

With num_splits fixed, the global batch of step t holds the same rows at every world size
with the same global batch size (batch_size times world_size). What a step learns is a sum
over the rows of its global batch, so the curves agree but for the last digits, in which
floating-point sums depend on their order. A digest of the rows of each step is compared
too, which is equal to the last bit.

Each world size is a torchrun job of its own; gloo on the CPU. The model is a logistic
regression whose target is (label > threshold).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from dask_loader import DataLoader, ParquetDataset


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", help="file, folder, glob or URL of Parquet of numbers")
    parser.add_argument("--label", default="label")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--id", default="id", help="a number that each row has alone")
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--global-batch", type=int, default=4096, help="rows of a step")
    parser.add_argument("--num-splits", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)  # for a rank
    return parser.parse_args(argv)


def global_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all ranks, in place."""
    dist.all_reduce(tensor)
    return tensor


def train(args: argparse.Namespace) -> list[list[float]]:
    """Train on this rank's share.

    Returns:
        For each step: the loss before it and a digest of its rows, over all ranks.
    """
    batch_size = args.global_batch // dist.get_world_size()
    curve, weights = [], torch.zeros(0)
    with ParquetDataset(
        args.data,
        batch_size=batch_size,
        shuffle=True,
        num_splits=args.num_splits,
        drop_last=True,
        client="threads",
    ) as dataset:
        loader = DataLoader(dataset)
        for epoch in range(args.epochs):
            dataset.set_epoch(epoch)
            for batch in loader:
                ids = batch.pop(args.id)
                y = (batch.pop(args.label) > args.threshold).float()
                x = torch.stack([column.float() for column in batch.values()], dim=1)
                if not len(weights):  # scaled as the first global batch says
                    sums = global_sum(torch.stack([x.sum(0), (x * x).sum(0)]))
                    mean, square = sums / args.global_batch
                    scale = (square - mean * mean).clamp(min=1e-6).sqrt()
                    weights = torch.zeros(x.shape[1] + 1)
                x = torch.nn.functional.pad((x - mean) / scale, (0, 1), value=1.0)
                logits = x @ weights
                # Sums over the rows of this rank, then over the ranks: with the same
                # rows, whoever has them, the gradient is the same.
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    logits, y, reduction="sum"
                )
                gradient = x.T @ (torch.sigmoid(logits) - y)
                sums = global_sum(torch.cat([gradient, loss[None]])) / args.global_batch
                digest = global_sum((ids * 2_654_435_761 % 1_000_003).sum())
                weights -= 0.5 * sums[:-1]
                curve.append([float(sums[-1]), int(digest)])
    return curve


def run_rank(args: argparse.Namespace) -> None:
    """Be one rank of a job; rank 0 writes down the curve."""
    dist.init_process_group("gloo")
    try:
        curve = train(args)
        if dist.get_rank() == 0:
            args.out.write_text(json.dumps(curve))
    finally:
        dist.destroy_process_group()


def run_job(world_size: int, argv: list[str], out: Path) -> list[list[float]]:
    """Train with torchrun on so many ranks of this machine; return the curve."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(world_size), __file__, *argv, "--out", str(out)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=one_thread)
    curve: list[list[float]] = json.loads(out.read_text())
    return curve


def main(argv: list[str] | None = None) -> int:
    """Train at each world size and print the curves beside each other."""
    args = parse(argv)
    if "RANK" in os.environ:
        run_rank(args)
        return 0
    if any(args.global_batch % world_size for world_size in args.world_sizes):
        print("elastic.py: each world size must divide --global-batch", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        curves = [
            run_job(
                world_size, argv or sys.argv[1:], Path(folder, f"{world_size}.json")
            )
            for world_size in args.world_sizes
        ]
    print("step  " + "".join(f"{f'{w} ranks':>12}" for w in args.world_sizes))
    num_steps = len(curves[0])
    for step in range(0, num_steps, max(1, num_steps // 10)):
        print(f"{step:4}  " + "".join(f"{curve[step][0]:12.8f}" for curve in curves))
    steps = list(zip(*curves, strict=True))
    apart = max(max(c[0] for c in step) - min(c[0] for c in step) for step in steps)
    same = all(len({c[1] for c in step}) == 1 for step in steps)
    print(
        f"{num_steps} steps of {args.global_batch} rows: the same rows in each step: "
        f"{'yes' if same else 'NO'}; losses differ by {apart:.1e} at most"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
