"""Going on from a checkpoint: nothing twice, nothing lost, at any topology."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.utils.data

from dask_loader import ConfigError, DataLoader, ParquetDataset, ResumeError
from tests.torch_workers import end_workers

ROWS, STEP_ROWS = 1013, 60
Ids = list[list[int]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("resume") / "a.parquet"
    table = pa.table({"id": range(ROWS), "x": [0.5] * ROWS})
    pq.write_table(table, path, row_group_size=50)
    return str(path)


def make(data: str, **options: Any) -> ParquetDataset:
    defaults = {"columns": ["id"], "shuffle": True, "shuffle_window": 70}
    return ParquetDataset(data, client="threads", **{**defaults, **options})


def ids(batches: Any) -> Ids:
    return [batch["id"].tolist() for batch in batches]


def read(
    data: str, world_size: int, state: Any = None, num_workers: int = 0
) -> list[Ids]:
    """Return each rank's batches with global batches of STEP_ROWS rows."""
    ranks = []
    for rank in range(world_size):
        size = STEP_ROWS // world_size
        with make(data, rank=rank, world_size=world_size, batch_size=size) as dataset:
            loader = DataLoader(dataset, num_workers=num_workers)
            if state is not None:
                loader.load_state_dict(state)
            ranks.append(ids(loader))
    return ranks


def global_batches(ranks: list[Ids]) -> list[set[int]]:
    return [set().union(*step) for step in zip(*ranks, strict=True)]


def state_after(data: str, steps: int, **options: Any) -> dict[str, Any]:
    with make(data, rank=0, world_size=2, batch_size=30, **options) as dataset:
        batches: Iterator[Any] = iter(dataset)
        assert len(list(islice(batches, steps))) == steps
        return json.loads(json.dumps(dataset.state_dict()))


@pytest.mark.parametrize("cut", [0, 1, 9, 16])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_same_global_batches_follow_at_any_world_size(
    data: str, cut: int, world_size: int
) -> None:
    whole = global_batches(read(data, 2))
    rest = global_batches(read(data, world_size, state_after(data, cut)))
    assert rest == whole[cut:]


def test_a_state_is_the_same_on_every_rank_and_with_workers(data: str) -> None:
    states = set()
    for rank in range(2):
        for num_workers in (0, 2):
            with make(data, rank=rank, world_size=2, batch_size=30) as dataset:
                loader = DataLoader(dataset, num_workers=num_workers)
                batches = iter(loader)
                for _ in range(5):  # workers have read ahead of these
                    next(batches)
                states.add(json.dumps(loader.state_dict()))
                del batches
    assert len(states) == 1
    assert json.loads(states.pop())["rows"] == 5 * STEP_ROWS


def test_workers_go_on_from_a_state_as_the_main_process_does(data: str) -> None:
    state = state_after(data, 7)
    assert read(data, 2, state, num_workers=2) == read(data, 2, state)


def test_a_resume_of_a_resume_loses_and_repeats_nothing(data: str) -> None:
    seen: list[int] = []
    state = None
    for world_size in (2, 3, 1, 4, 2):
        parts, states = [], set()
        for rank in range(world_size):
            size = STEP_ROWS // world_size
            with make(
                data, rank=rank, world_size=world_size, batch_size=size
            ) as dataset:
                if state is not None:
                    dataset.load_state_dict(state)
                parts += ids(islice(dataset, 3))
                states.add(json.dumps(dataset.state_dict()))
        (text,) = states
        state = json.loads(text)
        seen += [i for part in parts for i in part]
    rest = [i for rank in read(data, 1, state) for batch in rank for i in batch]
    assert sorted(seen + rest) == list(range(ROWS))


def test_another_global_batch_size_warns_and_takes_the_rows_left(data: str) -> None:
    state = state_after(data, 4)
    done = {i for rank in read(data, 2) for batch in rank[:4] for i in batch}
    left: list[int] = []
    for rank in range(3):
        with make(
            data, rank=rank, world_size=3, batch_size=7, uneven="exact"
        ) as dataset:
            with pytest.warns(UserWarning, match="batches of 60 rows, this run has 21"):
                dataset.load_state_dict(state)
            left += [i for batch in ids(dataset) for i in batch]
    assert sorted(left) == sorted(set(range(ROWS)) - done)


