"""Read an epoch on every rank, as training does, and have it checked."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
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
    num_splits: int
    num_workers: int
    resume_at: int | None


def read_and_check(
    paths: Sequence[str],
    options: Mapping[str, Any],
    *,
    world_size: int,
    num_workers: int,
    epoch: int,
    resume_at: int | None,
) -> Outcome:
    """Read an epoch and check it.

    Args:
        paths: Files, folders, globs.
        options: By the names of common_options.
        world_size: Ranks; read one after the other.
        num_workers: DataLoader workers of each.
        epoch: Which epoch.
        resume_at: The step at which each rank stops and goes on in a new dataset, from
            rank 0's state; None for never.

    Raises:
        DaskLoaderError: An argument or a file is wrong, or reading failed.
    """
    source = Source(paths, options)

    def open_rank(rank: int) -> ParquetDataset:
        return source.dataset(rank=rank, world_size=world_size, provenance=True)

    with open_rank(0) as first:  # says in words what is wrong with the arguments
        batch_size = cast(int, first.batch_size)
        first.set_epoch(epoch)
        state = first.state_dict()
    inventory = take_inventory(source.found.storage, source.found.paths, source.filters)
    promise = Promise(
        num_rows=inventory.num_expected,
        world_size=world_size,
        batch_size=batch_size,
        uneven=options["uneven"] or "pad",
        drop_last=bool(options["drop_last"]),
    )
    if resume_at is not None and resume_at >= promise.num_steps(0):
        raise ConfigError(
            f"resume_at={resume_at!r} must be a step of the epoch, which has "
            f"{promise.num_steps(0)}"
        )
    lengths: list[int] = []
    with Spool(world_size) as spool:
        checker = Checker(inventory, promise, spool)
        for rank in range(world_size):
            with open_rank(rank) as dataset:
                dataset.set_epoch(epoch)
                lengths.append(len(dataset))
                batches = _open(dataset, num_workers)
                with closing(batches):
                    for batch in islice(batches, resume_at):
                        checker.add(rank, batch)
                    now = dataset.state_dict()
            if resume_at is None:
                continue
            if rank == 0:
                state = json.loads(json.dumps(now))
            elif now != state and spool.num_steps(rank) == resume_at:
                checker.blame(
                    "state",
                    f"after step {resume_at} rank {rank} has another state "
                    f"than rank 0: {json.dumps(now)} and {json.dumps(state)}",
                )
            with open_rank(rank) as dataset:
                dataset.load_state_dict(state)
                dataset.set_epoch(epoch)
                with closing(_open(dataset, num_workers)) as batches:
                    for batch in batches:
                        checker.add(rank, batch)
        report = checker.finish(lengths)
    return Outcome(
        inventory=inventory,
        promise=promise,
        report=report,
        epoch=epoch,
        num_splits=state["stages"][-1][1],
        num_workers=num_workers,
        resume_at=resume_at,
    )


def _open(dataset: ParquetDataset, num_workers: int) -> Generator[Any, None, None]:
    batches = iter(DataLoader(dataset, num_workers=num_workers))
    return cast(Generator[Any, None, None], batches)
