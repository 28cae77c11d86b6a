"""Loaded by Dask workers: stops the first that comes to a step, once for each step."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import distributed

FOLDER_VARIABLE = "DASK_LOADER_TEST_STEPS"


class StopAt(distributed.WorkerPlugin):
    """The file `step` has a part of a task's key, and what must become of the task."""

    name = "stop-at"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        del start
        step = self.folder / "step"
        with contextlib.suppress(
            FileNotFoundError, ValueError
        ):  # none, or half written
            part, state = step.read_text().split()
            if part in str(key) and finish == state:
                own = self.folder / f"pid {os.getpid()}"
                own.write_text(str(os.getpid()))
                with contextlib.suppress(FileExistsError):
                    os.link(own, self.folder / "reached")  # one worker only
                    os.kill(os.getpid(), signal.SIGSTOP)


async def dask_setup(worker: distributed.Worker) -> None:
    await worker.plugin_add(StopAt(Path(os.environ[FOLDER_VARIABLE])))
