"""Slabs are used again once nobody looks at them, and never before."""

from __future__ import annotations

import gc
import os
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dask_loader.transfer.slabs import SlabPool

SIZE = 1 << 16


def _graph(lease: Any) -> Any:
    weight = torch.ones(SIZE // 4, requires_grad=True)
    return (torch.from_numpy(lease.view(np.float32)) * weight).sum()


VIEWS: dict[str, Callable[[Any], Any]] = {
    "array": lambda lease: lease,
    "numpy view": lambda lease: lease[64:128].view(np.int32).reshape(4, 4)[1],
    "memoryview": lambda lease: memoryview(lease)[5:6],
    "arrow buffer": lambda lease: pa.py_buffer(lease),
    "tensor": lambda lease: torch.from_numpy(lease),
    "slice of a tensor": lambda lease: torch.from_numpy(lease.view("f8"))[3:5],
    "transposed tensor": lambda lease: torch.from_numpy(lease.reshape(16, -1)).T[7],
    "unbound tensor": lambda lease: torch.from_numpy(lease.reshape(16, -1)).unbind(0)[
        2
    ],
    "tensor without history": lambda lease: torch.from_numpy(lease)[1:].data,
    "numpy of a tensor": lambda lease: torch.from_numpy(lease)[9:].numpy(),
    "dlpack": lambda lease: torch.from_dlpack(lease),
    "numpy over dlpack": lambda lease: np.from_dlpack(torch.from_numpy(lease)),
    "storage": lambda lease: torch.from_numpy(lease).untyped_storage(),
    "autograd graph": _graph,
    "cycle": lambda lease: [lease],
}


def addresses(lease: Any) -> range:
    return range(lease.ctypes.data, lease.ctypes.data + lease.nbytes)


@pytest.mark.parametrize("name", VIEWS)
def test_a_slab_is_lent_again_only_after_the_last_view(name: str) -> None:
    pool = SlabPool(4 * SIZE)
    lease = pool.lease(SIZE)
    lease[:] = 0
    place = addresses(lease)
    view = VIEWS[name](lease)
    if name == "cycle":
        view.append(view)
    del lease
    gc.collect()
    assert pool.leased_bytes == SIZE
    other = pool.lease(SIZE)
    assert other.ctypes.data not in place
    del other
    assert pool.leased_bytes == SIZE
    del view
    gc.collect()
    assert pool.leased_bytes == 0
    leases = [pool.lease(SIZE), pool.lease(SIZE)]
    assert place.start in {lease.ctypes.data for lease in leases}
    assert pool.owned_bytes == 2 * SIZE


def test_a_lease_is_writable_bytes_of_the_length_asked_for() -> None:
    pool = SlabPool(4 * SIZE)
    for num_bytes in (SIZE, SIZE - 100, 1, 0):
        lease = pool.lease(num_bytes)
        assert lease.dtype == np.uint8
        assert lease.shape == (num_bytes,)
        assert lease.flags.writeable
        if num_bytes:
            assert lease.ctypes.data % 64 == 0
        del lease
    assert pool.owned_bytes == SIZE


def test_the_gradient_reads_what_was_leased() -> None:
    pool = SlabPool(SIZE)
    lease = pool.lease(SIZE)
    weight = torch.ones(SIZE // 8, dtype=torch.float64, requires_grad=True)
    lease.view(np.float64)[:] = 3.0
    loss = (torch.from_numpy(lease.view(np.float64)) * weight).sum()
    del lease
    pool.lease(SIZE)[:] = 255
    loss.backward()
    assert weight.grad is not None
    assert (weight.grad == 3.0).all()


def test_a_smaller_lease_takes_a_larger_slab_and_a_larger_one_makes_room() -> None:
    pool = SlabPool(2 * SIZE)
    first, second = pool.lease(SIZE), pool.lease(SIZE)
    del first, second
    assert (pool.owned_bytes, pool.leased_bytes) == (2 * SIZE, 0)
    small = pool.lease(SIZE // 2)
    assert (pool.owned_bytes, pool.leased_bytes) == (2 * SIZE, SIZE)
    large = pool.lease(SIZE + 1)  # the free slab is too small and gives its place
    assert pool.owned_bytes <= 2 * SIZE
    del small, large
    whole = pool.lease(2 * SIZE)
    assert pool.owned_bytes == pool.leased_bytes == 2 * SIZE
    del whole


def test_beyond_its_size_the_pool_hands_out_memory_that_it_forgets() -> None:
    pool = SlabPool(2 * SIZE)
    leases = [pool.lease(SIZE) for _ in range(5)]
    assert (pool.owned_bytes, pool.leased_bytes) == (2 * SIZE, 5 * SIZE)
    for number, lease in enumerate(leases):
        lease[:] = number
    assert all((lease == number).all() for number, lease in enumerate(leases))
    del leases, lease
    assert (pool.owned_bytes, pool.leased_bytes) == (2 * SIZE, 0)
    assert pool.lease(3 * SIZE).nbytes == 3 * SIZE
    assert pool.owned_bytes <= 2 * SIZE


def test_the_pool_and_its_slabs_go_with_the_last_lease() -> None:
    pool = SlabPool(4 * SIZE)
    lease = pool.lease(SIZE)
    gone = weakref.ref(pool)
    del pool
    lease[:] = 1
    assert gone() is None
    assert (lease == 1).all()


def test_threads_never_share_a_slab_whoever_lets_go_of_it() -> None:
    pool = SlabPool(8 * SIZE)
    handed: list[list[Any]] = []
    wrong: list[str] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        held: list[tuple[int, Any]] = []
        for turn in range(150):
            lease = pool.lease(rng.choice((SIZE, SIZE // 2, 100)))
            mark = (seed * 31 + turn) % 256
            lease[:] = mark
            held.append((mark, torch.from_numpy(lease)[3:]))
            del lease
            while len(held) > rng.randrange(4):
                mark, tensor = held.pop(rng.randrange(len(held)))
                if not bool((tensor == mark).all()):
                    wrong.append(f"{seed} {turn}")
                if turn % 5 == 0:  # somebody else's garbage collection lets go of it
                    cycle: list[Any] = [tensor]
                    cycle.append(cycle)
                    handed.append(cycle)
                del tensor
            if turn % 50 == 0:
                handed.clear()
                gc.collect()
            if pool.owned_bytes > pool.max_bytes:
                wrong.append("owned")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handed.clear()
    gc.collect()
    assert not wrong
    assert pool.leased_bytes == 0
    assert pool.owned_bytes <= pool.max_bytes


def test_a_forked_child_has_slabs_of_its_own() -> None:
    pool = SlabPool(4 * SIZE)
    lease, free = pool.lease(SIZE), pool.lease(SIZE)
    lease[:], free[:] = 1, 1
    del free
    child = os.fork()
    if child == 0:
        again = pool.lease(SIZE)
        inherited = bool((lease == 1).all() and (again == 1).all())
        lease[:], again[:] = 2, 2
        os._exit(0 if inherited else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (lease == 1).all()
    assert (pool.lease(SIZE) == 1).all()


def test_blocks_beyond_the_pool_are_counted_while_somebody_looks_at_them() -> None:
    pool = SlabPool(SIZE)
    kept = [pool.lease(SIZE) for _ in range(3)]
    assert (pool.owned_bytes, pool.leased_bytes) == (SIZE, 3 * SIZE)
    part = kept[2][:10]
    kept.clear()
    assert pool.leased_bytes == SIZE
    del part
    assert pool.leased_bytes == 0
