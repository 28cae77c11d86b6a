"""Our DataLoader with a device, pinned memory or a progress bar."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import get_worker_info

from dask_loader import ConfigError, DataLoader, ParquetDataset

OPTIONS = {
    "client": "threads",
    "batch_size": 50,
    "shuffle_window": 40,
    "shuffle": True,
}
WORKERS = pytest.mark.parametrize("num_workers", [0, 2])
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs no CUDA")


def dataset_of(path: Path, **options: Any) -> ParquetDataset:
    # Not a fixture: pytest would keep it alive until after the leak check.
    return ParquetDataset(path, **{**OPTIONS, **options})


def onto(device: Any, dataset: ParquetDataset, **options: Any) -> DataLoader:
    """A loader that copies to a device of the tests' own."""
    loader = DataLoader(dataset, **options)
    # Not "cuda", which is not here; what lies behind is replaced as a whole.
    loader._device, loader._backend = torch.device("cuda"), device
    return loader


def same(one: Any, other: Any) -> bool:
    return list(one) == list(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one.values(), other.values(), strict=True)
    )


# ---- batches on a device ------------------------------------------------------------


@WORKERS
@pytest.mark.parametrize("prefetch", [1, 2, 30])
@pytest.mark.parametrize("pin_memory", [None, False])
def test_batches_on_a_device_are_the_batches(
    small_data, gated_device, num_workers, prefetch, pin_memory
):
    # Little memory, so that slabs are used again at once; copies as late as can be.
    with dataset_of(small_data, batch_size=7, memory_limit="64 KiB") as dataset:
        wanted = list(dataset)
        dataset.set_epoch(0)
        loader = onto(
            gated_device,
            dataset,
            num_workers=num_workers,
            prefetch_batches=prefetch,
            pin_memory=pin_memory,
        )
        got = list(loader)
        assert len(got) == len(loader) == len(wanted)
        gated_device.finish()
        assert all(same(a, b) for a, b in zip(got, wanted, strict=True))
        assert bool(gated_device.buffers) is (pin_memory is None)
        del loader


@WORKERS
def test_only_batches_handed_out_count_for_the_state(
    small_data, gated_device, num_workers
):
    with dataset_of(small_data) as dataset:
        plain = []
        for _ in dataset:
            plain.append(dataset.state_dict())
        dataset.set_epoch(0)
        loader = onto(
            gated_device, dataset, num_workers=num_workers, prefetch_batches=4
        )
        states = []
        for _ in loader:
            states.append(loader.state_dict())
        assert states == plain
        del loader


@WORKERS
@pytest.mark.parametrize("cut", [1, 7, 20, 21])
def test_a_run_goes_on_with_the_batch_after_the_last_that_was_handed_out(
    small_data, gated_device, num_workers, cut
):
    with dataset_of(small_data) as dataset:
        wanted = [batch["id"].tolist() for batch in dataset]
        dataset.set_epoch(0)
        loader = onto(gated_device, dataset, num_workers=num_workers)
        for number, _ in enumerate(loader):
            if number == cut - 1:
                break
        state = loader.state_dict()
    with dataset_of(small_data) as dataset:
        loader = onto(gated_device, dataset, num_workers=num_workers)
        loader.load_state_dict(state)
        got = list(loader)
        gated_device.finish()
        rest = wanted[cut:] or [batch["id"].tolist() for batch in again(small_data, 1)]
        assert [batch["id"].tolist() for batch in got] == rest
        del loader


def again(path: Path, epoch: int) -> list[Any]:
    with dataset_of(path) as dataset:
        dataset.set_epoch(epoch)
        return list(dataset)


@WORKERS
def test_after_an_early_break_no_copy_is_under_way_and_the_next_epoch_is_whole(
    small_data, gated_device, num_workers
):
    wanted = again(small_data, 1)
    with dataset_of(small_data) as dataset:
        loader = onto(gated_device, dataset, num_workers=num_workers)
        assert len(next(iter(loader))["id"]) == 50
        assert not gated_device._side  # every copy was waited for
        got = list(loader)
        gated_device.finish()
        assert all(same(a, b) for a, b in zip(got, wanted, strict=True))
        del loader


