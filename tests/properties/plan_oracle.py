"""A naive evaluation of the plan's rules: explicit lists, one row at a time.

It deals the epoch like cards, sorts a step's positions and cuts them into chunks. No closed
form, window number or request enters it, and it imports nothing of the plan but the
dataclasses that say what is asked.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterator
from itertools import chain, groupby, islice, pairwise
from math import ceil, gcd
from typing import Any

import numpy as np

from dask_loader.plan.share import Deal
from tests.properties.plan_cases import Case

Row = tuple[int, int]  # row group, row of it after the filters


def naive_permutation(num_items: int, *key: object) -> list[int]:
    """Sort the items by random numbers that the key decides."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(digest, "little"))
    words = [int(word) for word in bits.random_raw(num_items)]
    # The low bits, which number the items, are not random.
    low = max(num_items - 1, 0).bit_length()
    return sorted(range(num_items), key=lambda item: (words[item] >> low, item))


def deal_line(line: list[Row], num_splits: int) -> list[list[Row]]:
    """Cut a line into splits: as many rows for each as it gets cards."""
    cards = Counter(p % num_splits for p in range(len(line)))
    rest = iter(line)
    return [list(islice(rest, cards[split])) for split in range(num_splits)]


def naive_splits(case: Case) -> list[list[Row]]:
    """Cut the row line into the first stage's splits; rows are not mixed yet."""
    kept, order = case.groups.num_kept.tolist(), case.order
    groups = [group for group, rows in enumerate(kept) if rows]
    if order.shuffle:
        mixed = naive_permutation(len(groups), "line", order.seed, case.number)
        groups = [groups[i] for i in mixed]
    line = [(group, row) for group in groups for row in range(kept[group])]
    return deal_line(line, case.stages[0].num_splits)


def naive_windows(case: Case, split: list[Row]) -> list[list[Row]]:
    """Take whole slices while they fit; cut a slice that is too large in equal parts."""
    limit, in_bytes = case.order.window, case.order.window_in_bytes
    windows: list[list[Row]] = []
    run: list[Row] = []
    run_size = run_read = 0
    for group, rows in ((g, list(r)) for g, r in groupby(split, lambda row: row[0])):
        whole_bytes = int(case.groups.num_bytes[group])
        size, read = len(rows), 0
        if in_bytes:
            size = len(rows) * whole_bytes // int(case.groups.num_rows[group])
            read = whole_bytes
        if run and (run_size + size > limit or run_read + read > 16 * limit):
            windows.append(run)
            run, run_size, run_read = [], 0, 0
        if size > limit:
            parts = min(len(rows), ceil(size / limit))
            cuts = [len(rows) * i // parts for i in range(parts + 1)]
            windows += [rows[a:b] for a, b in pairwise(cuts)]
        else:
            run, run_size, run_read = run + rows, run_size + size, run_read + read
    return [*windows, run] if run else windows


def naive_order(case: Case) -> list[Row]:
    """The row at each position of the epoch."""
    order = case.order
    hands: list[deque[Row]] = []
    for split, rows in enumerate(naive_splits(case)):
        hand: deque[Row] = deque()
        for index, window in enumerate(naive_windows(case, rows)):
            key = ("window", order.seed, case.number, split, index)
            mixed: Any = range(len(window))
            if order.shuffle:
                mixed = naive_permutation(len(window), *key)
            hand += [window[i] for i in mixed]
        hands.append(hand)
    dealt: list[Row] = []
    ends = [stage.start for stage in case.stages[1:]]
    ends.append(case.groups.total_kept)
    for stage, end in zip(case.stages, ends, strict=True):
        if stage.start:  # what is left of each hand, end to end, is cut anew
            left = list(chain.from_iterable(hands))
            hands = [deque(hand) for hand in deal_line(left, stage.num_splits)]
        for card in range(end - stage.start):
            dealt.append(hands[card % stage.num_splits].popleft())
    assert not any(hands)
    return dealt


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
        # By the split, then the row in it.
        mine.sort(key=lambda p: divmod(p - deal.stage_start, splits)[::-1])
        # array_split makes the first chunks one longer.
        chunks = np.array_split(np.array(mine, dtype=int), world // classes)
        share = chunks[rank // classes].tolist()
        lacks = deal.uneven == "pad" and len(share) < ceil(count / world)
        pad = positions[rank % count] if lacks else None
        if share or pad is not None:
            yield share, pad


def torch_round_robin(per_worker: list[list[Any]]) -> list[Any]:
    """What torch's DataLoader hands out: one batch of each worker in turn, while it has."""
    handed_out, queues = [], [deque(batches) for batches in per_worker]
    while any(queues):
        handed_out += [queue.popleft() for queue in queues if queue]
    return handed_out
