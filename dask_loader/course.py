"""Which epoch comes next, from which position, and how far it has come.

The only owner of these questions. Used by the dataset in the main process and, as a copy
over the same shared counter, in its DataLoader workers.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from typing import Any, TypeVar

from dask_loader.batch.epochs import MAX_STAGES, EpochCounter, Start
from dask_loader.catalog.catalog import Catalog
from dask_loader.errors import ConfigError, ResumeError
from dask_loader.options import DatasetOptions
from dask_loader.plan.position import OrderFacts, Position, make_state, read_state
from dask_loader.plan.share import Deal
from dask_loader.plan.stage import Stage, next_stages
from dask_loader.run import (
    Progress,
    Run,
    auto_num_splits,
    facts_of,
    make_deal,
    make_run,
)
from dask_loader.world import World

Item = TypeVar("Item")

# Epochs lie in a shared tensor of int64.
_MAX_EPOCH = 2**62


class Course:
    """The epochs of one dataset, one after the other. Used by one thread a process."""

    def __init__(self, catalog: Catalog, options: DatasetOptions) -> None:
        self._catalog = catalog
        self._options = options
        self._counter = EpochCounter()
        self._progress: Progress | None = None
        if options.num_splits is not None:
            self._counter.num_splits = options.num_splits

    # ---- planning ---------------------------------------------------------------------

    def plan(self, world: World, start: Start) -> Run:
        """Plan an epoch from a place in it on; fixes num_splits at the first use.

        Raises:
            PlanError: It cannot be kept within memory_limit.
        """
        splits = self._counter.num_splits
        if splits is None:
            splits = auto_num_splits(self._catalog, self._options, world)
            self._counter.num_splits = splits
        return make_run(
            self._catalog,
            self._options,
            world,
            epoch=start.epoch,
            stages=start.stages or (Stage(0, splits),),
            first=start.rows,
        )

    def plan_whole(self, world: World, epoch: int) -> Run:
        """Plan a whole epoch."""
        return self.plan(world, Start(epoch, 0, ()))

    def plan_next(self, world: World) -> Run:
        """Plan what an iteration without workers would read, and begin nothing."""
        return self.plan(world, self._counter.start(self._counter.peek()))

    def deal(self, world: World) -> Deal:
        """Return how a whole epoch is dealt; fixes nothing."""
        splits = self._counter.num_splits or auto_num_splits(
            self._catalog, self._options, world
        )
        return make_deal(self._catalog, self._options, world, stage=Stage(0, splits))

    def terms(self, run: Run) -> dict[str, Any]:
        """Return what must be the same on every rank, as plain values."""
        deal = run.deal
        facts = asdict(self.facts())
        for name in ("place", "stamps"):  # each host may have a copy
            del facts[name]
        return {
            "epoch": run.epoch.number,
            "rows done": deal.first,
            "num_splits": [(s.start, s.num_splits) for s in run.epoch.stages],
            "batch_size": self._options.batch_size,
            "uneven": deal.uneven,
            "drop_last": deal.drop_last,
            "world_size": deal.world_size,
            **facts,
        }

    # ---- beginning --------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one; a position loaded for it stays.

        Raises:
            ConfigError: It is not a whole number from 0 up.
        """
        _require_epoch(epoch)
        self._counter.set(epoch)
        if self._progress is not None and self._progress.run.epoch.number != epoch:
            self._progress = None

    def begin(self, world: World) -> Run:
        """Begin the next epoch in the main process."""
        run = self.plan(world, self._counter.start(self._counter.begin()))
        self._counter.forget_position()
        return run

    def begin_in_worker(self, world: World, worker: int, num_workers: int) -> Run:
        """Begin the next epoch in one of num_workers DataLoader workers."""
        epoch = self._counter.begin(worker, num_workers)
        return self.plan(world, self._counter.start(epoch))

    def count(
        self, run: Run, items: Generator[Item, None, None]
    ) -> Generator[Item, None, None]:
        """Hand on a run's batches, counting them; closes them when it is closed."""
        progress = self._progress = Progress(run)
        return _count_up(progress, items)

    # ---- going on from where a run stood -----------------------------------------------

    def state(self, world: World) -> dict[str, Any]:
        """Return where the run stands, after the batch handed out last."""
        progress = self._progress or Progress(self.plan_next(world))
        return make_state(self.facts(), progress.position())

    def facts(self) -> OrderFacts:
        """Return what the order depends on."""
        return facts_of(self._catalog, self._options)

    def load(self, state: Any, world: World, *, strict: bool = True) -> None:
        """Make the next iteration begin where a state says.

        Raises:
            ResumeError: The state is none, or was made from something else.
        """
        position, harmless = read_state(state, self.facts(), strict=strict)
        for reason in harmless:
            _warn(f"the checkpoint was made with {reason}; the order is the same")
        step_rows = self.deal(world).step_rows
        if step_rows != position.step_rows:
            _warn(
                f"the checkpoint was made with global batches of {position.step_rows} "
                f"rows, this run has {step_rows} (batch_size times world_size): the rows "
                "left come once each and in the same order, in other batches"
            )
        stages = self._stages_from(position)
        self._counter.num_splits = stages[-1].num_splits
        over = position.rows >= self._catalog.total_rows
        self._counter.resume(
            Start(position.epoch + 1, 0, ())
            if over
            else Start(position.epoch, position.rows, stages)
        )
        self._progress = None

    def _stages_from(self, position: Position) -> tuple[Stage, ...]:
        """Return a position's stages, with one more where the user asks for a re-cut."""
        stages, asked = position.stages, self._options.num_splits
        if asked is None or asked == stages[-1].num_splits:
            return stages
        if 0 < position.rows < self._catalog.total_rows:
            _warn(
                f"the checkpoint was made with num_splits={stages[-1].num_splits!r}, this "
                f"dataset has num_splits={asked!r}: the rows left come once each, dealt "
                "anew, in another order than they would have had; leave num_splits out to "
                "keep the checkpoint's"
            )
        anew = next_stages(stages, position.rows, asked)
        if len(anew) > MAX_STAGES:
            raise ResumeError(
                f"num_splits={asked!r} would be the {len(anew)}th num_splits within epoch "
                f"{position.epoch}, at most {MAX_STAGES} are kept; leave num_splits out to "
                f"keep the checkpoint's, which is {stages[-1].num_splits!r}"
            )
        return tuple(anew)

    def seek(self, epoch: int, step: int, world: World) -> None:
        """Make the next iteration begin at a step of an epoch.

        Raises:
            ConfigError: The step is not one of the epoch's.
        """
        _require_epoch(epoch)
        deal = self.deal(world)
        num_steps = deal.num_steps(0)  # no rank has more
        whole = isinstance(step, int) and not isinstance(step, bool)
        if not whole or not 0 <= step <= num_steps:
            raise ConfigError(
                f"step={step!r} must be a whole number from 0 to {num_steps}, the steps "
                "of an epoch"
            )
        rows = min(step * deal.step_rows, deal.num_rows)
        self._counter.resume(Start(epoch, rows, ()))
        self._progress = None


def _count_up(
    progress: Progress, items: Generator[Item, None, None]
) -> Generator[Item, None, None]:
    with closing(items):
        for item in items:
            progress.num_steps += 1
            yield item


def _warn(text: str) -> None:
    # The caller of the dataset's or the loader's method, or near it.
    warnings.warn(text, stacklevel=4)


def _require_epoch(epoch: Any) -> None:
    whole = isinstance(epoch, int) and not isinstance(epoch, bool)
    if not whole or not 0 <= epoch < _MAX_EPOCH:
        raise ConfigError(
            f"epoch={epoch!r} must be a whole number from 0 up, and below 2**62"
        )
