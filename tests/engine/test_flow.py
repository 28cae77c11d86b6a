"""The bound on work under way, as a table of events and by random walks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_loader.engine.flow import Flow


def flow_of(events: list[tuple[str, int, int]], *, max_bytes: int, max_tasks: int):
    flow = Flow(max_bytes=max_bytes, max_tasks=max_tasks)
    for event, number, num_bytes in events:
        if event == "released":
            flow.released(number)
        else:
            getattr(flow, event)(number, num_bytes)
    return flow


# events so far; bytes asked for; whether they may be submitted (10 bytes, 3 tasks)
TABLE = [
    pytest.param([], 4, True, id="nothing under way"),
    pytest.param([], 99, True, id="one is always allowed, however large"),
    pytest.param([("submitted", 0, 4)], 6, True, id="just fits"),
    pytest.param([("submitted", 0, 4)], 7, False, id="a byte too much"),
    pytest.param(
        [("submitted", i, 1) for i in range(2)], 1, True, id="as many tasks as allowed"
    ),
    pytest.param(
        [("submitted", i, 1) for i in range(3)], 1, False, id="a task too many"
    ),
    pytest.param(
        [("submitted", 0, 4), ("arrived", 0, 4), ("submitted", 1, 3)],
        4,
        False,
        id="what is in hand counts",
    ),
    pytest.param(
        [
            ("submitted", 0, 4),
            ("arrived", 0, 4),
            ("submitted", 1, 3),
            ("released", 0, 0),
        ],
        7,
        True,
        id="until it is released",
    ),
    pytest.param(
        [("submitted", 0, 4), ("arrived", 0, 9), ("submitted", 1, 0)],
        1,
        False,
        id="what arrived counts with its real bytes when it is more",
    ),
    pytest.param(
        [("submitted", 0, 9), ("arrived", 0, 1), ("submitted", 1, 1)],
        8,
        True,
        id="what arrived counts with its real bytes when it is less",
    ),
    pytest.param(
        [(e, i, 1) for i in range(3) for e in ("submitted", "arrived")]
        + [("submitted", 3, 1)],
        1,
        True,
        id="windows in hand are no tasks",
    ),
    pytest.param(
        [("submitted", 0, 10), ("arrived", 0, 10)],
        1,
        False,
        id="with a window in hand and none on the way, the next one must fit",
    ),
    pytest.param(
        [("submitted", 0, 2), ("arrived", 0, 4), ("released", 0, 0)]
        + [("submitted", 1, 3)],
        2,
        True,
        id="twice what was planned: 6 on the way and 4 to come just fit",
    ),
    pytest.param(
        [("submitted", 0, 2), ("arrived", 0, 4), ("released", 0, 0)]
        + [("submitted", 1, 3)],
        3,
        False,
        id="twice what was planned: 6 on the way and 6 to come are too much",
    ),
]


@pytest.mark.parametrize(("events", "num_bytes", "allowed"), TABLE)
def test_may_submit_follows_the_table(events, num_bytes, allowed):
    flow = flow_of(events, max_bytes=10, max_tasks=3)
    assert flow.may_submit(num_bytes) is allowed


@pytest.mark.parametrize(
    ("kept", "allowed"), [(0, True), (3, True), (4, False), (99, False)]
)
def test_what_somebody_still_looks_at_counts(kept, allowed):
    flow = flow_of([("submitted", 0, 4)], max_bytes=10, max_tasks=3)
    assert flow.may_submit(3, kept_bytes=kept) is allowed


def test_the_first_window_is_allowed_whatever_is_kept():
    assert Flow(max_bytes=10, max_tasks=3).may_submit(9, kept_bytes=99)


def test_tasks_and_bytes_are_counted_through_a_windows_life():
    flow = Flow(max_bytes=10, max_tasks=3)
    assert (flow.num_tasks, flow.num_bytes) == (0, 0)
    flow.submitted(0, 4)
    assert (flow.num_tasks, flow.num_bytes) == (1, 4)
    flow.arrived(0, 5)
    assert (flow.num_tasks, flow.num_bytes) == (0, 5)
    flow.released(0)
    assert (flow.num_tasks, flow.num_bytes) == (0, 0)


def test_a_window_larger_than_planned_is_remembered_for_a_while():
    flow = Flow(max_bytes=1000, max_tasks=99)
    flow.submitted(0, 10)
    flow.arrived(0, 40)
    flow.submitted(1, 10)
    assert flow.num_bytes == 40 + 40
    flow.arrived(1, 10)
    for number in range(2, 102):
        flow.submitted(number, 10)
        flow.arrived(number, 10)
        flow.released(number)
    flow.submitted(102, 10)
    assert flow.num_bytes == 40 + 10 + 10


def test_windows_smaller_than_planned_promise_nothing():
    flow = Flow(max_bytes=1000, max_tasks=99)
    flow.submitted(0, 100)
    flow.arrived(0, 1)
    flow.submitted(1, 100)
    assert flow.num_bytes == 101


@given(
    max_bytes=st.integers(1, 40),
    max_tasks=st.integers(1, 5),
    kept=st.integers(0, 20),
    choices=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=60),
)
def test_no_walk_of_events_passes_the_bound_but_by_a_window_alone(
    max_bytes, max_tasks, kept, choices
):
    flow = Flow(max_bytes=max_bytes, max_tasks=max_tasks)
    on_the_way: dict[int, int] = {}
    in_hand: dict[int, int] = {}
    larger = False  # whether a window ever was larger than planned
    for number, (choice, value) in enumerate(choices):
        if choice == 0:
            alone = not on_the_way and not in_hand
            fits = flow.num_bytes + kept + value <= max_bytes
            if flow.may_submit(value, kept_bytes=kept):
                assert alone or fits
                assert len(on_the_way) < max_tasks
                flow.submitted(number, value)
                on_the_way[number] = value
            else:
                # Refused for a reason, and never when nothing is under way.
                assert not alone
                assert larger or not fits or len(on_the_way) == max_tasks
        elif choice == 1 and on_the_way:
            first = min(on_the_way)
            flow.arrived(first, value)
            larger |= value > on_the_way.pop(first)
            in_hand[first] = value
        elif choice == 2 and in_hand:
            gone = list(in_hand)[value % len(in_hand)]
            flow.released(gone)
            del in_hand[gone]
        planned = sum(on_the_way.values()) + sum(in_hand.values())
        assert flow.num_tasks == len(on_the_way) <= max_tasks
        assert flow.num_bytes >= planned
        assert larger or flow.num_bytes == planned
