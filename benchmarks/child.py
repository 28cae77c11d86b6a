"""A contestant's process, as the runner holds it: asked, waited for, ended."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil  # type: ignore[import-untyped]
from watch import tree

_CLOSE_S = 30.0
_KILL_S = 10.0
_STDERR_BYTES = 2000


class ContestantError(Exception):
    """A contestant cannot do what it was asked for; the text says why."""


class Child:
    """One contestant in a process of its own.

    The runner makes it, asks it from one thread, and closes it. After an error it must
    still be closed; close() is safe twice and ends all that the contestant started.

    Raises:
        ContestantError: It did not start.
    """

    def __init__(self, command: list[str]) -> None:
        # Kept in a file: a pipe that nobody reads would stop the contestant.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        here = Path(__file__).parent
        self._program = subprocess.Popen(
            command,
            cwd=here,
            env=os.environ | {"PYTHONPATH": str(here), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self.process = psutil.Process(self._program.pid)
        self._reader = threading.Thread(target=self._read, name="contestant-answers")
        self._reader.start()

    def ask(self, request: dict[str, Any], *, within_s: float) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            ContestantError: It failed, ended, or gave no answer in time.
        """
        assert self._program.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which the answer tells
            self._program.stdin.write(json.dumps(request) + "\n")
            self._program.stdin.flush()
        try:
            line = self._answers.get(timeout=within_s)
        except queue.Empty:
            raise ContestantError(
                f"no answer to {request['do']!r} within {within_s:g} s"
            ) from None
        if line is None:
            code = self._program.wait(_KILL_S)
            raise ContestantError(f"ended with exit code {code}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise ContestantError(answer["error"])
        return answer

    def close(self) -> None:
        """Ask it to end, then see that nothing of it is left."""
        started = tree(self.process)
        with suppress(ContestantError):
            if self._program.poll() is None:
                self.ask({"do": "close"}, within_s=_CLOSE_S)
                started += tree(self.process)
        with suppress(BrokenPipeError):
            assert self._program.stdin is not None
            self._program.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._program.wait(_KILL_S)
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()  # by start time too: never another that has its pid
        self._program.wait(_KILL_S)
        self._reader.join(_KILL_S)
        assert self._program.stdout is not None
        self._program.stdout.close()
        self._stderr.close()

    def _read(self) -> None:
        assert self._program.stdout is not None
        with suppress(ValueError):  # closed meanwhile
            for line in self._program.stdout:
                self._answers.put(line)
        self._answers.put(None)

    def _last_words(self) -> str:
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - _STDERR_BYTES))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:])
