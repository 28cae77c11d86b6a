"""From options, catalog and world to a plan."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dask_loader.catalog.catalog import Catalog
from dask_loader.catalog.storage import Storage
from dask_loader.errors import PlanError
from dask_loader.options import DatasetOptions
from dask_loader.plan.epoch import Epoch, Order
from dask_loader.plan.position import OrderFacts, Position
from dask_loader.plan.schedule import walk
from dask_loader.plan.stage import Stage
from dask_loader.run import (
    ROWS_PER_STEP,
    Progress,
    Run,
    auto_num_splits,
    facts_of,
    groups_of,
    make_deal,
    make_run,
    window_bytes,
)
from dask_loader.world import World

MIB = 2**20
ALONE = World(0, 1)


def catalog_of(rows: Any, *, row_bytes: Any = 8, kept: Any = None) -> Catalog:
    """Row groups that no file holds: planning reads nothing."""
    num_rows = np.array(rows, dtype=np.int64)
    return Catalog(
        storage=Storage("file"),
        files=(),
        schema=pa.schema([]),
        forms=(),
        expression=None,
        filter_text="",
        filter_columns=(),
        file_index=np.zeros(len(num_rows), dtype=np.int64),
        row_group=np.arange(len(num_rows), dtype=np.int64),
        num_rows=num_rows,
        num_bytes=num_rows * np.array(row_bytes, dtype=np.int64),
        num_kept=num_rows if kept is None else np.array(kept, dtype=np.int64),
        null_counts={},
    )


def run_of(
    catalog: Catalog,
    options: DatasetOptions,
    world: World = ALONE,
    *,
    epoch: int = 0,
    num_splits: int | None = None,
    first: int = 0,
) -> Run:
    splits = num_splits or auto_num_splits(catalog, options, world)
    return make_run(
        catalog, options, world, epoch=epoch, stages=(Stage(0, splits),), first=first
    )


def test_the_plan_sees_the_catalogs_numbers() -> None:
    groups = groups_of(catalog_of([4, 6], kept=[1, 6]))
    assert groups.num_rows.tolist() == [4, 6]
    assert groups.num_bytes.tolist() == [32, 48]
    assert groups.num_kept.tolist() == [1, 6]


# ---- the window's size


def test_a_window_in_bytes_is_as_large_as_asked_or_as_the_data() -> None:
    catalog = catalog_of([MIB] * 4)  # 8 MiB each
    assert window_bytes(catalog, DatasetOptions(shuffle_window="5 MiB")) == 5 * MIB
    assert window_bytes(catalog, DatasetOptions(shuffle_window="64 MiB")) == 32 * MIB


def test_a_window_in_rows_is_counted_by_the_widest_row() -> None:
    catalog = catalog_of([100, 100, 0], row_bytes=[8, 50, 0])
    assert window_bytes(catalog, DatasetOptions(shuffle_window=10)) == 500
    assert window_bytes(catalog, DatasetOptions(shuffle_window=10**6)) == 5800


def test_filtered_rows_make_the_data_smaller() -> None:
    catalog = catalog_of([100, 100], row_bytes=10, kept=[50, 0])
    assert window_bytes(catalog, DatasetOptions()) == 500


@pytest.mark.parametrize("rows", [[], [0, 0]])
@pytest.mark.parametrize("window", [10, "64 MiB"])
def test_no_rows_need_next_to_nothing(rows: list[int], window: int | str) -> None:
    assert window_bytes(catalog_of(rows), DatasetOptions(shuffle_window=window)) == 1


# ---- splits


def test_the_users_num_splits_are_taken() -> None:
    options = DatasetOptions(num_splits=5, shuffle=True)
    assert auto_num_splits(catalog_of([100] * 64), options, World(0, 2)) == 5


def test_unshuffled_there_is_a_split_for_each_rank() -> None:
    assert auto_num_splits(catalog_of([100] * 64), DatasetOptions(), World(0, 3)) == 3


@pytest.mark.parametrize(
    ("memory_limit", "num_splits"), [("16 MiB", 16), ("15 MiB", 8), ("1 MiB", 2)]
)
def test_shuffled_splits_fit_in_memory_limit(
    memory_limit: str, num_splits: int
) -> None:
    options = DatasetOptions(
        shuffle=True, shuffle_window="1 MiB", memory_limit=memory_limit
    )
    catalog = catalog_of([MIB] * 64)
    assert auto_num_splits(catalog, options, World(1, 2)) == num_splits


# ---- the plan


def test_options_and_world_become_a_deal() -> None:
    options = DatasetOptions(batch_size=7, uneven="exact", drop_last=True)
    deal = make_deal(catalog_of([10, 20]), options, World(1, 3), stage=Stage(0, 4))
    assert (deal.num_rows, deal.num_splits, deal.world_size) == (30, 4, 3)
    assert (deal.batch_size, deal.uneven, deal.drop_last) == (7, "exact", True)
    assert deal.first == 0


def test_single_rows_are_taken_from_steps_of_1024() -> None:
    options = DatasetOptions(batch_size=None)
    deal = make_deal(catalog_of([10]), options, ALONE, stage=Stage(0, 1))
    assert deal.batch_size == ROWS_PER_STEP == 1024


def test_options_become_an_order() -> None:
    options = DatasetOptions(shuffle=True, seed=9, shuffle_window=50)
    run = run_of(catalog_of([100] * 8), options, epoch=3, num_splits=4)
    assert run.epoch.number == 3
    assert run.epoch.order == Order(
        shuffle=True, seed=9, num_splits=4, window=50, window_in_bytes=False
    )
    options = DatasetOptions(shuffle_window="2 MiB")
    run = run_of(catalog_of([100] * 8), options)
    assert (run.epoch.order.window, run.epoch.order.window_in_bytes) == (2 * MIB, True)


def test_a_run_knows_its_ranks_steps_and_rows() -> None:
    # 25 rows, 2 ranks of 4: three steps of 8, and a row for each (one of them a pad).
    runs = [
        run_of(catalog_of([10, 15]), DatasetOptions(batch_size=4), World(rank, 2))
        for rank in (0, 1)
    ]
    assert [(run.num_steps, run.num_rows) for run in runs] == [(4, 13), (4, 13)]
    options = DatasetOptions(batch_size=4, uneven="exact")
    runs = [run_of(catalog_of([10, 15]), options, World(rank, 2)) for rank in (0, 1)]
    assert [(run.num_steps, run.num_rows) for run in runs] == [(4, 13), (3, 12)]


def test_an_epoch_without_rows_has_no_steps() -> None:
    for rows in ([], [0, 0]):
        run = run_of(catalog_of(rows), DatasetOptions(shuffle=True))
        assert (run.num_steps, run.num_rows) == (0, 0)
        assert list(walk(run.epoch, run.deal, 0)) == []


def test_a_turn_of_rows_is_as_long_as_the_windows_in_hand() -> None:
    # 4 splits x 8 MiB in hand are 4 Mi rows of 8 bytes: 4,096 steps of 1,024.
    options = DatasetOptions(batch_size=None, shuffle_window="8 MiB")
    catalog = catalog_of([MIB] * 8)
    assert run_of(catalog, options, num_splits=4).rows_turn == 4096
    assert run_of(catalog, options, World(0, 2), num_splits=4).rows_turn == 2048
    assert run_of(catalog_of([10]), options).rows_turn == 1


# ---- checkpoints


def test_the_order_depends_on_these_facts() -> None:
    catalog = catalog_of([10, 15], kept=[4, 15])
    options = DatasetOptions(shuffle=True, seed=3, shuffle_window="2 MiB")
    prints = catalog.fingerprints()
    facts = OrderFacts(
        num_files=len(catalog.files),
        files=prints["files"],
        place=prints["place"],
        stamps=prints["stamps"],
        columns=prints["columns"],
        filters=prints["filters"],
        num_rows=19,
        shuffle=True,
        seed=3,
        shuffle_window="2097152 B",
    )
    assert facts_of(catalog, options) == facts
    options = replace(options, shuffle_window="2048 KiB", batch_size=7, num_splits=4)
    assert facts_of(catalog, options) == facts  # the same window; the rest may change
    options = replace(options, shuffle_window=2 * MIB)
    assert facts_of(catalog, options).shuffle_window == "2097152 rows"


# Batches handed out -> rows of the epoch; 25 rows on 2 ranks of 4, from 0 or from 3.
@pytest.mark.parametrize(
    ("options", "first", "rows"),
    [
        ({}, 0, [0, 8, 16, 24, 25]),  # a pad is no row of the epoch
        ({}, 3, [3, 11, 19, 25]),
        ({"uneven": "drop"}, 0, [0, 8, 16, 25]),  # the row left off is done, too
        ({"drop_last": True}, 0, [0, 8, 16, 25]),
        ({"drop_last": True}, 20, [25]),
    ],
)
def test_a_position_counts_the_rows_of_all_ranks(
    options: dict[str, Any], first: int, rows: list[int]
) -> None:
    catalog = catalog_of([10, 15])
    for rank in (0, 1):
        run = run_of(
            catalog,
            DatasetOptions(batch_size=4, **options),
            World(rank, 2),
            epoch=5,
            num_splits=6,
            first=first,
        )
        assert run.num_steps == len(rows) - 1
        assert [Progress(run, done).position() for done in range(len(rows))] == [
            Position(epoch=5, rows=done, stages=(Stage(0, 6),), step_rows=8)
            for done in rows
        ]


def test_a_run_from_a_position_has_the_rows_that_are_left() -> None:
    run = run_of(catalog_of([10, 15]), DatasetOptions(batch_size=4), first=9)
    assert run.deal.first == 9
    assert (run.num_steps, run.num_rows) == (4, 16)


# ---- memory_limit


def test_a_plan_beyond_memory_limit_is_refused_before_reading() -> None:
    options = DatasetOptions(shuffle=True, memory_limit="256 MiB")
    text = (
        "this rank needs 8 windows of 64 MiB in hand (num_splits=8 / world_size=1) = "
        "512 MiB, and memory_limit is 256 MiB; raise memory_limit, or make num_splits "
        "or shuffle_window smaller (the order changes)"
    )
    catalog = catalog_of([MIB] * 128)
    with pytest.raises(PlanError, match=re.escape(text)):
        run_of(catalog, options, num_splits=8)
    run_of(catalog, options, World(0, 2), num_splits=8)  # four windows fit


def test_memory_is_counted_by_what_the_data_are_not_by_what_was_asked() -> None:
    options = DatasetOptions(shuffle_window="64 MiB", memory_limit="8 MiB")
    run_of(catalog_of([1000] * 8), options, num_splits=8)


def test_windows_of_rows_are_checked_by_their_bytes() -> None:
    options = DatasetOptions(shuffle_window=MIB, memory_limit="31 MiB")
    with pytest.raises(PlanError, match="4 windows of 8 MiB in hand"):
        run_of(catalog_of([MIB] * 8), options, num_splits=4)
    options = replace(options, memory_limit="32 MiB")
    run_of(catalog_of([MIB] * 8), options, num_splits=4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("memory_limit", ["64 MiB", "200 MiB", "1 GiB"])
def test_default_splits_always_fit(world_size: int, memory_limit: str) -> None:
    options = DatasetOptions(shuffle=True, memory_limit=memory_limit)
    catalog = catalog_of([MIB] * 256)
    for rank in range(world_size):
        run_of(catalog, options, World(rank, world_size))


# ---- size


class Recording(Epoch):
    """Notes which splits are cut."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cut: set[int] = set()

    def split(self, index: int) -> Any:
        self.cut.add(index)
        return super().split(index)


def test_a_million_row_groups_are_planned_and_only_the_ranks_splits_cut() -> None:
    num_groups = 1_000_000
    rng = np.random.Generator(np.random.Philox(key=1))
    catalog = catalog_of(rng.integers(1, 200_000, num_groups), row_bytes=240)
    options = DatasetOptions(shuffle=True, batch_size=4096)
    world = World(3, 8)
    run = run_of(catalog, options, world, num_splits=64)
    epoch = Recording(groups_of(catalog), run.epoch.order, 0)
    steps = list(islice(walk(epoch, run.deal, world.rank), 3))
    assert epoch.cut == {3, 11, 19, 27, 35, 43, 51, 59}
    assert all(
        sum(piece.stop - piece.start for piece in step.pieces) == 4096 for step in steps
    )
    assert run.num_steps == -(-catalog.total_rows // (4096 * 8))
    # All windows of a split hold its rows, and none is larger than 64 MiB.
    split = epoch.split(3)
    assert split.bounds[-1] == len(range(3, catalog.total_rows, 64))
    assert np.diff(split.bounds).max() * 240 <= 64 * MIB
