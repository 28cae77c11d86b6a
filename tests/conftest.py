"""Shared by all tests: the leak check that runs after each of them."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import cluster

_LEAK_DEADLINE_S = 60.0
_POLL_S = 0.05


def _own_threads() -> set[str]:
    return {
        t.name
        for t in threading.enumerate()
        if t.is_alive() and t.name.startswith(("dask-loader", "dask_loader"))
    }


def _children() -> set[int]:
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            name = " ".join(child.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        # Python's own helpers live until the interpreter ends.
        if "resource_tracker" in name or "forkserver" in name:
            continue
        found.add(child.pid)
    return found


def _shared_memory(children: set[int]) -> set[str]:
    # "sem." names are semaphores of any program's multiprocessing on this machine.
    root = Path("/dev/shm")
    names = {p.name for p in root.iterdir()} if root.is_dir() else set()
    mine = {os.getpid(), *children}
    return {n for n in names if not n.startswith("sem.") and not _is_others(n, mine)}


def _is_others(name: str, mine: set[int]) -> bool:
    """Whether a segment is a living process's that is none of ours.

    Such as one of the tests that run beside these. torch's names tell the process; our
    folders are locked by theirs.
    """
    parts = name.split("_")
    owner = int(parts[1]) if parts[0] == "torch" and parts[1].isdecimal() else 0
    if name.startswith("dask-loader-"):
        owner = _lock_holder(Path("/dev/shm") / name / "owner")
    return owner > 0 and owner not in mine and psutil.pid_exists(owner)


def _lock_holder(file: Path) -> int:
    """The process that has locked a file, or 0."""
    try:
        inode = file.stat().st_ino
    except OSError:  # gone, or another user's
        return 0
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()  # number, kind, mode, access, process, device:inode, ...
        if words[5].rpartition(":")[2] == str(inode):
            return int(words[4])
    return 0


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests, and the programs they start, out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("DASK_LOADER_FOOTER_CACHE", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _all_collectable() -> Iterator[None]:
    """Undo at the end what _collect() does."""
    yield
    gc.unfreeze()


def _collect(*, thoroughly: bool) -> None:
    """Free what is only held by cycles.

    What was alive after an earlier test is looked at only where something seems to be
    left behind: a look at all of it takes 0.1 s, three minutes over all tests.
    """
    if thoroughly:
        gc.unfreeze()
    gc.collect()


def _held() -> tuple[set[int], set[str], set[str], set[str]]:
    """What a test may leave behind."""
    children = _children()
    return children, _shared_memory(children), _descriptors(), _own_threads()


def _descriptors() -> set[str]:
    """What is open or mapped, without what belongs to no test."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
            if "memfd:dask-loader" in target:  # all have the same name
                target += f" {os.fstat(int(fd)).st_ino}"
        except OSError:  # closed between listing and reading
            continue
        found.append(target)
    kept = {
        t
        for t in found
        if t.endswith((".parquet", ".lock")) or "/shm/" in t or "memfd:dask" in t
    }
    for line in Path("/proc/self/maps").read_text().splitlines():
        name = line[line.find("/") :]
        if line.endswith(".parquet") or "memfd:dask-loader" in name:
            kept.add(f"mapped {name} {line.split()[4]}")
    return kept


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail the test that leaves a thread, process, open file or segment behind."""
    before = _held()
    yield
    deadline = time.monotonic() + _LEAK_DEADLINE_S
    thoroughly = False
    while True:
        _collect(thoroughly=thoroughly)
        left = [sorted(map(str, a - b)) for a, b in zip(_held(), before, strict=True)]
        if not any(left) or time.monotonic() > deadline:
            break
        if thoroughly:
            time.sleep(_POLL_S)  # polling a condition, with a deadline
        thoroughly = True
    gc.freeze()
    names = ("processes", "shared-memory files", "open files", "threads")
    leaks = {n: x for n, x in zip(names, left, strict=True) if x}
    assert not leaks, f"left behind: {leaks}"


# A prime, so that no world size and no batch size divides it.
SMALL_ROWS = 1009


@pytest.fixture(scope="session")
def local_cluster() -> Iterator[cluster.Cluster]:
    """Two Dask workers, for all tests that break nothing.

    Ask for it by name, or in a fixture of module scope or wider: begun inside a test it
    would count as left behind.
    """
    with cluster.launch("local", workers=2) as launched:
        yield launched


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three files with all kinds of columns; `id` is the row's number."""
    folder = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    ids = np.arange(SMALL_ROWS)
    vectors = pa.array(rng.random(SMALL_ROWS * 3, dtype=np.float32))
    table = pa.table(
        {
            "id": ids,
            "f32": rng.random(SMALL_ROWS, dtype=np.float32),
            "f64": rng.standard_normal(SMALL_ROWS),
            "u8": rng.integers(0, 256, SMALL_ROWS, dtype=np.uint8),
            "i16": rng.integers(-9999, 9999, SMALL_ROWS, dtype=np.int16),
            "flag": rng.random(SMALL_ROWS) < 0.5,
            "when": pa.array(ids * 1_000_003, pa.timestamp("us", tz="UTC")),
            "vec": pa.FixedSizeListArray.from_arrays(vectors, 3),
            "name": [f"row {i} \N{SNOWMAN}" * (i % 4) for i in range(SMALL_ROWS)],
            "raw": [bytes([i % 256]) * (i % 3) for i in range(SMALL_ROWS)],
        }
    )
    for number, (start, stop) in enumerate(((0, 400), (400, 401), (401, SMALL_ROWS))):
        part = table.slice(start, stop - start)
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=67)
    return folder


