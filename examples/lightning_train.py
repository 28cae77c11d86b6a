"""Train with Lightning's Trainer, and go on from its own checkpoints.

    pip install lightning
    python examples/make_dataset.py demo-data/numbers --rows 100_000 --columns 9
    torchrun --nproc-per-node 2 examples/lightning_train.py demo-data/numbers
    torchrun ... --resume demo-data/lightning/step=150.ckpt

Lightning keeps the state of a loader that has state_dict() and load_state_dict(), and
tells its sampler each epoch. Our DataLoader has these, so nothing is left to do. Without
torchrun Lightning starts the ranks itself.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from dask_loader import DataLoader, ParquetDataset


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", help="a folder that make_dataset.py wrote")
    parser.add_argument("--ranks", type=int, default=2, help="as torchrun's")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=512, help="rows per rank")
    parser.add_argument("--save-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop in mid-epoch")
    parser.add_argument("--checkpoints", type=Path, default="demo-data/lightning")
    parser.add_argument("--resume", help="a file in --checkpoints")
    parser.add_argument("--ids", type=Path, help="folder to write the ids seen into")
    return parser.parse_args()


class Regression(lightning.LightningModule):
    """A linear model that writes down which rows it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        """Return the loss of a batch."""
        self.seen.append(batch["id"].tolist())
        predicted = self.linear(batch["x"]).squeeze(1)
        loss = nn.functional.mse_loss(predicted, batch["label"])
        self.log("loss", loss, prog_bar=True, batch_size=len(predicted))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Numbers(lightning.LightningDataModule):
    """Makes the dataset when the ranks are known: Lightning may start them itself."""

    def __init__(self, data: str, batch_size: int) -> None:
        super().__init__()
        self.data, self.batch_size = data, batch_size

    def train_dataloader(self) -> DataLoader:
        """Return a loader of this rank's share."""
        self.dataset = ParquetDataset(
            self.data,
            columns=["id", "label", "f000_float32", "f003_float64"],
            features={"x": ["f000_float32", "f003_float64"]},
            dtypes={"x": torch.float32},
            batch_size=self.batch_size,
            shuffle=True,
            client="threads",
        )
        return DataLoader(self.dataset)

    def teardown(self, stage: str) -> None:
        """Let go of the dataset's threads and files."""
        del stage
        self.dataset.close()


def main() -> None:
    """Train."""
    args = parse()
    torch.manual_seed(0)  # the same model everywhere
    keep = ModelCheckpoint(
        args.checkpoints, "{step}", every_n_train_steps=args.save_every, save_top_k=-1
    )
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=args.ranks,
        max_epochs=args.epochs,
        max_steps=args.max_steps,
        callbacks=[keep],
        logger=False,
    )
    model = Regression()
    trainer.fit(model, Numbers(args.data, args.batch_size), ckpt_path=args.resume)
    if args.ids:
        args.ids.mkdir(parents=True, exist_ok=True)
        (args.ids / f"{trainer.global_rank}.json").write_text(json.dumps(model.seen))


if __name__ == "__main__":
    main()
