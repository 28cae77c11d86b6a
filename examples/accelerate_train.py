"""Train with Hugging Face Accelerate, and go on from its own checkpoints.

    pip install accelerate
    python examples/make_dataset.py demo-data/numbers --rows 100_000 --columns 9
    torchrun --nproc-per-node 2 examples/accelerate_train.py demo-data/numbers
    torchrun ... --resume demo-data/accelerate/epoch-1-rows-51200

The dataset finds its rank by itself, so prepare() has nothing to share out and hands our
DataLoader back as it is. Registered, the loader's place lies in every checkpoint, and
load_state() makes the next iteration begin there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from dask_loader import DataLoader, ParquetDataset


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", help="a folder that make_dataset.py wrote")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=512, help="rows per rank")
    parser.add_argument("--save-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--max-steps", type=int, help="stop early, in mid-epoch")
    parser.add_argument("--checkpoints", type=Path, default="demo-data/accelerate")
    parser.add_argument("--resume", help="a folder in --checkpoints")
    parser.add_argument("--ids", type=Path, help="folder to write the ids seen into")
    return parser.parse_args()


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    args: argparse.Namespace,
) -> list[list[int]]:
    """Train up to the last epoch; return the ids of each step of this rank."""
    seen: list[list[int]] = []
    loss = torch.tensor(0.0)
    for epoch in range(loader.state_dict()["epoch"], args.epochs):
        loader.set_epoch(epoch)  # a position loaded for this epoch stays
        for number, batch in enumerate(loader, 1):
            predicted = model(batch["x"]).squeeze(1)
            loss = nn.functional.mse_loss(predicted, batch["label"])
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            seen.append(batch["id"].tolist())
            if number % args.save_every == 0:
                rows = loader.state_dict()["rows"]
                folder = args.checkpoints / f"epoch-{epoch}-rows-{rows}"
                accelerator.save_state(folder)
            if len(seen) == args.max_steps:
                return seen
        accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")
    return seen


def main() -> None:
    """Train."""
    args = parse()
    # Left to itself, Accelerate starts no process group where there is no GPU.
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)  # the same model everywhere
    with ParquetDataset(
        args.data,
        columns=["id", "label", "f000_float32", "f003_float64"],
        features={"x": ["f000_float32", "f003_float64"]},
        dtypes={"x": torch.float32},
        batch_size=args.batch_size,
        shuffle=True,
        client="threads",
    ) as dataset:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        # Accelerate moves no batches of a loader that it did not make: ours does.
        loader = DataLoader(dataset, device=accelerator.device)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        accelerator.register_for_checkpointing(loader)
        if args.resume:
            accelerator.load_state(args.resume)
        seen = train(accelerator, model, optimizer, loader, args)
    if args.ids:
        args.ids.mkdir(parents=True, exist_ok=True)
        (args.ids / f"{accelerator.process_index}.json").write_text(json.dumps(seen))
    accelerator.end_training()


if __name__ == "__main__":
    main()
