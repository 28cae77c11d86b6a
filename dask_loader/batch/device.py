"""Batches copied to a device ahead of the training step that uses them.

The copies run on a stream of their own, from pinned memory, while the steps before run.
Nothing here waits for the copy of the batch that is handed out: the stream on which the
caller works is told to. What is waited for is old: see _Copies.take.

    next batch from the source          (host)
    copies queued on the side stream    an event tells when they are done
    ... num_ahead more batches ...
    the caller's stream waits for it    (on the device)
    the caller queues its step

Memory that a copy reads stays as it is until the copy's event says that it is done, also
when the iterator is closed early or something fails: only then may a slab be used again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, Protocol

import torch

from dask_loader.batch.pinned import (
    PinnedBlocks,
    empty_pinned,
    map_tensors,
    stage,
    tensors_of,
)
from dask_loader.batch.tensors import Batch
from dask_loader.errors import ConfigError


class Event(Protocol):
    """A place in a stream's work."""

    def query(self) -> bool:
        """Whether the work up to here is done."""
        ...

    def synchronize(self) -> None:
        """Wait until it is. No deadline: torch has none."""
        ...


class Backend(Protocol):
    """A device with streams. Used by the thread that iterates."""

    def side(self) -> AbstractContextManager[Any]:
        """Make the stream for copies the current one."""
        ...

    def empty_pinned(self, num_bytes: int) -> torch.Tensor:
        """Return uint8, shape (num_bytes,), in pinned host memory."""
        ...

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Queue a copy on the current stream; it reads the tensor until it is done."""
        ...

    def record(self) -> Event:
        """Return an event after all that is queued on the current stream."""
        ...

    def hand_over(self, tensors: Sequence[torch.Tensor], copied: Event) -> None:
        """Let the current stream wait for an event of the other, then use its tensors."""
        ...


class StreamBackend:
    """A Backend by torch's module for the device: torch.cuda, torch.xpu and their like."""

    def __init__(self, device: torch.device) -> None:
        """Make the stream for copies, on the current device if `device` has no index."""
        self._module: Any = torch.get_device_module(device)
        self._side: Any = self._module.Stream(device=device)
        self.device: torch.device = self._side.device  # with an index
        # CUDA's events otherwise keep a core busy while they are waited for.
        self._event_options = {"blocking": True} if device.type == "cuda" else {}

    def side(self) -> AbstractContextManager[Any]:
        """Make the stream for copies the current one."""
        stream: AbstractContextManager[Any] = self._module.stream(self._side)
        return stream

    def empty_pinned(self, num_bytes: int) -> torch.Tensor:
        """Return pinned memory that torch uses again."""
        return empty_pinned(num_bytes)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Queue a copy on the current stream."""
        return tensor.to(self.device, non_blocking=True)

    def record(self) -> Event:
        """Return an event after all that is queued on the current stream."""
        event: Event = self._module.Event(**self._event_options)
        self._module.current_stream(self.device).record_event(event)
        return event

    def hand_over(self, tensors: Sequence[torch.Tensor], copied: Event) -> None:
        """Let the current stream wait, and torch know that it uses the tensors."""
        stream = self._module.current_stream(self.device)
        stream.wait_event(copied)
        for tensor in tensors:
            # They are the other stream's memory, which would use it again once they are
            # gone, not once this stream's work on them is done.
            tensor.record_stream(stream)


def resolve_device(device: Any) -> torch.device:
    """Check that a device exists here. Makes no context on it.

    Args:
        device: What torch.device() takes.

    Raises:
        ConfigError: torch does not know it, or it is not there.
    """
    try:
        found = torch.device(device)
        module = torch.get_device_module(found)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device={device!r} is none that batches can be copied to; give text such as "
            f'"cuda" or "cuda:1", or a torch.device ({str(error).splitlines()[0]})'
        ) from error
    num_devices = module.device_count() if module.is_available() else 0
    if num_devices <= (found.index or 0):
        raise ConfigError(
            f"device={device!r} does not exist here: torch {torch.__version__} finds "
            f"{num_devices} devices of type {found.type!r}; leave device out to have "
            "batches in host memory"
        )
    return found


def make_backend(device: torch.device) -> Backend | None:
    """Return a device's streams, or None for a device without."""
    module = torch.get_device_module(device)
    return StreamBackend(device) if hasattr(module, "Stream") else None


