"""What must hold of every plan: one function each, which raises where it does not.

They are functions, not tests, so that the mutants can be put before the same properties.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, groupby, pairwise, product
from math import ceil

import numpy as np

from dask_loader.plan.epoch import Groups, Order, Window
from dask_loader.plan.position import OrderFacts, make_state, read_state
from dask_loader.plan.schedule import Piece, Turn, requests, walk
from dask_loader.plan.share import Deal, Uneven
from dask_loader.plan.stage import Stage, next_stages
from dask_loader.plan.window import READ_FACTOR, planned_reads
from dask_loader.run import Progress, Run
from dask_loader.world import World
from tests.properties.plan_cases import UNEVEN, Case, Example, Leg
from tests.properties.plan_oracle import (
    Row,
    naive_order,
    naive_permutation,
    naive_splits,
    naive_steps,
    torch_round_robin,
)

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


def mixed_rows(window: Window) -> list[Row]:
    rows = [(s.group, row) for s in window.slices for row in range(s.start, s.stop)]
    assert len(rows) == window.num_rows
    if window.key is None:
        return rows
    return [rows[i] for i in naive_permutation(len(rows), *window.key)]


def batches(case: Case, rank: int, turn: Turn | None = None) -> list[Batch]:
    """Walk, and look up the rows in the windows that are open."""
    width, start = case.deal.num_splits, case.deal.stage_start
    windows: dict[int, list[Row]] = {}

    def rows(piece: Piece) -> list[Row]:
        return windows[piece.request][piece.start : piece.stop]

    def positions(piece: Piece) -> list[int]:
        places = range(piece.split_row, piece.split_row + piece.stop - piece.start)
        return [start + place * width + piece.split for place in places]

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


def check_splits(example: Example) -> None:
    """Splits hold each row once, in the line's order, and differ by one row at most."""
    case = example.case
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


def check_windows(groups: Groups, order: Order) -> None:
    """Windows are as large as allowed and no larger; slices are cut only at need."""
    deal = Deal(num_rows=0, num_splits=1, world_size=1, batch_size=1)
    case = Case(groups, order, 0, (Stage(0, order.num_splits),), deal)
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


def check_windows_also_filtered(example: Example) -> None:
    """Windows keep their bounds, also where a filter leaves one row of each row group."""
    groups, order = example.case.groups, example.case.order
    check_windows(groups, order)
    sparse = replace(groups, num_kept=np.minimum(groups.num_kept, 1))
    check_windows(sparse, order)
    # Small for the row groups, large for a row: what is read before filtering counts.
    small = max(1, int(groups.num_bytes.sum()) // (4 * READ_FACTOR))
    check_windows(
        sparse, replace(order, num_splits=1, window=small, window_in_bytes=True)
    )


def check_planned_reads(example: Example) -> None:
    """The reads that num_splits is chosen by count each row group of each split."""
    case = example.case
    line_ends = np.cumsum([n for n in case.groups.num_kept.tolist() if n], dtype=int)
    ordered = replace(case, order=replace(case.order, shuffle=False))
    touched = [{group for group, _ in rows} for rows in naive_splits(ordered)]
    assert planned_reads(line_ends, num_splits=case.order.num_splits) == sum(
        int(case.groups.num_kept[group]) for groups in touched for group in groups
    )


def check_topology(example: Example) -> None:
    """World size and batch size do not enter the order: a position has one row."""
    case = example.case
    order = naive_order(case)
    left = len(order) - case.deal.first
    for world_size, batch_size in ((1, 5), (3, 1), (case.deal.num_splits, 7)):
        deal = replace(
            case.deal,
            world_size=world_size,
            batch_size=batch_size,
            uneven="exact",
            drop_last=False,
        )
        row_at = {
            position: row
            for mine in all_batches(replace(case, deal=deal))
            for batch in mine
            for position, row in zip(batch.positions, batch.rows, strict=True)
        }
        assert len(row_at) == left
        assert all(order[position] == row for position, row in row_at.items())


# ---- ranks


def check_batches(example: Example) -> None:
    """Each batch has the rows that the rules name, in their order."""
    case = example.case
    order = naive_order(case)
    assert sorted(order) == sorted(chain.from_iterable(naive_splits(case)))
    for rank in case.ranks:
        found = batches(case, rank)
        expected = list(naive_steps(case.deal, rank))
        assert [b.number for b in found] == list(range(len(expected)))
        assert [b.positions for b in found] == [share for share, _ in expected]
        assert [b.rows for b in found] == [[order[p] for p in s] for s, _ in expected]
        assert [b.pad for b in found] == [
            None if pad is None else (order[pad], pad) for _, pad in expected
        ]


def check_each_row_once(example: Example) -> None:
    """Over ranks and workers each row comes once, but for the pads and drops promised."""
    case = example.case
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
            for turn in example.workers
            for batch in batches(dealt, rank, turn)
        ]
        counts = Counter(row for batch in found for row in batch.rows)
        assert set(counts.values()) <= {1}
        # What is left off are the very last positions.
        assert set(counts) == set(order[deal.first : len(order) - lost])
        assert sum(batch.pad is not None for batch in found) == num_pads < world_size


