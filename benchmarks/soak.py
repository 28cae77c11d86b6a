"""Read for a long time while workers are killed; count rows, memory and descriptors.

    make soak                                       # 30 minutes, and the table of docs/
    python benchmarks/soak.py --minutes 1 --ranks 2

Ranks of torchrun (gloo), each with DataLoader workers that stay, read epochs of shuffled
data from a local Dask cluster. Every so many seconds one of its workers is killed. After
each epoch the ranks compare what they were given: every id once, in the order that threads
have without any cluster. Rank 0 samples memory (PSS: shared pages are shared out) and
descriptors of all processes.

It ends with 1 if a row was lost, came twice or in another place, if memory grew by more
than --growth after the first third, if descriptors grew, or if a process or a file of
shared memory was left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq

_ROWS = 240_000
_GROUP_ROWS = 5_000
_END_S = 120.0
# To tell growth from starting up.
_LEAST_EPOCHS = 3
# The window is in rows: one in bytes would depend on the columns.
ORDER: dict[str, Any] = {
    "batch_size": 1000,
    "shuffle": True,
    "num_splits": 8,
    "shuffle_window": 6_000,
}


def main(argv: list[str] | None = None) -> int:
    """Run as the driver, or as one rank of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--num-workers", type=int, default=2, help="of each DataLoader")
    parser.add_argument("--dask-workers", type=int, default=2)
    parser.add_argument("--kill-every", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument(
        "--growth", type=float, default=0.05, help="allowed, as a share"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    return rank(args) if args.rank_of else drive(args)


# ---- the driver ---------------------------------------------------------------------


def drive(args: argparse.Namespace) -> int:
    """Make data, start everything, kill, and judge."""
    import cluster

    shared_before = shared_files()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        make_data(Path(folder))
        with cluster.launch("local", workers=args.dask_workers) as launched:
            torchrun = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run"),
                    *("--nproc-per-node", str(args.ranks), "--standalone"),
                    *(__file__, "--rank-of", folder, "--minutes", str(args.minutes)),
                    *("--num-workers", str(args.num_workers)),
                ],
                env={**os.environ, "SOAK_ADDRESS": launched.address},
            )
            try:
                killed = kill_until_it_ends(torchrun, launched.client(), args)
            finally:
                torchrun.kill()
                torchrun.wait()
        found = [
            json.loads(line)
            for line in (Path(folder) / "samples").open()
            if line.strip()
        ]
        for sample in found:
            if sample["digest"] != digest_of_threads(
                folder, sample["epoch"], args.ranks
            ):
                sample["wrong"] = sample["wrong"] or "another order than threads have"
    failures = judge(found, args) + wait_for_nothing(shared_before)
    if torchrun.returncode:
        failures.append(f"the ranks ended with {torchrun.returncode}")
    if not killed:
        failures.append("no worker was killed: run it for longer")
    report(found, killed, args)
    for failure in failures:
        print(f"FAILED: {failure}")
    if not failures:
        print("PASSED")
    return 1 if failures else 0


def make_data(folder: Path) -> None:
    """Write files of one id, numbers and a text."""
    rng = np.random.default_rng(0)
    for number in range(4):
        ids = np.arange(number * _ROWS // 4, (number + 1) * _ROWS // 4)
        table = pa.table(
            {
                "id": ids,
                **{f"x{i}": rng.standard_normal(len(ids)) for i in range(10)},
                "text": [f"row {i}" for i in ids],
            }
        )
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=_GROUP_ROWS)


def kill_until_it_ends(ranks: Any, client: Any, args: argparse.Namespace) -> int:
    """Kill a Dask worker now and then, as long as the ranks run."""
    chance = random.Random(args.seed)
    killed = 0
    next_s = time.monotonic() + args.kill_every
    deadline = time.monotonic() + 60 * args.minutes + 10 * _END_S
    while ranks.poll() is None and time.monotonic() < deadline:
        wait_s = max(0.1, min(1.0, next_s - time.monotonic()))
        with contextlib.suppress(subprocess.TimeoutExpired):
            ranks.wait(wait_s)
        if time.monotonic() < next_s:
            continue
        next_s += args.kill_every
        try:
            pids = sorted(client.run(os.getpid, on_error="ignore").values())
        except OSError:  # one of them died at this very moment
            continue
        if pids:
            os.kill(chance.choice(pids), signal.SIGKILL)
            killed += 1
    return killed


def wait_for_nothing(shared_before: set[str]) -> list[str]:
    """Return what is left after a while of processes and shared memory."""
    deadline = time.monotonic() + 30.0
    left: list[str] = []
    while time.monotonic() < deadline:
        children = psutil.Process().children(recursive=True)
        files = shared_files() - shared_before
        left = [f"process {p.pid} is left" for p in children]
        left += [f"/dev/shm/{name} is left" for name in sorted(files)]
        if not left:
            break
        threading.Event().wait(0.2)  # polling a condition, with a deadline
    return left


def shared_files() -> set[str]:
    """Return the names of shared memory such as torch's and ours."""
    names = os.listdir("/dev/shm")
    return {name for name in names if name.startswith(("torch_", "dask-loader-"))}


