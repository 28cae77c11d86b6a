"""One epoch for one rank: options, catalog and world turned into a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dask_loader.catalog.catalog import Catalog
from dask_loader.options import DatasetOptions, check_memory
from dask_loader.plan.epoch import Epoch, Groups, Order, default_num_splits
from dask_loader.plan.position import OrderFacts, Position
from dask_loader.plan.share import Deal
from dask_loader.plan.stage import Stage
from dask_loader.world import World

# batch_size=None: rows are taken from steps of this many.
ROWS_PER_STEP = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a rank reads in one epoch, and in which order.

    Attributes:
        epoch: Splits and windows.
        deal: Steps and shares.
        world: Which rank.
        rows_turn: Steps in a DataLoader worker's turn when it hands out single rows.
    """

    epoch: Epoch
    deal: Deal
    world: World
    rows_turn: int

    @property
    def num_steps(self) -> int:
        """Batches of this rank."""
        return self.deal.num_steps(self.world.rank)

    @property
    def num_rows(self) -> int:
        """Rows of this rank, pads included."""
        return self.deal.num_rank_rows(self.world.rank)


@dataclass(slots=True)
class Progress:
    """How far a run has come, or a part of it.

    Attributes:
        run: The run.
        num_items: Batches, or single rows, handed out since it began.
    """

    run: Run
    num_items: int = 0

    def begun(self) -> Position:
        """Return the position that the run began at."""
        deal = self.run.deal
        return Position(
            epoch=self.run.epoch.number,
            rows=deal.first,
            stages=self.run.epoch.stages,
            step_rows=deal.step_rows,
        )

    def position(self) -> Position:
        """Return the position after these batches; the same on every rank.

        With uneven="exact" a rank that ends a step early cannot vouch for the last step of
        the others: rank 0 always ends last, so its state is the one to keep.
        """
        deal, done = self.run.deal, self.num_items
        rows = min(deal.first + done * deal.step_rows, deal.num_rows)
        leaves_off = deal.drop_last or deal.uneven == "drop"
        if leaves_off and done >= self.run.num_steps:
            rows = deal.num_rows  # what is left off is done too
        return replace(self.begun(), rows=rows)


def groups_of(catalog: Catalog) -> Groups:
    """Return the catalog's numbers for the plan."""
    return Groups(
        num_rows=catalog.num_rows,
        num_bytes=catalog.num_bytes,
        num_kept=catalog.num_kept,
    )


def auto_num_splits(catalog: Catalog, options: DatasetOptions, world: World) -> int:
    """Return num_splits: the user's, or the default for this world."""
    if options.num_splits is not None:
        return options.num_splits
    return default_num_splits(
        groups_of(catalog),
        shuffle=options.shuffle,
        world_size=world.world_size,
        window_bytes=window_bytes(catalog, options),
        memory_limit=options.memory_bytes,
    )


def window_bytes(catalog: Catalog, options: DatasetOptions) -> int:
    """Return the decoded bytes of a window, at most (a row more or less)."""
    window, in_bytes = options.window
    total = groups_of(catalog).kept_bytes
    if in_bytes:
        return min(window, max(total, 1))
    row_bytes = catalog.num_bytes // np.maximum(catalog.num_rows, 1)
    return min(window * int(row_bytes.max(initial=1)), max(total, 1))


def facts_of(catalog: Catalog, options: DatasetOptions) -> OrderFacts:
    """Return what the order depends on, for checkpoints."""
    window, in_bytes = options.window
    prints = catalog.fingerprints()
    return OrderFacts(
        **prints,
        num_files=len(catalog.files),
        num_rows=catalog.total_rows,
        shuffle=options.shuffle,
        seed=options.seed,
        shuffle_window=f"{window} {'B' if in_bytes else 'rows'}",
    )


def make_deal(
    catalog: Catalog,
    options: DatasetOptions,
    world: World,
    *,
    stage: Stage,
    first: int = 0,
) -> Deal:
    """Return how the epoch is dealt over the ranks, from position `first` on."""
    return Deal(
        num_rows=catalog.total_rows,
        num_splits=stage.num_splits,
        stage_start=stage.start,
        world_size=world.world_size,
        batch_size=options.batch_size or ROWS_PER_STEP,
        first=first,
        uneven=options.uneven,
        drop_last=options.drop_last,
    )


def make_run(
    catalog: Catalog,
    options: DatasetOptions,
    world: World,
    *,
    epoch: int,
    stages: Sequence[Stage],
    first: int = 0,
) -> Run:
    """Plan one epoch for one rank, from position `first` on. Nothing is read.

    Raises:
        PlanError: It cannot be kept within memory_limit.
    """
    deal = make_deal(catalog, options, world, stage=stages[-1], first=first)
    in_hand = deal.splits_in_hand(world.rank)
    size = window_bytes(catalog, options)
    check_memory(
        splits_in_hand=in_hand,
        window_bytes=int(size * catalog.growth),
        memory_bytes=options.memory_bytes,
        num_splits=deal.num_splits,
        world_size=world.world_size,
    )
    window, in_bytes = options.window
    order = Order(
        shuffle=options.shuffle,
        seed=options.seed,
        num_splits=stages[0].num_splits,
        window=window,
        window_in_bytes=in_bytes,
    )
    # A worker's turn of rows is as long as the windows in hand, so that few windows are
    # read by two workers.
    row_bytes = max(1, groups_of(catalog).kept_bytes // max(1, catalog.total_rows))
    turn = max(1, in_hand * size // row_bytes // ROWS_PER_STEP)
    return Run(
        epoch=Epoch(groups_of(catalog), order, epoch, stages),
        deal=deal,
        world=world,
        rows_turn=turn,
    )
