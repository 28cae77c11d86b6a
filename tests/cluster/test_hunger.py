"""How many workers hungry consumers need: a table, a model of the world, real clusters."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cluster
import dask_loader.engine.hunger
from cluster import NotOwnedError, SpecError
from cluster.hunger import TOPIC, Hunger, Listener, Look, clamp
from dask_loader import ParquetDataset
from tests.asking import workers_of

_ROWS, _GROUP = 4000, 20
_READ_S = 0.05


def look(stall: float, windows_per_s: float = 1.0, num_consumers: int = 1) -> Look:
    return Look(stall=stall, windows_per_s=windows_per_s, num_consumers=num_consumers)


def test_both_sides_name_the_same_topic() -> None:
    assert dask_loader.engine.hunger.TOPIC == TOPIC


@pytest.mark.parametrize(
    ("target", "looks", "expected"),
    [
        (2, [look(0.5)], 4),
        (2, [look(1.0)], 4),  # never more than twice as many
        (2, [look(0.2)], 3),
        (7, [look(0.9)], 8),  # the maximum
        (8, [look(0.9)], 8),
        (4, [look(0.05)] * 9, 4),
        (4, [look(0.0)] * 2, 4),  # not yet
        (4, [look(0.0)] * 3, 3),
        (4, [look(0.0)] * 99, 1),
        (4, [look(0.0), look(0.05)] * 9, 4),
        (4, [look(0.0, num_consumers=0)], 1),
        (2, [look(0.5), *[look(0.0)] * 99], 3),  # 2 were too few
        (2, [look(0.5, 10), *[look(0.0, 7)] * 99], 2),  # 2 deliver 10, 1 only 5
        (2, [look(0.5, 10), *[look(0.0, 3)] * 99], 1),  # the trainer became slow
        (2, [look(0.5), *[look(0.0, num_consumers=2)] * 99], 1),  # others: learnt anew
    ],
)
def test_looks_make_a_number(target: int, looks: list[Look], expected: int) -> None:
    hunger = Hunger(target=target, minimum=1, maximum=8, num_consumers=1)
    for seen in looks:
        hunger = hunger.after(seen)
    assert hunger.target == expected


@given(
    st.lists(st.builds(look, st.floats(0, 1), st.floats(0, 1e6), st.integers(0, 2))),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_it_never_leaves_its_limits(looks: list[Look], low: int, more: int) -> None:
    hunger = Hunger(target=low, minimum=low, maximum=low + more)
    for seen in looks:
        hunger = hunger.after(seen)
        assert low <= hunger.target <= low + more


@given(st.floats(0.1, 100), st.floats(0.1, 100), st.integers(1, 32), st.integers(1, 32))
def test_constant_rates_come_to_rest_where_nobody_is_hungry(
    demand: float, worker: float, start: int, maximum: int
) -> None:
    hunger = Hunger(target=clamp(start, (1, maximum)), minimum=1, maximum=maximum)

    def seen_with(num_workers: int) -> Look:
        rate = min(demand, num_workers * worker)
        return look(1 - rate / demand, rate)

    for _ in range(200):
        hunger = hunger.after(seen_with(hunger.target))
    rest = hunger.target
    for _ in range(20):
        hunger = hunger.after(seen_with(hunger.target))
        assert hunger.target == rest  # no flapping
    assert rest == maximum or seen_with(rest).stall <= 0.1
    # One fewer would be hungry, or there is no fewer.
    assert rest == 1 or seen_with(rest - 1).stall > 0.02 or seen_with(rest).stall > 0.02


def test_the_hungriest_consumer_counts_and_nonsense_does_not() -> None:
    listener = Listener(silence_s=10)
    for nonsense in (None, "x", {}, {"consumer": 1}, {"consumer": "c"}):
        listener.hear(nonsense, 0)
    listener.hear({"consumer": "c", "waited_s": -1, "windows": 1}, 0)
    assert listener.look(0, elapsed_s=1) == look(0, 0, 0)
    listener.hear({"consumer": "a", "waited_s": 0.5, "windows": 3}, 1)
    listener.hear({"consumer": "a", "waited_s": 0.5, "windows": 3}, 2)
    listener.hear({"consumer": "b", "waited_s": 0.1, "windows": 4}, 2)
    assert listener.look(2, elapsed_s=2) == look(0.5, 5, 2)
    assert listener.look(4, elapsed_s=2) == look(0, 0, 2)  # silent: not waiting
    listener.hear({"consumer": "a", "ended": True}, 5)
    assert listener.look(6, elapsed_s=2).num_consumers == 1
    assert listener.look(13, elapsed_s=2).num_consumers == 0


@pytest.mark.cluster
def test_wrong_limits_and_other_peoples_clusters_are_refused(foreign) -> None:
    with cluster.connect(foreign.address) as c:
        for options, text in (
            ({"minimum": 0, "maximum": 2}, "minimum=0 must be a whole number"),
            ({"maximum": 0}, "maximum=0 must be a whole number"),
            ({"minimum": 3, "maximum": 2}, "maximum=2 is below minimum=3"),
            ({"maximum": 2, "interval_s": 0}, "interval_s=0 must be"),
            ({"maximum": 2, "silence_s": 0}, "silence_s=0 must be"),
        ):
            with pytest.raises(SpecError, match=re.escape(text)):
                c.adapt(**options)
        with pytest.raises(NotOwnedError):
            c.adapt(maximum=2)


def _slow(table: pa.Table) -> pa.Table:
    time.sleep(_READ_S)  # stands for work
    return table


@pytest.mark.cluster
@pytest.mark.slow
def test_workers_follow_a_loader(tmp_path: Path, wait_until) -> None:
    pq.write_table(
        pa.table({"id": np.arange(_ROWS)}),
        tmp_path / "a.parquet",
        row_group_size=_GROUP,
    )
    with cluster.launch("local", workers=1) as c:
        c.adapt(minimum=1, maximum=2, interval_s=1.0, silence_s=5)
        client = c.client()

        def num_workers() -> int:
            return len(workers_of(client))

        with ParquetDataset(
            tmp_path,
            client=c,
            batch_size=_GROUP,
            transform=_slow,
            shuffle_window=_GROUP * 16,
        ) as dataset:
            seen = []
            grown = False
            for epoch in range(20):
                dataset.set_epoch(epoch)
                rows = []
                for batch in dataset:
                    rows += batch["id"].tolist()
                    grown = grown or num_workers() == 2
                seen.append(sorted(rows))
                if grown:
                    break
            assert grown
            # A trainer that is slower than one worker.
            iterator = iter(dataset)
            next(iterator)

            def step() -> bool:
                nonlocal iterator
                time.sleep(6 * _READ_S)  # the trainer's step
                if next(iterator, None) is None:
                    iterator = iter(dataset)
                return num_workers() == 1

            wait_until(step, "one worker for a slow trainer")
            iterator.close()
        assert seen == [list(range(_ROWS))] * len(seen)
