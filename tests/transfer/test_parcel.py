"""Windows through pickle and through Dask."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from dask.sizeof import sizeof
from distributed.comm import connect, listen
from distributed.protocol import Serialize, deserialize, serialize

from dask_loader.transfer.parcel import Parcel
from dask_loader.transfer.texts import pack_texts, unpack_texts
from dask_loader.transfer.window import WindowData

Make = Callable[..., WindowData]


@pytest.fixture
def window(make_window: Make) -> WindowData:
    """Every kind of column."""
    arrays = {
        "x": np.arange(1001, dtype=np.int64),
        "y": np.arange(1001, dtype=np.int64) * 3,
        "h": np.linspace(0, 1, 1001).astype(np.float16),
        "b": np.arange(1001) % 3 == 0,
        "l": np.arange(6006, dtype=np.uint16).reshape(1001, 3, 2),
        "u": np.arange(1001, dtype=np.uint64) + 2**63,
    }
    words = [None if i % 7 == 0 else f"wörd {i}" for i in range(1001)]
    texts = {
        "s": pa.array(words),
        "wide": pa.array(words, pa.large_string()),
        "bytes": pa.array([b"\xff" * (i % 4) for i in range(1001)]),
        "fixed": pa.array([b"abc"] * 1001, pa.binary(3)),
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
    assert list(received.texts) == list(sent.texts)
    for name, text in sent.texts.items():
        assert received.texts[name].type == text.type
        assert received.texts[name].equals(text)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_parcel_survives_every_pickle(window: WindowData, protocol: int) -> None:
    check(pickle.loads(pickle.dumps(Parcel(window), protocol)).open(), window)


@pytest.mark.parametrize("odd", [0, 1, 3])
def test_its_bytes_go_out_of_band_and_come_back_aligned(
    window: WindowData, odd: int
) -> None:
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(Parcel(window), 5, buffer_callback=buffers.append)
    assert len(head) < 1000
    total = sum(buffer.raw().nbytes for buffer in buffers)
    assert window.num_bytes <= total < window.num_bytes * 1.1 + 4000
    arrived = []
    for buffer in buffers:  # as from a wire: each somewhere in a larger piece of memory
        raw = buffer.raw()
        memory = memoryview(bytearray(raw.nbytes + odd))[odd:]
        memory[:] = raw
        arrived.append(memory)
    check(pickle.loads(head, buffers=arrived).open(), window)
    frozen = [bytes(buffer.raw()) for buffer in buffers]
    check(pickle.loads(head, buffers=frozen).open(), window)


def test_a_parcel_survives_dasks_serialization(window: WindowData) -> None:
    header, frames = serialize(Parcel(window))
    assert header["serializer"] == "pickle"
    received = deserialize(header, [bytearray(frame) for frame in frames])
    check(received.open(), window)


def test_over_a_real_connection_it_arrives_aligned_and_writable(
    window: WindowData,
) -> None:
    async def send_over_tcp() -> Any:
        async def answer(comm: Any) -> None:
            await comm.read()
            await comm.write({"parcel": Serialize(Parcel(window))})
            await comm.close()

        async with listen("tcp://127.0.0.1", answer) as listener:
            comm = await connect(listener.contact_address)
            await comm.write("send")
            message = await comm.read()
            await comm.close()
            return message["parcel"]

    received = asyncio.run(asyncio.wait_for(send_over_tcp(), 30))
    check(getattr(received, "data", received).open(), window)


def test_an_empty_window_travels(make_window: Make) -> None:
    empty = make_window({"x": np.empty((0, 3), "f4")}, {"s": pa.array([], pa.string())})
    for protocol in (4, 5):
        received = pickle.loads(pickle.dumps(Parcel(empty), protocol)).open()
        assert received.arrays["x"].shape == (0, 3)
        assert received.texts["s"].to_pylist() == []
    texts = make_window({}, {"s": pa.array(["a"])})
    assert (
        pickle.loads(pickle.dumps(Parcel(texts), 5)).open().texts["s"][0].as_py() == "a"
    )


def test_writing_into_what_arrived_changes_nothing_that_was_sent(
    window: WindowData,
) -> None:
    received = pickle.loads(pickle.dumps(Parcel(window), 5)).open()
    for array in received.arrays.values():
        array[...] = 1
    assert window.arrays["x"].tolist() == list(range(1001))


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.binary(100)],
)
def test_a_slice_of_a_text_does_not_ship_its_parent(kind: pa.DataType) -> None:
    parent = pa.array([f"{i:0100}" for i in range(10_000)]).cast(pa.binary()).cast(kind)
    piece = parent.slice(5000, 10)
    packed = pack_texts({"s": piece})
    assert packed.size < 10 * 110 + 1000
    assert unpack_texts(packed)["s"].equals(piece)
    buffers: list[pickle.PickleBuffer] = []
    window = WindowData(10, texts={"s": piece})
    pickle.dumps(Parcel(window), 5, buffer_callback=buffers.append)
    assert sum(buffer.raw().nbytes for buffer in buffers) < 10 * 110 + 1100


def test_unpacked_texts_are_views_on_what_arrived() -> None:
    packed = pack_texts({"s": pa.array(["abc"] * 100)})
    text = unpack_texts(packed)["s"]
    start, stop = packed.address, packed.address + packed.size
    assert start <= text.buffers()[2].address < stop


def test_dask_is_told_the_bytes(window: WindowData) -> None:
    parcel = Parcel(window)
    assert window.num_bytes <= sizeof(parcel) <= window.num_bytes + 1000
    assert parcel.open() is window
