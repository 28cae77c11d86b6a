"""One Dask worker of this machine, as a program of its own.

Dask's Nanny makes its worker with multiprocessing, which imports the main script of the
process that asked: the worker of a training script would load torch, and a script
without `if __name__ == "__main__":` would launch again. So the nanny gets a program of
its own, and the main script that its worker imports is cluster/nanny.py.

What comes in is a scheduler's address and what the worker shall be; this file does not
decide how many there are, and hands nothing secret to the command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import psutil  # type: ignore[import-untyped]
from distributed.core import Status
from distributed.deploy.spec import ProcessInterface

from cluster.errors import StartError
from cluster.nanny import kill_tree
from cluster.restarts import Restarts

_HOST = "127.0.0.1"
_POLL_S = 0.02
# As long as Dask's own nannies give a worker to close; then it is killed.
_CLOSE_S = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOptions:
    """What one worker shall be.

    Attributes:
        name: By which the scheduler knows it.
        num_threads: Tasks that it runs at a time.
        memory_limit: Bytes, text for Dask to read, or None for no limit.
        local_directory: Folder for what it spills to disk; None leaves it to Dask.
        start_timeout_s: Longest wait for it to join, when it starts and when its nanny
            starts it again.
    """

    name: int
    num_threads: int
    memory_limit: str | int | None
    local_directory: str | None
    start_timeout_s: float


class WorkerProcess(ProcessInterface):
    """The program of a nanny, which keeps one worker alive; made for SpecCluster.

    SpecCluster awaits it once, and closes it once that has ended, on one event loop;
    kill() may be called at any time and by any thread.
    """

    def __init__(
        self,
        scheduler_address: str,
        options: WorkerOptions,
        has_joined: Callable[[int], bool],
        restarts: Restarts,
    ) -> None:
        """Remember what to start; nothing is started yet.

        Args:
            scheduler_address: Where it shall register.
            options: What it shall be.
            has_joined: Tells whether the scheduler has a worker of this name.
            restarts: Decides when it is started again, should its nanny end too.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._scheduler_address = scheduler_address
        self._options = options
        self._has_joined = has_joined
        self._restarts = restarts
        self._keeper: asyncio.Task[None] | None = None
        self._killed = False
        self.given_up = False
        self._program: Process | None = None
        self._nanny: psutil.Process | None = None

    async def start(self) -> None:
        """Start it, and return when the scheduler has the worker.

        There is no deadline here: kill() ends a start that takes too long.

        Raises:
            StartError: It ended before that.
            OSError: It could not be started at all.
        """
        try:
            await self._launch()
        except BaseException:
            self.status = Status.failed
            raise
        self.status = Status.running
        self._keeper = asyncio.create_task(self._keep())

    async def _launch(self) -> None:
        name = self._options.name
        self._restarts.began(f"worker {name}", now_s=time.monotonic())
        try:
            self._program = await asyncio.create_subprocess_exec(
                *command(self._scheduler_address, self._options),
                stdin=DEVNULL,
                env=environment(os.environ, sys.path, dask.config.global_config),
                # Ctrl-C is for the program that launched: it closes its workers.
                start_new_session=True,
            )
            with contextlib.suppress(psutil.NoSuchProcess):
                self._nanny = psutil.Process(self._program.pid)
            while not self._has_joined(name):
                if self._program.returncode is not None:
                    raise StartError(
                        f"worker {name} ended with exit code "
                        f"{self._program.returncode} before it had joined",
                        kind="local",
                        address=self._scheduler_address,
                    )
                await asyncio.sleep(_POLL_S)  # polling two conditions
        except BaseException:
            self._kill()
            raise

    async def _keep(self) -> None:
        """Start it again whenever its nanny ends: a worker's own end is the nanny's."""
        what = f"worker {self._options.name}"
        assert self._program is not None
        why = f"it ended with exit code {await self._program.wait()}"
        while not self._killed:
            now_s = time.monotonic()
            delay_s = self._restarts.ended(what, now_s=now_s, why=why)
            if delay_s is None:
                self.given_up = True
                return
            await asyncio.sleep(delay_s)
            try:
                await self._launch()
                why = f"it ended with exit code {await self._program.wait()}"
            except (StartError, OSError) as error:
                why = str(error)

    async def close(self) -> None:
        """End it: it may close in peace for a few seconds, then it is killed."""
        self.status = Status.closing
        self._restarts.forget(f"worker {self._options.name}")
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._program is not None:
            with contextlib.suppress(ProcessLookupError):
                self._program.terminate()
            try:
                await asyncio.wait_for(self._program.wait(), _CLOSE_S)
            except TimeoutError:
                self.kill()
                await self._program.wait()
        await super().close()  # type: ignore[no-untyped-call]

    def kill(self) -> None:
        """Kill the nanny, its worker, and what that has started, for good; safe twice."""
        self._killed = True
        self._kill()

    def _kill(self) -> None:
        if self._nanny is not None:
            kill_tree(self._nanny)


def command(scheduler_address: str, options: WorkerOptions) -> list[str]:
    """Write the command line of a nanny and its worker, on loopback only."""
    limit = 0 if options.memory_limit is None else options.memory_limit
    written = [
        # -P: only what environment() says is on the path, not the working folder too.
        # -W: what is killed leaves Python's resource tracker something to say.
        *(sys.executable, "-P", "-W", "ignore:resource_:UserWarning"),
        *("-m", "cluster.nanny", str(os.getpid()), scheduler_address),
        *("--host", _HOST, "--no-dashboard", "--dashboard-address", f"{_HOST}:0"),
        *("--nworkers", "1", "--nthreads", str(options.num_threads)),
        *("--name", str(options.name), "--memory-limit", str(limit)),
        *("--death-timeout", f"{options.start_timeout_s:g}"),
    ]
    if options.local_directory is not None:
        written += ["--local-directory", options.local_directory]
    # With the command line's empty list Dask overlooks its configured one.
    for module in dask.config.get("distributed.nanny.preload"):
        written += ["--preload-nanny", module]
    return written


def environment(
    environ: Mapping[str, str], path: Sequence[object], config: Mapping[str, Any]
) -> dict[str, str]:
    """Write the environment of a worker, so that it finds what its launcher finds.

    Args:
        environ: That of the launching process.
        path: Its sys.path.
        config: Its Dask configuration.

    Returns:
        The same, with the path and the configuration in it, and a log of errors only.
    """
    # Dask would prefer these to the configuration, which has read them already.
    kept = {k: v for k, v in environ.items() if not k.startswith("DASK_")}
    folders = [os.path.abspath(p) for p in path if isinstance(p, str)]
    return kept | {
        "DASK_INTERNAL_INHERIT_CONFIG": config_text(config),
        "DASK_LOGGING__DISTRIBUTED": "error",
        "PYTHONPATH": os.pathsep.join(folders),
    }


def config_text(config: Mapping[str, Any]) -> str:
    """Write a Dask configuration as Dask reads it from its environment."""
    return str(dask.config.serialize(_as_json(config)))


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what cannot be sent, such as a thread pool or a function."""
    sent: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            sent[key] = _as_json(value)
            continue
        with contextlib.suppress(TypeError, ValueError):
            json.dumps(value)
            sent[key] = value
    return sent
