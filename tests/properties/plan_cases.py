"""What the properties are tried on: catalogs, runs and chains of runs, drawn at random."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dask_loader.plan.epoch import Epoch, Groups, Order
from dask_loader.plan.schedule import Turn
from dask_loader.plan.share import Deal, Uneven
from dask_loader.plan.stage import Stage

UNEVEN: tuple[Uneven, ...] = ("pad", "drop", "exact")


@dataclass(frozen=True)
class Case:
    """A run to plan."""

    groups: Groups
    order: Order
    number: int
    stages: tuple[Stage, ...]
    deal: Deal

    @property
    def epoch(self) -> Epoch:
        return Epoch(self.groups, self.order, self.number, self.stages)

    @property
    def ranks(self) -> range:
        return range(self.deal.world_size)


@dataclass(frozen=True)
class Leg:
    """One run of a chain: it delivers `steps` batches, then it is resumed elsewhere."""

    world_size: int
    batch_size: int
    steps: int
    num_workers: int
    uneven: Uneven
    num_splits: int | None  # None keeps the state's


@dataclass(frozen=True)
class Example:
    """All that a property may ask for. Most use the case alone."""

    case: Case
    workers: tuple[Turn, ...]
    legs: tuple[Leg, ...]


@st.composite
def catalogs(draw: st.DrawFn) -> Groups:
    """Row groups of no, one, few and many rows; whole or filtered; now and then empty."""
    few = st.sampled_from([5, 1, 8, 0, 2, 3, 13, 20, 40])
    rows = draw(st.lists(few, min_size=3, max_size=9))
    if draw(st.booleans()):
        rows[draw(st.integers(0, len(rows) - 1))] = draw(st.integers(50, 150))
    row_bytes = st.sampled_from([4, 1, 60])
    num_bytes = [n * draw(row_bytes) + draw(st.integers(0, 3)) for n in rows]
    # How many of 21 draws keep all rows, some rows, two at most, one in all, none.
    keep = draw(
        st.sampled_from(
            ["all"] * 10 + ["some"] * 5 + ["two"] * 4 + ["none"] + ["one in all"]
        )
    )
    most = {"all": 10**9, "some": 10**9, "two": 2, "none": 0, "one in all": 0}[keep]
    kept = [
        n if keep == "all" else draw(st.integers(0, min(n, most)), label="kept")
        for n in rows
    ]
    if keep == "one in all" and any(rows):
        kept[draw(st.sampled_from([i for i, n in enumerate(rows) if n]))] = 1
    as_ints = [np.array(x, dtype=np.int64) for x in (rows, num_bytes, kept)]
    return Groups(num_rows=as_ints[0], num_bytes=as_ints[1], num_kept=as_ints[2])


@st.composite
def orders(draw: st.DrawFn) -> Order:
    return Order(
        shuffle=draw(st.sampled_from([True, False, True])),
        seed=draw(st.integers(-1, 3)),
        num_splits=draw(st.integers(1, 12)),
        window=draw(st.sampled_from([7, 1, 30, 64, 400])),
        window_in_bytes=draw(st.booleans()),
    )


@st.composite
def cases(draw: st.DrawFn, recuts: bool = True) -> Case:
    """Runs that begin anywhere, in an epoch that was cut anew up to three times."""
    groups, order = draw(catalogs()), draw(orders())
    total = groups.total_kept
    world_size = draw(st.sampled_from([2, 3, 1, 4, 6, 5, 7, 8]))
    if draw(st.booleans()):
        order = replace(order, num_splits=world_size * draw(st.integers(1, 3)))
    # Rows left of the epoch: all, some, about as many as there are ranks.
    left = st.one_of(st.just(total), st.integers(0, total), st.integers(0, 10))
    first = total - min(total, draw(left))
    stages = [Stage(0, order.num_splits)]
    starts = draw(st.sets(st.integers(1, first), max_size=3)) if first else set()
    if recuts:
        for start in sorted(starts):
            stages.append(Stage(start, draw(st.integers(1, 12))))
    deal = Deal(
        num_rows=total,
        num_splits=stages[-1].num_splits,
        stage_start=stages[-1].start,
        world_size=world_size,
        batch_size=draw(st.integers(1, 12)),
        first=first,
        uneven=draw(st.sampled_from(UNEVEN)),
        drop_last=draw(st.integers(0, 5)) == 5,
    )
    return Case(groups, order, draw(st.integers(0, 2)), tuple(stages), deal)


@st.composite
def turns(draw: st.DrawFn) -> tuple[Turn, ...]:
    """All workers of one DataLoader."""
    num_workers, length = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3]))
    return tuple(
        Turn(worker=worker, num_workers=num_workers, length=length)
        for worker in range(num_workers)
    )


@st.composite
def legs(draw: st.DrawFn) -> Leg:
    return Leg(
        world_size=draw(st.integers(1, 6)),
        batch_size=draw(st.integers(1, 9)),
        steps=draw(st.sampled_from([1, 2, 3, 0, 4, 99])),
        num_workers=draw(st.integers(0, 3)),
        uneven=draw(st.sampled_from(UNEVEN)),
        num_splits=draw(st.one_of(st.none(), st.integers(1, 9))),
    )


def examples() -> st.SearchStrategy[Example]:
    chains = st.lists(legs(), min_size=1, max_size=5).map(tuple)
    return st.builds(Example, cases(), turns(), chains)


def fixed_examples(count: int) -> list[Example]:
    """The same examples in every run."""
    found: list[Example] = []

    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(examples())
    def collect(example: Example) -> None:
        found.append(example)

    collect()
    return found


def kinds_of(case: Case) -> set[str]:
    """Name what is rare about a case, so that a test can count what was reached."""
    deal, order = case.deal, case.order
    left = deal.num_rows - deal.first
    tail = left % (deal.batch_size * deal.world_size)
    splits = [case.epoch.split(s) for s in range(order.num_splits)]
    windows = [window for split in splits for window in split.windows]
    cut_rows = {int(b) for split in splits for b in split.bounds}
    pads = deal.uneven == "pad" and not deal.drop_last
    names = {
        "no rows": deal.num_rows == 0,
        "one row": deal.num_rows == 1,
        "fewer rows than ranks": 0 < deal.num_rows < deal.world_size,
        "fewer rows than splits": 0 < deal.num_rows < deal.num_splits,
        "begins in the middle": deal.first > 0 and left > 0,
        "begins at the end": deal.first > 0 and left == 0,
        "fewer rows left than ranks": 0 < left < deal.world_size,
        "a tail": tail > 0,
        "no tail": left > 0 and tail == 0,
        "a tail for all ranks alike": tail > 0 and tail % deal.world_size == 0,
        "pads": pads and tail % deal.world_size > 0,
        "more pads than rows of the tail": pads and 0 < 2 * tail < deal.world_size,
        "drops": deal.uneven == "drop" and tail % deal.world_size > 0,
        "drop_last drops": deal.drop_last and tail > 0,
        "ranks have their own splits": deal.num_splits % deal.world_size == 0,
        "ranks share splits": deal.num_splits % deal.world_size > 0,
        "more ranks than splits": deal.world_size > deal.num_splits,
        "classes that several ranks share": 1
        < deal.num_classes
        < min(deal.world_size, deal.num_splits),
        "filtered": bool((case.groups.num_kept < case.groups.num_rows).any()),
        "windows of several row groups": any(len(w) > 1 for w in windows),
        "row groups of several windows": any(
            len(a) == len(b) == 1 and a[0].group == b[0].group and b[0].start
            for split in splits
            for a, b in pairwise(split.windows)
        ),
        "a re-cut": len(case.stages) == 2,
        "several re-cuts": len(case.stages) > 2,
        "a re-cut in the middle of a window": any(
            stage.start // order.num_splits not in cut_rows for stage in case.stages[1:]
        ),
        "a run that begins after its re-cut": len(case.stages) > 1
        and deal.first > deal.stage_start,
    }
    return {name for name, holds in names.items() if holds}
