"""One checker of resumes, run over every engine and every loader. Rows are compared by id.

What comes at which position is asked of one rank that reads a row at a time, without
workers and without a resume. Everything else must agree with that.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader as TorchDataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from dask_loader import DataLoader, ParquetDataset, from_stateful_dataloader

# A prime: tails everywhere. 5 global batches of 18 rows and 11 rows more.
ROWS, STEP_ROWS, NUM_SPLITS = 101, 18, 6
STEPS = -(-ROWS // STEP_ROWS)
State = dict[str, Any]
Ids = list[list[int]]


# ---- the loaders ------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A way to read: how a loader is made, resumed and asked for its state.

    Attributes:
        make: Loader over a dataset.
        load: Puts a state into a dataset and its loader before anything is read.
        save: Returns the state after so many batches were handed out.
        any_step_rows: Whether a state fits another global batch size.
        spawns: Whether workers are spawned, which takes seconds.
    """

    make: Callable[[ParquetDataset], Any]
    load: Callable[[ParquetDataset, Any, State], None]
    save: Callable[[ParquetDataset, Any, State | None, int], State]
    any_step_rows: bool = True
    spawns: bool = False


def dataset_itself() -> Way:
    return Way(
        make=lambda dataset: dataset,
        load=lambda dataset, loader, state: dataset.load_state_dict(state),
        save=lambda dataset, loader, state, steps: dataset.state_dict(),
    )


def ours(**options: Any) -> Way:
    return Way(
        make=lambda dataset: DataLoader(dataset, **options),
        load=lambda dataset, loader, state: loader.load_state_dict(state),
        save=lambda dataset, loader, state, steps: loader.state_dict(),
    )


def torchs(**options: Any) -> Way:
    """Torch's own, whose user counts the steps himself."""

    def save(
        dataset: ParquetDataset, loader: Any, state: State | None, steps: int
    ) -> State:
        state = state or {"epoch": 0, "step": 0}
        step = state["step"] + steps
        if steps >= len(dataset) - state["step"]:
            return {"epoch": state["epoch"] + 1, "step": 0}
        return {"epoch": state["epoch"], "step": step}

    return Way(
        make=lambda dataset: TorchDataLoader(dataset, batch_size=None, **options),
        load=lambda dataset, loader, state: dataset.seek(state["epoch"], state["step"]),
        save=save,
        any_step_rows=False,
    )


def stateful(**options: Any) -> Way:
    """torchdata's, whose state becomes one of ours."""
    return Way(
        make=lambda dataset: StatefulDataLoader(dataset, batch_size=None, **options),
        load=lambda dataset, loader, state: dataset.load_state_dict(state),
        save=lambda dataset, loader, state, steps: from_stateful_dataloader(
            json.loads(json.dumps(loader.state_dict()))
        ),
    )


def spawned(kind: Callable[..., Way]) -> Way:
    made = kind(num_workers=2, multiprocessing_context="spawn")
    return replace(made, spawns=True)


WAYS = {
    "dataset": dataset_itself(),
    "ours": ours(),
    "ours, 2 workers": ours(num_workers=2),
    "ours, 2 spawned": spawned(ours),
    "torch's": torchs(),
    "torch's, 2 workers": torchs(num_workers=2),
    "torch's, 2 spawned": spawned(torchs),
    "torchdata's": stateful(),
    "torchdata's, 2 workers": stateful(num_workers=2),
    "torchdata's, 2 spawned": spawned(stateful),
}


def matrix(*, spawned: bool = False, other_batches: bool = False) -> Any:
    """Make all pairs; those that take long are slow."""
    found = []
    for engine in ("threads", "cluster"):
        for name, way in WAYS.items():
            if way.spawns and (not spawned or (engine, name) in NOT_SPAWNED):
                continue
            if other_batches and not way.any_step_rows:
                continue
            if engine == "cluster" and name not in ON_CLUSTER:
                continue
            quick = engine == "threads" and "2" not in name
            marks = [] if quick else [pytest.mark.slow]
            marks += [pytest.mark.cluster] if engine == "cluster" else []
            found.append(pytest.param(engine, name, marks=marks))
    return pytest.mark.parametrize(("client", "way"), found, indirect=True)


# The others differ from these in what reads no window.
ON_CLUSTER = ("dataset", "ours, 2 workers", "ours, 2 spawned")
# test_loader.py spawns the first, test_stateful.py the second; the cluster has the third.
NOT_SPAWNED = {
    ("threads", "torch's, 2 spawned"),
    ("threads", "torchdata's, 2 spawned"),
    ("threads", "ours, 2 spawned"),
}


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest) -> Any:
    """The value for client=, by name."""
    if request.param == "threads":
        return "threads"
    return request.getfixturevalue("local_cluster").address


