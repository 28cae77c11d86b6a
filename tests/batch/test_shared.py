"""Windows between DataLoader workers and the main process, through real workers."""

from __future__ import annotations

import gc
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from dask_loader import DataLoader as OurLoader
from dask_loader import ParquetDataset
from dask_loader.batch.shared import Outbox, Sent, SentError, forget_slabs, receive
from dask_loader.catalog.forms import Form
from dask_loader.errors import NullError, WindowError
from dask_loader.transfer.places import MemfdPlace
from dask_loader.transfer.shared import SharedPool
from dask_loader.transfer.window import WindowData, block_bytes, lay_out

Make = Callable[..., WindowData]

FORMS = (
    Form("x", "int64"),
    Form("h", "float16"),
    Form("flag", "bool"),
    Form("y", "int64"),
    Form("l", "uint16", (3, 2)),
    Form("s", ""),
)
ROWS = 4001
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _no_slab_stays_mapped() -> Iterator[None]:
    yield
    gc.collect()
    forget_slabs()
    assert num_mapped() == 0


def num_mapped() -> int:
    """How many slabs this process has mapped."""
    maps = Path("/proc/self/maps").read_text()
    return sum("memfd:dask-loader" in line for line in maps.splitlines())


def fill(window: WindowData, number: int) -> WindowData:
    for array in window.arrays.values():
        array[...] = number % 2 if array.dtype == bool else number
    window.texts["s"] = pa.array([f"text {number}"] * window.num_rows)
    return window


def is_filled(window: WindowData, number: int) -> bool:
    assert list(window.arrays) == [f.name for f in sorted_forms() if f.is_fixed]
    for form in FORMS[:-1]:
        array = window.arrays[form.name]
        assert (array.dtype, array.shape) == (form.dtype, (ROWS, *form.shape))
        assert array.flags.writeable
        if not (array == (number % 2 if form.dtype == "bool" else number)).all():
            return False
    return window.texts["s"].to_pylist() == [f"text {number}"] * ROWS


def sorted_forms() -> list[Form]:
    return sorted(FORMS, key=lambda form: (form.dtype, form.shape))


