"""Windows between processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.multiprocessing as mp
from torch.utils.data import DataLoader, IterableDataset

from dask_loader.batch.shared import Sent, SentError, receive, send
from dask_loader.errors import NullError
from dask_loader.transfer.window import WindowData

Make = Callable[..., WindowData]


@pytest.fixture
def window(make_window: Make) -> WindowData:
    """Every kind of column."""
    arrays = {
        "x": np.arange(101, dtype=np.int64),
        "h": np.linspace(0, 1, 101).astype(np.float16),
        "b": np.arange(101) % 3 == 0,
        "l": np.arange(606, dtype=np.uint16).reshape(101, 3, 2),
        "y": np.arange(101, dtype=np.int64) * 2,
    }
    texts = {
        "s": pa.array([None if i % 7 == 0 else f"wörd {i}" for i in range(101)]),
        "bytes": pa.array([b"\xff" * (i % 4) for i in range(101)], pa.large_binary()),
    }
    return make_window(arrays, texts)


def check(received: WindowData, sent: WindowData) -> None:
    assert received.num_rows == sent.num_rows
    assert list(received.arrays) == list(sent.arrays)
    for name, array in sent.arrays.items():
        other = received.arrays[name]
        assert (other.dtype, other.shape) == (array.dtype, array.shape)
        assert np.array_equal(other, array)
        assert other.flags.writeable
        assert other.ctypes.data % other.dtype.alignment == 0
        assert not np.shares_memory(other, array)
    assert {n: t.to_pylist() for n, t in received.texts.items()} == {
        n: t.to_pylist() for n, t in sent.texts.items()
    }


def test_a_window_is_sent_as_one_tensor_in_shared_memory(window: WindowData) -> None:
    sent = send(window)
    assert sent.block.is_shared()
    assert sent.block.dtype == torch.uint8
    assert sent.block.numel() >= sum(a.nbytes for a in window.arrays.values())
    check(receive(sent), window)


def test_what_is_received_is_the_receivers_own(window: WindowData) -> None:
    received = receive(send(window))
    received.arrays["x"][:] = 1
    assert window.arrays["x"].tolist() == list(range(101))


def test_windows_of_texts_alone_or_without_rows_are_sent_too(make_window: Make) -> None:
    texts = make_window({}, {"s": pa.array(["a", None])})
    assert receive(send(texts)).texts["s"].to_pylist() == ["a", None]
    numbers = make_window({"x": [1, 2]})
    received = receive(send(numbers))
    assert (received.arrays["x"].tolist(), received.texts) == ([1, 2], {})
    empty = make_window({"x": np.empty((0, 3), "f4")}, {"s": pa.array([], pa.string())})
    received = receive(send(empty))
    assert received.arrays["x"].shape == (0, 3)
    assert received.texts["s"].to_pylist() == []


def test_a_window_crosses_a_real_queue(window: WindowData) -> None:
    context = mp.get_context("fork")
    queue, received = context.Queue(), context.Event()
    process = context.Process(target=_put, args=(queue, received, window))
    process.start()
    sent: Sent = queue.get(timeout=60)
    received.set()
    process.join(60)
    assert process.exitcode == 0
    process.close()
    queue.close()
    queue.join_thread()
    check(receive(sent), window)


def _put(queue: Any, received: Any, window: WindowData) -> None:
    queue.put(send(window))
    assert received.wait(60)
    queue.close()
    queue.join_thread()


class Windows(IterableDataset[Any]):
    """Yields windows as our own DataLoader's workers do."""

    def __init__(self, windows: list[WindowData]) -> None:
        self.windows = windows

    def __iter__(self) -> Iterator[Any]:
        for window in self.windows:
            yield send(window)
        yield SentError(NullError("nulls here", path="/f", row_group=3, column="x"))


def _same(item: Any) -> Any:
    return item


def test_windows_and_errors_cross_from_a_dataloader_worker(
    window: WindowData, make_window: Make
) -> None:
    windows = [window, make_window({"x": [3]}), make_window({}, {"s": pa.array(["z"])})]
    loader = DataLoader(
        Windows(windows), batch_size=None, collate_fn=_same, num_workers=1
    )
    items = list(loader)
    for item, sent in zip(items[:-1], windows, strict=True):
        check(receive(item), sent)
    error = items[-1].error
    assert type(error) is NullError
    assert str(error) == "nulls here"
    assert (error.path, error.row_group, error.column) == ("/f", 3, "x")
