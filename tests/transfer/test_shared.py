"""The owner's side of shared slabs: how many there are, and when one is lent again."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dask_loader.transfer.places import FolderPlace, MemfdPlace
from dask_loader.transfer.shared import HEADER_BYTES, SharedPool, header_of
from dask_loader.transfer.texts import pack_texts, unpack_texts
from dask_loader.transfer.writer import Mappings, Outcome

MIB = 1 << 20
SIZE = MIB - HEADER_BYTES  # of a window that fills a slab of 1 MiB


@pytest.fixture
def pool(place):
    made = SharedPool(place, 4 * MIB)
    yield made
    made.close()


def lease(pool: SharedPool, value: int = 0) -> Any:
    """A window of this value in a slab, as its taker gets it."""
    loan = pool.lend(SIZE)
    assert loan is not None
    with Mappings().writing(loan.name) as writing:
        assert writing.outcome is Outcome.READY
        writing.block[:] = value
        writing.finish(loan.name.generation, 0)
    accepted = loan.accept()
    assert accepted is not None
    return accepted[0]


# ---- lending --------------------------------------------------------------------------


def test_a_loan_is_accepted_once_and_only_when_its_window_is_whole(pool):
    loan = pool.lend(SIZE)
    assert loan.accept() is None
    loan.finish()
    block, texts = loan.accept()
    assert (len(block), len(texts)) == (SIZE, 0)
    assert block.flags.writeable
    assert block.ctypes.data % 4096 == 0
    assert loan.accept() is None


def test_an_unfinished_loan_may_still_be_accepted_later(pool):
    loan = pool.lend(SIZE)
    assert loan.accept() is None
    assert pool.used_bytes == MIB
    with Mappings().writing(loan.name) as writing:
        writing.finish(loan.name.generation, 0)
    assert loan.accept() is not None


def test_slabs_are_lent_up_to_max_bytes_and_not_beyond(pool):
    loans = [pool.lend(SIZE) for _ in range(4)]
    assert all(loans)
    assert len({loan.name.nonce for loan in loans}) == 4
    assert pool.lend(SIZE) is None
    assert pool.lend(1) is None
    assert (pool.owned_bytes, pool.used_bytes) == (4 * MIB, 4 * MIB)
    loans[2].give_back()
    assert (pool.owned_bytes, pool.used_bytes) == (4 * MIB, 3 * MIB)
    again = pool.lend(SIZE)
    assert again.name.nonce == loans[2].name.nonce
    assert again.name.generation == loans[2].name.generation + 1
    assert pool.lend(SIZE) is None


def test_a_window_that_can_never_fit_is_not_lent_a_slab(pool):
    assert pool.lend(4 * MIB) is None
    assert pool.lend(4 * MIB - HEADER_BYTES) is not None


def test_free_slabs_that_are_too_small_make_room(pool):
    for loan in [pool.lend(SIZE) for _ in range(4)]:
        loan.give_back()
    assert pool.lend(2 * MIB) is not None
    assert pool.owned_bytes <= 4 * MIB
    assert pool.lend(SIZE) is not None


def test_a_loan_ends_once(pool):
    first = pool.lend(SIZE)
    for _ in range(2):
        first.give_back()
        first.drop()
    loans = [pool.lend(SIZE) for _ in range(5)]
    assert [loan is None for loan in loans] == [False] * 4 + [True]
    assert len({loan.name.nonce for loan in loans[:4]}) == 4
    loans[0].finish()
    kept = loans[0].accept()
    loans[0].give_back()  # the lease goes on
    loans[0].drop()
    assert pool.lend(SIZE) is None
    assert kept is not None


def test_a_dropped_slab_is_never_lent_again(pool):
    loan = pool.lend(SIZE)
    loan.drop()
    assert (pool.owned_bytes, pool.used_bytes) == (0, 0)
    assert pool.lend(SIZE).name.nonce != loan.name.nonce


def test_slabs_of_almost_the_same_length_serve_each_other(pool):
    loan = pool.lend(SIZE - 70_000)
    loan.give_back()
    assert pool.lend(SIZE).name.nonce == loan.name.nonce


@pytest.mark.parametrize("num_bytes", [0, 1, SIZE, SIZE + 1])
def test_a_slab_has_room_for_what_was_asked(pool, num_bytes):
    loan = pool.lend(num_bytes)
    loan.finish()
    block, _ = loan.accept()
    assert len(block) >= num_bytes
    assert loan.name.num_bytes == len(block) + HEADER_BYTES


# ---- leases ---------------------------------------------------------------------------


def _graph(block: Any) -> Any:
    weight = torch.ones(SIZE // 4, requires_grad=True)
    return (torch.from_numpy(block.view(np.float32)) * weight).sum()


VIEWS: dict[str, Callable[[Any], Any]] = {
    "block": lambda block: block,
    "slice": lambda block: block[64:128],
    "numpy view": lambda block: block[64:128].view(np.int32).reshape(4, 4)[1],
    "memoryview": lambda block: memoryview(block)[5:6],
    "arrow buffer": lambda block: pa.py_buffer(block),
    "arrow array": lambda block: pa.Array.from_buffers(
        pa.uint8(), 64, [None, pa.py_buffer(block)]
    )[3:],
    "tensor": lambda block: torch.from_numpy(block),
    "slice of a tensor": lambda block: torch.from_numpy(block.view("f8"))[3:5],
    "transposed tensor": lambda block: torch.from_numpy(block.reshape(16, -1)).T[7],
    "numpy of a tensor": lambda block: torch.from_numpy(block)[9:].numpy(),
    "dlpack": lambda block: torch.from_dlpack(block),
    "storage": lambda block: torch.from_numpy(block).untyped_storage(),
    "autograd graph": _graph,
    "cycle": lambda block: [block],
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_slab_is_lent_again_only_after_the_last_view(pool, name):
    block = lease(pool)
    (nonce,) = {tuple(header_of(block.base)[:2].tolist())}
    view = VIEWS[name](block)
    if name == "cycle":
        view.append(view)
    del block
    others = [pool.lend(SIZE) for _ in range(4)]
    assert others[3] is None
    assert nonce not in {loan.name.nonce for loan in others[:3]}
    del view
    gc.collect()
    assert pool.lend(SIZE).name.nonce == nonce


def texts_in(pool: SharedPool) -> dict[str, pa.Array]:
    texts = {"s": pa.array(["a", None, "cc"] * 50), "b": pa.array([b"\xff"] * 150)}
    packed = pack_texts(texts)
    loan = pool.lend(SIZE)
    with Mappings().writing(loan.name) as writing:
        start = len(writing.block) - packed.size
        writing.block[start:] = memoryview(packed)
        writing.finish(loan.name.generation, packed.size)
    _, found = loan.accept()
    assert len(found) == packed.size
    received = unpack_texts(found)
    assert {n: a.to_pylist() for n, a in received.items()} == {
        n: a.to_pylist() for n, a in texts.items()
    }
    return received


def test_texts_lie_at_the_end_of_the_slab_and_keep_it(pool):
    texts = texts_in(pool)
    others = [pool.lend(SIZE) for _ in range(3)]
    assert pool.lend(SIZE) is None
    one = texts.pop("s")[7:9]
    texts.clear()
    assert pool.lend(SIZE) is None
    assert one.to_pylist() == [None, "cc"]
    del one
    assert pool.lend(SIZE) is not None
    assert len(others) == 3


def test_a_lease_may_end_in_another_thread(pool):
    blocks = [lease(pool) for _ in range(4)]
    thread = threading.Thread(target=blocks.clear)
    thread.start()
    thread.join()
    assert pool.used_bytes == 0
    assert all(pool.lend(SIZE) for _ in range(4))


def test_a_lease_may_end_in_a_collection_while_the_pool_lends(pool, monkeypatch):
    cycle: list[Any] = [lease(pool)]
    cycle.append(cycle)
    del cycle
    real = pool.place.make

    def make(num_bytes: int) -> Any:
        gc.collect()  # in the middle of lend(), with the pool's lock held
        return real(num_bytes)

    monkeypatch.setattr(pool.place, "make", make, raising=False)
    loans = [pool.lend(SIZE) for _ in range(4)]
    assert all(loans)
    assert len({loan.name.nonce for loan in loans}) == 4


@pytest.mark.parametrize("seed", range(3))
def test_no_two_leases_ever_share_memory(pool, seed):
    generator = random.Random(seed)
    held: dict[int, Any] = {}
    for value in range(1, 200):
        if len(held) < 4 and generator.random() < 0.7:
            held[value % 251] = lease(pool, value % 251)
        elif held:
            del held[generator.choice(list(held))]
        for kept, block in held.items():
            assert (block[:: SIZE // 7] == kept).all()
    assert pool.owned_bytes <= 4 * MIB


# ---- memory for this process itself ----------------------------------------------------


def test_a_slab_for_this_process_comes_beyond_max_bytes_if_need_be(pool):
    leases = [pool.lease_new(SIZE) for _ in range(6)]
    assert len({home.nonce for _, home in leases}) == 6
    for number, (block, _) in enumerate(leases):
        assert len(block) == SIZE
        block[:] = number
    assert [int(block[5]) for block, _ in leases] == list(range(6))
    assert pool.used_bytes == 6 * MIB
    leases.clear()
    del block
    assert pool.used_bytes == 0
    _, home = pool.lease_new(2 * MIB)
    assert home is not None
    assert pool.owned_bytes <= 4 * MIB


def test_where_no_slab_is_to_be_had_memory_is_private(tiny_tmpfs):
    pool = SharedPool(FolderPlace(str(tiny_tmpfs)), 64 * MIB)
    leases = [pool.lease_new(3 * MIB - HEADER_BYTES) for _ in range(4)]
    assert [home is None for _, home in leases] == [False, False, True, True]
    for block, _ in leases:
        block[:] = 7
    pool.close()
    assert all((block == 7).all() for block, _ in leases)


# ---- no room ---------------------------------------------------------------------------

FILL = """
import sys
from dask_loader.transfer.places import FolderPlace
from dask_loader.transfer.shared import SharedPool
pool = SharedPool(FolderPlace(sys.argv[1]), 1 << 30)
blocks = []
try:
    while True:
        loan = pool.lend(1 << 20)
        loan.finish()
        blocks.append(loan.accept()[0])
        blocks[-1][:] = 1
