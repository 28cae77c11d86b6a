"""Our DataLoader, and torch's own, over a ParquetDataset."""

from __future__ import annotations

import os
import pickle
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from dask_loader import (
    BadFileError,
    ConfigError,
    DataChangedError,
    DataLoader,
    ParquetDataset,
)
from tests.torch_workers import end_workers

NUM_ROWS = 1009
OPTIONS = {"client": "threads", "batch_size": 50, "shuffle_window": 40}


def ids(batches: Any) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def dataset_of(path: Path, **options: Any) -> ParquetDataset:
    # Not a fixture: pytest would keep it alive until after the leak check.
    return ParquetDataset(path, **{**OPTIONS, "shuffle": True, **options})


def epochs_of(path: Path, *numbers: int, **options: Any) -> list[list[list[int]]]:
    with dataset_of(path, **options) as dataset:
        found = []
        for number in numbers:
            dataset.set_epoch(number)
            found.append(ids(dataset))
        return found


def ours(dataset: ParquetDataset, **options: Any) -> DataLoader:
    return DataLoader(dataset, **options)


def torchs(dataset: ParquetDataset, **options: Any) -> TorchDataLoader:
    return TorchDataLoader(dataset, batch_size=None, **options)


def torchdatas(dataset: ParquetDataset, **options: Any) -> StatefulDataLoader:
    return StatefulDataLoader(dataset, batch_size=None, **options)


slow = pytest.mark.slow
EACH = pytest.mark.parametrize("make", [ours, torchs, torchdatas])
BOTH = pytest.mark.parametrize("make", [ours, torchs])
# Workers come up by fork in hundredths of a second, by spawn in seconds, so those stay.
WAYS = [
    pytest.param({}, id="no workers"),
    pytest.param({"num_workers": 2}, id="fork"),
    pytest.param({"num_workers": 2, "persistent_workers": True}, id="fork, persistent"),
    pytest.param(
        {
            "num_workers": 2,
            "multiprocessing_context": "spawn",
            "persistent_workers": True,
        },
        id="spawn, persistent",
        marks=slow,
    ),
]


# ---- epochs -------------------------------------------------------------------------


@pytest.mark.parametrize("options", WAYS)
@EACH
def test_each_iteration_is_the_next_epoch_unless_one_is_set(small_data, make, options):
    wanted = epochs_of(small_data, 0, 1, 2)
    with dataset_of(small_data) as dataset:
        loader = make(dataset, **options)
        assert [ids(loader) for _ in range(2)] == wanted[:2]
        dataset.set_epoch(1)
        assert [ids(loader) for _ in range(2)] == wanted[1:]
        del loader


@pytest.mark.slow
def test_workers_of_a_fork_server_come_to_the_same_epochs(small_data):
    wanted = epochs_of(small_data, 0, 1)
    with dataset_of(small_data) as dataset:
        loader = ours(dataset, num_workers=2, multiprocessing_context="forkserver")
        assert [ids(loader) for _ in range(2)] == wanted
        del loader


@BOTH
@pytest.mark.parametrize("options", WAYS)
def test_after_an_early_break_the_next_iteration_is_a_whole_new_epoch(
    small_data, make, options
):
    wanted = epochs_of(small_data, 0, 1, 5)
    with dataset_of(small_data) as dataset:
        loader = make(dataset, **options)
        for batch in loader:
            assert batch["id"].tolist() == wanted[0][0]
            break
        assert ids(loader) == wanted[1]
        for number, _ in enumerate(loader):
            if number == 7:
                break
        dataset.set_epoch(5)
        assert ids(loader) == wanted[2]
        del loader


def test_epochs_are_counted_over_loaders_with_different_workers(small_data):
    wanted = epochs_of(small_data, 0, 1, 2, 3, 4)
    with dataset_of(small_data) as dataset:
        got = [ids(dataset)]
        got.append(ids(DataLoader(dataset, num_workers=2)))
        got.append(ids(torchs(dataset, num_workers=2)))
        got.append(ids(torchs(dataset, num_workers=1)))
        got.append(ids(DataLoader(dataset)))
    assert got == wanted


