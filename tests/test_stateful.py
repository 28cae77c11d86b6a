"""torchdata's StatefulDataLoader over a ParquetDataset, and its state made one of ours."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from dask_loader import (
    DataLoader,
    ParquetDataset,
    ResumeError,
    from_stateful_dataloader,
)
from tests.torch_workers import end_workers

ROWS, STEPS = 317, 11  # 10 batches of 30 and one of 17
Ids = list[list[int]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("stateful") / "a.parquet"
    pq.write_table(pa.table({"id": range(ROWS)}), path, row_group_size=50)
    return str(path)


def make(data: str, **options: Any) -> ParquetDataset:
    defaults = {"shuffle": True, "shuffle_window": 40, "batch_size": 30}
    return ParquetDataset(data, client="threads", **{**defaults, **options})


def loader_of(
    dataset: ParquetDataset, *, num_workers: int = 0, **options: Any
) -> StatefulDataLoader:
    options = {"batch_size": None, **options}
    return StatefulDataLoader(dataset, num_workers=num_workers, **options)


def ids(batches: Any) -> Ids:
    return [batch["id"].tolist() for batch in batches]


def through_json(state: Any) -> Any:
    return json.loads(json.dumps(state))


def whole(data: str, epochs: int = 2, **options: Any) -> list[Ids]:
    with make(data, **options) as dataset:
        return [ids(dataset) for _ in range(epochs)]


def state_at(loader: StatefulDataLoader, steps: int) -> tuple[Ids, Any]:
    batches = iter(loader)
    taken = ids(islice(batches, steps))
    state = through_json(loader.state_dict())
    del batches
    return taken, state


@pytest.mark.parametrize("cut", range(STEPS + 1))
def test_without_workers_each_cut_goes_on_where_it_was(data: str, cut: int) -> None:
    first, second = whole(data)
    with make(data) as dataset:
        taken, state = state_at(loader_of(dataset), cut)
        assert taken == first[:cut]
    with make(data) as dataset:
        loader = loader_of(dataset)
        loader.load_state_dict(state)
        if cut < STEPS:  # of an epoch at its end nothing comes, not even an empty one
            assert ids(loader) == first[cut:]
        assert ids(loader) == second


def test_the_state_of_an_ended_epoch_begins_the_next(data: str) -> None:
    second, third = whole(data, 3)[1:]
    with make(data) as dataset:
        loader = loader_of(dataset)
        ids(loader)
        state = through_json(loader.state_dict())
    assert state["_iterator_finished"]
    with make(data) as dataset:
        loader = loader_of(dataset)
        loader.load_state_dict(state)
        assert ids(loader) == second  # begun twice, since the state says it ended
        assert ids(loader) == third


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("cut", [0, 1, 4, 10, 11])
def test_two_workers_go_on_where_they_were(data: str, cut: int, every: int) -> None:
    first, second = whole(data)
    options = {"num_workers": 2, "snapshot_every_n_steps": every}
    with make(data) as dataset:
        taken, state = state_at(loader_of(dataset, **options), cut)
        assert taken == first[:cut]
    with make(data) as dataset:
        loader = loader_of(dataset, **options)
        loader.load_state_dict(state)
        again = state_at(loader, 0)[1]  # asked for before anything is taken
        assert from_stateful_dataloader(again) == from_stateful_dataloader(state)
        loader.load_state_dict(state)
        assert ids(loader) == first[cut:]
        assert ids(loader) == second


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_persistent_workers_resume_of_a_resume_and_end(data: str, context: str) -> None:
    first, second, third = whole(data, 3)
    options = {"num_workers": 2, "persistent_workers": True}
    options["multiprocessing_context"] = context
    state, seen = None, []
    # A worker takes seconds to spawn.
    for steps in (3, 2, 4) if context == "fork" else (9,):
        with make(data) as dataset:
            loader = loader_of(dataset, **options)
            if state is not None:
                loader.load_state_dict(state)
            taken, state = state_at(loader, steps)
            seen += taken
            del loader
    assert seen == first[:9]
    with make(data) as dataset:
        loader = loader_of(dataset, **options)
        loader.load_state_dict(state)
        assert ids(loader) == first[9:]
        ended = through_json(loader.state_dict())
        assert ids(loader) == second
        del loader
    with make(data) as dataset:
        loader = loader_of(dataset, **options)
        loader.load_state_dict(ended)
        assert ids(loader) == second
        assert ids(loader) == third
        del loader


@pytest.mark.parametrize("cut", [0, 1, 9, 45, 46])
def test_single_rows_go_on_within_a_step(data: str, cut: int) -> None:
    options = {"batch_size": None, "rank": 1, "world_size": 2}
    batching = {"batch_size": 7}

    def rows_of(loader: Any) -> list[int]:
        return [i for batch in loader for i in batch["id"].tolist()]

    with make(data, **options) as dataset:
        loader = loader_of(dataset, **batching)
        first, second = rows_of(loader), rows_of(loader)
        assert len(first) == 159
    with make(data, **options) as dataset:
        loader = loader_of(dataset, **batching)
        batches = iter(loader)
        taken = rows_of(islice(batches, min(cut, 23)))
        state = through_json(loader.state_dict())
        del batches
    assert taken == first[: len(taken)]
    with make(data, **options) as dataset:
        loader = loader_of(dataset, **batching)
        loader.load_state_dict(state)
        assert rows_of(loader) == first[len(taken) :] or not first[len(taken) :]
        assert rows_of(loader) == second or not first[len(taken) :]


@pytest.mark.slow
def test_single_rows_with_workers_go_on_within_a_step(data: str) -> None:
    options = {"batch_size": None}
    batching = {"batch_size": 7, "num_workers": 2}
    with make(data, **options) as dataset:
        loader = loader_of(dataset, **batching)
        batches = iter(loader)
        taken, state = ids(islice(batches, 12)), through_json(loader.state_dict())
        left = ids(batches)
        del batches
    assert sorted(i for b in taken + left for i in b) == list(range(ROWS))
    with make(data, **options) as dataset:
        loader = loader_of(dataset, **batching)
        loader.load_state_dict(state)
        assert ids(loader) == left


def test_rows_of_more_steps_than_one_are_skipped_by_steps(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(5000)}), tmp_path / "a.parquet")
    with make(str(tmp_path), batch_size=None) as dataset:
        first = [int(row["id"]) for row in dataset]
    with make(str(tmp_path), batch_size=None) as dataset:
        rows = iter(dataset)
        taken = [int(row["id"]) for row in islice(rows, 2500)]
        state = dataset.state_dict()
        del rows
    with make(str(tmp_path), batch_size=None) as dataset:
        dataset.load_state_dict(state)
        assert taken + [int(row["id"]) for row in dataset] == first
        # Two whole steps of 1,024 rows were not read again.
        assert dataset.stats()["rows"] == 5000 - 2048
        assert len([*dataset]) == 5000  # the next epoch


# ---- a state of ours from it ------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_its_state_becomes_one_that_fits_any_topology(
    data: str, num_workers: int
) -> None:
    first, _ = whole(data)
    with make(data) as dataset:
        loader = loader_of(dataset, num_workers=num_workers, snapshot_every_n_steps=3)
        taken, state = state_at(loader, 7)
    ours = from_stateful_dataloader(state)
    left = set()
    for rank in range(3):
        with make(data, rank=rank, world_size=3, batch_size=10) as dataset:
            loader = DataLoader(dataset)
            loader.load_state_dict(ours)
            left |= {i for batch in ids(loader) for i in batch}
    assert taken == first[:7]
    assert left == {i for batch in first[7:] for i in batch}
    with make(data) as dataset:
        batches = iter(dataset)
        ids(islice(batches, 7))
        assert dataset.state_dict() == ours


def test_what_is_none_of_its_states_is_refused(data: str) -> None:
    with pytest.raises(ResumeError, match="3 is not a state of a StatefulDataLoader"):
        from_stateful_dataloader(3)  # type: ignore[arg-type]
    with pytest.raises(
        ResumeError, match=r"KeyError\('dataset_state'\) is what it lacks"
    ):
        from_stateful_dataloader({"epoch": 3})
    with pytest.raises(ResumeError, match="dataset was not a ParquetDataset"):
        from_stateful_dataloader({"dataset_state": {"at": 7}})
    with make(data, batch_size=None) as dataset:
        with pytest.raises(
            ResumeError, match=r"single rows .* cannot become one of st"
        ):
            from_stateful_dataloader({"dataset_state": dataset.state_dict()})


def part_state(data: str, **options: Any) -> dict[str, Any]:
    with make(data, batch_size=None, **options) as dataset:
        state: dict[str, Any] = dataset.state_dict()
        return state


def test_states_of_workers_that_do_not_belong_together_are_refused(data: str) -> None:
    part = part_state(data)
    part["part"] = {**part["part"], "batch_size": 30, "num_workers": 2}
    other = {**part, "part": {**part["part"], "worker": 1}}
    workers = {
        "worker_0": {"dataset_state": part},
        "worker_1": {"dataset_state": other},
    }
    state = {
        "_snapshot": {"_worker_snapshots": workers},
        "_steps_since_snapshot": 0,
    }
    assert from_stateful_dataloader(state)["rows"] == 0
    for damaged in ({**other, "epoch": 9}, part):
        workers["worker_1"] = {"dataset_state": damaged}
        with pytest.raises(ResumeError, match="not those of one run's 2 workers"):
            from_stateful_dataloader(state)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 1, "world_size": 2}, "made with rank=0, here it is 1"),
        ({"rank": 0, "world_size": 3}, "made with world_size=2, here it is 3"),
        ({"rank": 0, "world_size": 2, "seed": 4}, "another seed"),
        ({"rank": 0, "world_size": 2, "num_splits": 7}, "cannot be dealt anew"),
    ],
)
def test_a_state_of_rows_fits_its_own_rank_only(
    data: str, options: dict[str, Any], text: str
) -> None:
    state = part_state(data, rank=0, world_size=2)
    with make(data, batch_size=None, **options) as dataset:
        with pytest.raises(ResumeError, match=text):
            dataset.load_state_dict(state)


def test_states_of_rows_and_of_batches_are_not_taken_for_each_other(data: str) -> None:
    rows = part_state(data)
    with make(data) as dataset:
        with pytest.raises(
            ResumeError, match="that of one DataLoader worker of Stateful"
        ):
            dataset.load_state_dict(rows)
        batches = dataset.state_dict()
    with make(data, batch_size=None) as dataset:
        with pytest.raises(
            ResumeError, match="the state is that of a whole run, but a"
        ):
            dataset.load_state_dict(batches)
        with pytest.raises(ResumeError, match="is not a state of a ParquetDataset"):
            dataset.load_state_dict({"part": {}})


@pytest.mark.parametrize("part", [None, {}, {"items": 1}])
def test_a_damaged_part_is_refused(data: str, part: Any) -> None:
    state = {**part_state(data), "part": part}
    with make(data, batch_size=None) as dataset:
        with pytest.raises(ResumeError, match=r"the state has part=.*; it is damaged"):
            dataset.load_state_dict(state)


@pytest.mark.parametrize("part", [None, {}, {"items": 1}])
def test_a_damaged_part_of_its_state_is_refused(data: str, part: Any) -> None:
    state = {**part_state(data), "part": part}
    with pytest.raises(ResumeError, match=r"the state has part=.*; it is damaged"):
        from_stateful_dataloader({"dataset_state": state})


def test_its_state_without_its_rows_is_refused(data: str) -> None:
    state = part_state(data)
    state["part"] = {**state["part"], "batch_size": 30, "num_workers": 1}
    del state["rows"]
    with pytest.raises(ResumeError, match=r"workers is damaged: KeyError\('rows'\)"):
        from_stateful_dataloader({"dataset_state": state})


@pytest.mark.parametrize("items", [-1, True, "3", None])
def test_damaged_items_are_refused(data: str, items: Any) -> None:
    state = part_state(data)
    state["part"]["items"] = items
    with make(data, batch_size=None) as dataset:
        with pytest.raises(ResumeError, match=r"the state has part=.*; it is damaged"):
            dataset.load_state_dict(state)


def test_a_state_of_rows_is_not_for_workers(data: str) -> None:
    with make(data, batch_size=None) as dataset:
        rows = iter(dataset)
        next(rows)
        state = dataset.state_dict()
        del rows
        dataset.load_state_dict(state)
        loader = loader_of(dataset, batch_size=7, num_workers=1)
        with pytest.raises(
            ResumeError, match="made with num_workers=0, here num_workers"
        ):
            next(iter(loader))
        end_workers()