def test_after_the_end_of_an_epoch_the_next_one_begins(data: str) -> None:
    state = state_after(data, 17)
    assert (state["epoch"], state["rows"]) == (0, ROWS)
    with make(data, batch_size=60) as dataset:
        dataset.set_epoch(1)
        dataset.load_state_dict(state)
        assert dataset.state_dict()["epoch"] == 1
        resumed = ids(dataset)
    with make(data, batch_size=60, num_splits=state["stages"][0][1]) as dataset:
        dataset.set_epoch(1)
        assert resumed == ids(dataset)


def test_of_an_ended_epoch_nothing_comes_again_where_it_is_said_to_go_on(
    data: str,
) -> None:
    # As in: for epoch in range(saved_epoch, ...): set_epoch(epoch); for batch in loader
    state = state_after(data, 17)
    with make(data, batch_size=60) as dataset:
        dataset.set_epoch(1)
        second = ids(dataset)
        dataset.load_state_dict(state)
        dataset.set_epoch(0)
        assert ids(dataset) == []
        dataset.set_epoch(1)
        assert ids(dataset) == second
        dataset.load_state_dict(state)
        assert dataset.state_dict()["epoch"] == 1
        dataset.set_epoch(4)
        dataset.set_epoch(0)
        assert len(ids(dataset)) == 17  # asked for anew


def test_what_drop_last_leaves_off_is_the_end_of_an_epoch(data: str) -> None:
    with make(data, batch_size=30, rank=0, world_size=2) as dataset:
        assert len(ids(islice(dataset, 16))) == 16
        state = dataset.state_dict()
    assert state["rows"] == 16 * STEP_ROWS < ROWS
    with make(data, batch_size=60, drop_last=True) as dataset:
        dataset.load_state_dict(state)
        assert dataset.state_dict()["epoch"] == 1


@pytest.mark.parametrize("uneven", ["drop", "pad", "exact"])
def test_a_finished_epoch_is_finished_whatever_was_left_off(
    data: str, uneven: Any
) -> None:
    with make(data, rank=1, world_size=2, batch_size=30, uneven=uneven) as dataset:
        list(dataset)
        assert dataset.state_dict()["rows"] == ROWS


def test_set_epoch_with_the_loaded_epoch_keeps_the_position(data: str) -> None:
    state = state_after(data, 5)
    with make(data, rank=0, world_size=2, batch_size=30) as dataset:
        dataset.load_state_dict(state)
        dataset.set_epoch(0)  # as frameworks do after loading
        assert len(ids(dataset)) == 17 - 5
        assert len(ids(dataset)) == 17  # the next epoch is a whole one
        dataset.load_state_dict(state)
        with pytest.warns(
            UserWarning, match=r"set_epoch\(3\) drops the position .* epoch 0: what was"
        ):
            dataset.set_epoch(3)
        assert len(ids(dataset)) == 17


@pytest.mark.parametrize("num_workers", [0, 2])
def test_seek_goes_to_a_step_with_torchs_own_dataloader(
    data: str, num_workers: int
) -> None:
    with make(data, rank=1, world_size=2, batch_size=30) as dataset:
        dataset.set_epoch(3)
        whole = ids(dataset)
        dataset.seek(3, 6)
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=None, num_workers=num_workers
        )
        assert ids(loader) == whole[6:]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is dropped
            dataset.set_epoch(4)