@WORKERS
def test_features_that_lie_transposed_arrive_in_one_piece(
    small_data, gated_device, num_workers
):
    # In order and with one split, they are cut out of windows with gaps between columns.
    columns = ["id", "f32", "i16", "name"]
    features = {"x": ["f32", "i16"]}
    options = {"columns": columns, "features": features, "shuffle": False}
    with dataset_of(small_data, **options) as dataset:
        wanted = list(dataset)
        dataset.set_epoch(0)
        loader = onto(gated_device, dataset, num_workers=num_workers)
        got = list(loader)
        gated_device.finish()
        assert all(same(a, b) for a, b in zip(got, wanted, strict=True))
        assert got[0]["x"].shape == (50, 2)
        assert got[0]["x"].T.is_contiguous()
        del loader


def test_nested_tensors_are_made_of_what_was_copied(tmp_path, gated_device):
    rows = [list(range(i % 4)) for i in range(40)]
    pq.write_table(pa.table({"x": rows}), tmp_path / "a.parquet")
    options = {"shuffle": False, "batch_size": 8, "ragged": "nested"}
    with dataset_of(tmp_path, **options) as dataset:
        loader = onto(gated_device, dataset)
        got = [batch["x"] for batch in loader]
        gated_device.finish()
        assert {column.layout for column in got} == {torch.jagged}
        assert [row.tolist() for column in got for row in column.unbind()] == rows
        del loader, got


def test_with_workers_none_of_torchs_threads_pins_what_they_send(
    small_data, gated_device
):
    with dataset_of(small_data) as dataset:
        loader = onto(gated_device, dataset, num_workers=2, persistent_workers=True)
        loader.pin_memory = True
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch's, where there is no accelerator
            for _ in range(2):
                assert len(list(loader)) == 21
                assert loader.pin_memory is True
        del loader


def test_the_cpu_is_a_device_on_which_batches_are_already(small_data):
    with dataset_of(small_data) as dataset:
        wanted = list(dataset)
        for device in ("cpu", torch.device("cpu")):
            dataset.set_epoch(0)
            got = list(DataLoader(dataset, device=device))
            assert all(same(a, b) for a, b in zip(got, wanted, strict=True))


