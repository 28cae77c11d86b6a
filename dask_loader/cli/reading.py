"""Read an epoch on every rank, as training does, and have it checked."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

from dask_loader.cli.inventory import Inventory, take_inventory
from dask_loader.cli.promise import Promise
from dask_loader.cli.proof import Checker, Report
from dask_loader.cli.source import Source
from dask_loader.cli.spool import Spool
from dask_loader.dataset import ParquetDataset
from dask_loader.errors import ConfigError
from dask_loader.loader import DataLoader


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What was read, how, and what came of it."""

    inventory: Inventory
    promise: Promise
    report: Report
    epoch: int
    world_size: int
    batch_size: int
    num_splits: int
    num_workers: int
    resume_at: int | None
    resume_world_size: int


def read_and_check(
    paths: Sequence[str],
    options: Mapping[str, Any],
    *,
    world_size: int,
    num_workers: int,
    epoch: int,
    resume_at: int | None,
    resume_world_size: int,
) -> Outcome:
    """Read an epoch and check it.

    Args:
        paths: Files, folders, globs.
        options: By the names of common_options.
        world_size: Ranks; read one after the other.
        num_workers: DataLoader workers of each.
        epoch: Which epoch.
        resume_at: The step at which each rank stops, and new datasets go on from rank
            0's state; None for never.
        resume_world_size: The ranks that go on, with the same global batch.

    Raises:
        DaskLoaderError: An argument or a file is wrong, or reading failed.
    """
    source = Source(paths, options)
    with source.dataset(rank=0, world_size=world_size, provenance=True) as dataset:
        # What is wrong with the arguments is said in words by now.
        batch_size = cast(int, dataset.batch_size)
        dataset.set_epoch(epoch)
        num_splits = dataset.state_dict()["stages"][-1][1]
    found = source.found
    inventory = take_inventory(
        found.storage, found.paths, source.filters, source.keys, source.schema
    )
    whole = Promise(
        num_rows=inventory.num_expected,
        world_size=world_size,
        batch_size=batch_size,
        uneven=options["uneven"] or "pad",
        drop_last=bool(options["drop_last"]),
    )
    promise = whole
    if resume_at is not None:
        _check_resume(whole, resume_at, resume_world_size)
        promise = replace(
            whole,
            world_size=resume_world_size,
            batch_size=whole.step_rows // resume_world_size,
            first_steps=resume_at,
            first_world_size=world_size,
        )
    with Spool(promise.num_ranks) as spool:
        checker = Checker(inventory, promise, spool)
        state = None
        for rank in range(world_size):
            with source.dataset(
                rank=rank, world_size=world_size, provenance=True
            ) as dataset:
                dataset.set_epoch(epoch)
                checker.hear_length(rank, len(dataset), whole.num_steps(rank))
                _read(checker, rank, dataset, num_workers, resume_at)
                now = dataset.state_dict()
            state = state or now
            if resume_at is not None and now != state:
                checker.blame(
                    "state",
                    f"after step {resume_at} rank {rank} has another state than rank 0: "
                    f"{json.dumps(now)} and {json.dumps(state)}",
                )
        if resume_at is not None:
            state = json.loads(json.dumps(state))
            for rank in range(resume_world_size):
                spool.skip(rank, resume_at)
                with source.dataset(
                    rank=rank,
                    world_size=resume_world_size,
                    provenance=True,
                    batch_size=promise.batch_size,
                ) as dataset:
                    dataset.load_state_dict(state)
                    dataset.set_epoch(epoch)
                    _read(checker, rank, dataset, num_workers, None)
        report = checker.finish()
    return Outcome(
        inventory=inventory,
        promise=promise,
        report=report,
        epoch=epoch,
        world_size=world_size,
        batch_size=batch_size,
        num_splits=num_splits,
        num_workers=num_workers,
        resume_at=resume_at,
        resume_world_size=resume_world_size,
    )


def _read(
    checker: Checker,
    rank: int,
    dataset: ParquetDataset,
    num_workers: int,
    num_steps: int | None,
) -> None:
    """Hand a rank's batches to the checker: so many, or all where None."""
    loader = DataLoader(dataset, num_workers=num_workers)
    batches = cast(Generator[Any, None, None], iter(loader))
    with closing(batches):
        for batch in islice(batches, num_steps):
            checker.add(rank, batch)


def _check_resume(whole: Promise, resume_at: int, world_size: int) -> None:
    num_steps = whole.num_steps(0)
    if resume_at >= num_steps:
        raise ConfigError(
            f"resume_at={resume_at!r} must be a step of the epoch, which has {num_steps}"
        )
    if whole.step_rows % world_size:
        raise ConfigError(
            f"resume_world_size={world_size!r} must divide the global batch of "
            f"{whole.step_rows} rows"
        )