def judge(found: list[dict[str, Any]], args: argparse.Namespace) -> list[str]:
    """Return what is wrong with the samples."""
    if len(found) < _LEAST_EPOCHS:
        return [f"only {len(found)} epochs: run it for longer"]
    wrong = [f"epoch {s['epoch']}: {s['wrong']}" for s in found if s["wrong"]]
    steady = found[len(found) // 3 :]
    first, last = halves([s["memory"] for s in steady])
    if last > first * (1 + args.growth):
        wrong.append(f"memory grew from {first / 1e6:.0f} to {last / 1e6:.0f} MB")
    first, last = halves([s["descriptors"] for s in steady])
    if last > first * (1 + args.growth):
        wrong.append(f"descriptors grew from {first:.0f} to {last:.0f}")
    return wrong


def digest_of_threads(folder: str, epoch: int, world_size: int) -> str:
    """Return the digest of all ranks' ids as threads read them, without a cluster."""
    from dask_loader import ParquetDataset

    found = []
    for number in range(world_size):
        with ParquetDataset(
            folder,
            client="threads",
            columns=["id"],
            rank=number,
            world_size=world_size,
            **ORDER,
        ) as dataset:
            dataset.set_epoch(epoch)
            found += [batch["id"].numpy() for batch in dataset]
    return digest(found)


def digest(batches: list[Any]) -> str:
    """Hash ids in their order."""
    return hashlib.blake2b(np.concatenate(batches).tobytes(), digest_size=8).hexdigest()


def halves(values: list[float]) -> tuple[float, float]:
    """Return the medians of the first and the last half."""
    middle = max(1, len(values) // 2)
    return statistics.median(values[:middle]), statistics.median(values[-middle:])


def report(found: list[dict[str, Any]], killed: int, args: argparse.Namespace) -> None:
    """Print a table for people."""
    print(
        f"\n{args.ranks} ranks x {args.num_workers} DataLoader workers, "
        f"{args.dask_workers} Dask workers, {killed} of them killed, "
        f"{len(found)} epochs of {_ROWS} rows"
    )
    if len(found) >= 3:
        first, last = halves([sample["memory"] for sample in found[len(found) // 3 :]])
        print(
            f"memory: median {first / 1e6:.0f} MB of the middle third of the epochs, "
        )
        print(f"        median {last / 1e6:.0f} MB of the last third")
    print("epoch  seconds  memory MB  descriptors  digest")
    shown = found if len(found) <= 12 else found[:4] + found[-4:]
    for sample in shown:
        print(
            f"{sample['epoch']:5}  {sample['seconds']:7.1f}  "
            f"{sample['memory'] / 1e6:9.0f}  {sample['descriptors']:11}  "
            f"{sample['digest']}"
        )


# ---- a rank -------------------------------------------------------------------------


def rank(args: argparse.Namespace) -> int:
    """Read epochs until the time is up; rank 0 writes a sample after each."""
    import torch.distributed as dist

    from dask_loader import DataLoader, ParquetDataset

    dist.init_process_group("gloo")
    own, world_size = dist.get_rank(), dist.get_world_size()
    began = time.monotonic()
    with ParquetDataset(
        args.rank_of,
        client=os.environ["SOAK_ADDRESS"],
        **ORDER,
        memory_limit="128 MiB",
        worker_timeout="5 min",
    ) as dataset:
        loader = DataLoader(
            dataset,
            num_workers=args.num_workers,
            persistent_workers=args.num_workers > 0,
        )
        for epoch in range(1_000_000):
            epoch_began = time.monotonic()
            got = [batch["id"].numpy() for batch in checked(loader)]
            everyone: list[Any] = [None] * world_size
            dist.all_gather_object(everyone, got)
            enough = epoch + 1 >= _LEAST_EPOCHS
            over = [enough and time.monotonic() - began > 60 * args.minutes]
            if own == 0:
                write_sample(args, epoch, epoch_began, everyone)
            dist.broadcast_object_list(over)
            if over[0]:
                break
        del loader
    dist.destroy_process_group()
    return 0


def checked(loader: Any) -> Iterator[Any]:
    """Hand on batches whose columns fit each other."""
    for batch in loader:
        texts = [f"row {i}" for i in batch["id"].tolist()]
        if list(batch["text"]) != texts:
            raise AssertionError("texts of other rows than the ids")
        yield batch


def write_sample(
    args: argparse.Namespace,
    epoch: int,
    began: float,
    everyone: list[Any],
) -> None:
    """Count an epoch's ids and write down what this machine holds for it."""
    ids = np.concatenate([b for batches in everyone for b in batches])
    wrong = ""
    counts = np.bincount(ids, minlength=_ROWS)
    if len(counts) != _ROWS or (counts != 1).any():
        wrong = (
            f"{(counts == 0).sum()} ids are missing, {(counts > 1).sum()} come twice"
        )
    memory, descriptors = 0, 0
    torchrun = psutil.Process().parent()
    assert torchrun is not None
    driver = torchrun.parent()
    assert driver is not None
    for process in [driver, *driver.children(recursive=True)]:
        try:
            memory += process.memory_full_info().pss
            descriptors += process.num_fds()
        except psutil.Error:  # killed meanwhile
            continue
    sample = {
        "epoch": epoch,
        "seconds": time.monotonic() - began,
        "memory": memory,
        "descriptors": descriptors,
        "digest": digest([b for batches in everyone for b in batches]),
        "wrong": wrong,
    }
    with (Path(args.rank_of) / "samples").open("a") as file:
        file.write(json.dumps(sample) + "\n")


if __name__ == "__main__":
    sys.exit(main())
