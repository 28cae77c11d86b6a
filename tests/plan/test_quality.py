"""Shuffle quality against its definition: pairs of rows, all orders, real permutations."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_loader.plan import quality
from dask_loader.plan.epoch import Epoch, Groups, Order, Window
from dask_loader.plan.order import permutation
from dask_loader.plan.quality import fully_mixed_groups, mixed_groups, quality_of
from dask_loader.plan.schedule import walk
from dask_loader.plan.share import Deal
from dask_loader.plan.stage import Stage, next_stages

MIB = 1 << 20


def groups_of(rows: list[int], row_bytes: int = 1) -> Groups:
    sizes = np.array(rows, dtype=np.int64)
    return Groups(num_rows=sizes, num_bytes=sizes * row_bytes, num_kept=sizes)


def epoch_of(
    rows: list[int],
    *,
    num_splits: int = 1,
    window: int = 10,
    shuffle: bool = True,
    row_bytes: int = 1,
) -> Epoch:
    order = Order(
        shuffle=shuffle,
        seed=3,
        num_splits=num_splits,
        window=window,
        window_in_bytes=row_bytes > 1,
    )
    return Epoch(groups_of(rows, row_bytes), order, 0)


def deal_of(epoch: Epoch, *, world_size: int = 1, batch_size: int = 4) -> Deal:
    return Deal(
        num_rows=epoch.num_rows,
        num_splits=epoch.order.num_splits,
        world_size=world_size,
        batch_size=batch_size,
    )


# ---- the definition ------------------------------------------------------------------


def pieces_of(
    epoch: Epoch, deal: Deal, rank: int
) -> list[list[tuple[Window, int, int]]]:
    """Return, for each step, the windows and their rows [start, stop) that it takes."""
    windows: dict[int, Window] = {}
    steps = []
    for step in walk(epoch, deal, rank):
        windows.update((request.number, request.window) for request in step.opened)
        steps.append([(windows[p.request], p.start, p.stop) for p in step.pieces])
    return steps


def rows_of(window: Window) -> list[int]:
    """Return the row group of each row, before the rows are mixed."""
    return [piece.group for piece in window.slices for _ in range(piece.num_rows)]


def worth(groups: list[int]) -> float:
    """Return 1 / sum of squared shares."""
    return len(groups) ** 2 / sum(count**2 for count in Counter(groups).values())


def expected_worth(pieces: list[tuple[Window, int, int]]) -> float:
    """Return the same for an order of each window's rows that is drawn at random.

    One pair of rows after the other: how likely is it that both are of one row group?
    """
    taken: dict[tuple[int, int], tuple[Window, int]] = {}
    for window, start, stop in pieces:  # after a re-cut, a window may come twice
        place = (window.split, window.index)
        taken[place] = (window, stop - start + taken.get(place, (window, 0))[1])
    num_rows, same = 0, 0.0
    before: list[tuple[Window, int]] = []
    for window, rows in taken.values():
        size, held = window.num_rows, Counter(rows_of(window))
        num_rows += rows
        same += rows  # each row with itself
        if rows > 1:
            alike = sum(m * (m - 1) for m in held.values())
            same += rows * (rows - 1) * alike / (size * (size - 1))
        for other, rows_before in before:
            alike = sum(m * held[g] for g, m in Counter(rows_of(other)).items())
            same += 2 * rows * rows_before * alike / (size * other.num_rows)
        before.append((window, rows))
    return num_rows**2 / same


@st.composite
def runs(draw: st.DrawFn) -> tuple[Epoch, Deal, int]:
    """A run of 16 steps at most, so that each is looked at."""
    sizes = st.lists(st.sampled_from([1, 2, 5, 8, 0, 30]), min_size=1, max_size=8)
    epoch = epoch_of(
        draw(sizes),
        num_splits=draw(st.integers(1, 5)),
        window=draw(st.sampled_from([7, 1, 3, 20, 1000])),
        shuffle=draw(st.booleans()),
    )
    first = draw(st.integers(0, epoch.num_rows // 2))
    stage = Stage(0, epoch.order.num_splits)
    if draw(st.booleans()):  # the rest is cut anew
        stages = next_stages([stage], first, draw(st.integers(1, 5)))
        order = replace(epoch.order, num_splits=stages[0].num_splits)
        epoch = Epoch(epoch._groups, order, 0, stages)
        stage = stages[-1]
    world_size = draw(st.integers(1, 4))
    least = max(1, -(-epoch.num_rows // (16 * world_size)))
    deal = replace(
        deal_of(
            epoch,
            world_size=world_size,
            batch_size=draw(st.integers(least, least + 20)),
        ),
        num_splits=stage.num_splits,
        stage_start=stage.start,
        first=first,
        uneven=draw(st.sampled_from(["exact", "drop"])),  # pads are left out of account
    )
    return epoch, deal, draw(st.integers(0, world_size - 1))


@given(run=runs())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_it_is_what_pairs_of_rows_say(run: tuple[Epoch, Deal, int]) -> None:
    epoch, deal, rank = run
    steps = [pieces for pieces in pieces_of(epoch, deal, rank) if pieces]
    if epoch.order.shuffle:
        expected = [expected_worth(pieces) for pieces in steps]
    else:
        expected = [
            worth([g for window, i, j in pieces for g in rows_of(window)[i:j]])
            for pieces in steps
        ]
    found = mixed_groups(epoch, deal, rank)
    assert found == pytest.approx(np.mean(expected) if expected else 0.0)


def test_it_is_the_mean_over_all_orders_of_a_window() -> None:
    rows = [3, 1, 2]
    epoch = epoch_of(rows, window=1000)
    deal = deal_of(epoch, batch_size=4)
    # Two batches, of 4 and 2 rows; all 720 orders of the window.
    line = [group for group, count in enumerate(rows) for _ in range(count)]
    orders = list(permutations(line))
    expected = []
    for start, stop in ((0, 4), (4, 6)):
        squares = [
            sum(n**2 for n in Counter(order[start:stop]).values()) for order in orders
        ]
        expected.append((stop - start) ** 2 / np.mean(squares))
    assert mixed_groups(epoch, deal, 0) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(
    ("num_splits", "world_size", "batch_size", "window"),
    [(1, 1, 40, 200), (4, 1, 60, 100), (8, 2, 64, 64), (4, 3, 50, 150), (6, 2, 30, 40)],
)
def test_real_permutations_mix_as_well_as_they_should(
    num_splits: int, world_size: int, batch_size: int, window: int
) -> None:
    rows = [50, 20, 90, 10, 50, 130, 1, 33] * 2
    epoch = epoch_of(rows, num_splits=num_splits, window=window)
    deal = deal_of(epoch, world_size=world_size, batch_size=batch_size)
    steps = pieces_of(epoch, deal, 0)
    steps = [steps[i] for i in quality._sampled(len(steps), num_splits)]
    means = []
    for trial in range(200):
        found = []
        for pieces in steps:
            batch: list[int] = []
            for window_of, start, stop in pieces:
                assert window_of.key is not None
                mixed = permutation(window_of.num_rows, *window_of.key, trial)
                groups = rows_of(window_of)
                batch += [groups[row] for row in mixed[start:stop]]
            found.append(worth(batch))
        means.append(np.mean(found))
    # 1 over a mean is a little less than the mean of 1 over it: see mixed_groups.
    error = 5 * np.std(means) / sqrt(len(means))
    assert mixed_groups(epoch, deal, 0) == pytest.approx(
        np.mean(means), rel=0.02, abs=error
    )


# ---- what plans are worth --------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits_per_rank", "window", "rank", "all_ranks"),
    [
        # Means over 16 steps of permuted rows, from a run of their own.
        (1, 30 * MIB, 1.0, 8),
        (1, 64 * MIB, 2.0, 16),
        (1, 128 * MIB, 4.0, 32),
        (1, 512 * MIB, 16.9, 136),
        (4, 64 * MIB, 8.0, 64),
        (8, 64 * MIB, 15.9, 127),
        (8, 128 * MIB, 31.5, 255),
        (16, 64 * MIB, 31.6, 247),
        (8, 512 * MIB, 123, 972),
    ],
)
def test_a_thousand_row_groups_on_eight_ranks(
    splits_per_rank: int, window: int, rank: float, all_ranks: float
) -> None:
    rows = [131_072] * 1000  # of 30 MiB each
    epoch = epoch_of(rows, num_splits=8 * splits_per_rank, window=window, row_bytes=240)
    deal = deal_of(epoch, world_size=8, batch_size=4096)
    found = quality_of(epoch, deal, 0, groups_of(rows).num_kept)
    assert found.rank == pytest.approx(rank, rel=0.05)
    assert found.all_ranks == pytest.approx(all_ranks, rel=0.05)
    assert found.rank_at_best == pytest.approx(804, abs=0.5)
    assert found.all_at_best == pytest.approx(970, abs=0.5)


def test_one_window_of_everything_is_a_full_shuffle() -> None:
    rows = [500, 20, 90, 0, 50, 340]
    epoch = epoch_of(rows, window=10_000)
    deal = deal_of(epoch, batch_size=100)
    best = fully_mixed_groups(np.array(rows), 100)
    assert mixed_groups(epoch, deal, 0) == pytest.approx(best)
    assert best == pytest.approx(
        expected_worth([(epoch.window(0, 0), 0, 100)]), rel=1e-9
    )


def test_row_groups_that_cannot_be_mixed_are_worth_one() -> None:
    epoch = epoch_of([40])
    assert mixed_groups(epoch, deal_of(epoch), 0) == pytest.approx(1)
    epoch = epoch_of([40, 40], shuffle=False)
    assert mixed_groups(epoch, deal_of(epoch), 0) == pytest.approx(1)
    assert fully_mixed_groups(np.array([0, 7]), 4096) == pytest.approx(1)


def test_a_batch_of_everything_is_worth_all_row_groups() -> None:
    rows = np.array([10, 10, 10, 10])
    assert fully_mixed_groups(rows, 40) == pytest.approx(4)
    assert fully_mixed_groups(rows, 10**9) == pytest.approx(4)


def test_without_rows_batches_are_worth_nothing() -> None:
    epoch = epoch_of([])
    found = quality_of(epoch, deal_of(epoch), 0, np.zeros(0, dtype=np.int64))
    assert (found.rank, found.all_ranks) == (0, 0)
    assert (found.rank_at_best, found.all_at_best) == (0, 0)


def test_a_rank_that_gets_nothing_but_a_copy_has_no_quality() -> None:
    epoch = epoch_of([1], num_splits=2)
    deal = deal_of(epoch, world_size=2)
    assert deal.num_steps(1) == 1
    assert mixed_groups(epoch, deal, 1) == 0
    assert mixed_groups(epoch, deal, 0) == 1


# ---- what it costs ---------------------------------------------------------------------


class Watched(Epoch):
    """Counts the windows that are asked for."""

    looked_at = 0

    def window(self, split: int, index: int) -> Window:
        self.looked_at += 1
        return super().window(split, index)


@pytest.mark.parametrize("num_splits", [1, 8, 512, 4096])
def test_few_windows_are_looked_at_however_many_there_are(num_splits: int) -> None:
    rows = [100] * 20_000
    order = replace(epoch_of(rows, num_splits=num_splits).order, window=100)
    epoch = Watched(groups_of(rows), order, 0)
    deal = deal_of(epoch, batch_size=num_splits)
    assert mixed_groups(epoch, deal, 0) == pytest.approx(num_splits, rel=0.01)
    assert epoch.looked_at <= max(2048, 2 * num_splits)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 15, 16, 17, 1000])
def test_sampled_steps_are_spread_over_the_run(num_steps: int) -> None:
    steps = quality._sampled(num_steps, 1)
    assert steps == sorted(set(steps))
    assert len(steps) == min(16, num_steps)
    assert all(0 <= step < num_steps for step in steps)
    if num_steps >= 16:
        assert steps[0] <= num_steps // 16
        assert steps[-1] >= num_steps - 1 - num_steps // 16
