"""Which epoch comes next. (Real DataLoader workers are tried in the loader's tests.)"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch.multiprocessing as mp

from dask_loader.batch.epochs import (
    MAX_STAGES,
    MAX_WORKERS,
    Announcement,
    EpochCounter,
    Start,
)
from dask_loader.errors import ConfigError
from dask_loader.plan.stage import Stage


def test_each_iteration_of_the_main_process_is_the_next_epoch() -> None:
    counter = EpochCounter()
    assert counter.peek() == 0
    assert [counter.begin() for _ in range(3)] == [0, 1, 2]
    assert counter.peek() == 3


def test_a_set_epoch_is_the_next_and_counting_goes_on_from_it() -> None:
    counter = EpochCounter()
    counter.begin()
    counter.set(7)
    assert counter.peek() == 7
    assert [counter.begin(), counter.begin()] == [7, 8]
    counter.set(7)
    counter.set(7)
    assert counter.begin() == 7
    counter.set(0)
    assert counter.begin() == 0


def test_peeking_counts_nothing() -> None:
    counter = EpochCounter()
    assert [counter.peek() for _ in range(3)] == [0, 0, 0]
    assert counter.begin() == 0


def test_each_worker_counts_for_itself() -> None:
    counter = EpochCounter()
    assert [counter.begin(w, 3) for w in (0, 1, 2)] == [0, 0, 0]
    assert [counter.begin(w, 3) for w in (2, 0, 1)] == [1, 1, 1]
    counter.set(5)
    assert [counter.begin(w, 3) for w in (1, 2, 0)] == [5, 5, 5]


def test_loaders_with_other_numbers_of_workers_count_on() -> None:
    counter = EpochCounter()
    assert counter.begin() == 0
    assert [counter.begin(w, 2) for w in (0, 1)] == [1, 1]
    assert [counter.begin(w, 1) for w in (0,)] == [2]
    assert [counter.begin(w, 2) for w in (0, 1)] == [3, 3]
    assert counter.peek() == 4
    assert counter.begin() == 4


def test_a_worker_that_died_before_it_counted_does_not_hold_the_next_loader_back() -> (
    None
):
    counter = EpochCounter()
    counter.begin(0, 4)
    assert counter.begin() == 1


def test_an_announcement_is_read_back_also_in_a_fork() -> None:
    announcement = Announcement()
    start = Start(4, 300, (Stage(0, 8), Stage(200, 3)))
    announcement.write(start)
    assert announcement.read() == start
    announcement.write(Start(6, 0, ()))
    process = mp.get_context("fork").Process(target=_read_six, args=(announcement,))
    process.start()
    process.join(180)
    assert process.exitcode == 0
    process.close()


def _read_six(announcement: Announcement) -> None:
    assert announcement.read() == Start(6, 0, ())


def test_a_loaded_position_holds_for_its_epoch_until_forgotten_or_set_aside() -> None:
    counter = EpochCounter()
    assert counter.start(0) == Start(0, 0, ())
    place = Start(3, 700, (Stage(0, 4), Stage(600, 6)))
    counter.resume(place)
    assert counter.peek() == 3
    counter.set(3)  # the loaded epoch keeps the loaded position
    starts = [counter.start(epoch) for epoch in (2, 3, 4)]
    assert starts == [Start(2, 0, ()), place, Start(4, 0, ())]
    assert counter.begin() == 3
    assert counter.begin() == 4
    counter.resume(place)
    counter.set(5)
    counter.set(3)
    assert counter.start(3) == Start(3, 0, ())
    counter.resume(place)
    counter.forget_position()
    assert counter.start(3) == Start(3, 0, ())
    assert counter.begin() == 3


def test_num_splits_is_unknown_until_fixed_and_travels_with_the_counter() -> None:
    counter = EpochCounter()
    assert counter.num_splits is None
    counter.num_splits = 16
    assert counter.num_splits == 16
    counter.set(2)
    assert pickle.loads(pickle.dumps(counter)).num_splits == 16


def test_every_worker_of_the_largest_loader_has_a_place_of_its_own() -> None:
    counter = EpochCounter()
    for worker in range(MAX_WORKERS):
        assert counter.begin(worker, MAX_WORKERS) == 0
    assert counter.begin(0, MAX_WORKERS) == 1
    assert counter.begin(MAX_WORKERS - 1, MAX_WORKERS) == 1
    assert counter.begin(0, MAX_WORKERS - 1) == 2


def test_more_workers_than_places_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"num_workers=129 is more than 128; use fewer"
    ):
        EpochCounter().begin(0, MAX_WORKERS + 1)


def test_a_copy_counts_for_itself() -> None:
    counter = EpochCounter()
    counter.set(3)
    for twin in (copy.deepcopy(counter), pickle.loads(pickle.dumps(counter))):
        assert [twin.begin(), twin.begin()] == [3, 4]
    assert counter.begin() == 3


def test_a_forked_process_counts_in_the_same_place() -> None:
    counter = EpochCounter()
    context = mp.get_context("fork")
    process = context.Process(target=_begin_twice, args=(counter,))
    process.start()
    process.join(180)
    assert process.exitcode == 0
    process.close()
    assert counter.begin(1, 2) == 2
    assert counter.begin() == 3


def _begin_twice(counter: EpochCounter) -> None:
    assert [counter.begin(1, 2), counter.begin(1, 2)] == [0, 1]


def test_as_many_stages_as_there_are_places_come_back() -> None:
    counter = EpochCounter()
    place = Start(1, 900, tuple(Stage(10 * i, i + 1) for i in range(MAX_STAGES)))
    counter.resume(place)
    assert counter.start(1) == place
    assert counter.begin(2, 3) == 1  # no place of theirs is a worker's
    assert counter.begin(2, 3) == 2