except OSError as error:
    print(len(blocks), error.strerror)
blocks.pop()
loan = pool.lend(1 << 20)
loan.finish()
loan.accept()[0][:] = 2
pool.close()
"""


def test_a_full_file_system_is_an_error_never_a_bus_error(tiny_tmpfs):
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tiny_tmpfs)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "4 No space left on device\n"
    assert list(tiny_tmpfs.iterdir()) == []


# ---- closing ---------------------------------------------------------------------------


def test_after_closing_leases_stay_readable_and_no_descriptor_is_open(
    tmp_path, num_files
):
    before = num_files()
    for make in (MemfdPlace, lambda: FolderPlace(str(tmp_path))):
        pool = SharedPool(make(), 4 * MIB)
        block, loan = lease(pool, 9), pool.lend(SIZE)
        pool.close()
        pool.close()
        assert pool.lend(SIZE) is None
        assert (block == 9).all()
        block[:] = 3
        assert loan.accept() is None
        loan.give_back()
        loan.drop()
        del block, loan, pool  # Python's maps keep a descriptor each
        assert num_files() == before
        assert list(tmp_path.iterdir()) == []


def mapped() -> int:
    """Bytes of memfds that this process has mapped."""
    found = 0
    with open("/proc/self/maps") as lines:
        for line in lines:
            if "memfd:dask-loader" in line:
                start, stop = line.split()[0].split("-")
                found += int(stop, 16) - int(start, 16)
    return found


@pytest.mark.parametrize("end", ["give_back", "drop", "lease"])
def test_what_ends_after_closing_frees_its_memory(end):
    before = mapped()
    pool = SharedPool(MemfdPlace(), 4 * MIB)
    if end == "lease":
        held: Any = lease(pool)
    else:
        held = pool.lend(SIZE)
    pool.close()
    assert mapped() == before + MIB
    if end != "lease":
        getattr(held, end)()
    del held
    assert pool.used_bytes == 0
    assert mapped() == before
