"""Which epoch comes next, from which position, and how far it has come.

The only owner of these questions. Used by the dataset in the main process and, as a copy
over the same shared counter, in its DataLoader workers.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, TypeVar

from torch.utils.data import get_worker_info

from dask_loader.batch.epochs import MAX_STAGES, EpochCounter, Start
from dask_loader.catalog.catalog import Catalog
from dask_loader.errors import ConfigError, DaskLoaderError, ResumeError
from dask_loader.options import DatasetOptions
from dask_loader.plan.local import (
    Part,
    is_part_state,
    make_part_state,
    read_part_state,
)
from dask_loader.plan.position import (
    OrderFacts,
    Position,
    make_state,
    read_skipped,
    read_state,
)
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
from dask_loader.transfer.window import WindowData
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
        # What this rank skipped, with on_error="skip-window"; also before a resume.
        self.skipped: list[dict[str, Any]] = []
        # A loaded place within an epoch, until a batch was taken.
        self._loaded: Start | None = None
        # A loaded place that was begun with, but no batch taken yet.
        self._untouched: Start | None = None
        # The end of an epoch that was loaded: the next one begins, unless the user says
        # that it is this one that goes on, with nothing left of it.
        self._ended: Start | None = None
        # Loaded by this DataLoader worker, for its next epoch.
        self._own_start: Start | None = None
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
        self._warn_of_rows_left(epoch)
        for place in (self._untouched, self._ended):
            if place is not None and place.epoch == epoch:
                self._counter.resume(place)
        self._untouched = self._ended = None
        self._counter.set(epoch)
        if self._progress is not None and self._progress.run.epoch.number != epoch:
            self._progress = None

    def _warn_of_rows_left(self, epoch: int) -> None:
        """Warn if a loaded position, begun with by nobody, is of another epoch."""
        loaded = self._loaded
        if loaded is None or loaded.epoch == epoch or self._counter.workers_began:
            return
        self._loaded = None
        _warn(
            f"set_epoch({epoch}) drops the position that was loaded, in epoch "
            f"{loaded.epoch}: what was left of that epoch will not come; begin with "
            f"set_epoch({loaded.epoch}) to have it"
        )

    def begin(self, world: World) -> Progress:
        """Begin the next epoch in the main process.

        A loaded position is begun with until a batch was taken: StatefulDataLoader begins
        twice where its state is of the end of an epoch.
        """
        if self._untouched is not None:
            self._counter.resume(self._untouched)
        epoch = self._counter.peek()
        start = self._counter.start(epoch)
        self._untouched = start if self._counter.is_resumed(epoch) else None
        self._counter.begin()
        self._ended = None
        run = self.plan(world, start)
        self._counter.forget_position()
        self._progress = Progress(run, start.items)
        return self._progress

    def begin_in_worker(self, world: World, worker: int, num_workers: int) -> Progress:
        """Begin the next epoch in one of num_workers DataLoader workers.

        Raises:
            ResumeError: The main process loaded a state of its own single rows.
        """
        start, self._own_start = self._own_start, None
        if start is not None:
            self._counter.begin_at(start.epoch, worker, num_workers)
        else:
            start = self._counter.start(self._counter.begin(worker, num_workers))
            if start.items:
                raise ResumeError(
                    f"the state was made with num_workers=0, here num_workers is "
                    f"{num_workers!r}: a state of single rows fits the same number of "
                    "workers only; use a batch_size and dask_loader.DataLoader"
                )
        self._progress = Progress(self.plan(world, start), start.items)
        return self._progress

    def count(
        self, progress: Progress, items: Generator[Item, None, None], owner: object
    ) -> Generator[Item, None, None]:
        """Hand on a run's batches, counting them; closes them when it is closed.

        After an error of ours the next iteration goes on where this one stands, as if its
        state had been loaded: what is left of the epoch must not be lost in silence.

        Args:
            progress: Of the run.
            items: Its batches.
            owner: Kept alive meanwhile: a loop over a dataset that has no name must not
                end with the dataset's end.
        """
        with closing(items):
            while True:
                try:
                    item = next(items)
                except StopIteration:
                    break
                except DaskLoaderError:
                    # A DataLoader worker ends; others have not come as far.
                    if get_worker_info() is None and self._progress is progress:
                        self.go_on_from(progress)
                    raise
                progress.num_items += 1
                # Another epoch may have been set or begun in between.
                self._progress = progress
                self._untouched = self._loaded = None
                yield item
            self._untouched = None
        del owner

    def go_on_from(self, progress: Progress) -> None:
        """Make the next iteration begin where this one stands, if anything is left."""
        deal, done = progress.run.deal, progress.num_items
        if self._options.batch_size is None:
            here, items = progress.begun(), done
            over = done >= deal.num_rank_rows(progress.run.world.rank)
        else:
            here, items = progress.position(), 0
            over = done >= progress.run.num_steps
        if not over:
            start = Start(here.epoch, here.rows, here.stages, items)
            self._resume(start, over=False)
            self._progress = progress  # the state is still this

    def note_skipped(self, window: WindowData) -> None:
        """Remember a window that others' rows came in place of."""
        epoch = 0 if self._progress is None else self._progress.run.epoch.number
        found = {"epoch": epoch, "what": window.stands_for, "rows": window.num_rows}
        self.skipped.append(found)

    # ---- going on from where a run stood -----------------------------------------------

    def state(self, world: World) -> dict[str, Any]:
        """Return where the run stands, after the batch handed out last."""
        progress = self._progress or Progress(self.plan_next(world))
        return make_state(self.facts(), progress.position(), self.skipped)

    def part_state(self, world: World, here: Part) -> dict[str, Any]:
        """Return where this process's part of the run stands."""
        progress = self._progress
        if progress is None:
            start = self._counter.start(self._counter.peek())
            progress = Progress(self.plan(world, start), start.items)
        part = replace(here, items=progress.num_items)
        return make_part_state(self.facts(), progress.begun(), part)

    def load_part(
        self, state: Any, world: World, here: Part, *, strict: bool = True
    ) -> None:
        """Make this process's next iteration begin where its state says.

        Raises:
            ResumeError: The state is none, or was made from something else.
        """
        position, items, harmless = read_part_state(
            state, self.facts(), here, strict=strict
        )
        _warn_of(harmless)
        asked = self._options.num_splits
        if asked not in (None, position.stages[-1].num_splits):
            raise ResumeError(
                f"the state was made with num_splits={position.stages[-1].num_splits!r}, "
                f"this dataset has num_splits={asked!r}: the state of a DataLoader worker, "
                "or of single rows, cannot be dealt anew; leave num_splits out"
            )
        self._counter.num_splits = position.stages[-1].num_splits
        start = Start(position.epoch, position.rows, position.stages, items)
        if here.num_workers:
            self._own_start, self._progress = start, None  # the others have their own
        else:
            deal = self.plan(world, start).deal
            over = items >= deal.num_rank_rows(world.rank)
            self._resume(start, over=over)

    def facts(self) -> OrderFacts:
        """Return what the order depends on."""
        return facts_of(self._catalog, self._options)

    def load(self, state: Any, world: World, *, strict: bool = True) -> None:
        """Make the next iteration begin where a state says.

        Raises:
            ResumeError: The state is none, or was made from something else.
        """
        position, harmless = read_state(state, self.facts(), strict=strict)
        skipped = read_skipped(state)
        if is_part_state(state):
            raise ResumeError(
                "the state is that of one DataLoader worker of StatefulDataLoader, or of "
                "single rows; make one of the whole run with from_stateful_dataloader(), "
                "or load it where it was made"
            )
        _warn_of(harmless)
        step_rows = self.deal(world).step_rows
        if step_rows != position.step_rows:
            _warn(
                f"the checkpoint was made with global batches of {position.step_rows} "
                f"rows, this run has {step_rows} (batch_size times world_size): the rows "
                "left come once each and in the same order, in other batches"
            )
        stages = self._stages_from(position)
        self._counter.num_splits = stages[-1].num_splits
        left = make_deal(
            self._catalog, self._options, world, stage=stages[-1], first=position.rows
        )
        # Not more than rank 0 has any rank. What drop_last leaves off is no step either.
        over = position.rows > 0 and left.num_steps(0) == 0
        self._resume(Start(position.epoch, position.rows, stages), over=over)
        self.skipped = skipped

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
        self._resume(Start(epoch, rows, ()), over=False)

    def _resume(self, start: Start, *, over: bool) -> None:
        self._counter.resume(Start(start.epoch + 1, 0, ()) if over else start)
        self._ended = start if over else None
        self._loaded = start if start.rows + start.items and not over else None
        self._progress = self._untouched = None


def _warn_of(harmless: Sequence[str]) -> None:
    for reason in harmless:
        _warn(f"the checkpoint was made with {reason}; the order is the same")


def _warn(text: str) -> None:
    # The caller of the dataset's or the loader's method, or near it.
    warnings.warn(text, stacklevel=5)


def _require_epoch(epoch: Any) -> None:
    whole = isinstance(epoch, int) and not isinstance(epoch, bool)
    if not whole or not 0 <= epoch < _MAX_EPOCH:
        raise ConfigError(
            f"epoch={epoch!r} must be a whole number from 0 up, and below 2**62"
        )
