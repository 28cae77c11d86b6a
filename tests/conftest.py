"""Shared by all tests: the leak check that runs after each of them."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

_LEAK_DEADLINE_S = 20.0
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


def _shared_memory() -> set[str]:
    root = Path("/dev/shm")
    return {p.name for p in root.iterdir()} if root.is_dir() else set()


def _descriptors() -> set[str]:
    """What each open descriptor refers to, without those that belong to no test."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:  # closed between listing and reading
            continue
    return {t for t in found if t.endswith((".parquet", ".lock")) or "/shm/" in t}


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail the test that leaves a thread, process, open file or segment behind."""
    before = (_children(), _shared_memory(), _descriptors(), _own_threads())
    yield
    deadline = time.monotonic() + _LEAK_DEADLINE_S
    while True:
        gc.collect()
        after = (_children(), _shared_memory(), _descriptors(), _own_threads())
        left = [sorted(map(str, a - b)) for a, b in zip(after, before, strict=True)]
        if not any(left) or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)  # polling a condition, with a deadline
    names = ("processes", "shared-memory files", "open files", "threads")
    leaks = {n: x for n, x in zip(names, left, strict=True) if x}
    assert not leaks, f"left behind: {leaks}"
