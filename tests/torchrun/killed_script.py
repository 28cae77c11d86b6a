"""Run by torchrun: ranks train in step, rank 0 saves, and one of them may be killed.

killed_script.py DATA OUT RUN GLOBAL_BATCH [VICTIM AT_STEP]

Each rank appends the ids of each batch to OUT/RUN.<restarts>-<rank>.jsonl before it takes
part in the step. Rank 0 saves OUT/state.json after every third step, when all ranks have
done it. The victim kills itself, as the kernel would, in the middle of a step; not once
more where torchrun has started it again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from dask_loader import DataLoader, ParquetDataset

SAVE_EVERY = 3


def main() -> None:
    data, out, run, global_batch, *victim = sys.argv[1:]
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    state = Path(out, "state.json")
    restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
    if restarts != "0":
        victim = []
    with (
        ParquetDataset(
            data,
            columns=["id"],
            batch_size=int(global_batch) // world_size,
            shuffle=True,
            shuffle_window=40,
            uneven="pad",
            client="threads",
        ) as dataset,
        Path(out, f"{run}.{restarts}-{rank}.jsonl").open("w") as log,
    ):
        loader = DataLoader(dataset)
        if state.exists():
            loader.load_state_dict(json.loads(state.read_text()))
        for step, batch in enumerate(loader, 1):
            print(json.dumps(batch["id"].tolist()), file=log, flush=True)
            dist.all_reduce(torch.ones(1))  # all ranks have written
            if victim == [str(rank), str(step)]:
                os.kill(os.getpid(), signal.SIGKILL)
            dist.all_reduce(torch.ones(1))
            if rank == 0 and step % SAVE_EVERY == 0:
                partial = state.with_suffix(".partial")
                partial.write_text(json.dumps(loader.state_dict()))
                partial.replace(state)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
