"""CPU and memory of a contestant: of its process and of all that it started."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]

# Reading smaps_rollup takes about 1 ms for each GB that is mapped.
_SAMPLE_S = 0.2
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, OSError)


def tree(process: psutil.Process) -> list[psutil.Process]:
    """Return the process and its descendants, as far as they are alive."""
    with suppress(*_GONE):
        return [process, *process.children(recursive=True)]
    return []


def tree_cpu_s(process: psutil.Process) -> float:
    """Return CPU seconds of the tree so far, ended children included.

    What a child used is its parent's children_* from the moment the parent has waited for
    it, so each second counts once. A child that nobody waits for is lost when it ends.
    """
    total = 0.0
    for one in tree(process):
        with suppress(*_GONE):
            times = one.cpu_times()
            total += times.user + times.system
            total += times.children_user + times.children_system
    return total


def machine_cpu_s() -> float:
    """Return CPU seconds that were spent on the whole machine since it started."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # guest time is in user already
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - idle - guests)


def peak_rss_bytes(pid: int) -> int:
    """Return the most that the process ever had resident, shared pages included."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


class MemoryWatch:
    """Samples proportional memory (PSS: shared pages split among those who map them).

    Made and left by the runner around one epoch; a thread of its own samples. peak_tree
    and peak_of are complete after __exit__.
    """

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-watch")
        self.before_bytes = _sample(process)[0]
        self.peak_tree_bytes = self.before_bytes
        # Most that one process of this name and pid had, in bytes.
        self.peak_of: dict[tuple[int, str], int] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._look()

    def _look(self) -> None:
        total, each = _sample(self._process)
        self.peak_tree_bytes = max(self.peak_tree_bytes, total)
        for key, num_bytes in each.items():
            self.peak_of[key] = max(self.peak_of.get(key, 0), num_bytes)


def _sample(process: psutil.Process) -> tuple[int, dict[tuple[int, str], int]]:
    each = {}
    for one in tree(process):
        with suppress(*_GONE):
            rollup = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
            lines = (line.split() for line in rollup.splitlines())
            pss = next(int(words[1]) for words in lines if words[0] == "Pss:")
            each[one.pid, _name(one)] = pss * 1024
    return sum(each.values()), each


def _name(process: psutil.Process) -> str:
    """Return the program's name, and for `python -m package.module` the module's."""
    command = process.cmdline()
    if "-m" in command[:-1]:
        return str(command[command.index("-m") + 1])
    return str(process.name())