def test_set_epoch_of_the_loader_is_the_datasets(small_data):
    (wanted,) = epochs_of(small_data, 3)
    with dataset_of(small_data) as dataset:
        loader = DataLoader(dataset)
        loader.set_epoch(3)
        assert ids(dataset) == wanted
        with pytest.raises(ConfigError, match="epoch=-1"):
            loader.set_epoch(-1)
        del loader


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_all_kinds_read_from_a_cluster(small_data, local_cluster, context):
    wanted = epochs_of(small_data, 0, 1)
    with dataset_of(small_data, client=local_cluster) as dataset:
        loader = DataLoader(dataset, num_workers=2, multiprocessing_context=context)
        assert [ids(loader), ids(loader)] == wanted
        del loader


# ---- what the loader is -------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_is_torchs_dataloader_with_the_dataset_as_given(small_data, num_workers):
    with dataset_of(small_data) as dataset:
        loader = DataLoader(dataset, num_workers=num_workers)
        assert isinstance(loader, TorchDataLoader)
        assert loader.dataset is dataset
        assert len(loader) == len(dataset) == 21
        assert loader.batch_size is None
        del loader


def test_accelerate_is_told_to_leave_it_alone(small_data):
    # Else half of the rows are lost on two ranks without a word. A private name of
    # Accelerate's, which a new version may change.
    with dataset_of(small_data) as dataset:
        assert DataLoader._is_accelerate_prepared is True
        assert DataLoader(dataset)._is_accelerate_prepared is True


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_plain_dicts_with_lists_left_alone(small_data, num_workers):
    with dataset_of(small_data) as dataset:
        for batch in DataLoader(dataset, num_workers=num_workers):
            assert type(batch) is dict
            assert type(batch["name"]) is list
            assert type(batch["raw"][0]) is bytes


def test_the_users_worker_init_fn_runs_in_each_worker(small_data, tmp_path):
    def init(worker_id: int) -> None:
        info = get_worker_info()
        (tmp_path / str(worker_id)).write_text(f"{info.num_workers} {os.getpid()}")

    with dataset_of(small_data) as dataset:
        list(DataLoader(dataset, num_workers=2, worker_init_fn=init))
    texts = [(tmp_path / name).read_text().split() for name in ("0", "1")]
    assert [text[0] for text in texts] == ["2", "2"]
    assert len({text[1] for text in texts} | {str(os.getpid())}) == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_torchs_other_options_pass_through(small_data, num_workers):
    wanted = epochs_of(small_data, 0)
    options = {"prefetch_factor": 3, "timeout": 60} if num_workers else {}
    with dataset_of(small_data) as dataset:
        loader = DataLoader(
            dataset, num_workers=num_workers, pin_memory=False, **options
        )
        assert [ids(loader)] == wanted
        del loader


def test_no_warning_where_batches_are_counted_exactly(small_data):
    with dataset_of(small_data, shuffle_window=300) as dataset:
        for loader in (DataLoader(dataset), DataLoader(dataset, num_workers=2)):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert len(loader) == len(list(loader))
        del loader