# ---- what it refuses ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": "nothing"}, "device='nothing' is none that batches can be copied"),
        ({"device": "cpu:3"}, "device='cpu:3' does not exist here"),
        ({"pin_memory": "yes"}, "pin_memory='yes' must be True, False or None"),
        ({"pin_memory": 1}, "pin_memory=1 must be True, False or None"),
        ({"prefetch_batches": 0}, "prefetch_batches=0 must be a whole number from 1"),
        ({"prefetch_batches": 1.5}, "prefetch_batches=1.5 must be a whole number"),
        ({"prefetch_batches": True}, "prefetch_batches=True must be a whole number"),
        ({"prefetch_batches": None}, "prefetch_batches=None must be a whole number"),
        ({"progress": 1}, "progress=1 must be True or False"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(small_data, options, text):
    with dataset_of(small_data) as dataset:
        with pytest.raises(ConfigError, match=re.escape(text)):
            DataLoader(dataset, **options)


@no_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda", 1)])
def test_cuda_without_cuda_is_refused_when_the_loader_is_made(small_data, device):
    with dataset_of(small_data) as dataset:
        text = re.escape(f"device={device!r} does not exist here")
        with pytest.raises(ConfigError, match=text):
            DataLoader(dataset, device=device)


@no_cuda
@WORKERS
def test_pinning_without_cuda_only_warns_and_once(small_data, num_workers):
    with dataset_of(small_data) as dataset:
        wanted = list(dataset)
        dataset.set_epoch(0)
        with pytest.warns(UserWarning, match="pin_memory=True changes nothing") as told:
            loader = DataLoader(dataset, pin_memory=True, num_workers=num_workers)
        assert [Path(w.filename).name for w in told] == [Path(__file__).name]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = list(loader)
        assert all(same(a, b) for a, b in zip(got, wanted, strict=True))
        del loader


# ---- frameworks that make a loader anew ---------------------------------------------


def make_anew(loader: DataLoader) -> DataLoader:
    """Make another of the same arguments as frameworks do: from public attributes."""
    names = set(inspect.signature(TorchDataLoader.__init__).parameters)
    names |= set(inspect.signature(type(loader).__init__).parameters)
    names -= {"self", "dataset", "torch_options"}
    found = {n: v for n, v in vars(loader).items() if n in names}
    return type(loader)(loader.dataset, **found)


def test_a_loader_can_be_made_anew_from_its_attributes(small_data):
    options = {
        "num_workers": 0,
        "pin_memory": False,
        "device": "cpu",
        "prefetch_batches": 5,
        "progress": False,
    }
    with dataset_of(small_data) as dataset:
        for given in ({}, options):
            again = make_anew(make_anew(DataLoader(dataset, **given)))
            wanted = DataLoader(dataset, **given)
            for name in options:
                assert getattr(again, name) == getattr(wanted, name)
            assert getattr(again, "device", 0) == given.get("device")
            del again, wanted


def test_workers_of_a_loader_made_anew_read_the_epoch_it_announces(
    small_data, tmp_path
):
    def init(worker_id: int) -> None:
        info = get_worker_info()
        with (tmp_path / "told").open("a") as file:
            file.write(f"{worker_id} of {info.num_workers}\n")

    with dataset_of(small_data) as dataset:
        dataset.set_epoch(1)
        wanted = again(small_data, 1)
        loader = make_anew(DataLoader(dataset, num_workers=2, worker_init_fn=init))
        got = list(loader)
        assert all(same(a, b) for a, b in zip(got, wanted, strict=True))
        del loader
    lines = (tmp_path / "told").read_text().splitlines()
    assert sorted(lines) == ["0 of 2", "1 of 2"]


# ---- progress -----------------------------------------------------------------------


@WORKERS
def test_progress_draws_the_epoch_on_stderr_and_counts_the_same(
    small_data, capsys, num_workers
):
    with dataset_of(small_data) as dataset:
        wanted = list(dataset)
        dataset.set_epoch(0)
        loader = DataLoader(dataset, progress=True, num_workers=num_workers)
        got = []
        for number, batch in enumerate(loader):
            got.append(batch)
            if number == 2:
                state = loader.state_dict()
        assert all(same(a, b) for a, b in zip(got, wanted, strict=True))
        loader.load_state_dict(state)
        assert len(list(loader)) == 18
        del loader
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "epoch 0" in shown.err
    assert "21/21" in shown.err
    assert "18/18" in shown.err
    assert re.search(r"[\d,]+ rows/s, waiting \d+%", shown.err)


def test_progress_is_drawn_on_rank_0_only(small_data, capsys):
    with dataset_of(small_data, rank=1, world_size=2) as dataset:
        list(DataLoader(dataset, progress=True))
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_time_waited_for_dataloader_workers_is_in_the_stats(small_data):
    with dataset_of(small_data) as dataset:
        list(DataLoader(dataset, num_workers=1))
        assert 0 < dataset.stats()["wait_s"] <= dataset.stats()["total_s"]


# ---- with CUDA ----------------------------------------------------------------------


@needs_cuda
@WORKERS
@pytest.mark.parametrize("pin_memory", [None, True, False])
def test_on_cuda_batches_are_the_batches(small_data, num_workers, pin_memory):
    with dataset_of(small_data, batch_size=7, memory_limit="64 KiB") as dataset:
        wanted = list(dataset)
        dataset.set_epoch(0)
        loader = DataLoader(
            dataset, num_workers=num_workers, device="cuda", pin_memory=pin_memory
        )
        got = list(loader)
        assert {b["id"].device.type for b in got} == {"cuda"}
        moved = [
            {n: v.cpu() if isinstance(v, torch.Tensor) else v for n, v in b.items()}
            for b in got
        ]
        assert all(same(a, b) for a, b in zip(moved, wanted, strict=True))
        del loader


@needs_cuda
@WORKERS
def test_with_cuda_batches_can_be_had_in_pinned_memory(small_data, num_workers):
    with dataset_of(small_data) as dataset:
        wanted = list(dataset)
        dataset.set_epoch(0)
        loader = DataLoader(dataset, pin_memory=True, num_workers=num_workers)
        for batch, want in zip(loader, wanted, strict=True):
            assert same(batch, want)
            assert all(
                v.is_pinned() for v in batch.values() if isinstance(v, torch.Tensor)
            )
        del loader


def test_every_option_of_the_loader_is_documented_and_the_other_way_round():
    listed: Callable[..., Any] = DataLoader
    options = list(inspect.signature(listed).parameters)
    text = (DataLoader.__doc__ or "").split("Args:")[1].split("Raises:")[0]
    assert [n.strip("*") for n in re.findall(r"^ {8}([\w*]+): ", text, re.M)] == options