@pytest.fixture
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    for number, (start, stop) in enumerate(((0, 40), (40, 41), (41, ROWS))):
        table = pa.table({"id": range(start, stop)})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=13)
    return folder


# ---- the checker ------------------------------------------------------------------


@dataclass(frozen=True)
class Leg:
    """One run of a job: all its ranks, up to `steps` batches; None for all that is left."""

    way: Way
    world_size: int
    batch_size: int
    steps: int | None
    uneven: str = "pad"
    drop_last: bool = False
    num_splits: int | None = None


def run(
    leg: Leg, data: Path, client: Any, state: State | None
) -> tuple[list[Ids], list[State]]:
    """Return each rank's batches, and the state that each rank saves after them."""
    num_splits = leg.num_splits
    if state is None or "stages" not in state:  # a step says none
        num_splits = num_splits or NUM_SPLITS
    ranks, states = [], []
    for rank in range(leg.world_size):
        with ParquetDataset(
            data,
            client=client,
            rank=rank,
            world_size=leg.world_size,
            batch_size=leg.batch_size,
            uneven=leg.uneven,  # type: ignore[arg-type]
            drop_last=leg.drop_last,
            shuffle=True,
            seed=3,
            shuffle_window=7,
            num_splits=num_splits,
        ) as dataset:
            loader = leg.way.make(dataset)
            if state is not None:
                leg.way.load(dataset, loader, json.loads(json.dumps(state)))
            batches = iter(loader)
            taken = [batch["id"].tolist() for batch in islice(batches, leg.steps)]
            saved = leg.way.save(dataset, loader, state, len(taken))
            del batches, loader  # with torch's workers
            ranks.append(taken)
            states.append(json.loads(json.dumps(saved)))
    return ranks, states


def order_of(data: Path, epochs: int) -> list[list[int]]:
    """The row at each position of each epoch, read one row at a time."""
    one = Leg(dataset_itself(), 1, 1, None, "exact")
    found, state = [], None
    for _ in range(epochs):
        (batches,), (state,) = run(one, data, "threads", state)
        found.append([i for batch in batches for i in batch])
    assert all(sorted(order) == list(range(ROWS)) for order in found)
    return found


def rows_of(ranks: Sequence[Ids], steps: slice = slice(None)) -> Counter[int]:
    batches: Iterable[list[int]] = chain.from_iterable(mine[steps] for mine in ranks)
    return Counter(chain.from_iterable(batches))


