"""Run by torchrun: each rank reads its share and writes down what it got.

share_script.py DATA OUT threads|launch|ADDRESS
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader as TorchDataLoader

import cluster
from dask_loader import DataLoader, ParquetDataset, WorldError

OPTIONS = {"batch_size": 16, "shuffle": True, "shuffle_window": 40, "num_splits": 4}


def find_client(given: str, stack: ExitStack) -> str:
    if given != "launch":
        return given
    found = [""]
    if dist.get_rank() == 0:
        found = [stack.enter_context(cluster.launch("local", workers=2)).address]
    dist.broadcast_object_list(found)
    return found[0]


def ids(batches: Any) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def read_all(data: str, client: str) -> dict[str, Any]:
    """Read epochs 0 to 3, each in another way."""
    with ParquetDataset(data, client=client, **OPTIONS) as dataset:
        world = dataset.world
        found = {
            "world": [world.rank, world.world_size, world.source],
            "len": len(dataset),
            "no workers": ids(DataLoader(dataset)),
            "fork": ids(DataLoader(dataset, num_workers=2)),
            "torch's": ids(TorchDataLoader(dataset, batch_size=None, num_workers=2)),
        }
        # A spawned worker knows nothing of torch.distributed.
        spawned = DataLoader(dataset, num_workers=1, multiprocessing_context="spawn")
        found["spawn"] = ids(spawned)
    return found


def refused(data: str) -> str:
    rank, world_size = dist.get_rank(), dist.get_world_size() + 1
    try:
        ParquetDataset(data, client="threads", rank=rank, world_size=world_size)
    except WorldError as error:
        return str(error)
    return "not refused"


def main() -> None:
    data, out, client = sys.argv[1:]
    dist.init_process_group("gloo")
    with ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        found = read_all(data, find_client(client, stack))
        found["refused"] = refused(data)
        Path(out, f"{dist.get_rank()}.json").write_text(json.dumps(found))
        dist.barrier()  # a cluster of rank 0's ends after the last rank has read


if __name__ == "__main__":
    main()
