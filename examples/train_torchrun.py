"""Train a small classifier on Parquet that a Dask cluster reads, on any number of ranks.

    python examples/flights.py demo-data/flights
    torchrun --nproc-per-node 2 examples/train_torchrun.py demo-data/flights --label late

Rank 0 launches a Dask cluster on this machine, unless --scheduler names one that runs
elsewhere (started by `python -m cluster ssh ...` or `slurm ...`), or --launch torchrun
asks for workers on each node of the job. Every rank reads its own share of each epoch;
all have the same number of batches, so DistributedDataParallel never waits for a rank
that has no data left. Gloo on the CPU, NCCL where there are GPUs.

The target is (label > threshold). Loss and accuracy are those of each batch before the
model has learned from it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import cluster
from dask_loader import DataLoader, ParquetDataset


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", help="file, folder, glob or URL of Parquet of numbers")
    parser.add_argument("--label", default="label")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--leave-out", nargs="*", default=["id"], metavar="COLUMN")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1024, help="rows per rank")
    parser.add_argument("--scheduler", help="address of a running Dask scheduler")
    parser.add_argument(
        "--certificates", metavar="FOLDER", help="of that scheduler, or for --launch"
    )
    parser.add_argument(
        "--launch",
        choices=("local", "torchrun"),
        default="local",
        help="where --dask-workers run: beside rank 0, or so many on each node",
    )
    parser.add_argument("--dask-workers", type=int, default=2)
    parser.add_argument(
        "--ids", metavar="FOLDER", help="note there the column id as each rank sees it"
    )
    return parser.parse_args(argv)


def find_cluster(args: argparse.Namespace, stack: ExitStack) -> str | cluster.Cluster:
    """Return who reads for this rank: the cluster that was named, or one of the job's."""
    if args.scheduler and args.certificates:
        # Each rank reads the keys from the folder: they travel nowhere.
        security = cluster.load_certificates(args.certificates)
        return stack.enter_context(cluster.connect(args.scheduler, security))
    if args.scheduler:
        return str(args.scheduler)
    if args.launch == "torchrun":
        launched = cluster.launch(
            "torchrun", workers=args.dask_workers, certificates=args.certificates
        )
        return stack.enter_context(launched)
    found = [""]
    if dist.get_rank() == 0:
        launched = cluster.launch("local", workers=args.dask_workers)
        stack.callback(launched.close)
        found = [launched.address]
    dist.broadcast_object_list(found)
    return found[0]


def train_epoch(
    loader: DataLoader,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train once over the data.

    Returns:
        Sums over all ranks, float64, shape (4,): rows, loss, correct answers, positives.
        With --ids, those of this rank's rows, in order; else none.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    left_out = {args.label, *args.leave_out}
    ids = [torch.empty(0, dtype=torch.int64)]
    for batch in loader:
        y = (batch[args.label].to(device) > args.threshold).float()
        columns = [v.to(device) for k, v in batch.items() if k not in left_out]
        x = torch.stack([column.float() for column in columns], dim=1)
        logits = model(x).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = ((logits > 0) == (y > 0)).sum()
        rows = torch.tensor(len(y), device=device)
        sums += torch.stack([rows, loss.detach() * rows, right, y.sum()])
        if args.ids:
            ids.append(batch["id"])
    dist.all_reduce(sums)
    return sums, torch.cat(ids)


def main(argv: list[str] | None = None) -> int:
    """Train and print a line for each epoch."""
    args = parse(argv)
    torch.manual_seed(0)  # the same model everywhere
    has_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if has_gpu else "gloo")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    with ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        reader = find_cluster(args, stack)
        dataset = ParquetDataset(
            args.data, batch_size=args.batch_size, shuffle=True, client=reader
        )
        stack.enter_context(dataset)
        if dist.get_rank() == 0:
            print(dataset.explain(), flush=True)
        num_features = len(set(dataset.schema.names) - {args.label, *args.leave_out})
        model: nn.Module = nn.Sequential(
            nn.BatchNorm1d(num_features),
            nn.Linear(num_features, 64),
            nn.ReLU(),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, 1),
        ).to(device)
        model = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        loader = DataLoader(dataset)
        for epoch in range(args.epochs):
            dataset.set_epoch(epoch)
            began, waited = time.perf_counter(), dataset.stats()["wait_s"]
            sums, ids = train_epoch(loader, model, optimizer, args, device)
            seconds = time.perf_counter() - began
            waited = dataset.stats()["wait_s"] - waited
            if args.ids:
                os.makedirs(args.ids, exist_ok=True)
                name = f"epoch-{epoch}-rank-{dist.get_rank()}.txt"
                text = "".join(f"{number}\n" for number in ids.tolist())
                (Path(args.ids) / name).write_text(text)
            rows, loss, right, positive = sums.tolist()
            common = max(positive, rows - positive) / rows
            if dist.get_rank() == 0:
                print(
                    f"epoch {epoch}: {len(loader)} steps on each of "
                    f"{dist.get_world_size()} ranks, loss {loss / rows:.4f}, accuracy "
                    f"{right / rows:.3f} (always the commoner answer: {common:.3f}), "
                    f"{rows / seconds:,.0f} rows/s, waited {waited / seconds:.0%} of "
                    "the time for data",
                    flush=True,
                )
        dataset.close()
        dist.barrier()  # the cluster ends after the last rank has read
    return 0


if __name__ == "__main__":
    sys.exit(main())
