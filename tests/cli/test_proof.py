"""The checker: it accepts what the loader gives, and catches each fault by its name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dask_loader.catalog.provenance import FILE, NAMES, PADDED, ROW, ROW_GROUP
from dask_loader.cli.inventory import Inventory
from dask_loader.cli.promise import Promise
from dask_loader.cli.proof import MAX_SHOWN, Report, check

# Files, row groups and rows; every third row is filtered out.
GROUPS = {"a": (7, 30), "b": (1,), "c": (12, 0, 24)}
WORLD_SIZE, BATCH_SIZE = 3, 5
Ranks = list[list[dict[str, Any]]]


@pytest.fixture
def inventory() -> Inventory:
    rows = [count for counts in GROUPS.values() for count in counts]
    total = sum(rows)
    return Inventory(
        list(GROUPS),
        first_groups=np.cumsum([0, *map(len, GROUPS.values())]),
        starts=np.cumsum([0, *rows]),
        expected=np.arange(total) % 3 != 0,
    )


def places() -> list[tuple[str, int, int]]:
    return [
        (name, group, row)
        for name, counts in GROUPS.items()
        for group, count in enumerate(counts)
        for row in range(count)
    ]


def batch_of(rows: list[tuple[str, int, int, bool]]) -> dict[str, Any]:
    files, groups, numbers, padded = map(list, zip(*rows, strict=True))
    return {
        FILE: files,
        ROW_GROUP: torch.tensor(groups, dtype=torch.int32),
        ROW: torch.tensor(numbers),
        PADDED: torch.tensor(padded),
    }


def epoch(promise: Promise, expected: Any) -> Ranks:
    """Return the batches of a loader without faults: rows dealt one by one."""
    rows = [place for place, kept in zip(places(), expected, strict=True) if kept]
    rows = [rows[i] for i in np.random.default_rng(4).permutation(len(rows))]
    ranks: Ranks = [[] for _ in range(promise.world_size)]
    for step in range(promise.num_steps(0)):
        chunk = rows[step * promise.step_rows : (step + 1) * promise.step_rows]
        for rank, batches in enumerate(ranks):
            count = promise.batch_rows(rank, step)
            mine = [(*place, False) for place in chunk[rank :: promise.world_size]]
            mine = mine[:count]
            if len(mine) < count:
                mine.append((*chunk[0], True))
            if mine:
                batches.append(batch_of(mine))
    return ranks


def rows_of(batch: dict[str, Any]) -> list[tuple[str, int, int, bool]]:
    columns = [batch[FILE], *(batch[name].tolist() for name in NAMES[1:])]
    return list(zip(*columns, strict=True))


@pytest.fixture
def judge(inventory) -> Callable[..., Report]:
    """judge(fault, uneven=...) -> the report on an epoch with the fault."""

    def run(
        fault: Callable[[Ranks], object] = lambda _: None,
        lengths: list[int] | None = None,
        **options: Any,
    ) -> Report:
        promise = Promise(
            num_rows=inventory.num_expected,
            world_size=WORLD_SIZE,
            batch_size=BATCH_SIZE,
            **options,
        )
        ranks = copy.deepcopy(epoch(promise, inventory.expected))
        said = lengths or [len(batches) for batches in ranks]
        fault(ranks)
        return check(inventory, promise, ranks, said)

    return run


def kinds(report: Report) -> list[str]:
    return sorted(finding.kind for finding in report.findings)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("uneven", ["pad", "drop", "exact"])
def test_an_epoch_without_faults_is_proved(inventory, judge, uneven, drop_last):
    report = judge(uneven=uneven, drop_last=drop_last)
    assert report.findings == ()
    assert report.is_proved
    assert [rank.rank for rank in report.ranks] == [0, 1, 2]
    came = sum(rank.rows - rank.pads for rank in report.ranks)
    assert came == report.num_seen == inventory.num_expected - report.num_missing


def replace(ranks: Ranks, rank: int, step: int, row: int, place: Any) -> None:
    rows = rows_of(ranks[rank][step])
    rows[row] = place
    ranks[rank][step] = batch_of(rows)


def double(ranks: Ranks) -> None:
    replace(ranks, 1, 2, 0, rows_of(ranks[0][0])[3])


def double_in_a_batch(ranks: Ranks) -> None:
    replace(ranks, 1, 2, 0, rows_of(ranks[1][2])[1])


def take_a_filtered_row(ranks: Ranks) -> None:
    replace(ranks, 2, 1, 4, ("a", 1, 2, False))


def take_another_file(ranks: Ranks) -> None:
    replace(ranks, 2, 1, 4, ("z", 0, 0, False))


def take_another_group(ranks: Ranks) -> None:
    replace(ranks, 2, 1, 4, ("b", 1, 0, False))


def take_a_negative_group(ranks: Ranks) -> None:
    replace(ranks, 2, 1, 4, ("c", -1, 0, False))


def take_a_row_too_far(ranks: Ranks) -> None:
    replace(ranks, 2, 1, 4, ("c", 0, 12, False))


def take_from_an_empty_group(ranks: Ranks) -> None:
    replace(ranks, 2, 1, 4, ("c", 1, 0, False))


def lose_a_row(ranks: Ranks) -> None:
    ranks[0][1] = batch_of(rows_of(ranks[0][1])[:-1])


def lose_a_batch(ranks: Ranks) -> None:
    del ranks[1][-1]


def repeat_a_batch(ranks: Ranks) -> None:
    ranks[2].append(ranks[2][0])


def flag(ranks: Ranks, rank: int, step: int, row: int, *, padded: bool) -> None:
    place = rows_of(ranks[rank][step])[row][:3]
    replace(ranks, rank, step, row, (*place, padded))


@pytest.mark.parametrize(
    ("fault", "found", "text", "place"),
    [
        (double, ["doubled", "lost"], "1 row came again without being", None),
        (double_in_a_batch, ["doubled", "lost"], "1 row came again", None),
        (
            take_a_filtered_row,
            ["filtered", "lost"],
            "1 row came that the filters leave out",
            "row 2 of row group 1 of 'a'",
        ),
        (take_another_file, ["lost", "unknown"], "on rank 2, step 1", None),
        (take_another_group, ["lost", "unknown"], "came that no file has", None),
        (take_a_negative_group, ["lost", "unknown"], "came that no file has", None),
        (take_a_row_too_far, ["lost", "unknown"], "came that no file has", None),
        (take_from_an_empty_group, ["lost", "unknown"], "that no file has", None),
        (
            lose_a_row,
            ["batch size", "lost"],
            "1 batch of other lengths than promised: rank 0 step 1 has 4 of 5",
            None,
        ),
        (
            lose_a_batch,
            ["lost", "pads", "steps"],
            "rank 1 handed out 3 batches, 4 are promised",
            None,
        ),
        (
            repeat_a_batch,
            ["batch size", "doubled", "steps"],
            "rank 2 handed out 5 batches, 4 are promised",
            None,
        ),
    ],
)
def test_a_fault_of_a_rank_is_named(judge, fault, found, text, place):
    report = judge(fault)
    if fault is lose_a_batch:  # its copy was on this rank or on another
        found = [kind for kind in found if kind != "pads" or kind in kinds(report)]
    assert kinds(report) == found
    assert not report.is_proved
    assert any(text in finding.text for finding in report.findings)
    shown = [str(p) for finding in report.findings for p, _ in finding.rows]
    assert place is None or place in shown


def test_a_row_that_came_twice_is_shown_with_every_place_where_it_came(judge):
    report = judge(double)
    (doubled,) = [f for f in report.findings if f.kind == "doubled"]
    assert [sorted(came) for _, came in doubled.rows] == [[(0, 0), (1, 2)]]


def test_a_lost_row_is_shown_with_its_place(inventory, judge):
    lost: list[Any] = []

    def lose(ranks: Ranks) -> None:
        lost.append(rows_of(ranks[0][1])[-1])
        lose_a_row(ranks)

    report = judge(lose)
    (finding,) = [f for f in report.findings if f.kind == "lost"]
    assert finding.text == "1 row never came"
    ((place, came),) = finding.rows
    assert (place.file, place.row_group, place.row) == lost[0][:3]
    assert came == []


def test_no_more_than_a_few_offending_rows_are_shown(judge):
    report = judge(lambda ranks: ranks.__setitem__(0, []))
    (lost,) = [f for f in report.findings if f.kind == "lost"]
    assert len(lost.rows) == MAX_SHOWN
    assert int(lost.text.split()[0]) > MAX_SHOWN


def test_a_copy_that_is_not_flagged_is_named(judge):
    def unflag(ranks: Ranks) -> None:
        for rank, batches in enumerate(ranks):
            if batches[-1][PADDED][-1]:
                flag(ranks, rank, len(batches) - 1, -1, padded=False)

    report = judge(unflag)
    assert set(kinds(report)) == {"doubled", "pads"}
    assert "0 rows flagged as a copy, uneven='pad' promises 2" in texts(report)


def test_a_row_that_is_no_copy_but_flagged_as_one_is_named(judge):
    for step in (0, 3):
        report = judge(lambda ranks, step=step: flag(ranks, 0, step, 1, padded=True))
        assert kinds(report) == ["copy", "lost", "pads"]
        assert "1 row flagged as a copy, of no row that came unflagged" in texts(report)


def test_a_copy_of_a_row_of_another_global_batch_is_named(judge):
    def take_an_early_row(ranks: Ranks) -> None:
        place = rows_of(ranks[0][0])[0][:3]
        for rank, batches in enumerate(ranks):
            if batches[-1][PADDED][-1]:
                replace(ranks, rank, len(batches) - 1, -1, (*place, True))

    assert kinds(judge(take_an_early_row)) == ["copy"]


@pytest.mark.parametrize("uneven", ["drop", "exact"])
def test_copies_where_none_are_promised_are_named(judge, uneven):
    def flag_one(ranks: Ranks) -> None:
        place = rows_of(ranks[1][-1])[0][:3]
        replace(ranks, 0, -1, 0, (*place, True))

    report = judge(flag_one, uneven=uneven)
    assert "pads" in kinds(report)
    assert f"uneven='{uneven}' promises 0" in texts(report)


def test_two_copies_on_one_rank_are_named(judge):
    def flag_two(ranks: Ranks) -> None:
        place = rows_of(ranks[0][-1])[0][:3]
        replace(ranks, 1, -1, 0, (*place, True))
        replace(ranks, 1, -1, 1, (*place, True))

    assert "rank 1 has 2 rows flagged as copies" in texts(judge(flag_two))


def test_what_len_said_is_compared(judge):
    report = judge(lengths=[4, 5, 4])
    assert texts(report) == "rank 1: len() said 5 batches, 4 are promised"
    assert kinds(report) == ["length"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"uneven": "drop"}, "2 rows never came, uneven='drop' leaves off 1"),
        ({"drop_last": True}, "5 rows never came, drop_last leaves off 4"),
    ],
)
def test_more_rows_left_off_than_promised_are_named(judge, options, text):
    report = judge(lose_a_row, **options)
    assert kinds(report) == ["batch size", "lost"]
    assert text in texts(report)


def test_a_row_that_was_to_be_left_off_and_came_is_named(inventory, judge):
    def take_it(ranks: Ranks) -> None:
        came = {row[:3] for batches in ranks for b in batches for row in rows_of(b)}
        kept = [p for p, e in zip(places(), inventory.expected, strict=True) if e]
        (left, *_) = [place for place in kept if place not in came]
        ranks[0][0] = batch_of([*rows_of(ranks[0][0]), (*left, False)])

    report = judge(take_it, uneven="drop")
    assert kinds(report) == ["batch size", "not dropped"]
    assert "0 rows never came, uneven='drop' leaves off 1" in texts(report)


def texts(report: Report) -> str:
    return "\n".join(finding.text for finding in report.findings)


def test_the_digest_knows_global_batches_and_not_who_had_which_row(judge):
    def exchange(ranks: Ranks, one: tuple[int, int], other: tuple[int, int]) -> None:
        a, b = rows_of(ranks[one[0]][one[1]]), rows_of(ranks[other[0]][other[1]])
        replace(ranks, *one, 0, b[0])
        replace(ranks, *other, 0, a[0])

    plain = judge()
    within = judge(lambda ranks: exchange(ranks, (0, 1), (2, 1)))
    across = judge(lambda ranks: exchange(ranks, (0, 1), (0, 2)))
    assert within.is_proved
    assert across.is_proved
    assert plain.digest == judge().digest == within.digest != across.digest
    digests = [[rank.digest for rank in r.ranks] for r in (plain, within, across)]
    assert digests[0][1] == digests[1][1]
    assert digests[0][0] != digests[1][0]
    assert digests[0][0] != digests[2][0]
    assert digests[0][1:] == digests[2][1:]
