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
        [("submitted", 0, 4), ("arrived", 0, 9), ("submitted", 1, 1)],
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
]


@pytest.mark.parametrize(("events", "num_bytes", "allowed"), TABLE)
def test_may_submit_follows_the_table(events, num_bytes, allowed):
    flow = flow_of(events, max_bytes=10, max_tasks=3)
    assert flow.may_submit(num_bytes) is allowed


def test_tasks_and_bytes_are_counted_through_a_windows_life():
    flow = Flow(max_bytes=10, max_tasks=3)
    assert (flow.num_tasks, flow.num_bytes) == (0, 0)
    flow.submitted(0, 4)
    assert (flow.num_tasks, flow.num_bytes) == (1, 4)
    flow.arrived(0, 5)
    assert (flow.num_tasks, flow.num_bytes) == (0, 5)
    flow.released(0)
    assert (flow.num_tasks, flow.num_bytes) == (0, 0)


@given(
    max_bytes=st.integers(1, 40),
    max_tasks=st.integers(1, 5),
    choices=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=60),
)
def test_no_walk_of_events_passes_the_bound_but_by_a_window_alone(
    max_bytes, max_tasks, choices
):
    flow = Flow(max_bytes=max_bytes, max_tasks=max_tasks)
    on_the_way: dict[int, int] = {}
    in_hand: dict[int, int] = {}
    for number, (choice, value) in enumerate(choices):
        if choice == 0:
            if flow.may_submit(value):
                alone = not on_the_way
                fits = flow.num_bytes + value <= max_bytes
                assert alone or fits
                assert len(on_the_way) < max_tasks
                flow.submitted(number, value)
                on_the_way[number] = value
            else:
                # Refused for a reason, and never when nothing is on the way: a consumer
                # that needs the next window would wait for ever.
                assert on_the_way
                too_much = flow.num_bytes + value > max_bytes
                assert too_much or len(on_the_way) == max_tasks
        elif choice == 1 and on_the_way:
            first = min(on_the_way)
            flow.arrived(first, value)
            del on_the_way[first]
            in_hand[first] = value
        elif choice == 2 and in_hand:
            gone = list(in_hand)[value % len(in_hand)]
            flow.released(gone)
            del in_hand[gone]
        assert flow.num_tasks == len(on_the_way) <= max_tasks
        assert flow.num_bytes == sum(on_the_way.values()) + sum(in_hand.values())
