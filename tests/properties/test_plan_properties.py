"""The plan against a naive evaluation of its rules, on cases drawn at random.

plan_cases.py draws them, plan_oracle.py evaluates the rules, plan_checks.py says what must
hold. Here is how often each is tried: enough in the ordinary run to catch the faults of
test_plan_mutants.py several times over, and on other, many more cases in the slow one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dask_loader.plan.share import Deal
from dask_loader.plan.window import planned_reads
from tests.properties import plan_checks
from tests.properties.plan_cases import (
    UNEVEN,
    Example,
    examples,
    fixed_examples,
    kinds_of,
)
from tests.properties.plan_oracle import naive_steps

# A busy machine is no fault of the plan.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
PROPERTY = settings(UNTIMED, max_examples=150, derandomize=True)
# Each example of these runs an epoch for many ranks, workers or world sizes.
LARGE_PROPERTY = settings(PROPERTY, max_examples=80)
MANY = settings(UNTIMED, max_examples=200)


# ---- order


@PROPERTY
@given(examples())
def test_splits_hold_each_row_once_and_differ_by_one_row_at_most(
    example: Example,
) -> None:
    plan_checks.check_splits(example)


@PROPERTY
@given(examples())
def test_windows_are_as_large_as_allowed_and_no_larger(example: Example) -> None:
    plan_checks.check_windows_also_filtered(example)


@PROPERTY
@given(examples())
def test_planned_reads_count_each_row_group_of_each_split(example: Example) -> None:
    plan_checks.check_planned_reads(example)


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


@LARGE_PROPERTY
@given(examples())
def test_the_order_does_not_depend_on_who_reads(example: Example) -> None:
    plan_checks.check_topology(example)


# ---- ranks


@PROPERTY
@given(examples())
def test_each_batch_has_the_rows_that_the_rules_name(example: Example) -> None:
    plan_checks.check_batches(example)


@LARGE_PROPERTY
@given(examples())
def test_each_row_comes_once_over_ranks_and_workers(example: Example) -> None:
    plan_checks.check_each_row_once(example)


@PROPERTY
@given(examples())
def test_pads_are_rows_of_the_last_global_batch(example: Example) -> None:
    plan_checks.check_pads(example)


@LARGE_PROPERTY
@given(examples())
def test_steps_and_rows_are_counted_exactly_and_are_equal(example: Example) -> None:
    plan_checks.check_steps(example)


@PROPERTY
@given(examples())
def test_ranks_read_their_own_splits_only(example: Example) -> None:
    plan_checks.check_own_splits(example)


@PROPERTY
@given(examples())
def test_a_rank_that_shares_splits_touches_one_more_than_its_part(
    example: Example,
) -> None:
    plan_checks.check_borders(example)


@LARGE_PROPERTY
@given(examples())
def test_global_batches_are_the_same_at_every_world_size(example: Example) -> None:
    plan_checks.check_elastic(example)


# ---- going on from where a run stood


@LARGE_PROPERTY
@given(examples())
def test_any_chain_of_resumes_and_re_cuts_delivers_each_row_once(
    example: Example,
) -> None:
    plan_checks.check_chain(example)


# ---- DataLoader workers and windows


@LARGE_PROPERTY
@given(examples())
def test_workers_make_the_batches_of_their_rank(example: Example) -> None:
    plan_checks.check_workers(example)


@PROPERTY
@given(examples())
def test_requests_are_numbered_as_the_walk_uses_them(example: Example) -> None:
    plan_checks.check_requests(example)


@PROPERTY
@given(examples())
def test_windows_are_open_while_they_are_used(example: Example) -> None:
    plan_checks.check_open_windows(example)


@PROPERTY
@given(examples())
def test_few_windows_are_open_at_once(example: Example) -> None:
    plan_checks.check_windows_in_hand(example)


# ---- how far the cases go


def test_every_rare_kind_of_case_is_drawn() -> None:
    reached: Counter[str] = Counter()
    for example in fixed_examples(400):
        reached.update(kinds_of(example.case))
        lengths = len(example.legs)
        reached["a chain of five resumes"] += lengths == 5
        reached["several workers"] += len(example.workers) > 1
    rare = {kind: count for kind, count in reached.items() if count < 4}
    assert not rare
    assert set(reached) == ALL_KINDS


ALL_KINDS = {
    "no rows",
    "one row",
    "fewer rows than ranks",
    "fewer rows than splits",
    "begins in the middle",
    "begins at the end",
    "fewer rows left than ranks",
    "a tail",
    "no tail",
    "a tail for all ranks alike",
    "pads",
    "more pads than rows of the tail",
    "drops",
    "drop_last drops",
    "ranks have their own splits",
    "ranks share splits",
    "more ranks than splits",
    "classes that several ranks share",
    "filtered",
    "windows of several row groups",
    "row groups of several windows",
    "a re-cut",
    "several re-cuts",
    "a re-cut in the middle of a window",
    "a run that begins after its re-cut",
    "a chain of five resumes",
    "several workers",
}


def every_small_deal(
    totals: range, splits: range, worlds: range, sizes: tuple[int, ...]
) -> int:
    """Compare shares and counts with the oracle's, leaving none out."""
    count = 0
    for total, num_splits, world_size, batch_size in product(
        totals, splits, worlds, sizes
    ):
        for first, uneven in product({0, total // 3, max(total - 1, 0), total}, UNEVEN):
            deal = Deal(
                num_rows=total,
                num_splits=num_splits,
                stage_start=first // 2,
                world_size=world_size,
                batch_size=batch_size,
                first=first,
                uneven=uneven,
            )
            for rank in range(world_size):
                expected = list(naive_steps(deal, rank))
                steps = deal.num_steps(rank)
                assert steps == len(expected), deal
                taken = deal.pieces(rank, 0, steps)
                for step, (share, pad) in enumerate(expected):
                    mine = [
                        deal.stage_start + row * num_splits + split
                        for split, low, high in zip(
                            taken.splits.tolist(),
                            taken.starts[step].tolist(),
                            taken.stops[step].tolist(),
                            strict=True,
                        )
                        for row in range(low, high)
                    ]
                    assert mine == share, (deal, rank, step)
                    if step == steps - 1:
                        place = deal.pad(rank)
                        assert pad == (
                            None
                            if place is None
                            else deal.stage_start + place[1] * num_splits + place[0]
                        ), (deal, rank)
            count += 1
    return count


def test_every_small_deal_is_what_the_rules_say() -> None:
    assert every_small_deal(range(9), range(1, 5), range(1, 5), (1, 3)) > 2000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_deal_of_up_to_30_rows_is_what_the_rules_say() -> None:
    sizes = (1, 2, 3, 5, 8)
    assert every_small_deal(range(31), range(1, 7), range(1, 7), sizes) > 50_000


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("check", plan_checks.CHECKS, ids=lambda check: check.__name__)
def test_the_properties_hold_on_many_more_cases(
    check: Callable[[Example], None],
) -> None:
    MANY(given(examples())(check))()
