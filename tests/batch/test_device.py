"""Copies ahead: what is waited for, what is kept, and for how long."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dask_loader import ConfigError
from dask_loader.batch.device import (
    StreamBackend,
    copy_ahead,
    copy_each,
    make_backend,
    resolve_device,
)
from dask_loader.batch.pinned import CudaPins, PinnedBlocks
from dask_loader.transfer.slabs import SlabPool

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
SLAB_BYTES = 4096
WAYS = pytest.mark.parametrize("staged", [False, True])


def blocks_of(staged: bool) -> PinnedBlocks | None:
    return PinnedBlocks(None) if staged else None


class SourceError(Exception):
    pass


class Source:
    """Batches number 0, 1, ... over slabs that are used again.

    Attributes:
        num_given: Batches that were asked for.
        closed: Whether it came to its end or was closed.
    """

    def __init__(
        self, num_batches: int, *, fail_at: int | None = None, max_slabs: int = 100
    ) -> None:
        self.pool = SlabPool(max_slabs * SLAB_BYTES)
        self.num_given = 0
        self.closed = False
        self._num_batches = num_batches
        self._fail_at = fail_at

    def batches(self) -> Generator[Any, None, None]:
        try:
            for number in range(self._num_batches):
                if number == self._fail_at:
                    raise SourceError(f"batch {number}")
                self.num_given += 1
                yield self.batch(number)
        finally:
            self.closed = True

    def batch(self, number: int) -> dict[str, Any]:
        columns = self.pool.lease(SLAB_BYTES).view(np.int64).reshape(2, -1)
        columns[0], columns[1] = number, -number
        named = zip(("a", "b"), columns, strict=True)
        return {**{n: torch.from_numpy(c) for n, c in named}, "text": [str(number)]}

    def leased_slabs(self) -> int:
        gc.collect()
        return self.pool.leased_bytes // SLAB_BYTES


class AnyPins:
    """Everything can be pinned."""

    def pin(self, address: int, num_bytes: int) -> bool:
        return address > 0 and num_bytes > 0

    def unpin(self, address: int) -> None:
        raise AssertionError(f"{address} was given back")


def numbers_in(batch: Any) -> tuple[int, int, str]:
    (a,), (b,), (text,) = (
        set(batch["a"].tolist()),
        set(batch["b"].tolist()),
        batch["text"],
    )
    return a, b, text


def whole(number: int) -> tuple[int, int, str]:
    return number, -number, str(number)


def drain(copies: Iterator[Any]) -> int:
    return sum(1 for _ in copies)


# ---- what arrives -------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("num_ahead", [1, 2, 7, 50])
@pytest.mark.parametrize("num_batches", [0, 1, 2, 20])
def test_each_step_sees_its_own_batch_however_late_it_runs(
    gated_device, num_batches, num_ahead, staged
):
    # Few slabs, so that each is used again as soon as that is allowed.
    source, seen = Source(num_batches, max_slabs=2), []
    copies = copy_ahead(
        source.batches(), gated_device, num_ahead=num_ahead, blocks=blocks_of(staged)
    )
    for batch in copies:
        gated_device.step(lambda batch=batch: seen.append(numbers_in(batch)))
        del batch
    gated_device.finish()
    assert seen == [whole(number) for number in range(num_batches)]
    assert source.closed
    assert source.leased_slabs() == 0


def test_lists_are_the_same_objects_and_batches_plain_dicts(gated_device):
    given = [{"x": torch.ones(2), "text": ["a", None]} for _ in range(3)]
    got = list(
        copy_ahead((batch for batch in given), gated_device, num_ahead=2, blocks=None)
    )
    assert [type(batch) for batch in got] == [dict] * 3
    assert all(a["text"] is b["text"] for a, b in zip(got, given, strict=True))
    assert all(a["x"] is not b["x"] for a, b in zip(got, given, strict=True))


# ---- how far ahead ------------------------------------------------------------------


@pytest.mark.parametrize("num_ahead", [1, 2, 5])
def test_no_more_than_num_ahead_batches_are_ahead_of_the_caller(
    gated_device, num_ahead
):
    source = Source(12)
    copies = copy_ahead(
        source.batches(), gated_device, num_ahead=num_ahead, blocks=None
    )
    assert source.num_given == 0
    for number, _ in enumerate(copies):
        assert source.num_given == min(12, number + 1 + num_ahead)
    assert source.num_given == 12


@WAYS
@pytest.mark.parametrize("num_ahead", [1, 2, 5])
def test_a_caller_that_never_waits_holds_a_bounded_number_of_slabs(
    gated_device, num_ahead, staged
):
    source = Source(40)
    copies = copy_ahead(
        source.batches(), gated_device, num_ahead=num_ahead, blocks=blocks_of(staged)
    )
    for number, batch in enumerate(copies):
        del batch
        held = source.leased_slabs()
        buffers = sum(ref() is not None for ref in gated_device.buffers)
        # Those ahead, and those of the steps that are queued.
        assert max(held, buffers) <= 2 * num_ahead + 2
        if staged:
            assert held <= 1  # the one that the source gave last
        elif number > 0:
            assert held > num_ahead


# ---- who waits for what -------------------------------------------------------------


def test_the_callers_stream_waits_for_its_batch_and_the_host_only_for_old_steps(
    gated_device,
):
    source, steps_done = Source(9), []
    copies = copy_ahead(source.batches(), gated_device, num_ahead=2, blocks=None)
    for number, _ in enumerate(copies):
        gated_device.step(lambda number=number: steps_done.append(number))
        # Having batch t waits for step t - 3, so that two may still be queued.
        assert steps_done == list(range(max(0, number - 2)))
        handed = [n for what, n in gated_device.log if what == "hand over"]
        assert len(handed) == number + 1
        assert sorted(set(handed)) == handed
    waits = [entry for entry in gated_device.log if entry[0] == "wait"]
    # The last steps are nobody's business; their copies are waited for at the end.
    assert steps_done == list(range(7))
    assert len(waits) == 7 + 2


def test_the_first_batch_is_handed_out_without_any_wait(gated_device):
    copies = copy_ahead(Source(9).batches(), gated_device, num_ahead=3, blocks=None)
    next(copies)
    assert [what for what, _ in gated_device.log] == ["copy"] * 8 + ["hand over"]
    copies.close()


@WAYS
def test_a_slab_is_not_used_again_while_a_copy_reads_it(gated_device, staged):
    source = Source(3)
    copies = copy_ahead(
        source.batches(), gated_device, num_ahead=2, blocks=blocks_of(staged)
    )
    first = next(copies)
    buffers = gated_device.buffers
    if staged:
        assert all(ref() is not None for ref in buffers)
        assert len(buffers) == 3
    else:
        assert source.leased_slabs() == 3
    assert numbers_in(first)[:2] == (0, 0)
    assert numbers_in(next(copies))[:2] == (0, 0)  # not copied yet
    gated_device.finish()
    second_to_last = next(copies)  # looks which copies are done, and lets go
    assert numbers_in(second_to_last) == whole(2)
    # The source's generator still has the last batch it gave.
    assert source.leased_slabs() <= 1
    gc.collect()
    assert [ref() for ref in buffers] == [None] * len(buffers)
    copies.close()
    assert source.leased_slabs() == 0


def test_what_is_registered_is_copied_from_where_it_lies(gated_device):
    block = np.arange(64)
    blocks = PinnedBlocks(AnyPins())
    blocks.register(block.ctypes.data, block.nbytes)
    given = {"in": torch.from_numpy(block[8:16]), "out": torch.arange(3)}
    (got,) = copy_ahead(
        (batch for batch in [given]), gated_device, num_ahead=1, blocks=blocks
    )
    gated_device.finish()
    assert torch.equal(got["in"], given["in"])
    assert torch.equal(got["out"], given["out"])
    assert len(gated_device.buffers) == 1  # for the other one


# ---- ends of all kinds --------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("num_taken", [1, 2, 5])
def test_closing_early_waits_for_the_copies_and_then_closes_the_source(
    gated_device, num_taken, staged
):
    source = Source(20)
    batches = source.batches()  # kept: the garbage collector would close it too
    copies = copy_ahead(batches, gated_device, num_ahead=3, blocks=blocks_of(staged))
    taken = [next(copies) for _ in range(num_taken)]
    copies.close()
    assert source.closed
    assert [numbers_in(batch) for batch in taken] == [
        whole(n) for n in range(num_taken)
    ]
    assert source.leased_slabs() == 0
    assert not any(ref() for ref in gated_device.buffers)
    copies.close()
    assert list(copies) == []


def test_closed_before_it_began_it_has_asked_for_nothing(gated_device):
    source = Source(3)
    copy_ahead(source.batches(), gated_device, num_ahead=2, blocks=None).close()
    assert source.num_given == 0
    assert gated_device.log == []


def test_an_error_in_the_callers_loop_leaves_nothing_behind(gated_device):
    source = Source(20)

    def loop() -> None:
        for batch in copy_ahead(
            source.batches(), gated_device, num_ahead=3, blocks=None
        ):
            assert batch["text"] == ["0"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    gc.collect()
    assert source.closed
    assert source.leased_slabs() == 0


@pytest.mark.parametrize("fail_at", [0, 1, 2, 6])
def test_an_error_of_the_source_comes_after_all_batches_before_it(
    gated_device, fail_at
):
    source, got = Source(9, fail_at=fail_at), []
    copies = copy_ahead(source.batches(), gated_device, num_ahead=3, blocks=None)
    with pytest.raises(SourceError, match=f"batch {fail_at}") as caught:
        for batch in copies:
            got.append(batch["text"])
    assert got == [[str(number)] for number in range(fail_at)]
    assert "in batches" in "".join(str(entry) for entry in caught.traceback)
    assert next(copies, None) is None
    assert source.closed
    kept = weakref.ref(caught.value)
    del caught
    assert kept() is None  # no cycle keeps frames and batches alive
    assert source.leased_slabs() == 0


@WAYS
@pytest.mark.parametrize("fail_at", [0, 1, 6, 7])
def test_a_copy_that_fails_is_raised_in_its_batchs_place(gated_device, fail_at, staged):
    # Two copies a batch: the odd ones fail when the batch's first column is under way.
    gated_device.fail_at = fail_at
    source, got = Source(9), []
    copies = copy_ahead(
        source.batches(), gated_device, num_ahead=3, blocks=blocks_of(staged)
    )
    with pytest.raises(MemoryError, match=f"no room for copy {fail_at}"):
        for batch in copies:
            got.append(batch)
    assert [numbers_in(b) for b in got] == [whole(n) for n in range(fail_at // 2)]
    assert source.closed
    assert source.leased_slabs() == 0


def test_memory_of_a_batch_that_failed_halfway_is_kept_until_it_is_not_read(
    gated_device,
):
    gated_device.fail_at = 3
    source = Source(9)
    copies = copy_ahead(source.batches(), gated_device, num_ahead=3, blocks=None)
    assert next(copies)["text"] == ["0"]
    assert source.leased_slabs() == 2  # of batch 0 and, half of it read, 1
    copies.close()
    assert source.leased_slabs() == 0


def test_a_device_that_breaks_while_it_is_waited_for_still_has_the_source_closed(
    gated_device,
):
    source = Source(9)
    batches = source.batches()  # kept: the garbage collector would close it too
    copies = copy_ahead(batches, gated_device, num_ahead=3, blocks=None)
    next(copies)

    def broken() -> None:
        raise OSError("the device is gone")

    gated_device._side.appendleft(broken)
    with pytest.raises(OSError, match="the device is gone"):
        copies.close()
    assert source.closed


# ---- which device -------------------------------------------------------------------


@pytest.mark.parametrize(
    "device",
    [
        *("nothing", "cuda:x", "meta", 1.5, ["cuda"]),
        pytest.param("hpu", id="known by name, without a module"),
    ],
)
def test_a_device_that_is_none_is_refused_with_torchs_reason(device):
    with pytest.raises(
        ConfigError, match=r"is none that batches can be copied to; .*\("
    ) as e:
        resolve_device(device)
    assert f"device={device!r}" in str(e.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda"), "mps"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(
        ConfigError, match=r"does not exist here: torch .* finds 0 dev"
    ) as e:
        resolve_device(device)
    assert f"device={device!r}" in str(e.value)


def test_more_devices_than_there_are_are_refused():
    with pytest.raises(ConfigError, match=r"'cpu:3' does not exist here.* finds 1 dev"):
        resolve_device("cpu:3")


def test_a_device_that_is_there_is_found():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu", 0)) == torch.device("cpu:0")


def test_a_device_without_streams_has_no_backend_and_copies_when_asked():
    assert make_backend(torch.device("mps")) is None
    source = Source(3)
    copies = copy_each(source.batches(), torch.device("meta"))
    assert source.num_given == 0
    first = next(copies)
    assert first["a"].device.type == "meta"
    assert first["text"] == ["0"]
    assert source.num_given == 1
    copies.close()
    assert source.closed


# ---- with CUDA ----------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("num_ahead", [1, 2, 5])
def test_on_cuda_each_step_sees_its_own_batch(num_ahead, registered):
    device = resolve_device("cuda")
    backend = make_backend(device)
    assert isinstance(backend, StreamBackend)
    blocks = PinnedBlocks(CudaPins(backend.device))
    memory = [np.zeros(1 << 22, dtype=np.uint8) for _ in range(8)]
    free = list(range(8))
    if registered:
        for block in memory:
            blocks.register(block.ctypes.data, block.nbytes)

    def batches() -> Generator[Any, None, None]:
        for number in range(100):
            index = free.pop(0)
            lease = np.frombuffer(memory[index], dtype=np.float32)
            lease[:] = number
            weakref.finalize(lease, free.append, index)
            tensor = torch.from_numpy(lease)
            del lease
            yield {"x": tensor, "text": [number]}
            del tensor

    found = []
    slow = torch.ones(2048, 2048, device=device)
    for batch in copy_ahead(batches(), backend, num_ahead=num_ahead, blocks=blocks):
        slow = (slow @ slow).clamp(max=1)
        found.append((batch["x"].min() + 0 * slow[0, 0], batch["x"].max()))
        assert batch["x"].device == backend.device
        del batch
    assert [(a.item(), b.item()) for a, b in found] == [(n, n) for n in range(100)]
    for block in memory:
        blocks.unregister(block.ctypes.data)
    assert blocks.num_bytes == 0


@needs_cuda
def test_on_cuda_the_memory_that_is_used_does_not_grow():
    backend = StreamBackend(torch.device("cuda"))
    given = ({"x": torch.full((1 << 22,), float(n))} for n in range(200))
    peaks = []
    for batch in copy_ahead(given, backend, num_ahead=2, blocks=PinnedBlocks(None)):
        batch["x"].mul_(2)
        del batch
        peaks.append(torch.cuda.memory_reserved())
    assert peaks[-1] == peaks[20]