def check_pads(example: Example) -> None:
    """Pads are rows of the last global batch; of the rank's own splits where it can be."""
    deal = replace(example.case.deal, uneven="pad", drop_last=False)
    pads = {
        rank: batch.pad
        for rank, found in enumerate(all_batches(replace(example.case, deal=deal)))
        for batch in found
        if batch.pad is not None
    }
    left = deal.num_rows - deal.first
    tail = left % (deal.batch_size * deal.world_size)
    for rank, (_, position) in pads.items():
        assert deal.num_rows - tail <= position < deal.num_rows
        if deal.num_splits % deal.world_size == 0 and tail >= deal.world_size:
            assert (position - deal.first) % deal.world_size == rank  # a row of its own


def check_steps(example: Example) -> None:
    """len() is exact, and steps are equal in number and size where that is promised."""
    for uneven, drop_last in product(UNEVEN, (False, True)):
        deal = replace(example.case.deal, uneven=uneven, drop_last=drop_last)
        found = all_batches(replace(example.case, deal=deal))
        for rank, mine in enumerate(found):
            assert deal.num_steps(rank) == len(mine)
            assert deal.num_rank_rows(rank) == sum(batch.num_rows for batch in mine)
            assert all(batch.num_rows == deal.batch_size for batch in mine[:-1])
            assert all(1 <= batch.num_rows <= deal.batch_size for batch in mine)
        sizes = [[batch.num_rows for batch in mine] for mine in found]
        if uneven == "exact" and not drop_last:
            steps = [len(mine) for mine in sizes]
            assert steps == sorted(steps, reverse=True)  # rank 0 ends last
            assert steps[0] - steps[-1] <= 1
        else:
            assert all(mine == sizes[0] for mine in sizes)


def check_own_splits(example: Example) -> None:
    """A rank reads the splits that it says; where they can be its own, nobody else's."""
    deal = example.case.deal
    for rank in example.case.ranks:
        mine = set(deal.rank_splits(rank).tolist())
        real = {
            (position - deal.stage_start) % deal.num_splits
            for batch in batches(example.case, rank)
            for position in batch.positions
        }
        assert real <= mine
        if deal.num_splits % deal.world_size == 0:
            assert len(mine) == deal.num_splits // deal.world_size
    if deal.num_splits % deal.world_size == 0:
        owners = Counter(
            s for rank in example.case.ranks for s in deal.rank_splits(rank).tolist()
        )
        assert owners == Counter(range(deal.num_splits))


