"""Host memory that a device reads by itself while this process goes on: pinned memory.

Copies to a CUDA device run beside everything else only from pinned memory. There are two
ways to have it. Slabs live long and are used again, so each is registered once where it
lies. Everything else is copied, in this thread, into pinned memory of torch's, which torch
keeps and uses again.

Registered memory is for copies that are made here and waited for. A tensor over it must
never reach a user: torch would take it for pinned, so that a `.to(device,
non_blocking=True)` of theirs might still read it when the tensor is gone and the slab is
in use again. torch puts off the next use of its own pinned memory only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

import torch

from dask_loader.batch.tensors import Batch

# A cache line, and more than any dtype needs.
_ALIGNMENT = 64
# cudaHostRegisterPortable: pinned for all devices of the process.
_PORTABLE = 1


class HostPins(Protocol):
    """Pins memory that is there already. Called from any thread."""

    def pin(self, address: int, num_bytes: int) -> bool:
        """Pin a block; False where that cannot be done."""
        ...

    def unpin(self, address: int) -> None:
        """Let go of a block that was pinned."""
        ...


class CudaPins:
    """HostPins by cudaHostRegister."""

    def __init__(self, device: torch.device) -> None:
        """Make the pins of a process that uses `device`."""
        self._device = device

    def pin(self, address: int, num_bytes: int) -> bool:
        """Pin a block; False where the driver refuses, for a limit of it or the system."""
        return self._call("cudaHostRegister", address, num_bytes, _PORTABLE)

    def unpin(self, address: int) -> None:
        """Let go of a block; waits for nothing."""
        self._call("cudaHostUnregister", address)

    def _call(self, function: str, *args: int) -> bool:
        # A thread begins at device 0, and the call would make a context there.
        with torch.cuda.device(self._device):
            runtime = torch.cuda.cudart()
            code = getattr(runtime, function)(*args)
            if code == runtime.cudaError.success:
                return True
            # The runtime keeps the failure for whoever asks next: this thread's next
            # kernel, which would be blamed for it.
            with suppress(RuntimeError):
                torch.zeros(1, device=self._device)
            return False


class PinnedBlocks:
    """Knows which memory is registered. Any thread may call anything here.

    One belongs to one pool of slabs, which calls register() once for each slab before the
    first tensor over it, and unregister() before the memory is unmapped. A forked child
    has no pinned memory: there it knows none and lets go of none.
    """

    def __init__(self, pins: HostPins | None) -> None:
        """Begin without any block. Without pins nothing is ever pinned."""
        self._pins = pins
        self._pid = os.getpid()
        # Single dict operations only: unregister() may run inside a garbage collection
        # that interrupts any other method, so a lock could be held by its own thread.
        self._sizes: dict[int, int] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes that are pinned."""
        return sum(self._sizes.copy().values())

    def register(self, address: int, num_bytes: int) -> None:
        """Pin a block, if that can be done; without it copies take the other way."""
        if self._pins is None or os.getpid() != self._pid:
            return
        if self._pins.pin(address, num_bytes):
            self._sizes[address] = num_bytes

    def unregister(self, address: int) -> None:
        """Forget a block, pinned or not. Nobody may still copy from it."""
        if self._sizes.pop(address, None) is None or os.getpid() != self._pid:
            return
        assert self._pins is not None
        self._pins.unpin(address)

    def covers(self, tensor: torch.Tensor) -> bool:
        """Whether a device can read this tensor where it lies, in one piece."""
        if tensor.numel() == 0:
            return True
        if os.getpid() != self._pid or not self._sizes:
            return False
        num_bytes = _span_bytes(tensor)
        if num_bytes != tensor.nbytes:  # has gaps: torch would make a copy first
            return False
        first = tensor.data_ptr()
        return any(
            start <= first and first + num_bytes <= start + size
            for start, size in self._sizes.copy().items()
        )


def empty_pinned(num_bytes: int) -> torch.Tensor:
    """Return uint8, shape (num_bytes,), in pinned memory that torch uses again.

    Raises:
        RuntimeError: There is no device to pin memory for.
    """
    # The device is named because torch.set_default_device() would put it elsewhere.
    return torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)


def stage(
    batch: Batch, *, blocks: PinnedBlocks, allocate: Callable[[int], torch.Tensor]
) -> Batch:
    """Return the batch with all tensors in pinned memory.

    Args:
        batch: On the host.
        blocks: What of it is pinned where it lies.
        allocate: Returns uint8, shape (bytes,), pinned. Called once at most.

    Returns:
        Tensors of the same shape, dtype and order of strides, all the copied ones in one
        buffer that they keep alive. The batch itself where there is nothing to copy.
    """
    starts, num_bytes = {}, 0
    for tensor in tensors_of(batch):
        if not blocks.covers(tensor):
            starts[id(tensor)] = num_bytes
            num_bytes += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    if not starts:
        return batch
    buffer = allocate(num_bytes)

    def move(tensor: torch.Tensor) -> torch.Tensor:
        start = starts.get(id(tensor))
        if start is None:
            return tensor
        return _fill(buffer[start : start + tensor.nbytes], tensor)

    return map_tensors(batch, move)


def pin_copy(batch: Batch, *, allocate: Callable[[int], torch.Tensor]) -> Batch:
    """Return a copy of the batch for the user, each tensor in pinned memory of its own.

    Always a copy: see above why the user must not have registered memory.

    Args:
        batch: On the host.
        allocate: Returns uint8, shape (bytes,), in pinned memory of torch's.
    """
    return map_tensors(batch, lambda tensor: _fill(allocate(tensor.nbytes), tensor))


def map_tensors(
    batch: Batch, function: Callable[[torch.Tensor], torch.Tensor]
) -> Batch:
    """Put a function's result in place of each tensor; all else stays the same object."""
    return {name: _map(value, function) for name, value in batch.items()}


def tensors_of(batch: Batch) -> Iterator[torch.Tensor]:
    """Yield the batch's tensors."""
    for value in batch.values():
        yield from _tensors_in(value)


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif _is_named_tuple(value):
        for part in value:
            yield from _tensors_in(part)


def _map(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if _is_named_tuple(value):
        return type(value)(*(_map(part, function) for part in value))
    return value


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _fill(block: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor into a block of as many bytes; without its gaps, if it has any."""
    flat = block.view(tensor.dtype)
    if tensor.is_contiguous():
        return flat.view(tensor.shape).copy_(tensor)
    # What torch gives a copy: a matrix that lies transposed is copied as it lies.
    strides = torch.empty_like(tensor, device="meta").stride()
    return flat.as_strided(tensor.shape, strides, flat.storage_offset()).copy_(tensor)


def _span_bytes(tensor: torch.Tensor) -> int:
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (sum((n - 1) * s for n, s in steps) + 1) * tensor.element_size()
