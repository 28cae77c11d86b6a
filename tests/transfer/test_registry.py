"""Slabs that a device's driver is told of."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dask_loader import ParquetDataset
from dask_loader.transfer.slabs import SlabPool

SIZE = 1 << 16


class Known:
    """A registry that looks at the memory it is told of, while it may."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.events: list[str] = []

    def register(self, address: int, num_bytes: int) -> None:
        assert address not in self.sizes
        assert mapped(address, num_bytes)
        self.sizes[address] = num_bytes
        self.events.append("register")

    def unregister(self, address: int) -> None:
        assert mapped(address, self.sizes.pop(address)), "it was unmapped before"
        self.events.append("unregister")

    def covers(self, array: np.ndarray) -> bool:
        first = array.ctypes.data
        return any(
            start <= first and first + array.nbytes <= start + size
            for start, size in self.sizes.items()
        )


def mapped(address: int, num_bytes: int) -> bool:
    """Whether this process has these addresses mapped, as the kernel says."""
    at = address
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= at < high:
            at = high
    return at >= address + num_bytes


def test_a_slab_is_registered_once_and_unregistered_while_it_is_mapped() -> None:
    known = Known()
    pool = SlabPool(4 * SIZE, known)
    for _ in range(3):
        block = pool.lease(SIZE)
        assert known.covers(block)
        del block
    assert known.events == ["register"]
    kept = pool.lease(SIZE)[10:20]
    del pool
    gc.collect()
    assert known.covers(kept), "a lease outlives its pool"
    del kept
    gc.collect()
    assert known.events == ["register", "unregister"]


def test_memory_beyond_the_pool_is_not_registered() -> None:
    known = Known()
    pool = SlabPool(SIZE, known)
    blocks = [pool.lease(SIZE) for _ in range(3)]
    assert [known.covers(block) for block in blocks] == [True, False, False]


def test_slabs_that_make_room_and_idle_ones_are_unregistered() -> None:
    known = Known()
    pool = SlabPool(2 * SIZE, known)
    pool.lease(SIZE)
    assert pool.lease(2 * SIZE).nbytes == 2 * SIZE
    assert known.events == ["register", "unregister", "register"]
    pool.drop_idle(0.0)
    assert known.sizes == {}


def test_joined_batches_lie_in_registered_memory(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(4000), "y": np.arange(4000.0)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=500)
    known = Known()
    with ParquetDataset(
        str(tmp_path), batch_size=100, shuffle=True, num_splits=4, client="threads"
    ) as dataset:
        plain = [b["x"].tolist() for b in dataset.batches_of(dataset.begin_epoch().run)]
        dataset.set_epoch(0)
        seen = []
        for batch in dataset.batches_of(dataset.begin_epoch().run, known):
            assert all(known.covers(column.numpy()) for column in batch.values())
            seen.append(batch["x"].tolist())
    assert seen == plain
    assert known.events.count("register") <= 3