def check_borders(example: Example) -> None:
    """With even shares a rank touches its part of the splits, and one on a border."""
    deal = example.case.deal
    splits, world_size = deal.num_splits, deal.world_size
    for unit in (1, 2):
        even = replace(
            deal,
            batch_size=unit * splits,
            num_rows=deal.first + 5 * unit * splits * world_size,
            drop_last=True,
        )
        for rank in example.case.ranks:
            touched = {
                (position - deal.stage_start) % splits
                for share, _ in naive_steps(even, rank)
                for position in share
            }
            assert len(touched) <= -(-splits // world_size) + (splits % world_size > 0)
            taken = even.pieces(rank, 0, 5)
            reads = taken.splits[(taken.starts < taken.stops).any(axis=0)]
            assert set(reads.tolist()) == touched
            assert even.splits_in_hand(rank) == len(touched)


def check_elastic(example: Example) -> None:
    """Step t has the same rows at every world size with the same global batch size."""
    case = example.case
    order = naive_order(case)
    size = 12 * (1 + case.deal.batch_size % 4)
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


# ---- going on from where a run stood

_FACTS = OrderFacts(
    num_files=1,
    files="f",
    place="p",
    stamps="s",
    filters="",
    num_rows=0,
    columns="c",
    shuffle=True,
    seed=0,
    shuffle_window="7 rows",
)


def _go_on(state: str, case: Case, leg: Leg) -> Case:
    """Return the run that a leg begins with what another one saved."""
    facts = replace(_FACTS, num_rows=case.groups.total_kept)
    position, harmless = read_state(json.loads(state), facts)
    assert not harmless
    stages = position.stages
    if leg.num_splits is not None:
        stages = tuple(next_stages(stages, position.rows, leg.num_splits))
    deal = replace(
        case.deal,
        num_splits=stages[-1].num_splits,
        stage_start=stages[-1].start,
        world_size=leg.world_size,
        batch_size=leg.batch_size,
        first=position.rows,
        uneven=leg.uneven,
        drop_last=False,
    )
    order = replace(case.order, num_splits=stages[0].num_splits)
    return Case(case.groups, order, position.epoch, stages, deal)


def _save(case: Case, rank: int, steps: int) -> str:
    """Return a rank's state after so many of its steps."""
    world = World(rank, case.deal.world_size, "arguments")
    run = Run(epoch=case.epoch, deal=case.deal, world=world, rows_turn=1)
    position = Progress(run, min(steps, case.deal.num_steps(rank))).position()
    facts = replace(_FACTS, num_rows=case.groups.total_kept)
    return json.dumps(make_state(facts, position))


def check_chain(example: Example) -> None:
    """Through any chain of resumes, re-cuts among them, each row comes once."""
    start = replace(
        example.case.deal,
        num_splits=example.case.order.num_splits,
        stage_start=0,
        first=0,
        uneven="exact",
        drop_last=False,
    )
    case = replace(example.case, deal=start, stages=example.case.stages[:1])
    state, done = _save(case, 0, 0), []
    last = Leg(2, 7, 10**6, 2, "exact", None)
    for leg in (*example.legs, last):
        case = _go_on(state, case, leg)
        order = naive_order(case)
        assert order[: len(done)] == done  # a re-cut leaves alone what came
        taken: list[Row] = []
        for rank in case.ranks:
            mine = batches(case, rank)
            if leg.num_workers:  # torch's loader gives the batches of none, in order
                dealt = [
                    batches(case, rank, Turn(worker=w, num_workers=leg.num_workers))
                    for w in range(leg.num_workers)
                ]
                assert torch_round_robin(dealt) == mine
            taken += [row for batch in mine[: leg.steps] for row in batch.rows]
        state = _save(case, 0, leg.steps)
        if leg.uneven != "exact":  # else rank 0, which ends last, is the one to ask
            assert {_save(case, rank, leg.steps) for rank in case.ranks} == {state}
        stop = json.loads(state)["rows"]
        over = leg.steps >= case.deal.num_steps(0)
        assert stop == len(order) if over else stop <= len(order)
        # "drop" leaves off the last positions of the epoch, and calls them done.
        left_off = len(order) - len(done) - len(taken) if stop == len(order) else 0
        assert 0 <= left_off < leg.world_size if leg.uneven == "drop" else not left_off
        assert sorted(taken) == sorted(order[len(done) : stop - left_off])
        done = order[:stop]
    assert sorted(done) == sorted(chain.from_iterable(naive_splits(case)))
    assert len(json.loads(state)["stages"]) <= 1 + len(example.legs)


# ---- DataLoader workers and windows


def check_workers(example: Example) -> None:
    """Workers make the batches of their rank, each its own, in turns."""
    workers = example.workers
    length = workers[0].length
    for rank in example.case.ranks:
        alone = batches(example.case, rank)
        each = [batches(example.case, rank, turn) for turn in workers]
        for turn, mine in zip(workers, each, strict=True):
            assert all(
                batch.number // length % len(workers) == turn.worker for batch in mine
            )
        made = sorted(chain.from_iterable(each), key=lambda batch: batch.number)
        assert made == alone
        if length == 1:  # then the order is that of torch's round robin
            assert torch_round_robin(each) == alone


def check_requests(example: Example) -> None:
    """The engine's walk numbers the windows as the batches' walk uses them."""
    case = example.case
    for rank in case.ranks:
        for turn in (None, *example.workers):
            asked = list(requests(case.epoch, case.deal, rank, turn))
            assert [r.number for r in asked] == list(range(len(asked)))
            used: list[int] = []
            for step in walk(case.epoch, case.deal, rank, turn):
                pieces = [*step.pieces, *([step.pad] if step.pad else [])]
                used += [piece.request for piece in pieces]
                for piece in pieces:
                    request = asked[piece.request]
                    assert request.split == piece.split
                    assert 0 <= piece.start < piece.stop <= request.window.num_rows
            assert list(dict.fromkeys(used)) == [r.number for r in asked]


def check_open_windows(example: Example) -> None:
    """Windows are open while they are used, and read once for each split."""
    case = example.case
    for rank in case.ranks:
        for turn in (None, *example.workers):
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
            if len(case.stages) > 1:
                continue  # a split may have two parts of a window, one after the other
            windows = Counter(
                (r.split, r.window.index) for s in steps for r in s.opened
            )
            # Only a pad may need a window that the rank has given back.
            again = sum(windows.values()) - len(windows)
            assert again <= any(step.pad is not None for step in steps)


def check_windows_in_hand(example: Example) -> None:
    """Few windows are open at once: one for each split between steps."""
    case, deal = example.case, example.case.deal
    own_splits = deal.num_splits % deal.world_size == 0
    for rank in case.ranks:
        for turn in (None, *example.workers):
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
                assert len(set(now.values())) == len(now)
                assert len(now) <= deal.splits_in_hand(rank)


CHECKS: tuple[Callable[[Example], None], ...] = (
    check_splits,
    check_windows_also_filtered,
    check_planned_reads,
    check_topology,
    check_batches,
    check_each_row_once,
    check_pads,
    check_steps,
    check_own_splits,
    check_borders,
    check_elastic,
    check_chain,
    check_workers,
    check_requests,
    check_open_windows,
    check_windows_in_hand,
)
