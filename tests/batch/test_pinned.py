"""What of host memory is pinned, and how the rest becomes so."""

from __future__ import annotations

import os
from collections import namedtuple
from itertools import pairwise

import numpy as np
import pytest
import torch

from dask_loader.batch.pinned import (
    CudaPins,
    PinnedBlocks,
    empty_pinned,
    map_tensors,
    pin_copy,
    stage,
    tensors_of,
)

Jagged = namedtuple("Jagged", ["values", "offsets"])

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


class Pins:
    """Pins that only write down what is asked of them."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.log: list[tuple[str, int]] = []
        self._refuses = refuses

    def pin(self, address: int, num_bytes: int) -> bool:
        self.log.append(("pin", address))
        return not self._refuses and num_bytes > 0

    def unpin(self, address: int) -> None:
        self.log.append(("unpin", address))


class Allocator:
    """Gives blocks full of rubbish."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, num_bytes: int) -> torch.Tensor:
        self.sizes.append(num_bytes)
        return torch.full((num_bytes,), 0xA5, dtype=torch.uint8)


@pytest.fixture
def allocate() -> Allocator:
    return Allocator()


def over(block: np.ndarray) -> PinnedBlocks:
    blocks = PinnedBlocks(Pins())
    blocks.register(block.ctypes.data, block.nbytes)
    return blocks


def mixed_batch() -> dict:
    return {
        "a": torch.arange(5, dtype=torch.int16),
        "text": ["x", "y"],
        "b": torch.rand(3, 4, dtype=torch.float64),
        "flag": torch.tensor([True, False, True]),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7),
        "half": torch.rand(7).to(torch.float16),
        "jagged": Jagged(torch.arange(6), torch.tensor([0, 2, 6])),
    }


# ---- which blocks are pinned --------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop", "pinned"),
    [(0, 64, True), (8, 16, True), (56, 64, True), (64, 72, False), (56, 72, False)],
)
def test_a_tensor_is_covered_where_all_of_it_lies_in_one_block(start, stop, pinned):
    memory = np.zeros(128, dtype=np.uint8)
    tensor = torch.from_numpy(memory)[start:stop]
    assert over(memory[:64]).covers(tensor) is pinned
    assert over(memory[:64]).covers(tensor.view(torch.int64)) is pinned


def test_two_blocks_side_by_side_do_not_cover_what_lies_over_both():
    memory = np.zeros(128, dtype=np.uint8)
    blocks = over(memory[:64])
    blocks.register(memory[64:].ctypes.data, 64)
    tensor = torch.from_numpy(memory)
    assert blocks.num_bytes == 128
    assert blocks.covers(tensor[:64])
    assert blocks.covers(tensor[64:])
    assert not blocks.covers(tensor[32:96])


def test_what_lies_transposed_is_covered_and_what_has_gaps_is_not():
    memory = np.zeros((8, 8), dtype=np.uint8)
    blocks, tensor = over(memory), torch.from_numpy(memory)
    assert blocks.covers(tensor.T)
    assert blocks.covers(tensor[2:4].T)
    assert not blocks.covers(tensor[:, 2:4])
    assert not blocks.covers(tensor[:, 2:4].T)
    assert not blocks.covers(tensor[::2])


def test_nothing_at_all_is_always_covered():
    assert PinnedBlocks(None).covers(torch.empty(0, 3))


def test_a_block_is_pinned_once_and_let_go_of_once():
    pins = Pins()
    blocks = PinnedBlocks(pins)
    blocks.register(4096, 100)
    blocks.unregister(4096)
    blocks.unregister(4096)
    assert pins.log == [("pin", 4096), ("unpin", 4096)]
    assert blocks.num_bytes == 0


def test_a_block_that_cannot_be_pinned_is_no_pinned_block():
    memory = np.zeros(64, dtype=np.uint8)
    pins = Pins(refuses=True)
    blocks = PinnedBlocks(pins)
    blocks.register(memory.ctypes.data, 64)
    assert not blocks.covers(torch.from_numpy(memory))
    blocks.unregister(memory.ctypes.data)
    assert pins.log == [("pin", memory.ctypes.data)]


def test_without_pins_nothing_is_ever_pinned():
    memory = np.zeros(64, dtype=np.uint8)
    blocks = PinnedBlocks(None)
    blocks.register(memory.ctypes.data, 64)
    assert not blocks.covers(torch.from_numpy(memory))
    blocks.unregister(memory.ctypes.data)