@pytest.mark.parametrize("step", [-1, 18, 1.5, True])
def test_seeking_outside_of_the_epoch_is_refused(data: str, step: Any) -> None:
    with make(data, rank=0, world_size=2, batch_size=30) as dataset:
        with pytest.raises(ConfigError, match=f"step={step!r} must be .* 0 to 17"):
            dataset.seek(0, step)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seed": 1}, "another seed"),
        ({"columns": ["id", "x"]}, "other columns"),
        ({"filters": [("id", ">", 3)]}, "other filters"),
        ({"shuffle_window": 71}, "another shuffle_window"),
        ({"shuffle": False}, "another shuffle"),
    ],
)
def test_a_state_of_another_dataset_is_refused(
    data: str, options: dict[str, Any], text: str
) -> None:
    state = state_after(data, 2)
    with make(data, batch_size=60, **options) as dataset:
        with pytest.raises(ResumeError, match=text):
            dataset.load_state_dict(state)


def test_a_copy_of_the_files_is_the_same_data(data: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(Path(data).read_bytes())
    with make(str(copy), rank=0, world_size=2, batch_size=30) as dataset:
        dataset.load_state_dict(state_after(data, 2))
        assert ids(dataset) == read(data, 2)[0][2:]


def test_rows_have_no_steps_to_seek(data: str) -> None:
    with make(data, batch_size=None) as dataset:
        with pytest.raises(
            ConfigError, match=r"seek.* needs a dataset with a batch_size"
        ):
            dataset.seek(0, 1)


def seek_in_worker(worker_id: int) -> None:
    del worker_id
    torch.utils.data.get_worker_info().dataset.seek(0, 1)


def test_a_dataloader_worker_does_not_seek(data: str) -> None:
    with make(data, batch_size=60) as dataset:
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=None, num_workers=2, worker_init_fn=seek_in_worker
        )
        with pytest.raises(
            ConfigError, match=r"seek.* was called in a DataLoader worker"
        ):
            next(iter(loader))
        end_workers()


# ---- files that changed, or only look as if -------------------------------------------


def test_files_written_again_are_refused_unless_not_strict(
    data: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(Path(data).read_bytes())
    state = state_after(str(path), 2)
    os.utime(path, ns=(1, 1))
    with make(str(path), rank=0, world_size=2, batch_size=30) as dataset:
        with pytest.raises(ResumeError, match="written again since"):
            dataset.load_state_dict(state)
        with pytest.warns(UserWarning, match="written again since.*order is the same"):
            dataset.load_state_dict(state, strict=False)
        assert ids(dataset) == read(data, 2)[0][2:]


@pytest.mark.parametrize("strict", [True, False])
def test_files_with_other_content_or_another_number_are_refused(
    tmp_path: Path, strict: bool
) -> None:
    table = pa.table({"id": range(100), "x": [0.5] * 100})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    state = state_after(str(tmp_path), 1)
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=50)
    with make(str(tmp_path), batch_size=60) as dataset:
        with pytest.raises(ResumeError, match="num_files was 1 and is 2"):
            dataset.load_state_dict(state, strict=strict)
    (tmp_path / "b.parquet").unlink()
    other = table.set_column(0, "id", [list(range(1, 101))])
    pq.write_table(other, tmp_path / "a.parquet", row_group_size=50)
    with make(str(tmp_path), batch_size=60) as dataset:
        with pytest.raises(ResumeError, match="files with other content"):
            dataset.load_state_dict(state, strict=strict)


def test_other_columns_are_harmless_where_windows_count_rows(data: str) -> None:
    state = state_after(data, 3)
    with make(
        data, rank=0, world_size=2, batch_size=30, columns=["id", "x"]
    ) as dataset:
        with pytest.warns(UserWarning, match="other columns.*the order is the same"):
            dataset.load_state_dict(state, strict=False)
        assert ids(dataset) == read(data, 2)[0][3:]


# ---- another num_splits -----------------------------------------------------------------