def check_every_cut(
    data: Path, client: Any, way: Way, *, uneven: str, drop_last: bool, cuts: range
) -> None:
    """A resumed run gives, batch for batch, what the uninterrupted one would have given."""
    orders = order_of(data, 2)
    leg = Leg(way, 2, STEP_ROWS // 2, None, uneven, drop_last)
    whole, states = run(leg, data, client, None)
    following, _ = run(leg, data, client, states[0])
    check_rows(whole, orders[0], leg)
    check_rows(following, orders[1], leg)
    num_steps = len(whole[0])
    for cut in cuts:
        begun = Leg(way, 2, STEP_ROWS // 2, cut, uneven, drop_last)
        before, states = run(begun, data, client, None)
        assert before == [mine[:cut] for mine in whole]
        if uneven != "exact" or cut < num_steps:
            assert states[1:] == states[:-1]  # the same on every rank
        after, _ = run(leg, data, client, states[0])
        assert after == (
            [mine[cut:] for mine in whole] if cut < num_steps else following
        )


def check_rows(ranks: list[Ids], order: list[int], leg: Leg) -> None:
    """An epoch holds the rows of each step's positions, and the pads and drops promised."""
    world_size, step_rows = leg.world_size, leg.world_size * leg.batch_size
    for step in range(max(map(len, ranks))):
        begin = step * step_rows
        rows = order[begin : begin + step_rows]
        tail = len(rows) % world_size if len(rows) < step_rows else 0
        if leg.uneven == "drop":
            rows = rows[: len(rows) - tail]
        found = rows_of(ranks, slice(step, step + 1))
        assert set(found) == set(rows)
        pads = -tail % world_size if leg.uneven == "pad" else 0
        assert found.total() == len(rows) + pads
    full, tail = divmod(ROWS, step_rows)
    needed = {"pad": 1, "drop": world_size, "exact": 1}[leg.uneven]
    assert len(ranks[0]) == full + (tail >= needed and not leg.drop_last)


def check_chain(
    data: Path, client: Any, legs: Sequence[Leg], order: list[int]
) -> list[State]:
    """Through all legs each row comes once; until a re-cut, at its position."""
    state, position, seen = None, 0, Counter[int]()
    recut, saved = False, []
    for leg in legs:
        recut = recut or (state is not None and leg.num_splits is not None)
        ranks, states = run(leg, data, client, state)
        rows = rows_of(ranks)
        if leg.steps is None:
            stop = ROWS
        else:
            assert all(len(mine) == leg.steps for mine in ranks)
            stop = min(position + leg.steps * leg.world_size * leg.batch_size, ROWS)
            assert states[1:] == states[:-1]
        pads = rows.total() - (stop - position)
        assert 0 <= pads < leg.world_size
        assert not pads or (stop == ROWS and leg.uneven == "pad")
        if not recut:
            assert set(rows) == set(order[position:stop])
        seen.update(rows.keys())
        state, position = states[0], stop
        saved.append(state)
    assert position == ROWS
    assert seen == Counter(range(ROWS))
    return saved


# ---- every engine and loader ------------------------------------------------------


@matrix(spawned=True)
def test_every_cut_of_a_padded_epoch_goes_on_as_if_nothing_had_been(
    data: Path, client: Any, way: Way
) -> None:
    # A worker takes seconds to spawn.
    cuts = range(3, 4) if way.spawns else range(STEPS + 1)
    check_every_cut(data, client, way, uneven="pad", drop_last=False, cuts=cuts)


@matrix()
@pytest.mark.parametrize(
    ("uneven", "drop_last"), [("drop", False), ("exact", False), ("pad", True)]
)
def test_cuts_around_the_last_step_go_on_whatever_is_left_off(
    data: Path, client: Any, way: Way, uneven: str, drop_last: bool
) -> None:
    last = STEPS - drop_last
    cuts = range(last - 2, last + 1)
    check_every_cut(data, client, way, uneven=uneven, drop_last=drop_last, cuts=cuts)


@matrix()
def test_resumes_of_resumes_at_other_world_sizes_give_the_same_global_batches(
    data: Path, client: Any, way: Way
) -> None:
    (order,) = order_of(data, 1)
    legs = [Leg(way, 2, 9, 2), Leg(way, 3, 6, 1), Leg(way, 1, 18, 1), Leg(way, 6, 3, 1)]
    # The next begins where 11 rows are left, and pads one of them.
    check_chain(data, client, [*legs, Leg(way, 2, 9, None)], order)


@matrix(other_batches=True)
@pytest.mark.filterwarnings("ignore:the checkpoint was made with")
def test_resumes_of_resumes_with_other_batches_and_re_cuts_lose_no_row(
    data: Path, client: Any, way: Way
) -> None:
    (order,) = order_of(data, 1)
    # 18 + 24 + 7 rows, then a re-cut, 24 rows, another one, and in the middle of what
    # was a padded batch before, the rest.
    legs = [Leg(way, 2, 9, 1), Leg(way, 3, 4, 2), Leg(way, 1, 7, 1)]
    recuts = [Leg(way, 4, 3, 2, num_splits=5), Leg(way, 2, 9, 1, num_splits=8)]
    last = Leg(way, 4, 8, None)
    check_chain(data, client, [*legs, last], order)
    states = check_chain(data, client, [*legs, *recuts, last], order)
    assert states[-2]["stages"] == [[0, 6], [49, 5], [73, 8]]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore:the checkpoint was made with")
def test_a_job_moves_from_loader_to_loader_and_from_threads_to_a_cluster(
    data: Path, local_cluster: Any
) -> None:
    (order,) = order_of(data, 1)
    names = [name for name in WAYS if not name.startswith("torch's")]
    world_sizes = [2, 1, 2, 3, 1, 2, 1]
    legs = [
        Leg(WAYS[name], world_size, 4, 1)
        for name, world_size in zip(names, world_sizes, strict=True)
    ]
    legs.append(Leg(WAYS["ours"], 4, 5, None))
    clients = ("threads", local_cluster.address)
    state, seen = None, Counter[int]()
    for number, leg in enumerate(legs):
        ranks, states = run(leg, data, clients[number % 2], state)
        seen.update(rows_of(ranks).keys())
        state = states[0]
    assert seen == Counter(order)