def test_an_empty_dataset_has_no_batches(tmp_path):
    pq.write_table(pa.table({"id": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    with dataset_of(tmp_path / "a.parquet") as dataset:
        assert list(DataLoader(dataset)) == []
        assert list(DataLoader(dataset, num_workers=2)) == []


def test_more_workers_than_windows_are_no_harm(small_data):
    wanted = epochs_of(small_data, 0, 1, shuffle_window=10_000, num_splits=1)
    with dataset_of(small_data, shuffle_window=10_000, num_splits=1) as dataset:
        assert dataset.stats()["windows"] == 0
        loader = DataLoader(dataset, num_workers=2)
        assert [ids(loader), ids(loader)] == wanted
        del loader


# ---- what it refuses ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 64}, "batch_size=64"),
        ({"shuffle": True}, "shuffle=True"),
        ({"drop_last": True}, "drop_last=True"),
    ],
)
def test_what_is_the_datasets_is_refused(small_data, options, named):
    with (
        dataset_of(small_data) as dataset,
        pytest.raises(
            ConfigError, match=f"{named} is the dataset's: give it to ParquetDataset"
        ),
    ):
        DataLoader(dataset, **options)


def test_the_empty_options_that_frameworks_pass_along_are_taken(small_data):
    with dataset_of(small_data) as dataset:
        loader = DataLoader(
            dataset,
            batch_size=None,
            shuffle=False,
            drop_last=False,
            sampler=None,
            batch_sampler=None,
            collate_fn=None,
        )
        assert len(ids(loader)) == 21
        del loader


def test_another_dataset_is_refused():
    with pytest.raises(ConfigError, match=r"dataset=\[1, 2\] is not a dask_loader"):
        DataLoader([1, 2])


def test_a_dataset_of_rows_is_refused(small_data):
    with (
        dataset_of(small_data, batch_size=None) as dataset,
        pytest.raises(ConfigError, match=r"single rows \(batch_size=None\); give it"),
    ):
        DataLoader(dataset)


def test_more_workers_than_can_be_counted_are_refused_by_name(small_data):
    with dataset_of(small_data) as dataset, pytest.raises(ConfigError, match="129"):
        dataset._course.begin_in_worker(dataset.world, 0, 129)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"batch_size": 64}])
def test_torchs_dataloader_may_not_batch_the_batches_again(
    small_data, num_workers, options
):
    with dataset_of(small_data) as dataset:
        loader = TorchDataLoader(dataset, num_workers=num_workers, **options)
        with pytest.raises(
            ConfigError, match=r"batches of 50 rows again; give the.*batch_size=None"
        ):
            next(iter(loader))
        end_workers()
        del loader


# ---- errors from workers ------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_file_that_vanished_arrives_as_our_error_with_its_fields(
    tmp_path, num_workers
):
    for part in ("a", "b"):
        pq.write_table(pa.table({"id": np.arange(100)}), tmp_path / f"{part}.parquet")
    with dataset_of(tmp_path, shuffle=False) as dataset:
        (tmp_path / "b.parquet").unlink()
        got = []
        with pytest.raises(DataChangedError, match=r"b\.parquet") as caught:
            for batch in DataLoader(dataset, num_workers=num_workers):
                got += batch["id"].tolist()
        end_workers()
        assert got == list(range(100))
        assert caught.value.path == str(tmp_path / "b.parquet")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_row_group_arrives_as_our_error_with_its_fields(
    tmp_path, num_workers
):
    path = tmp_path / "a.parquet"
    table = pa.table({"id": np.arange(300)})
    pq.write_table(
        table,
        path,
        row_group_size=50,
        use_dictionary=False,
        compression="none",
        write_page_checksum=True,
    )
    chunk = pq.read_metadata(path).row_group(3).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with dataset_of(path, shuffle=False) as dataset:
        loader = DataLoader(dataset, num_workers=num_workers)
        for _ in range(2):  # and again: nothing of the first failure is left over
            with pytest.raises(BadFileError, match="row group 3") as caught:
                ids(loader)
            end_workers()
            assert (caught.value.path, caught.value.row_group) == (str(path), 3)
        del loader


@pytest.mark.slow
@pytest.mark.cluster
def test_an_error_on_the_cluster_passes_a_dataloader_worker_with_its_fields(
    tmp_path, local_cluster
):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": np.arange(100)}), path)
    with dataset_of(path, client=local_cluster) as dataset:
        path.unlink()
        with pytest.raises(DataChangedError) as caught:
            ids(DataLoader(dataset, num_workers=2))
        end_workers()
        assert caught.value.path == str(path)


