"""A cluster on this machine: distributed.LocalCluster with a deadline, and quiet.

The scheduler lives in this process, each worker in a program of its own, which imports
nothing of this one; all of them listen on 127.0.0.1 only. The wire is plain: other users
of the same machine could connect. The workers end with this process, however it ends. A
nanny starts its worker again, and this launcher the nannies.
"""

from __future__ import annotations

import concurrent.futures
import os
import time
from contextlib import ExitStack
from typing import Any

from distributed import LocalCluster, SpecCluster

from cluster.errors import StartError
from cluster.loop import LoopThread
from cluster.quiet import dask_quiet
from cluster.restarts import RestartPolicy, Restarts
from cluster.spec import ClusterSpec
from cluster.worker import WorkerOptions, WorkerProcess

_HOST = "127.0.0.1"
# A worker that does not end by itself is killed after 4 s.
_CLOSE_S = 20.0
# After the worker processes are killed, those who wait for them notice at once.
_KILL_S = 10.0
_POLL_S = 0.05
# A worker that is restarted later, on a machine that is busy by then, takes longer than
# the first ones may be allowed.
_RESTART_S = 60.0


class LocalLauncher:
    """Starts and ends one LocalCluster, on an event loop of its own."""

    kind = "local"
    revives_scheduler = False
    security = None

    def __init__(self, spec: ClusterSpec) -> None:
        """Remember what to start; nothing is started yet."""
        self._spec = spec
        self._loop: LoopThread | None = None
        self._cluster: LocalCluster | None = None
        self._workers: list[WorkerProcess] = []
        self._quiet = ExitStack()
        self._restarts = Restarts(RestartPolicy())

    @property
    def address(self) -> str:
        """Where the scheduler listens."""
        return str(self._running().scheduler_address)

    @property
    def dashboard_link(self) -> str | None:
        """Where a browser on this machine finds the dashboard."""
        return str(self._running().dashboard_link) if self._spec.dashboard else None

    @property
    def troubles(self) -> tuple[str, ...]:
        """Workers that are not started again."""
        return self._restarts.given_up

    def start(self, *, timeout_s: float) -> None:
        """Bring up the scheduler and the workers.

        Raises:
            StartError: They failed, or were too slow.
        """
        self._quiet.enter_context(dask_quiet())
        self._loop = LoopThread("cluster-local")
        starting = self._loop.submit(self._start())
        try:
            in_time = self._settle(starting, within_s=timeout_s)
        except BaseException:  # Ctrl-C: what has begun must end before close()
            self._settle(starting, within_s=0.0)
            raise
        error = starting.exception() if starting.done() else None
        if in_time and error is None:
            return
        reason = _reason(error) if in_time else f"not up after {timeout_s:g} s"
        raise StartError(
            f"the local cluster (workers={self._spec.workers}) did not start: {reason}; "
            "see what the workers printed above, or give more time with start_timeout_s",
            kind=self.kind,
            workers_asked=self._spec.workers,
            waited_s=None if in_time else timeout_s,
        ) from error

    def scale(self, num_workers: int, *, timeout_s: float) -> None:
        """Ask for this many workers and wait until those that start have started.

        Raises:
            StartError: One of them failed to start.
        """
        assert self._loop is not None
        scaling = self._loop.submit(self._scale(num_workers))
        concurrent.futures.wait([scaling], timeout=timeout_s)
        error = scaling.exception() if scaling.done() else None
        if error is not None:
            raise StartError(
                f"a worker of the local cluster at {self.address} did not start "
                f"({_reason(error)}) when it was scaled to {num_workers}; see what it "
                "printed above",
                kind=self.kind,
                address=self.address,
                workers_asked=num_workers,
            ) from error

    def logs(self, *, num_lines: int, timeout_s: float) -> dict[str, str]:  # noqa: ARG002
        """Return nothing: the scheduler and the workers tell."""
        return {}

    def close(self) -> None:
        """End the workers, the scheduler and the loop; safe twice."""
        if self._loop is None:
            return
        if self._cluster is not None:
            closing = self._loop.submit(self._close())
            self._settle(closing, within_s=_CLOSE_S)
            self._cluster = None
        self._loop.stop()
        self._loop = None
        self._quiet.close()

    def _running(self) -> LocalCluster:
        assert self._cluster is not None, "start() comes first"
        return self._cluster

    async def _start(self) -> None:
        spec = self._spec
        options: dict[str, Any] = {}
        if spec.memory_limit != "auto":
            options["memory_limit"] = spec.memory_limit
        if spec.local_directory is not None:
            folder = os.path.abspath(spec.local_directory)
            os.makedirs(folder, exist_ok=True)  # its error says more than a worker's
            options["local_directory"] = folder
        self._cluster = _KeptCluster(  # type: ignore[no-untyped-call]
            asynchronous=True,
            host=_HOST,
            n_workers=spec.workers,
            threads_per_worker=spec.threads_per_worker,
            processes=True,
            worker_class=self._make_worker,
            # Port 0 also without a dashboard: the scheduler always serves HTTP (its
            # health, its metrics), and warns when the default port is taken.
            dashboard_address=f"{_HOST}:0",
            scheduler_kwargs={"dashboard": spec.dashboard},
            silence_logs=False,  # dask_quiet() does it, and only to Dask's own lines
            **options,
        )
        await self._cluster

    async def _scale(self, num_workers: int) -> None:
        cluster = self._running()
        for name, worker in list(cluster.workers.items()):
            if worker.given_up:  # it gets another chance
                await worker.close()
                del cluster.workers[name]
        surplus = len(cluster.worker_spec) - num_workers
        if surplus <= 0:
            cluster.scale(num_workers)
            await cluster
            return
        # LocalCluster.scale() would lose what the leaving workers hold: it retires them
        # by their names where the scheduler expects addresses (dask/distributed #4069).
        scheduler = cluster.scheduler
        assert scheduler is not None
        there = {worker.name for worker in scheduler.workers.values()}
        newest_first = reversed(list(cluster.worker_spec))
        leaving = sorted(newest_first, key=there.__contains__)[:surplus]
        await scheduler.retire_workers(names=leaving, remove=False)
        await cluster.scale_down(leaving)

    async def _close(self) -> None:
        closing = self._running().close()
        if closing is not None:
            await closing

    def _make_worker(
        self,
        scheduler_address: str,
        *,
        name: int,
        nthreads: int,
        memory_limit: str | int | None = "auto",
        local_directory: str | None = None,
        **_: Any,
    ) -> WorkerProcess:
        """Make what SpecCluster asks for; the rest of it is meant for its own nannies."""
        options = WorkerOptions(
            name=name,
            num_threads=nthreads,
            memory_limit=memory_limit,
            local_directory=local_directory,
            start_timeout_s=max(_RESTART_S, self._spec.start_timeout_s),
        )
        worker = WorkerProcess(
            scheduler_address, options, self._has_joined, self._restarts
        )
        self._workers.append(worker)
        return worker

    def _has_joined(self, name: int) -> bool:
        scheduler = self._running().scheduler
        assert scheduler is not None
        # A nanny that is still starting, some 50 ms more, would not replace its worker.
        starting = scheduler._starting_nannies
        return any(
            worker.name == name and worker.nanny not in starting
            for worker in scheduler.workers.values()
        )

    def _settle(
        self, work: concurrent.futures.Future[None], *, within_s: float
    ) -> bool:
        """Wait for the end of some work; past its time, kill the workers to force it.

        Dask has no deadline of its own that leaves nothing behind: a worker that never
        comes up keeps the cluster waiting. When its program is killed, both go on and
        report it.

        Returns:
            Whether it ended in time.
        """
        concurrent.futures.wait([work], timeout=within_s)
        in_time = work.done()
        give_up = time.monotonic() + _KILL_S
        while not work.done() and time.monotonic() < give_up:
            for worker in self._workers:
                worker.kill()
            concurrent.futures.wait([work], timeout=_POLL_S)
        return in_time


class _KeptCluster(LocalCluster):
    """LocalCluster, but that it does not drop a worker that was away for a while."""

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # SpecCluster's own closes it after 15 s, and never starts another.
        super(SpecCluster, self)._update_worker_status(op, msg)  # type: ignore[no-untyped-call]


def _reason(error: BaseException | None) -> str:
    return str(error) if isinstance(error, StartError) else repr(error)