def rest_of(data: str, state: Any, world_size: int, **options: Any) -> list[Ids]:
    ranks = []
    for rank in range(world_size):
        size = STEP_ROWS // world_size
        with (
            make(
                data, rank=rank, world_size=world_size, batch_size=size, **options
            ) as dataset,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            dataset.load_state_dict(state)
            ranks.append(ids(dataset))
    return ranks


@pytest.mark.parametrize("cut", [0, 1, 9, 16])
@pytest.mark.parametrize("num_splits", [1, 3, 8])
def test_another_num_splits_deals_the_rows_left_anew(
    data: str, num_splits: int, cut: int
) -> None:
    done = {i for rank in read(data, 2) for batch in rank[:cut] for i in batch}
    state = state_after(data, cut)
    by_world = [
        global_batches(rest_of(data, state, world_size, num_splits=num_splits))
        for world_size in (1, 2, 3)
    ]
    assert set().union(*by_world[0]) == set(range(ROWS)) - done
    assert sum(map(len, by_world[0])) == ROWS - len(done)
    assert by_world[0] == by_world[1] == by_world[2]


def test_a_recut_is_told_of_and_kept_in_the_state(data: str) -> None:
    with make(data, rank=0, world_size=2, batch_size=30, num_splits=5) as dataset:
        with pytest.warns(
            UserWarning, match="num_splits=2, this dataset has num_spl.*=5"
        ):
            dataset.load_state_dict(state_after(data, 4))
        batches = iter(dataset)
        next(batches)
        state = dataset.state_dict()
        assert state["stages"] == [[0, 2], [4 * STEP_ROWS, 5]]
        left = ids(batches)
        fresh = ids(dataset)  # the next epoch is cut in 5 from its begin
    with make(data, rank=0, world_size=2, batch_size=30) as other:
        other.load_state_dict(json.loads(json.dumps(state)))  # keeps the state's stages
        assert ids(other) == left
        assert ids(other) == fresh
        assert other.state_dict()["stages"] == [[0, 5]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_recut_of_a_recut_loses_and_repeats_nothing(
    data: str, num_workers: int
) -> None:
    seen: list[int] = []
    state = None
    for world_size, num_splits in ((2, 2), (3, 7), (1, 3), (4, 4), (2, 8)):
        states = set()
        for rank in range(world_size):
            with (
                make(
                    data,
                    rank=rank,
                    world_size=world_size,
                    batch_size=STEP_ROWS // world_size,
                    num_splits=num_splits,
                ) as dataset,
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                loader = DataLoader(dataset, num_workers=num_workers)
                if state is not None:
                    loader.load_state_dict(state)
                batches = iter(loader)
                seen += [i for batch in ids(islice(batches, 3)) for i in batch]
                states.add(json.dumps(loader.state_dict()))
                del batches
        (text,) = states
        state = json.loads(text)
    assert [n for _, n in state["stages"]] == [2, 7, 3, 4, 8]
    rest = [i for rank in rest_of(data, state, 1) for batch in rank for i in batch]
    assert sorted(seen + rest) == list(range(ROWS))


def test_more_recuts_than_there_are_places_for_are_refused(data: str) -> None:
    state = state_after(data, 4)
    state["stages"] = [[i, 2 + i % 2] for i in range(64)]
    with make(data, rank=0, world_size=2, batch_size=30, num_splits=9) as dataset:
        with pytest.warns(UserWarning, match="dealt anew"):
            with pytest.raises(ResumeError, match="num_splits=9 would be the 65th"):
                dataset.load_state_dict(state)


def test_the_state_is_that_of_the_batch_handed_out_last(data: str) -> None:
    with make(data, rank=0, world_size=2, batch_size=30) as dataset:
        batches = iter(dataset)
        next(batches)
        dataset.set_epoch(7)
        assert dataset.state_dict()["epoch"] == 7
        next(batches)  # a loop that goes on all the same
        state = dataset.state_dict()
        assert (state["epoch"], state["rows"]) == (0, 2 * STEP_ROWS)
        del batches


def test_a_loader_seeks_as_its_dataset_does(data: str) -> None:
    with make(data, rank=1, world_size=2, batch_size=30) as dataset:
        dataset.set_epoch(2)
        whole = ids(dataset)
        loader = DataLoader(dataset)
        loader.seek(2, 16)
        assert ids(loader) == whole[16:]
        loader.seek(2, 3)  # again, to look at a step
        assert next(iter(loader))["id"].tolist() == whole[3]