@pytest.fixture
def tiny_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 8 MiB, as /dev/shm is in many containers."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs mount")
    if done.returncode:
        pytest.skip("may not mount a tmpfs here")
    yield folder
    # Lazily: others may have files of it mapped.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class GatedDevice:
    """A batch.device.Backend that does nothing until it is waited for.

    It has two streams, the side's and the caller's, whose work is done in order and only
    as far as someone synchronizes. A copy in the queue knows the address it will read,
    and keeps nothing alive, like a real one: what is written there in between arrives.

    Attributes:
        log: ("copy" | "hand over" | "wait", number of the event or copy) in order.
        buffers: Weak references to the memory of the pinned buffers it gave out.
        fail_at: Number of the copy that raises instead.
    """

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.buffers: list[weakref.ref[np.ndarray]] = []
        self.fail_at: int | None = None
        self._side: deque[Callable[[], None]] = deque()
        self._caller: deque[Callable[[], None]] = deque()
        self._current = self._caller
        self._num_copies = self._num_events = 0

    @contextmanager
    def side(self) -> Iterator[None]:
        self._current = self._side
        try:
            yield
        finally:
            self._current = self._caller

    def empty_pinned(self, num_bytes: int) -> torch.Tensor:
        memory = np.empty(num_bytes, dtype=np.uint8)
        self.buffers.append(weakref.ref(memory))
        return torch.from_numpy(memory)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        number, self._num_copies = self._num_copies, self._num_copies + 1
        if number == self.fail_at:
            raise MemoryError(f"no room for copy {number}")
        assert tensor.is_contiguous() or tensor.T.is_contiguous()  # in one piece
        target, address, size = (
            torch.zeros_like(tensor),
            tensor.data_ptr(),
            tensor.nbytes,
        )

        def run() -> None:
            ctypes.memmove(target.data_ptr(), address, size)

        self.log.append(("copy", number))
        self._current.append(run)
        return target

    def record(self) -> GatedEvent:
        event = GatedEvent(self, self._current, self._num_events)
        self._num_events += 1
        self._current.append(event.reach)
        return event

    def hand_over(self, tensors: Sequence[torch.Tensor], copied: GatedEvent) -> None:
        assert self._current is self._caller
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors)
        self.log.append(("hand over", copied.number))
        self._caller.append(copied.run)

    def step(self, work: Callable[[], None]) -> None:
        """Queue work of the caller's."""
        self._caller.append(work)

    def finish(self) -> None:
        """Do all that is queued."""
        while self._caller:
            self._caller.popleft()()
        while self._side:
            self._side.popleft()()


class GatedEvent:
    """An event of a GatedDevice, done when its stream has come to it."""

    def __init__(
        self, device: GatedDevice, stream: deque[Callable[[], None]], number: int
    ) -> None:
        self.number = number
        self.done = False
        self._device = device
        self._stream = stream

    def reach(self) -> None:
        self.done = True

    def run(self) -> None:
        while not self.done:
            self._stream.popleft()()

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self._device.log.append(("wait", self.number))
        self.run()


@pytest.fixture
def gated_device() -> GatedDevice:
    """A device that tests have to wait for."""
    return GatedDevice()
