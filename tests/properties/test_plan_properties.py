"""The plan against a naive evaluation of its rules: explicit lists, one row at a time.

The oracle knows positions and rows only. It deals the epoch like cards, sorts a step's
positions and cuts them into chunks; no closed form, window number or request enters it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, islice, pairwise
from math import ceil, gcd

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_loader.plan.epoch import Epoch, Groups, Order, Window
from dask_loader.plan.order import permutation
from dask_loader.plan.schedule import Piece, Turn, requests, walk
from dask_loader.plan.share import Deal, Uneven
from dask_loader.plan.window import READ_FACTOR, planned_reads

Row = tuple[int, int]  # row group, row of it after the filters

PROPERTY = settings(max_examples=300, deadline=None, derandomize=True)
# Each example of these runs an epoch for many ranks and workers.
LARGE_PROPERTY = settings(PROPERTY, max_examples=150)


@dataclass(frozen=True)
class Case:
    """A run to plan."""

    groups: Groups
    order: Order
    number: int
    deal: Deal

    @property
    def epoch(self) -> Epoch:
        return Epoch(self.groups, self.order, self.number)

    @property
    def ranks(self) -> range:
        return range(self.deal.world_size)


# ---- what is drawn


@st.composite
def catalogs(draw: st.DrawFn) -> Groups:
    """Row groups of no, one, few and many rows; whole or filtered; now and then empty."""
    few = st.sampled_from([5, 1, 8, 0, 2, 3, 13, 20, 40])
    rows = draw(st.lists(few, min_size=3, max_size=9))
    if draw(st.booleans()):
        rows[draw(st.integers(0, len(rows) - 1))] = draw(st.integers(50, 150))
    row_bytes = st.sampled_from([4, 1, 60])
    num_bytes = [n * draw(row_bytes) + draw(st.integers(0, 3)) for n in rows]
    # How many of 20 draws keep all rows, some rows, two at most, none.
    keep = draw(st.sampled_from(["all"] * 10 + ["some"] * 5 + ["two"] * 4 + ["none"]))
    most = {"all": 10**9, "some": 10**9, "two": 2, "none": 0}[keep]
    kept = [
        n if keep == "all" else draw(st.integers(0, min(n, most)), label="kept")
        for n in rows
    ]
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
def cases(draw: st.DrawFn) -> Case:
    groups, order = draw(catalogs()), draw(orders())
    total = groups.total_kept
    world_size = draw(st.sampled_from([2, 3, 1, 4, 6, 5, 7, 8]))
    if draw(st.booleans()):
        order = replace(order, num_splits=world_size * draw(st.integers(1, 3)))
    # Rows left of the epoch: all, some, about as many as there are ranks.
    left = st.one_of(st.just(total), st.integers(0, total), st.integers(0, 10))
    deal = Deal(
        num_rows=total,
        num_splits=order.num_splits,
        world_size=world_size,
        batch_size=draw(st.integers(1, 12)),
        first=total - min(total, draw(left)),
        uneven=draw(st.sampled_from(["pad", "drop", "exact"])),
        drop_last=draw(st.integers(0, 5)) == 5,
    )
    return Case(groups, order, draw(st.integers(0, 2)), deal)


@st.composite
def turns(draw: st.DrawFn) -> list[Turn]:
    """All workers of one DataLoader."""
    num_workers, length = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3]))
    return [
        Turn(worker=worker, num_workers=num_workers, length=length)
        for worker in range(num_workers)
    ]


# ---- the oracle: section by section, the rules in words made lists


def naive_splits(case: Case) -> list[list[Row]]:
    """Deal the row line over the splits; rows are not mixed yet."""
    kept, order = case.groups.num_kept.tolist(), case.order
    line = [group for group, rows in enumerate(kept) if rows]
    if order.shuffle:
        mixed = permutation(len(line), "line", order.seed, case.number)
        line = [line[i] for i in mixed]
    rows = iter([(group, row) for group in line for row in range(kept[group])])
    cards = Counter(p % order.num_splits for p in range(sum(kept)))
    return [list(islice(rows, cards[split])) for split in range(order.num_splits)]


def naive_order(case: Case) -> list[Row]:
    """The row at each position of the epoch."""
    epoch, order = case.epoch, case.order
    splits = []
    for split, rows in enumerate(naive_splits(case)):
        left, mixed = iter(rows), []
        # Where windows begin and end has a property of its own.
        for index, slices in enumerate(epoch.split(split).windows):
            window = list(islice(left, sum(s.num_rows for s in slices)))
            key = ("window", order.seed, case.number, split, index)
            if order.shuffle:
                window = [window[i] for i in permutation(len(window), *key)]
            mixed += window
        assert not list(left)
        splits.append(mixed)
    total, width = case.groups.total_kept, order.num_splits
    return [splits[p % width][p // width] for p in range(total)]


def naive_steps(deal: Deal, rank: int) -> Iterator[tuple[list[int], int | None]]:
    """Yield the positions of each of the rank's batches, and its pad's."""
    world, splits = deal.world_size, deal.num_splits
    classes = gcd(splits, world)
    for begin in range(deal.first, deal.num_rows, deal.batch_size * world):
        whole = range(begin, begin + deal.batch_size * world)
        positions = [p for p in whole if p < deal.num_rows]
        if deal.drop_last and len(positions) < len(whole):
            return
        count = len(positions)
        if deal.uneven == "drop":
            positions = positions[: count - count % world]
        mine = [p for p in positions if (p - deal.first) % classes == rank % classes]
        mine.sort(key=lambda p: (p % splits, p // splits))
        # array_split makes the first chunks one longer.
        chunks = np.array_split(np.array(mine, dtype=int), world // classes)
        share = chunks[rank // classes].tolist()
        lacks = deal.uneven == "pad" and len(share) < ceil(count / world)
        pad = positions[rank % count] if lacks else None
        if share or pad is not None:
            yield share, pad


# ---- what the plan says


@dataclass(frozen=True)
class Batch:
    """One step with its pieces resolved to rows and positions."""

    number: int
    rows: list[Row]
    positions: list[int]
    pad: tuple[Row, int] | None

    @property
    def num_rows(self) -> int:
        return len(self.rows) + (self.pad is not None)


@lru_cache(maxsize=1000)
def mixed_rows(window: Window) -> list[Row]:
    rows = [(s.group, row) for s in window.slices for row in range(s.start, s.stop)]
    assert len(rows) == window.num_rows
    if window.key is None:
        return rows
    return [rows[i] for i in permutation(len(rows), *window.key)]


def batches(case: Case, rank: int, turn: Turn | None = None) -> list[Batch]:
    """Walk, and look up the rows in the windows that are open."""
    width = case.deal.num_splits
    windows: dict[int, list[Row]] = {}

    def rows(piece: Piece) -> list[Row]:
        return windows[piece.request][piece.start : piece.stop]

    def positions(piece: Piece) -> list[int]:
        length = piece.stop - piece.start
        return [(piece.split_row + i) * width + piece.split for i in range(length)]

    found = []
    for step in walk(case.epoch, case.deal, rank, turn):
        windows |= {r.number: mixed_rows(r.window) for r in step.opened}
        pad = None
        if step.pad is not None:
            (row,), (position,) = rows(step.pad), positions(step.pad)
            pad = row, position
        found.append(
            Batch(
                step.number,
                [row for piece in step.pieces for row in rows(piece)],
                [p for piece in step.pieces for p in positions(piece)],
                pad,
            )
        )
        for number in step.finished:
            del windows[number]
    assert not windows
    return found


def all_batches(case: Case) -> list[list[Batch]]:
    return [batches(case, rank) for rank in case.ranks]


# ---- order


@PROPERTY
@given(cases())
def test_splits_hold_each_row_once_and_differ_by_one_row_at_most(case: Case) -> None:
    epoch = case.epoch
    assert epoch.num_rows == case.groups.total_kept
    lengths = []
    for index, rows in enumerate(naive_splits(case)):
        split = epoch.split(index)
        assert rows == [
            (s.group, row)
            for window in split.windows
            for s in window
            for row in range(s.start, s.stop)
        ]
        lengths.append(len(rows))
        sizes = [sum(s.num_rows for s in window) for window in split.windows]
        assert split.bounds.tolist() == [0, *np.cumsum(sizes)]
        assert all(sizes)
    assert max(lengths) - min(lengths) <= 1


@PROPERTY
@given(catalogs(), orders())
def test_windows_are_as_large_as_allowed_and_no_larger(
    groups: Groups, order: Order
) -> None:
    check_windows(groups, order)
    # A filter that leaves a row of each row group reaches the bound on what is read.
    check_windows(replace(groups, num_kept=np.minimum(groups.num_kept, 1)), order)


def check_windows(groups: Groups, order: Order) -> None:
    deal = Deal(num_rows=0, num_splits=1, world_size=1, batch_size=1)
    case = Case(groups, order, 0, deal)
    limit, read_limit = order.window, READ_FACTOR * order.window

    def size(group: int, rows: int) -> int:
        if not order.window_in_bytes:
            return rows
        return rows * int(groups.num_bytes[group]) // int(groups.num_rows[group])

    def read(group: int) -> int:
        return int(groups.num_bytes[group]) if order.window_in_bytes else 0

    epoch = case.epoch
    for index, rows in enumerate(naive_splits(case)):
        whole = {g: len(list(run)) for g, run in groupby(rows, key=lambda row: row[0])}
        parts: dict[int, list[int]] = {}
        runs: list[list[int]] = []  # row groups of each window of whole slices
        for window in epoch.split(index).windows:
            inside = [s.group for s in window]
            if any(size(g, whole[g]) > limit for g in inside):
                assert len(inside) == 1
                parts.setdefault(inside[0], []).append(window[0].num_rows)
                runs.append([])
                continue
            assert [s.num_rows for s in window] == [whole[g] for g in inside]
            assert sum(size(g, whole[g]) for g in inside) <= limit
            assert len(inside) == 1 or sum(map(read, inside)) <= read_limit
            runs.append(inside)
        for group, lengths in parts.items():
            fewest = ceil(size(group, whole[group]) / limit)
            assert len(lengths) == min(fewest, whole[group])
            assert max(lengths) - min(lengths) <= 1
        for run, after in pairwise(runs):  # the next slice would have been too much
            if run and after:
                both = [*run, after[0]]
                too_large = sum(size(g, whole[g]) for g in both) > limit
                assert too_large or sum(map(read, both)) > read_limit


@PROPERTY
@given(cases())
def test_planned_reads_count_each_row_group_of_each_split(case: Case) -> None:
    line_ends = np.cumsum([n for n in case.groups.num_kept.tolist() if n], dtype=int)
    ordered = replace(case, order=replace(case.order, shuffle=False))
    touched = [{group for group, _ in rows} for rows in naive_splits(ordered)]
    assert planned_reads(line_ends, num_splits=case.order.num_splits) == sum(
        int(case.groups.num_kept[group]) for groups in touched for group in groups
    )


@PROPERTY
@given(st.integers(1, 60), st.integers(1, 50), st.integers(1, 70))
def test_equal_row_groups_are_decoded_little_more_than_once(
    num_groups: int, num_rows: int, num_splits: int
) -> None:
    total = num_groups * num_rows
    line_ends = np.arange(1, num_groups + 1) * num_rows
    reads = planned_reads(line_ends, num_splits=num_splits)
    assert total <= reads
    assert reads * num_groups <= total * (num_groups + num_splits - 1)


# ---- ranks


@PROPERTY
@given(cases())
def test_each_batch_has_the_rows_that_the_rules_name(case: Case) -> None:
    order = naive_order(case)
    for rank in case.ranks:
        found = batches(case, rank)
        expected = list(naive_steps(case.deal, rank))
        assert [b.number for b in found] == list(range(len(expected)))
        assert [b.positions for b in found] == [share for share, _ in expected]
        assert [b.rows for b in found] == [[order[p] for p in s] for s, _ in expected]
        assert [b.pad for b in found] == [
            None if pad is None else (order[pad], pad) for _, pad in expected
        ]


@LARGE_PROPERTY
@given(cases(), turns())
def test_each_row_comes_once_over_ranks_and_workers(
    case: Case, workers: list[Turn]
) -> None:
    order, world_size = naive_order(case), case.deal.world_size
    left = len(order) - case.deal.first
    tail = left % (world_size * case.deal.batch_size)
    # uneven, drop_last -> rows left off, pads
    rules: dict[tuple[Uneven, bool], tuple[int, int]] = {
        ("pad", False): (0, -left % world_size),
        ("drop", False): (tail % world_size, 0),
        ("exact", False): (0, 0),
        (case.deal.uneven, True): (tail, 0),
    }
    for (uneven, drop_last), (lost, num_pads) in rules.items():
        deal = replace(case.deal, uneven=uneven, drop_last=drop_last)
        dealt = replace(case, deal=deal)
        found = [
            batch
            for rank in case.ranks
            for turn in workers
            for batch in batches(dealt, rank, turn)
        ]
        counts = Counter(row for batch in found for row in batch.rows)
        assert set(counts.values()) <= {1}
        # What is left off are the very last positions.
        assert set(counts) == set(order[deal.first : len(order) - lost])
        assert sum(batch.pad is not None for batch in found) == num_pads < world_size


@PROPERTY
@given(cases())
def test_pads_are_rows_of_the_last_global_batch(case: Case) -> None:
    deal = replace(case.deal, uneven="pad", drop_last=False)
    case = replace(case, deal=deal)
    pads = {
        rank: batch.pad
        for rank, found in enumerate(all_batches(case))
        for batch in found
        if batch.pad is not None
    }
    left = deal.num_rows - deal.first
    tail = left % (deal.batch_size * deal.world_size)
    for rank, (_, position) in pads.items():
        assert deal.num_rows - tail <= position < deal.num_rows
        if deal.num_splits % deal.world_size == 0 and tail >= deal.world_size:
            assert (position - deal.first) % deal.world_size == rank  # a row of its own


@PROPERTY
@given(cases())
def test_steps_and_rows_are_counted_exactly_and_are_equal(case: Case) -> None:
    deal = case.deal
    found = all_batches(case)
    for rank, mine in enumerate(found):
        assert deal.num_steps(rank) == len(mine)
        assert deal.num_rank_rows(rank) == sum(batch.num_rows for batch in mine)
        assert all(batch.num_rows == deal.batch_size for batch in mine[:-1])
        assert all(1 <= batch.num_rows <= deal.batch_size for batch in mine)
    sizes = [[batch.num_rows for batch in mine] for mine in found]
    if deal.uneven == "exact" and not deal.drop_last:
        steps = [len(mine) for mine in sizes]
        assert steps == sorted(steps, reverse=True)  # rank 0 ends last
        assert steps[0] - steps[-1] <= 1
    else:
        assert all(mine == sizes[0] for mine in sizes)


@PROPERTY
@given(cases())
def test_ranks_read_their_own_splits_only(case: Case) -> None:
    deal = case.deal
    for rank in case.ranks:
        mine = set(deal.rank_splits(rank).tolist())
        real = {p % deal.num_splits for b in batches(case, rank) for p in b.positions}
        assert real <= mine
        if deal.num_splits % deal.world_size == 0:
            assert len(mine) == deal.num_splits // deal.world_size
    if deal.num_splits % deal.world_size == 0:
        owners = Counter(
            s for rank in case.ranks for s in deal.rank_splits(rank).tolist()
        )
        assert owners == Counter(range(deal.num_splits))


@LARGE_PROPERTY
@given(cases(), st.integers(1, 4))
def test_global_batches_are_the_same_at_every_world_size(case: Case, unit: int) -> None:
    order = naive_order(case)
    size = 12 * unit
    for world_size in (1, 2, 3, 4, 6, 12):
        deal = replace(
            case.deal,
            world_size=world_size,
            batch_size=size // world_size,
            uneven="exact",
        )
        found = all_batches(replace(case, deal=deal))
        for step in range(max(map(len, found))):
            rows = [
                row for mine in found for b in mine[step : step + 1] for row in b.rows
            ]
            begin = deal.first + step * size
            assert sorted(rows) == sorted(order[begin : begin + size])


@LARGE_PROPERTY
@given(cases(), st.integers(1, 8), st.integers(1, 12), st.integers(0, 5))
def test_a_run_resumed_elsewhere_has_exactly_the_rows_left(
    case: Case, world_size: int, batch_size: int, steps: int
) -> None:
    before = replace(case, deal=replace(case.deal, uneven="exact", drop_last=False))
    deal = before.deal
    first = min(deal.first + steps * deal.batch_size * deal.world_size, deal.num_rows)
    resumed = replace(deal, first=first, world_size=world_size, batch_size=batch_size)
    seen = [
        row
        for mine in all_batches(before)
        for batch in mine[:steps]
        for row in batch.rows
    ]
    rest = [
        row
        for mine in all_batches(replace(before, deal=resumed))
        for batch in mine
        for row in batch.rows
    ]
    order = naive_order(case)
    assert sorted(seen) == sorted(order[deal.first : first])
    assert sorted(rest) == sorted(order[first:])


# ---- DataLoader workers and windows


@LARGE_PROPERTY
@given(cases(), turns())
def test_workers_make_the_batches_of_their_rank(
    case: Case, workers: list[Turn]
) -> None:
    length = workers[0].length
    for rank in case.ranks:
        alone = batches(case, rank)
        made = []
        for turn in workers:
            mine = batches(case, rank, turn)
            assert all(
                batch.number // length % len(workers) == turn.worker for batch in mine
            )
            made += mine
        assert sorted(made, key=lambda batch: batch.number) == alone


@PROPERTY
@given(cases(), turns())
def test_requests_are_numbered_as_the_walk_uses_them(
    case: Case, workers: list[Turn]
) -> None:
    epoch = case.epoch
    for rank in case.ranks:
        for turn in (None, *workers):
            asked = list(requests(epoch, case.deal, rank, turn))
            assert [r.number for r in asked] == list(range(len(asked)))
            used: list[int] = []
            for step in walk(epoch, case.deal, rank, turn):
                pieces = [*step.pieces, *([step.pad] if step.pad else [])]
                used += [piece.request for piece in pieces]
                for piece in pieces:
                    request = asked[piece.request]
                    assert request.split == piece.split
                    assert request.window == epoch.window(
                        piece.split, request.window.index
                    )
                    # The piece lies in the window, and the window where it says.
                    begin = int(epoch.split(piece.split).bounds[request.window.index])
                    assert piece.split_row == begin + piece.start
                    assert 0 <= piece.start < piece.stop <= request.window.num_rows
            assert list(dict.fromkeys(used)) == [r.number for r in asked]


@PROPERTY
@given(cases(), turns())
def test_windows_are_open_while_they_are_used(case: Case, workers: list[Turn]) -> None:
    for rank in case.ranks:
        for turn in (None, *workers):
            steps = list(walk(case.epoch, case.deal, rank, turn))
            opened = [r.number for step in steps for r in step.opened]
            finished = [number for step in steps for number in step.finished]
            assert sorted(finished) == opened == list(range(len(opened)))
            now: set[int] = set()
            for step in steps:
                now |= {r.number for r in step.opened}
                assert {piece.request for piece in step.pieces} <= now
                assert step.pad is None or step.pad.request in now
                now -= set(step.finished)
            windows = Counter(
                (r.split, r.window.index) for s in steps for r in s.opened
            )
            # Only a pad may need a window that the rank has given back.
            again = sum(windows.values()) - len(windows)
            assert again <= any(step.pad is not None for step in steps)


@PROPERTY
@given(cases(), turns())
def test_few_windows_are_open_at_once(case: Case, workers: list[Turn]) -> None:
    deal = case.deal
    own_splits = deal.num_splits % deal.world_size == 0
    for rank in case.ranks:
        for turn in (None, *workers):
            now: dict[int, int] = {}  # request -> split
            for step in walk(case.epoch, deal, rank, turn):
                now |= {r.number: r.split for r in step.opened}
                within = len({piece.request for piece in step.pieces})
                spanned = within - len({piece.split for piece in step.pieces})
                if own_splits and turn is None:
                    pad = step.pad is not None
                    assert len(now) <= deal.splits_in_hand(rank) + spanned + pad
                for number in step.finished:
                    del now[number]
                # Between steps there is one for each split, at most.
                assert len(set(now.values())) == len(now)
                assert len(now) <= deal.splits_in_hand(rank)
