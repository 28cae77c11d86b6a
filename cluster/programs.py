"""Programs of one process on its machine: started, kept alive, ended with it.

Each is a cluster.nanny, which ends by itself when the process that started it does.
Here one that ends before is started again, with back-off and a cap.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from cluster.nanny import kill_tree
from cluster.restarts import RestartPolicy, Restarts

_POLL_S = 0.2
_CLOSE_S = 5.0


class Programs:
    """Made, used and closed by one owner; a thread of its own watches.

    Their logs are files of the folder, which the owner makes and removes.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        policy: RestartPolicy | None = None,
    ) -> None:
        """Start the thread; there are no programs yet."""
        self._folder = folder
        self._environment = dict(environment)
        self._restarts = Restarts(policy or RestartPolicy())
        self._arguments: dict[str, tuple[str, ...]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._due_s: dict[str, float] = {}  # when each of those that are down starts
        self._down: dict[str, str] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="cluster-programs", daemon=True
        )
        self._thread.start()

    @property
    def troubles(self) -> tuple[str, ...]:
        """Those that are down now, and those that are not started again, in words."""
        with self._lock:
            return (*self._down.values(), *self._restarts.given_up)

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start one, with these arguments of cluster.nanny's after the process id."""
        with self._lock:
            self._arguments[name] = tuple(arguments)
            self._start(name)

    def start_again_with(self, name: str, arguments: Sequence[str]) -> None:
        """Say what one gets when it is started again; until then, what it had."""
        with self._lock:
            self._arguments[name] = tuple(arguments)

    def is_up(self, name: str) -> bool:
        """Tell whether it runs now."""
        with self._lock:
            return name in self._running and self._running[name].poll() is None

    def logs(self, num_lines: int) -> dict[str, str]:
        """Return the last lines of each, those before its last start too."""
        with self._lock:
            names = list(self._arguments)
        return {name: self.tail(name, num_lines) for name in names}

    def tail(self, name: str, num_lines: int) -> str:
        """Return the last lines of one."""
        text = (self._folder / f"{name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-num_lines:])

    def close(self, *, last: str = "") -> None:
        """End all at once, but for one that is ended last; safe twice.

        What takes long to end is killed.
        """
        self._closed.set()
        self._thread.join()
        final = self._running.pop(last, None)
        self._end(list(self._running.values()))
        self._running.clear()
        if final is not None:
            self._end([final])

    def _end(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        deadline = time.monotonic() + _CLOSE_S
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(psutil.NoSuchProcess):
                    kill_tree(psutil.Process(process.pid))
                process.wait(_CLOSE_S)

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_S):  # several are watched: no event comes
            with self._lock:
                now_s = time.monotonic()
                for name, process in list(self._running.items()):
                    if process.poll() is not None:
                        del self._running[name]
                        self._ended(
                            name, f"it ended with exit code {process.returncode}"
                        )
                for name in [n for n, due_s in self._due_s.items() if due_s <= now_s]:
                    try:
                        self._start(name)
                    except OSError as error:  # no memory or processes to be had now
                        self._ended(name, f"it could not be started: {error}")

    def _ended(self, name: str, why: str) -> None:
        now_s = time.monotonic()
        self._due_s.pop(name, None)
        self._down.pop(name, None)
        delay_s = self._restarts.ended(name, now_s=now_s, why=why)
        if delay_s is not None:
            self._due_s[name] = now_s + delay_s
            self._down[name] = f"{name} is started again in {delay_s:g} s: {why}"

    def _start(self, name: str) -> None:
        self._restarts.began(name, now_s=time.monotonic())
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-W", "ignore:resource_:UserWarning"),
                    *("-m", "cluster.nanny", str(os.getpid())),
                    *self._arguments[name],
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        self._due_s.pop(name, None)
        self._down.pop(name, None)
