"""Other people's training loops: two real ranks, every id once, resumed from their own
checkpoints. Run by `make test-slow`, which installs the extra "integrations".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dask_loader import DataLoader, ParquetDataset

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
NUM_ROWS, NUM_EPOCHS = 1001, 3  # an odd number: one row comes twice
STEP_ROWS, STEPS = 128, 8  # of an epoch; the last one has 105 rows and a pad
SAVED, STOPPED = 10, 11  # steps: in mid-epoch, and after it

Steps = list[list[int]]  # the ids of each step of a rank


class Loop(NamedTuple):
    """An example, and where it finds its checkpoint of step SAVED."""

    package: str
    script: str
    checkpoint: str
    save_every: int = SAVED


LOOPS = [
    Loop(
        "accelerate",
        "accelerate_train.py",
        f"epoch-1-rows-{(SAVED - STEPS) * STEP_ROWS}",
        SAVED - STEPS,  # Accelerate counts no steps; the example those of an epoch
    ),
    Loop("lightning", "lightning_train.py", f"step={SAVED}.ckpt"),
    Loop("transformers", "hf_trainer_train.py", f"checkpoint-{SAVED}"),
]


def needs(package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"needs {package}: make test-slow installs it")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loops") / "set"
    command = [sys.executable, str(EXAMPLES / "make_dataset.py"), str(folder)]
    command += ["--rows", str(NUM_ROWS), "--columns", "9", "--row-group-rows", "90"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder


def train(
    loop: Loop,
    data: Path,
    folder: Path,
    *arguments: object,
    num_ranks: int = 2,
    with_torchrun: bool = True,
) -> list[Steps]:
    """Train; return what each rank saw, step by step."""
    torchrun = ["-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(num_ranks)]
    command = [sys.executable, *(torchrun if with_torchrun else [])]
    command += [str(EXAMPLES / loop.script), str(data)]
    command += ["--epochs", str(NUM_EPOCHS), "--ids", str(folder / "ids")]
    command += ["--batch-size", str(STEP_ROWS // num_ranks)]
    command += ["--save-every", str(loop.save_every), "--checkpoints", str(folder)]
    if loop.package == "lightning":
        command += ["--ranks", str(num_ranks)]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = [folder / "ids" / f"{rank}.json" for rank in range(num_ranks)]
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module", params=LOOPS, ids=lambda loop: loop.package)
def interrupted(
    request: pytest.FixtureRequest,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Loop, Path, list[Steps]]:
    """A loop that was stopped in mid-epoch, a step after a checkpoint."""
    loop: Loop = request.param
    needs(loop.package)
    folder = tmp_path_factory.mktemp(loop.package)
    return loop, folder, train(loop, data, folder, "--max-steps", STOPPED)


def expected(data: Path, rank: int) -> Steps:
    """Return what a plain loop sees of all epochs."""
    found: Steps = []
    with ParquetDataset(
        data,
        columns=["id", "label", "f000_float32", "f003_float64"],
        features={"x": ["f000_float32", "f003_float64"]},
        dtypes={"x": torch.float32},
        batch_size=STEP_ROWS // 2,
        shuffle=True,
        client="threads",
        rank=rank,
        world_size=2,
    ) as dataset:
        for epoch in range(NUM_EPOCHS):
            dataset.set_epoch(epoch)
            found += [batch["id"].tolist() for batch in dataset]
    return found


def check_that_every_id_came_once(ranks: list[Steps]) -> None:
    for epoch in range(NUM_EPOCHS):
        steps = [rank[epoch * STEPS :][:STEPS] for rank in ranks]
        assert [len(rank) for rank in steps] == [STEPS] * len(ranks)
        seen = Counter(chain.from_iterable(chain.from_iterable(steps)))
        assert set(seen) == set(range(NUM_ROWS))
        # The odd row has a pad beside it; both ranks have steps of equal sizes.
        assert seen.total() == NUM_ROWS + 1


def test_an_interrupted_and_resumed_run_sees_every_id_once(interrupted, data):
    loop, folder, stopped = interrupted
    resumed = train(loop, data, folder / "again", "--resume", folder / loop.checkpoint)
    # What came after the checkpoint is lost with the run, and comes again.
    whole = [a[:SAVED] + b for a, b in zip(stopped, resumed, strict=True)]
    check_that_every_id_came_once(whole)
    assert whole == [expected(data, rank) for rank in range(2)]
    for rank in range(2):
        assert stopped[rank] == whole[rank][:STOPPED]


def test_a_run_goes_on_with_another_number_of_ranks(interrupted, data):
    loop, folder, _ = interrupted
    checkpoint = folder / loop.checkpoint
    (alone,) = train(loop, data, folder / "alone", "--resume", checkpoint, num_ranks=1)
    pairs = zip(expected(data, 0), expected(data, 1), strict=True)
    assert [set(ids) for ids in alone] == [{*a, *b} for a, b in pairs][SAVED:]
    assert sum(map(len, alone[-STEPS:])) == NUM_ROWS  # one rank needs no pad


def test_lightning_may_start_the_ranks_itself(data, tmp_path):
    needs("lightning")
    ranks = train(LOOPS[1], data, tmp_path, with_torchrun=False)
    check_that_every_id_came_once(ranks)
    assert ranks == [expected(data, rank) for rank in range(2)]


# ---- what the frameworks do to our loader --------------------------------------------


def dataset_of(path: Path, **options: Any) -> ParquetDataset:
    options = {"columns": ["id"], "batch_size": 100, "shuffle": True, **options}
    return ParquetDataset(path, client="threads", **options)


def ids(batches: Any) -> Steps:
    return [batch["id"].tolist() for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_accelerate_hands_our_loader_back_and_keeps_its_state(
    data, tmp_path, num_workers
):
    needs("accelerate")
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    with dataset_of(data) as dataset, dataset_of(data) as other:
        loader = DataLoader(dataset, num_workers=num_workers)
        assert accelerator.prepare(loader) is loader
        accelerator.register_for_checkpointing(loader)
        batches = iter(loader)
        seen = [next(batches)["id"].tolist() for _ in range(4)]
        accelerator.save_state(tmp_path)
        seen += ids(batches)
        wanted = seen[4:] + ids(loader)
        later = Accelerator(cpu=True)
        again = later.prepare(DataLoader(other, num_workers=num_workers))
        later.register_for_checkpointing(again)
        later.load_state(tmp_path)
        assert ids(again) + ids(again) == wanted
        assert sorted(chain.from_iterable(seen)) == list(range(NUM_ROWS))
        accelerator.free_memory()
        later.free_memory()
        del loader, again, batches


@pytest.mark.parametrize("given", ["directly", "by a hook"])
def test_lightning_makes_our_loader_anew_to_predict_and_loses_nothing(data, given):
    needs("lightning")
    import lightning

    class Seen(lightning.LightningModule):
        def predict_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return batch["id"]

        def predict_dataloader(self) -> DataLoader:
            return make()

    def make() -> DataLoader:
        return DataLoader(dataset, num_workers=1, prefetch_batches=3)

    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False
    )
    with dataset_of(data) as dataset:
        loader = make() if given == "directly" else None
        seen = trainer.predict(Seen(), loader)
        used = trainer.predict_dataloaders
        assert type(used) is DataLoader
        assert used is not loader
        assert (used.num_workers, used.prefetch_batches) == (1, 3)
        assert sorted(torch.cat(seen).tolist()) == list(range(NUM_ROWS))
        del loader, used, trainer


def fit_with_lightning(loader: DataLoader, folder: Path, resume: Any = None) -> Steps:
    """Train NUM_EPOCHS epochs with a checkpoint at the end of each; return the ids."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    seen: Steps = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            seen.append(batch["id"].tolist())
            return self.weight.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters())

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=NUM_EPOCHS,
        callbacks=[ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader, ckpt_path=resume)
    return seen


def test_lightning_goes_on_from_the_end_of_an_epoch_and_fits_twice(data, tmp_path):
    # It loads no loader's state there, calls iter(), and only then tells the epoch.
    needs("lightning")
    with dataset_of(data) as dataset, dataset_of(data) as other:
        loader, again = DataLoader(dataset), DataLoader(other)
        first = fit_with_lightning(loader, tmp_path)
        num_steps = len(loader)
        wanted = []
        for epoch in range(NUM_EPOCHS):
            other.set_epoch(epoch)
            wanted += ids(other)
        assert first == wanted
        resume = tmp_path / "epoch=0.ckpt"
        assert fit_with_lightning(again, tmp_path, resume) == wanted[num_steps:]
        assert fit_with_lightning(loader, tmp_path) == wanted
        del loader, again
