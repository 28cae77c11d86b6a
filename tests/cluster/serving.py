"""The command line that serves a cluster, as a process, until it is told to end."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_DEADLINE_S = 120.0


@dataclass
class Served:
    """A command that runs, or has just ended."""

    process: subprocess.Popen[str]

    @cached_property
    def line(self) -> str:
        """Its first line, which comes when the cluster is there."""
        assert self.process.stdout is not None
        lines: queue.Queue[str] = queue.Queue()
        stdout = self.process.stdout
        threading.Thread(target=lambda: lines.put(stdout.readline())).start()
        line = lines.get(timeout=_DEADLINE_S).strip()
        return line or self.ended(None)

    def ends_by(self, end: signal.Signals, *, code: int) -> None:
        """Send it a signal: it ends with this code and without a word more."""
        self.process.send_signal(end)
        assert self.ended(code) == ""

    def ended(self, code: int | None) -> str:
        """Wait for its end with this exit code; return what it has written since."""
        out, err = self.process.communicate(timeout=_DEADLINE_S)
        assert self.process.returncode == code, out + err
        return out + err


@contextmanager
def serve(*command: str, folder: Path | None = None) -> Iterator[Served]:
    """Run `python -m COMMAND` until the block ends."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder or _ROOT,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
    ) as process:
        try:
            yield Served(process)
        finally:
            process.kill()
