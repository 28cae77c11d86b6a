"""Windows begun before their stream, over engines that do what the test says."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from dask_loader.engine import threads as threads_engine
from dask_loader.engine.ahead import Ahead
from dask_loader.engine.stream import WindowStream
from dask_loader.engine.threads import ThreadsEngine
from dask_loader.errors import DataChangedError, EngineError
from dask_loader.metrics import Meter
from dask_loader.read.task import WindowTask

_DEADLINE_S = 180.0


class Refusing:
    """An engine that takes so many windows, and then raises."""

    def __init__(self, engine: ThreadsEngine, num_windows: int) -> None:
        self.engine = engine
        self.room = num_windows
        self.pending: list[Any] = []
        self.ended: list[int] = []

    def slots(self, *, wait: bool = True) -> int:
        return self.engine.slots(wait=wait)

    def cost(self, task: WindowTask) -> int:
        return self.engine.cost(task)

    def submit(self, task: WindowTask, *, stream: int, number: int) -> Any:
        if len(self.pending) == self.room:
            raise EngineError(f"no room for window {number}")
        self.pending.append(self.engine.submit(task, stream=stream, number=number))
        return self.pending[-1]

    def end(self, stream: int) -> None:
        self.ended.append(stream)
        self.engine.end(stream)


@pytest.fixture
def engine() -> Any:
    engine = ThreadsEngine(memory_limit=1 << 28, local_world_size=1)
    yield engine
    engine.close()


def stream_of(engine: Any, tasks: list[WindowTask], ahead: Ahead) -> WindowStream:
    return WindowStream(
        engine,
        iter(tasks),
        num_sharing=1,
        max_bytes=1 << 28,
        meter=Meter(),
        ahead=ahead,
    )


def rows_of(stream: WindowStream) -> list[int]:
    found = []
    while not stream.exhausted:
        found.append(stream.take().num_rows)
        stream.release(len(found) - 1)
    stream.close()
    return found


def test_no_more_are_begun_than_fit(engine, tasks):
    ahead = Ahead(engine, max_bytes=engine.cost(tasks[0]) - 1)
    ahead.start(tasks)
    assert ahead.is_empty
    spy = Refusing(engine, num_windows=9)
    one = Ahead(spy, max_bytes=engine.cost(tasks[0]))
    one.start(tasks)
    assert len(spy.pending) == 1
    two = Ahead(spy, max_bytes=1 << 40)
    two.start(tasks)
    assert len(spy.pending) == 3
    one.drop()
    two.drop()
    assert spy.ended == [one.serial, two.serial]


def test_nothing_is_begun_of_nothing(engine):
    ahead = Ahead(engine, max_bytes=1 << 40)
    ahead.start([])
    assert ahead.is_empty


def test_an_engine_that_refuses_leaves_none_under_way(engine, tasks):
    refusing = Refusing(engine, num_windows=1)
    ahead = Ahead(refusing, max_bytes=1 << 40)
    with pytest.raises(EngineError, match="no room for window 1"):
        ahead.start(tasks)
    assert ahead.is_empty
    assert refusing.ended == [ahead.serial]


@pytest.mark.parametrize("wanted", [slice(0, None), slice(0, 2)])
def test_a_stream_that_begins_with_them_takes_them(wanted, engine, tasks):
    spy = Refusing(engine, num_windows=99)
    ahead = Ahead(spy, max_bytes=1 << 40)
    ahead.start(tasks)
    rows = rows_of(stream_of(spy, tasks[wanted], ahead))
    assert rows == [task.num_rows for task in tasks[wanted]]
    assert len(spy.pending) == len(tasks[wanted])
    assert ahead.is_empty


@pytest.mark.parametrize(
    "wanted", [slice(1, None), slice(0, None, 2), slice(0, 1), slice(0, 0)]
)
def test_a_stream_that_begins_otherwise_gives_all_of_them_up(wanted, engine, tasks):
    spy = Refusing(engine, num_windows=99)
    ahead = Ahead(spy, max_bytes=1 << 40)
    ahead.start(tasks)
    stream = stream_of(spy, tasks[wanted], ahead)
    assert ahead.is_empty
    assert spy.ended == [ahead.serial]
    assert rows_of(stream) == [task.num_rows for task in tasks[wanted]]
    assert len(spy.pending) == 2 + len(tasks[wanted])


def test_a_stream_without_anybody_to_read_it_leaves_them_for_the_next(engine, tasks):
    class Lonely(Refusing):
        def slots(self, *, wait: bool = True) -> int:
            if not wait:
                return 1
            raise EngineError("nobody came")

    ahead = Ahead(Lonely(engine, num_windows=99), max_bytes=1 << 40)
    ahead.start(tasks)
    with pytest.raises(EngineError, match="nobody came"):
        stream_of(ahead._engine, tasks, ahead)
    rows = rows_of(stream_of(engine, tasks, ahead))
    assert rows == [task.num_rows for task in tasks]


def test_a_failed_window_is_asked_for_again_and_fails_as_any(
    engine, make_tasks: Any, small_data: Path, tmp_path: Path
):
    for path in small_data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tasks = make_tasks(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    spy = Refusing(engine, num_windows=99)
    ahead = Ahead(spy, max_bytes=1 << 40)
    ahead.start(tasks)
    stream = stream_of(spy, tasks[:2], ahead)
    assert len(spy.pending) == 2
    with pytest.raises(DataChangedError, match="cannot be found now"):
        stream.take()
    assert len(spy.pending) == 3
    stream.close()


def test_a_fork_waits_for_the_thread_that_decodes_one(
    engine, tasks, monkeypatch: pytest.MonkeyPatch
):
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()
    read = threads_engine.read_window

    def spy(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(_DEADLINE_S)
        try:
            return read(*arguments)
        finally:
            done.set()

    monkeypatch.setattr(threads_engine, "read_window", spy)
    ahead = Ahead(engine, max_bytes=1 << 40)
    ahead.start(tasks)
    assert begun.wait(_DEADLINE_S)
    os.register_at_fork(before=go_on.set)  # runs before the hooks registered earlier
    child = os.fork()
    if child == 0:
        os._exit(0 if done.is_set() and ahead.is_empty else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert ahead.is_empty