def test_a_forked_child_has_no_pinned_memory_and_lets_go_of_none():
    memory = np.zeros(64, dtype=np.uint8)
    pins = Pins()
    blocks = PinnedBlocks(pins)
    blocks.register(memory.ctypes.data, 64)
    child = os.fork()
    if child == 0:
        try:
            covered = blocks.covers(torch.from_numpy(memory))
            blocks.register(1 << 20, 64)
            blocks.unregister(memory.ctypes.data)
            os._exit(0 if not covered and len(pins.log) == 1 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert blocks.covers(torch.from_numpy(memory))


# ---- copies into pinned memory ------------------------------------------------------


def equal(one: dict, other: dict) -> bool:
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def test_a_staged_batch_is_the_same_batch_in_one_buffer(allocate):
    batch = mixed_batch()
    staged = stage(batch, blocks=PinnedBlocks(None), allocate=allocate)
    assert list(staged) == list(batch)
    assert equal(staged, batch)
    assert staged["text"] is batch["text"]
    assert type(staged["jagged"]) is Jagged
    assert len(allocate.sizes) == 1
    parts = [t for t in tensors_of(staged) if t.numel()]
    assert len({t.untyped_storage().data_ptr() for t in parts}) == 1
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in parts)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert all(first % 64 == 0 for first, _ in spans)
    assert spans[-1][1] - spans[0][0] <= allocate.sizes[0]


def test_only_what_is_not_pinned_is_copied(allocate):
    memory = np.arange(64, dtype=np.uint8)
    batch = {"in": torch.from_numpy(memory)[8:16], "out": torch.arange(3)}
    staged = stage(batch, blocks=over(memory), allocate=allocate)
    assert staged["in"] is batch["in"]
    assert allocate.sizes == [64]
    assert torch.equal(staged["out"], batch["out"])
    assert staged["out"].data_ptr() != batch["out"].data_ptr()


def test_a_batch_that_is_pinned_as_a_whole_stays_as_it_is(allocate):
    memory = np.arange(64, dtype=np.uint8)
    batch = {"in": torch.from_numpy(memory), "text": ["x"]}
    assert stage(batch, blocks=over(memory), allocate=allocate) is batch
    assert allocate.sizes == []


@pytest.mark.parametrize("cut", [np.s_[:, 2:7], np.s_[::3], np.s_[1:, ::2], np.s_[2:3]])
@pytest.mark.parametrize("transposed", [False, True])
def test_gaps_are_left_out_and_the_order_of_strides_stays(allocate, cut, transposed):
    matrix = torch.arange(81, dtype=torch.float32).reshape(9, 9)[cut]
    matrix = matrix.T if transposed else matrix
    staged = stage({"x": matrix}, blocks=PinnedBlocks(None), allocate=allocate)["x"]
    assert torch.equal(staged, matrix)
    plain = torch.empty_like(matrix)
    assert staged.is_contiguous() == plain.is_contiguous()
    assert staged.T.is_contiguous() == plain.T.is_contiguous()


def test_a_pinned_copy_has_memory_of_its_own_for_each_column(allocate):
    batch = mixed_batch()
    copy = pin_copy(batch, allocate=allocate)
    assert list(copy) == list(batch)
    assert equal(copy, batch)
    assert copy["text"] is batch["text"]
    tensors = list(tensors_of(batch))
    assert allocate.sizes == [t.nbytes for t in tensors]
    for tensor in tensors_of(copy):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_each_tensor_is_replaced_and_nothing_else():
    batch = mixed_batch()
    doubled = map_tensors(batch, lambda t: torch.cat([t.flatten(), t.flatten()]))
    assert [len(t) for t in tensors_of(doubled)] == [
        2 * t.numel() for t in tensors_of(batch)
    ]
    assert doubled["text"] is batch["text"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_device_torch_pins_no_memory():
    with pytest.raises(RuntimeError, match="pin"):
        empty_pinned(64)


# ---- with CUDA ----------------------------------------------------------------------


@needs_cuda
def test_cuda_registers_a_block_once_and_lets_go_of_it():
    memory = np.zeros(1 << 20, dtype=np.uint8)
    tensor = torch.from_numpy(memory)
    pins = CudaPins(torch.device("cuda", 0))
    assert not tensor.is_pinned()
    assert pins.pin(memory.ctypes.data, memory.nbytes)
    assert tensor.is_pinned()
    assert not pins.pin(memory.ctypes.data, memory.nbytes)
    # The refusal is not left over for the next kernel.
    assert torch.ones(8, device="cuda").sum().item() == 8
    pins.unpin(memory.ctypes.data)
    assert not tensor.is_pinned()
    pins.unpin(memory.ctypes.data)
    assert torch.ones(8, device="cuda").sum().item() == 8


@needs_cuda
def test_pinned_memory_is_torchs_and_on_the_host_whatever_the_default_device():
    torch.set_default_device("cuda")
    try:
        buffer = empty_pinned(100)
    finally:
        torch.set_default_device(None)
    assert buffer.is_pinned()
    assert buffer.device.type == "cpu"