def test_torchs_own_workers_keep_the_class_and_the_text(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": np.arange(100)}), path)
    with dataset_of(path) as dataset:
        path.unlink()
        with pytest.raises(DataChangedError, match=r"a\.parquet"):
            ids(torchs(dataset, num_workers=2))
        end_workers()


def test_a_failed_epoch_with_persistent_workers_can_be_followed_by_a_whole_one(
    tmp_path,
):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": np.arange(100)}), path, row_group_size=20)
    stat = path.stat()
    content = path.read_bytes()
    with dataset_of(path, shuffle=False) as dataset:
        loader = DataLoader(dataset, num_workers=2, persistent_workers=True)
        path.unlink()
        with pytest.raises(DataChangedError):
            ids(loader)
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert list(chain.from_iterable(ids(loader))) == list(range(100))
        del loader
        end_workers()


# ---- tensors are the user's own -----------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "options", [{"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]
)
def test_writing_into_batches_from_workers_changes_no_other_batch(
    small_data, make, options
):
    with dataset_of(small_data, rank=0, world_size=3) as dataset:
        loader = make(dataset, **options)
        wanted = []
        for epoch in range(2):
            dataset.set_epoch(epoch)
            wanted.append([(b["id"].clone(), b["vec"].clone()) for b in loader])
        dataset.set_epoch(0)
        for want in wanted:
            for batch, (row_ids, vectors) in zip(loader, want, strict=True):
                assert torch.equal(batch["id"], row_ids)
                assert torch.equal(batch["vec"], vectors)
                batch["id"].zero_()
                batch["vec"].add_(1)
        del loader


@pytest.mark.parametrize("num_workers", [0, 2])
def test_kept_batches_stay_intact_while_iterating_on(small_data, num_workers):
    with dataset_of(small_data, batch_size=10, memory_limit="64 KiB") as dataset:
        wanted = ids(dataset)
        dataset.set_epoch(0)
        kept = list(DataLoader(dataset, num_workers=num_workers))
        list(DataLoader(dataset, num_workers=num_workers))
    assert ids(kept) == wanted


# ---- pickling -----------------------------------------------------------------------


def test_a_worker_gets_the_dataset_by_pickle_with_the_epoch_it_was_told(small_data):
    wanted = epochs_of(small_data, 4)
    with dataset_of(small_data) as dataset:
        dataset.set_epoch(4)
        with pickle.loads(pickle.dumps(dataset)) as copy:
            assert [ids(DataLoader(copy, num_workers=2))] == wanted


# ---- where torch has a dummy sampler -------------------------------------------------


@pytest.mark.parametrize("options", WAYS)
def test_the_sampler_may_be_told_the_epoch_before_and_just_after_iter(
    small_data, options
):
    wanted = epochs_of(small_data, 0, 2, 3, 5)
    with dataset_of(small_data) as dataset:
        loader = DataLoader(dataset, **options)
        first = iter(loader)
        loader.sampler.set_epoch(0)  # as Lightning does, which it is already
        assert ids(first) == wanted[0]
        loader.sampler.set_epoch(2)
        assert ids(loader) == wanted[1]
        assert ids(loader) == wanted[2]  # nothing told: the next one
        late = iter(loader)
        loader.sampler.set_epoch(5)
        assert ids(late) == wanted[3]
        assert loader.state_dict()["epoch"] == 5
        del loader, first, late


def test_a_loaded_position_stays_when_the_sampler_is_told_its_epoch(small_data):
    (wanted,) = epochs_of(small_data, 2)
    with dataset_of(small_data) as dataset:
        loader = DataLoader(dataset)
        loader.seek(2, 3)
        batches = iter(loader)
        loader.sampler.set_epoch(2)
        assert next(batches)["id"].tolist() == wanted[3]
        loader.sampler.set_epoch(3)  # too late for this iteration
        assert ids(batches) == wanted[4:]
        state = loader.state_dict()
        assert (state["epoch"], state["rows"]) == (2, NUM_ROWS)
        del loader, batches


def test_a_loader_made_anew_or_pickled_has_a_sampler_of_its_own(small_data):
    wanted = epochs_of(small_data, 1, 4)
    with dataset_of(small_data) as dataset:
        loader = DataLoader(dataset)
        again = DataLoader(dataset, sampler=loader.sampler)
        assert again.sampler is not loader.sampler
        again.sampler.set_epoch(1)
        assert ids(loader) == wanted[0]
        copy = pickle.loads(pickle.dumps(loader))
        with copy.dataset:
            copy.sampler.set_epoch(4)
            assert ids(copy) == wanted[1]
        del loader, again, copy
