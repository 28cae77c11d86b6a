"""WindowStream over an engine whose windows arrive when the test says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_loader.engine.stream import WindowStream
from dask_loader.errors import WindowError
from dask_loader.metrics import Meter
from dask_loader.transfer.window import ColumnGroup, WindowData


class GatedPending:
    """A window that is there when the test opens its gate; result() never waits."""

    def __init__(self, number: int, num_bytes: int) -> None:
        self.number = number
        self.num_bytes = num_bytes
        self.is_open = False
        self.error: Exception | None = None
        self.taken = False
        self.cancelled = 0

    def result(self) -> WindowData:
        assert self.is_open, f"window {self.number} was waited for behind its gate"
        assert not self.taken, f"window {self.number} was taken twice"
        self.taken = True
        if self.error is not None:
            raise self.error
        data = np.full((1, self.num_bytes), self.number % 256, dtype=np.uint8)
        group = ColumnGroup(("x",), "uint8", (), "", data.reshape(-1), data)
        return WindowData(self.num_bytes, [group])

    def cancel(self) -> None:
        self.cancelled += 1


class GatedEngine:
    """Remembers what was submitted; the test decides what arrives."""

    name = "gated"
    held_bytes = 0

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.submitted: list[GatedPending] = []
        self.streams: list[int] = []
        self.real_bytes: dict[int, int] = {}
        self.opens_next = False
        self.ended: list[int] = []
        self.overhead = 0  # bytes of each task beside its window

    def cost(self, task: Any) -> int:
        return int(task.num_bytes) + self.overhead

    def end(self, stream: int) -> None:
        self.ended.append(stream)

    def slots(self) -> int:
        return self.num_slots

    def submit(self, task: Any, *, stream: int, number: int) -> GatedPending:
        assert number == len(self.submitted), "windows are submitted in order"
        pending = GatedPending(number, self.real_bytes.get(number, task.num_bytes))
        pending.is_open, self.opens_next = self.opens_next, False
        self.submitted.append(pending)
        self.streams.append(stream)
        return pending

    def close(self) -> None:
        pass


def stream_of(
    engine, sizes, *, max_bytes=1 << 30, num_sharing=1, meter=None, kept=lambda _: 0
):
    tasks = (SimpleNamespace(num_bytes=size) for size in sizes)
    return WindowStream(
        engine,
        tasks,
        num_sharing=num_sharing,
        max_bytes=max_bytes,
        meter=meter or Meter(),
        kept_bytes=kept,
    )


def take(stream, engine, number):
    if number < len(engine.submitted):
        engine.submitted[number].is_open = True
    else:
        engine.opens_next = True  # take() itself has to ask for it
    return stream.take()


@pytest.mark.parametrize(
    ("slots", "num_sharing", "ahead"),
    [(1, 1, 3), (2, 1, 4), (4, 1, 8), (4, 2, 4), (4, 3, 4), (4, 4, 3), (16, 1, 32)],
)
def test_tasks_ahead_are_two_for_each_slot_of_mine_and_at_least_three(
    slots, num_sharing, ahead
):
    engine = GatedEngine(slots)
    stream_of(engine, [1] * 100, num_sharing=num_sharing)
    assert len(engine.submitted) == ahead


def test_fewer_tasks_than_allowed_are_submitted_all_at_once():
    engine = GatedEngine(4)
    stream_of(engine, [1] * 2)
    assert len(engine.submitted) == 2


def test_bytes_stop_the_submission_before_tasks_do():
    engine = GatedEngine(4)
    stream_of(engine, [4] * 9, max_bytes=11)
    assert len(engine.submitted) == 2


def test_a_window_larger_than_max_bytes_goes_alone():
    engine = GatedEngine(4)
    stream = stream_of(engine, [100] * 3, max_bytes=10)
    assert len(engine.submitted) == 1
    take(stream, engine, 0)
    assert len(engine.submitted) == 1  # the first one is in hand
    stream.release(0)
    assert len(engine.submitted) == 2


def test_a_window_that_is_waited_for_is_submitted_though_it_does_not_fit():
    engine = GatedEngine(4)
    stream = stream_of(engine, [100] * 3, max_bytes=10)
    for number in range(3):
        assert take(stream, engine, number).num_rows == 100
        assert len(engine.submitted) == number + 1
    assert stream.exhausted


def test_what_a_task_takes_beside_its_window_counts_until_it_has_arrived():
    engine = GatedEngine(4)
    engine.overhead = 3
    stream = stream_of(engine, [2] * 9, max_bytes=11)
    assert len(engine.submitted) == 2
    take(stream, engine, 0)  # 2 in hand, 5 on the way: 4 are left
    assert len(engine.submitted) == 2
    take(stream, engine, 1)  # 4 in hand: room for one more
    assert len(engine.submitted) == 3


def test_memory_that_is_still_looked_at_slows_the_submission():
    engine, kept, told = GatedEngine(4), 0, []

    def look(num_bytes: int) -> int:
        told.append(num_bytes)
        return kept

    stream = stream_of(engine, [4] * 9, max_bytes=12, kept=look)
    assert len(engine.submitted) == 3
    assert told == [0, 4, 8, 12]
    kept = 5
    take(stream, engine, 0)
    stream.release(0)
    assert len(engine.submitted) == 3  # 8 on the way, 5 kept
    take(stream, engine, 1)
    stream.release(1)
    assert len(engine.submitted) == 3  # 4 on the way, 5 kept
    kept = 0
    take(stream, engine, 2)
    assert len(engine.submitted) == 5  # 4 in hand, 8 on the way


def test_nothing_is_submitted_while_the_consumer_does_nothing():
    engine = GatedEngine(1)
    stream = stream_of(engine, [1] * 9)
    for pending in engine.submitted:
        pending.is_open = True
    assert len(engine.submitted) == 3
    stream.take()
    assert len(engine.submitted) == 4


def test_a_window_in_hand_holds_its_bytes_until_it_is_released():
    engine = GatedEngine(1)
    stream = stream_of(engine, [5] * 9, max_bytes=10)
    assert len(engine.submitted) == 2
    take(stream, engine, 0)
    assert len(engine.submitted) == 2
    stream.release(0)
    assert len(engine.submitted) == 3


def test_windows_may_be_released_in_another_order():
    engine = GatedEngine(1)
    stream = stream_of(engine, [2] * 9, max_bytes=8)
    take(stream, engine, 0)
    take(stream, engine, 1)
    assert len(engine.submitted) == 4
    stream.release(1)
    assert len(engine.submitted) == 5
    stream.release(0)
    assert len(engine.submitted) == 5  # three are on their way
    take(stream, engine, 2)
    assert len(engine.submitted) == 6


def test_a_window_that_arrives_larger_than_planned_slows_the_submission():
    engine = GatedEngine(1)
    engine.real_bytes[0] = 9
    stream = stream_of(engine, [2] * 9, max_bytes=8)
    take(stream, engine, 0)
    assert len(engine.submitted) == 3
    stream.release(0)
    # Two on the way, planned when windows seemed to have 2 bytes; the next is reckoned
    # with 9.
    assert len(engine.submitted) == 3
    take(stream, engine, 1)
    stream.release(1)
    take(stream, engine, 2)
    stream.release(2)
    assert len(engine.submitted) == 4  # nothing under way: one may be


def test_close_gives_up_all_that_is_under_way_and_submits_nothing_more():
    engine = GatedEngine(1)
    stream = stream_of(engine, [1] * 9)
    take(stream, engine, 0)
    assert len(engine.submitted) == 4
    stream.close()
    assert [p.cancelled for p in engine.submitted] == [0, 1, 1, 1]
    assert stream.exhausted
    assert engine.ended == engine.streams[:1]
    stream.release(0)
    assert len(engine.submitted) == 4
    stream.close()
    assert [p.cancelled for p in engine.submitted] == [0, 1, 1, 1]


def test_an_error_comes_at_its_windows_turn_and_close_then_gives_up_the_rest():
    engine = GatedEngine(1)
    stream = stream_of(engine, [1] * 9)
    engine.submitted[1].error = WindowError("the second one")
    assert take(stream, engine, 0).num_rows == 1
    with pytest.raises(WindowError, match="the second one"):
        take(stream, engine, 1)
    stream.close()
    assert [p.cancelled for p in engine.submitted[2:]] == [1, 1]


def test_no_task_needs_no_slots():
    class Empty:
        def slots(self) -> int:
            raise AssertionError("asked for slots")

    stream = stream_of(Empty(), [])
    assert stream.exhausted


def test_tasks_are_drawn_as_they_are_needed():
    drawn = []

    def sizes():
        for number in range(1000):
            drawn.append(number)
            yield 1

    engine = GatedEngine(1)
    stream_of(engine, sizes())
    assert len(drawn) == 4  # three are submitted, the next one is known


def test_two_streams_of_one_engine_have_names_of_their_own():
    one, two = GatedEngine(1), GatedEngine(1)
    stream_of(one, [1] * 3)
    stream_of(two, [1] * 3)
    assert len(set(one.streams)) == 1
    assert set(one.streams).isdisjoint(two.streams)


def test_what_arrives_is_counted():
    engine, meter = GatedEngine(1), Meter()
    stream = stream_of(engine, [7, 8], meter=meter)
    take(stream, engine, 0)
    take(stream, engine, 1)
    assert stream.exhausted
    read = meter.read()
    assert (read["windows"], read["bytes"]) == (2, 15)
    assert read["wait_s"] >= 0


@given(
    sizes=st.lists(st.integers(1, 20), max_size=30),
    slots=st.integers(1, 4),
    max_bytes=st.integers(1, 60),
    held=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)
def test_every_window_comes_once_in_order_and_no_bound_is_passed(
    sizes, slots, max_bytes, held, order
):
    engine = GatedEngine(slots)
    stream = stream_of(engine, sizes, max_bytes=max_bytes)
    in_hand: list[int] = []
    seen = []
    while not stream.exhausted:
        on_the_way = [p for p in engine.submitted if not p.taken]
        num_bytes = sum(p.num_bytes for p in on_the_way) + sum(
            sizes[number] for number in in_hand
        )
        assert len(on_the_way) <= max(3, 2 * slots)
        # Beyond the bound only with what the consumer itself asked for: a window that
        # was alone, or those it took while it held others.
        assert num_bytes <= max_bytes or len(on_the_way) + len(in_hand) <= held + 1
        if in_hand and num_bytes > max_bytes:
            assert not on_the_way
        window = take(stream, engine, len(seen))
        seen.append(window.num_rows)
        in_hand.append(len(seen) - 1)
        while len(in_hand) > held:
            stream.release(in_hand.pop(order.randrange(len(in_hand))))
    assert seen == sizes
