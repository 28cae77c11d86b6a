"""The program of one nanny: Dask's `dask worker`, which ends with its launcher.

    python -m cluster.nanny PID ARGUMENTS-OF-DASK-WORKER...
    python nanny.py PID --scheduler ARGUMENTS-OF-DASK-SCHEDULER...

A worker of Dask's own ends when its scheduler has gone, but takes 30 s and more when it
is busy or has not joined yet. Here everything is killed within a second or two of the
launching process's end, however that came. Its worker imports this file as its main
script, so nothing is done or loaded on import.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time

import psutil  # type: ignore[import-untyped]

_POLL_S = 1.0
_TRACKER = "multiprocessing.resource_tracker"


def kill_tree(root: psutil.Process) -> None:
    """Kill a process and all below it, stopped ones too; at last itself, if it is it.

    Python's resource tracker stays, for a moment: it removes what killed ones have left
    in /dev/shm.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if not any(_TRACKER in part for part in process.cmdline()):
                    process.kill()


def _end_with(launcher_pid: int) -> None:
    # A process that loses its parent is given another one.
    while os.getppid() == launcher_pid:
        time.sleep(_POLL_S)  # no event comes; a pipe would stay open in its forks
    folder = os.environ.get("CLUSTER_PRIVATE_FOLDER")
    if folder:  # an agent that was killed leaves its certificates
        shutil.rmtree(folder, ignore_errors=True)
    kill_tree(psutil.Process())


def _main() -> None:
    launcher_pid, *arguments = sys.argv[1:]
    threading.Thread(target=_end_with, args=[int(launcher_pid)], daemon=True).start()
    if arguments[:1] == ["--scheduler"]:
        from distributed.cli.dask_scheduler import main

        main(arguments[1:])
    else:
        from distributed.cli.dask_worker import main

        main(arguments)


if __name__ == "__main__":
    _main()
