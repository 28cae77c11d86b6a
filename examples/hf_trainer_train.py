"""Train with the Hugging Face Trainer, and go on from its own checkpoints.

    pip install transformers accelerate
    python examples/make_dataset.py demo-data/numbers --rows 100_000 --columns 9
    torchrun --nproc-per-node 2 examples/hf_trainer_train.py demo-data/numbers
    torchrun ... --resume demo-data/hf-trainer/checkpoint-150

Given a train_dataset the Trainer would make a loader of its own and share the rows out a
second time: give it ours. It keeps no loader's state: the callback does, in the Trainer's
own checkpoints. ignore_data_skip, so that it does not read and drop batches instead.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from dask_loader import DataLoader, ParquetDataset


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", help="a folder that make_dataset.py wrote")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=512, help="rows per rank")
    parser.add_argument("--save-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop in mid-epoch")
    parser.add_argument("--checkpoints", type=Path, default="demo-data/hf-trainer")
    parser.add_argument("--resume", help="a folder in --checkpoints")
    parser.add_argument("--ids", type=Path, help="folder to write the ids seen into")
    return parser.parse_args()


class KeepPlace(TrainerCallback, ExportableState):
    """Keeps the loader's place in trainer_state.json, and goes on from it."""

    loader: DataLoader | None = None
    place: dict[str, Any] | None = None  # set by the Trainer from the checkpoint

    def on_train_begin(self, *_: Any, train_dataloader: Any, **__: Any) -> None:
        """Go on from the checkpoint's place, if there is one."""
        self.loader = train_dataloader
        if self.place is not None:
            train_dataloader.load_state_dict(self.place)

    def state(self) -> dict[str, Any]:
        """Return what is written into a checkpoint."""
        place = None if self.loader is None else self.loader.state_dict()
        return {"args": {}, "attributes": {"place": place}}


class ParquetTrainer(Trainer):
    """Takes a ParquetDataset for its train_dataset."""

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader that hands out this rank's share."""
        return DataLoader(self.train_dataset, device=self.args.device)


class Regression(nn.Module):
    """A linear model that writes down which rows it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.seen: list[list[int]] = []

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss of a batch."""
        self.seen.append(batch["id"].tolist())
        predicted = self.linear(batch["x"]).squeeze(1)
        return {"loss": nn.functional.mse_loss(predicted, batch["label"])}


def main() -> None:
    """Train."""
    args = parse()
    torch.manual_seed(0)  # the same model everywhere
    options = TrainingArguments(
        output_dir=args.checkpoints,
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,  # for its log only
        learning_rate=0.1,
        save_steps=args.save_every,
        logging_steps=args.save_every,
        report_to="none",
        ddp_find_unused_parameters=False,
        use_cpu=not torch.cuda.is_available(),  # else no process group without a GPU
        ignore_data_skip=True,
        restore_callback_states_from_checkpoint=True,
    )
    model = Regression()
    with ParquetDataset(
        args.data,
        columns=["id", "label", "f000_float32", "f003_float64"],
        features={"x": ["f000_float32", "f003_float64"]},
        dtypes={"x": torch.float32},
        batch_size=args.batch_size,
        shuffle=True,
        client="threads",
    ) as dataset:
        trainer = ParquetTrainer(
            model, options, train_dataset=dataset, callbacks=[KeepPlace()]
        )
        trainer.train(resume_from_checkpoint=args.resume)
    if args.ids:
        args.ids.mkdir(parents=True, exist_ok=True)
        (args.ids / f"{options.process_index}.json").write_text(json.dumps(model.seen))


if __name__ == "__main__":
    main()