class Windows(IterableDataset[Any]):
    """Sends windows as our own DataLoader's workers do; slabs last as long as they."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pool: SharedPool | None = None

    def __iter__(self) -> Iterator[Any]:
        if self.pool is None:
            self.pool, self.outbox = SharedPool(MemfdPlace(), 64 * MIB), Outbox()
        for number in range(self.count):
            block, home = self.pool.lease_new(block_bytes(FORMS, ROWS))
            window = WindowData(ROWS, lay_out(FORMS, ROWS, block), home=home)
            sent = self.outbox.send(fill(window, number))
            del window, block
            yield sent


def _same(item: Any) -> Any:
    return item


def loader_of(dataset: Any, **options: Any) -> DataLoader[Any]:
    options = {"num_workers": 1, "multiprocessing_context": "fork", **options}
    return DataLoader(dataset, batch_size=None, collate_fn=_same, **options)


# ---- windows in slabs --------------------------------------------------------------


def test_windows_arrive_in_order_and_whole() -> None:
    for number, sent in enumerate(loader_of(Windows(9))):
        window = receive(sent)
        assert sent.home is not None
        assert is_filled(window, number)
        for group in window.groups:
            assert group.block.ctypes.data % 64 == 0


def test_a_worker_makes_few_slabs_while_nothing_is_kept() -> None:
    nonces = set()
    for number, sent in enumerate(loader_of(Windows(60), prefetch_factor=2)):
        nonces.add(sent.home.nonce)
        assert is_filled(receive(sent), number)
    # Two sent ahead, one in hand, one being made, one that is noticed late.
    assert len(nonces) <= 5


@pytest.mark.parametrize("keep", ["tensor", "array", "window", "sent"])
def test_a_slab_is_not_filled_again_while_one_tensor_over_it_is_held(keep: str) -> None:
    kept: Any = None
    nonces = []
    batches = iter(loader_of(Windows(60)))
    for number, sent in enumerate(batches):
        nonces.append(sent.home.nonce)
        if number < 20 and number != 3:
            continue
        if number == 3:
            window: Any = sent if keep == "sent" else receive(sent)
            kept = window
            if keep == "array":
                kept = window.arrays["l"][7:9]
            elif keep == "tensor":
                kept = torch.from_numpy(window.arrays["x"][7:9])
            del window
        if number == 40:
            assert nonces[3] not in nonces[4:]
            if keep == "sent":
                assert is_filled(receive(kept), 3)
            elif keep == "window":
                assert is_filled(kept, 3)
            else:
                assert (kept == 3).all()
            kept = None
    assert len(nonces) == 60
    assert nonces[3] in nonces[41:]


def test_what_is_received_is_the_receivers_to_write() -> None:
    windows = [receive(sent) for sent in loader_of(Windows(4))]
    for array in windows[1].arrays.values():
        array[...] = 1
    for number in (0, 2, 3):
        assert is_filled(windows[number], number)


def test_a_sent_window_that_nobody_opens_gives_its_slab_back() -> None:
    nonces = {sent.home.nonce for sent in loader_of(Windows(60))}
    assert len(nonces) <= 5


def test_windows_stay_readable_after_their_worker_has_ended() -> None:
    windows = [receive(sent) for sent in loader_of(Windows(6))]
    gc.collect()
    for number, window in enumerate(windows):
        assert is_filled(window, number)


@pytest.mark.parametrize("persistent", [False, True])
def test_iterations_that_are_abandoned_leave_no_slab_in_use(persistent: bool) -> None:
    loader = loader_of(Windows(50), persistent_workers=persistent, prefetch_factor=4)
    nonces = set()
    for _ in range(8):
        items = iter(loader)
        for number in range(5):
            sent = next(items)
            nonces.add(sent.home.nonce)
            assert is_filled(receive(sent), number)
        del items, sent
    numbers = []
    for number, sent in enumerate(loader):
        numbers.append(number)
        nonces.add(sent.home.nonce)
        assert is_filled(receive(sent), number)
    assert numbers == list(range(50))
    if persistent:
        assert len(nonces) <= 8
    del loader, sent


# ---- other windows -----------------------------------------------------------------


class Given(IterableDataset[Any]):
    """Sends windows that are made before, in private memory."""

    def __init__(self, windows: list[WindowData]) -> None:
        self.windows = windows

    def __iter__(self) -> Iterator[Any]:
        outbox = Outbox()
        for window in self.windows:
            yield outbox.send(window)
        yield SentError(NullError("nulls here", path="/f", row_group=3, column="x"))


def test_windows_in_private_memory_and_of_texts_alone_arrive_too(
    make_window: Make,
) -> None:
    windows = [
        make_window(
            {"x": [3, 4], "h": np.zeros((2, 3), "f2")}, {"s": pa.array(["z"] * 2)}
        ),
        make_window({}, {"s": pa.array(["a", None]), "b": pa.array([b"\xff", b""])}),
        make_window({"x": np.empty((0, 3), "f4")}, {"s": pa.array([], pa.string())}),
    ]
    *items, last = list(loader_of(Given(windows)))
    for item, sent in zip(items, windows, strict=True):
        assert item.home is None
        received = receive(item)
        assert received.num_rows == sent.num_rows
        assert list(received.arrays) == list(sent.arrays)
        for name, array in received.arrays.items():
            assert array.dtype == sent.arrays[name].dtype
            np.testing.assert_array_equal(array, sent.arrays[name])
            array[...] = 7
        assert {n: t.to_pylist() for n, t in received.texts.items()} == {
            n: t.to_pylist() for n, t in sent.texts.items()
        }
    assert type(last.error) is NullError
    assert str(last.error) == "nulls here"
    error = last.error
    assert (error.path, error.row_group, error.column) == ("/f", 3, "x")


def test_texts_alone_are_sent_even_if_their_window_has_a_slab(
    make_window: Make,
) -> None:
    pool = SharedPool(MemfdPlace(), 4 * MIB)
    _, home = pool.lease_new(0)
    window = make_window({}, {"s": pa.array(["a", "b"])})
    window.home = home
    sent = pickle.loads(pickle.dumps(Outbox().send(window)))
    assert receive(sent).texts["s"].to_pylist() == ["a", "b"]
    pool.close()


# ---- faults ------------------------------------------------------------------------


@pytest.mark.faults
def test_a_worker_that_is_killed_is_an_error_and_what_it_sent_stays_readable() -> None:
    items = iter(loader_of(Windows(10_000)))
    windows = [receive(next(items)) for _ in range(3)]
    (worker,) = items._workers  # type: ignore[attr-defined]
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"DataLoader worker .*(killed|exited)"):
        for _ in range(10_000):
            next(items)
    for number, window in enumerate(windows):
        assert is_filled(window, number)


def sent_from(pool: SharedPool) -> Sent:
    block, home = pool.lease_new(block_bytes(FORMS, ROWS))
    window = WindowData(ROWS, lay_out(FORMS, ROWS, block), home=home)
    return Outbox().send(fill(window, 1))


def test_a_window_whose_worker_has_died_before_it_arrived_is_an_error() -> None:
    pool = SharedPool(MemfdPlace(), 4 * MIB)
    sent = sent_from(pool)
    packed = pickle.dumps(sent)
    path = sent.home.path  # type: ignore[union-attr]
    pool.close()
    with pytest.raises(WindowError) as caught:
        receive(pickle.loads(packed))
    assert str(caught.value) == (
        "a window in shared memory of a DataLoader worker could not be opened "
        f"({path!r}); the worker died, or runs as another user"
    )


def test_slabs_are_unmapped_once_they_are_forgotten() -> None:
    windows = [receive(sent) for sent in loader_of(Windows(3))]
    assert num_mapped() >= 1
    forget_slabs()
    assert num_mapped() >= 1  # the windows look at them
    del windows
    gc.collect()
    forget_slabs()
    assert num_mapped() == 0


# ---- through our own loader --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("persistent", [False, True])
def test_our_loader_gives_the_same_batches_with_workers_also_after_a_break(
    small_data: Path, context: str, persistent: bool
) -> None:
    options: Any = {"batch_size": 16, "shuffle": True, "shuffle_window": 70}
    with ParquetDataset(small_data, client="threads", **options) as dataset:
        wanted = list(dataset)
        dataset.set_epoch(0)
        loader = OurLoader(
            dataset,
            num_workers=2,
            multiprocessing_context=context,
            persistent_workers=persistent,
        )
        for stop in (3, 11, 1000):
            loader.set_epoch(0)
            got = []
            for batch in loader:
                got.append(batch)
                if len(got) == stop:
                    break
            for mine, theirs in zip(got, wanted, strict=False):
                for name, column in theirs.items():
                    if isinstance(column, torch.Tensor):
                        assert torch.equal(mine[name], column)
                    else:
                        assert mine[name] == column
        assert len(got) == len(wanted)
        del loader
