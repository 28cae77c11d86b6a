"""Run by torchrun: ranks begin epochs, mostly unlike ones, and write down what they got.

agree_script.py DATA OUT SCENARIO...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dask_loader import DaskLoaderError, DataLoader, ParquetDataset


def attempt(make: Any) -> dict[str, Any]:
    try:
        return {"ids": [batch["id"].tolist() for batch in make()]}
    except DaskLoaderError as error:
        return {"error": type(error).__name__, "text": str(error), "rank": error.rank}


def run(data: str, scenario: str) -> list[dict[str, Any]]:
    rank = dist.get_rank()
    options: dict[str, Any] = {"batch_size": 16, "client": "threads", "shuffle": True}
    options["rank_timeout"] = "120 s"
    if scenario == "same":
        options["vocabulary"] = {"name": True}
    if scenario == "vocabulary" and rank == 2:
        options["vocabulary"] = {"name": True}
    if scenario == "seed" and rank == 1:
        options["seed"] = 8
    if scenario == "batch_size" and rank > 0:
        options["batch_size"] = 16 + rank
    if scenario == "files" and rank == 2:
        data = str(Path(data) / "part-0.parquet")
    if scenario in ("absent", "absent 0"):
        options["rank_timeout"] = "3 s"
    with (
        ParquetDataset(data, **options) as dataset,
        ParquetDataset(data, **{**options, "batch_size": 40}) as validation,
    ):
        if scenario == "epoch" and rank == 0:
            dataset.set_epoch(3)
        if scenario == "position" and rank == 2:
            dataset.seek(0, 5)
        if scenario == "absent" and rank == 2:
            return []
        if scenario == "absent 0" and rank == 0:
            return []
        if scenario == "again":
            dataset.set_epoch(4 * (rank == 1))
            found = [attempt(lambda: dataset)]
            if rank == 1:
                dataset.set_epoch(0)
            return [*found, attempt(lambda: dataset)]
        found = [attempt(lambda: DataLoader(dataset, num_workers=2 * (rank == 1)))]
        if "ids" in found[0]:
            found += [attempt(lambda: validation), attempt(lambda: dataset)]
        return found


if __name__ == "__main__":
    data, out, *scenarios = sys.argv[1:]
    dist.init_process_group("gloo")
    found = {scenario: run(data, scenario) for scenario in scenarios}
    (Path(out) / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()  # rank 0 holds the store
    dist.destroy_process_group()