def copy_each(
    batches: Generator[Batch, None, None], device: torch.device
) -> Generator[Batch, None, None]:
    """Yield batches on a device without streams, each copied when it is asked for."""
    with closing(batches):
        for batch in batches:
            yield map_tensors(batch, lambda tensor: tensor.to(device))


def copy_ahead(
    batches: Generator[Batch, None, None],
    backend: Backend,
    *,
    num_ahead: int,
    blocks: PinnedBlocks | None,
) -> Generator[Batch, None, None]:
    """Yield batches on the device, copied num_ahead batches ahead of their use.

    Args:
        batches: On the host, in order; closed when this ends, however it ends. An error
            of it is raised after all batches before it.
        backend: The device.
        num_ahead: Batches on the device, or on their way there, that the caller has not
            had; at least 1. Also how many steps the caller may queue before this waits
            for the oldest of them to be done, which bounds memory where the caller is
            much faster than its device.
        blocks: What of the host's memory is pinned; the rest is copied into pinned
            memory first. None: copied from where it lies, which is slow unless pinned.

    Yields:
        The same dicts with tensors on the device, to be used on the stream that is
        current when they are asked for. Other values are the same objects.
    """
    with closing(_Copies(batches, backend, num_ahead, blocks)) as copies:
        while (batch := copies.take()) is not None:
            yield batch


class _Copies:
    """The batches on their way. Closed by who made it; close() leaves nothing behind."""

    def __init__(
        self,
        batches: Generator[Batch, None, None],
        backend: Backend,
        num_ahead: int,
        blocks: PinnedBlocks | None,
    ) -> None:
        self._batches = batches
        self._backend = backend
        self._num_ahead = num_ahead
        self._blocks = blocks
        self._more = True  # whether the source may have another batch
        self._failure: Exception | None = None
        # On the device or on their way, not handed out: at most num_ahead + 1.
        self._ready: deque[tuple[Batch, Event]] = deque()
        # Host memory that copies read, in the order of the copies.
        self._reading: deque[tuple[Event, Batch]] = deque()
        # The end of each of the caller's last steps: at most num_ahead.
        self._steps: deque[Event] = deque()
        self._stepping = False

    def take(self) -> Batch | None:
        """Return the next batch, or None after the last.

        Waits for the caller's step of num_ahead batches ago. Its stream waited for that
        batch, so that its copy is done too: nothing grows, neither memory of the host that
        copies hold nor memory of the device that steps in the queue hold.

        Raises:
            Exception: Whatever the source or the copy of this batch raised.
        """
        if self._stepping:
            self._steps.append(self._backend.record())
            self._stepping = False
        if len(self._steps) > self._num_ahead:
            self._steps.popleft().synchronize()
        while self._reading and self._reading[0][0].query():
            self._reading.popleft()
        while self._more and len(self._ready) <= self._num_ahead:
            self._fetch()
        if not self._ready:
            self._raise_failure()
            return None
        batch, copied = self._ready.popleft()
        self._backend.hand_over(list(tensors_of(batch)), copied)
        self._stepping = True
        return batch

    def close(self) -> None:
        """Wait until no copy reads host memory any more, then close the source."""
        try:
            self._ready.clear()
            while self._reading:
                self._reading[0][0].synchronize()
                self._reading.popleft()
        finally:
            self._batches.close()

    def _fetch(self) -> None:
        try:
            batch = next(self._batches, None)
            if batch is None:
                self._more = False
            else:
                self._copy(batch)
        except Exception as error:  # raised when its batch is asked for
            self._failure, self._more = error, False

    def _copy(self, batch: Batch) -> None:
        backend = self._backend
        if self._blocks is not None:
            batch = stage(batch, blocks=self._blocks, allocate=backend.empty_pinned)
        with backend.side():
            try:
                moved = map_tensors(batch, backend.copy)
            finally:
                # Where it failed halfway, the first columns are being read all the same.
                copied = backend.record()
                self._reading.append((copied, batch))
        self._ready.append((moved, copied))

    def _raise_failure(self) -> None:
        # Taken out first: the traceback leads back here, and would keep all of it alive.
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure
