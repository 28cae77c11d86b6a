"""A cluster in the jobs of a batch queue, by the job classes of dask-jobqueue.

The scheduler lives in this process and the jobs hold workers only: when it goes, they
end by themselves. Of dask-jobqueue only the jobs are used: its clusters do not replace
a job that the queue has cancelled, and write the keys where others may read them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import re
import time
import warnings
from pathlib import Path
from typing import Any

from distributed import Scheduler
from distributed.security import Security
from distributed.utils import get_ip, get_ip_interface

from cluster.errors import InsecureWarning, SpecError, StartError
from cluster.keys import KeyFolder
from cluster.loop import LoopThread
from cluster.queue_jobs import SYSTEMS, job_script, make_job
from cluster.queue_spec import QueueSpec
from cluster.quiet import dask_quiet
from cluster.restarts import RestartPolicy, Restarts
from cluster.security import Certificates, make_certificates, read_certificates

__all__ = ["QueueSpec", "job_script"]

_POLL_S = 0.1
_WATCH_S = 3.0
_ASK_S = 20.0
_CLOSE_S = 20.0


class QueueLauncher:
    """Submits, watches and cancels the jobs, on an event loop of its own."""

    kind = "queue"
    revives_scheduler = False

    def __init__(self, spec: QueueSpec) -> None:
        """Remember what to start, and make or read the certificates.

        Raises:
            SpecError: A package is missing, or a certificate cannot be used.
        """
        make_job(self.kind, spec, "tcp://SCHEDULER:8786", "0", None)  # a bad one, now
        self._spec = spec
        self._certificates: Certificates | None = None
        if spec.certificates is not None:
            self._certificates = read_certificates(spec.certificates)
        elif not spec.insecure:
            self._certificates = make_certificates()
        self._keys: KeyFolder | None = None
        self._loop: LoopThread | None = None
        self._scheduler: Scheduler | None = None
        self._jobs: dict[int, Any] = {}
        self._wanted: set[int] = set()
        self._next = 0
        self._old_ids: list[str] = []
        self._seen_s: dict[int, float] = {}
        self._restarts = Restarts(RestartPolicy())
        self._quiet = contextlib.ExitStack()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where the scheduler listens."""
        assert self._scheduler is not None, "start() comes first"
        return str(self._scheduler.address)

    @property
    def security(self) -> Security | None:
        """What a client needs to get in, in memory."""
        made = self._certificates
        return None if made is None else made.client_security()

    @property
    def dashboard_link(self) -> str | None:
        """Where a browser on this machine finds the dashboard."""
        if not self._spec.dashboard or self._scheduler is None:
            return None
        return f"http://127.0.0.1:{self._scheduler.services['dashboard'].port}/status"

    @property
    def troubles(self) -> tuple[str, ...]:
        """Jobs that are not submitted again."""
        return self._restarts.given_up

    def start(self, *, timeout_s: float) -> None:
        """Bring up the scheduler, submit the jobs and wait for their workers.

        Raises:
            StartError: The queue refused a job, or did not start all in time.
        """
        self._quiet.enter_context(dask_quiet())
        self._loop = LoopThread(f"cluster-{self.kind}")
        starting = self._loop.submit(self._start(timeout_s))
        try:
            starting.result()
        except BaseException:  # Ctrl-C: what has begun must end before close()
            starting.cancel()
            raise
        if self._spec.insecure and "//127." not in self.address:
            warnings.warn(
                f"the {self.kind} cluster at {self.address} listens to the network in "
                "plain tcp, as insecure=True asks for: whoever reaches it can run code "
                "as you; leave insecure out, and TLS is made for you",
                InsecureWarning,
                stacklevel=4,
            )

    def scale(self, num_workers: int, *, timeout_s: float) -> None:
        """Submit more jobs, or end some after what they hold has moved.

        Raises:
            SpecError: It is not a multiple of workers_per_job.
            StartError: The queue refused a job.
        """
        per_job = self._spec.workers_per_job
        if num_workers % per_job:
            raise SpecError(
                f"num_workers={num_workers!r} must be a multiple of workers_per_job="
                f"{per_job!r}: a job has all of its workers or none"
            )
        assert self._loop is not None
        scaling = self._loop.submit(self._scale(num_workers // per_job))
        with contextlib.suppress(concurrent.futures.TimeoutError):
            scaling.result(timeout=timeout_s)

    def logs(self, *, num_lines: int, timeout_s: float) -> dict[str, str]:  # noqa: ARG002
        """Return the last lines of the files that the jobs write, by file name."""
        if self._spec.log_directory is None:
            return {}
        ids = [*self._old_ids, *(str(job.job_id) for job in self._jobs.values())]
        found = {}
        for path in sorted(Path(self._spec.log_directory).glob("*")):
            if any(re.search(rf"(?<!\d){job_id}(?!\d)", path.name) for job_id in ids):
                with contextlib.suppress(OSError):  # tidied away since, or a folder
                    lines = path.read_text(errors="replace").splitlines()
                    found[path.name] = "\n".join(lines[-num_lines:])
        return found

    def close(self) -> None:
        """Cancel the jobs, end the scheduler, remove the keys; safe twice."""
        if self._loop is None:
            return
        closing = self._loop.submit(self._close())
        concurrent.futures.wait([closing], timeout=_CLOSE_S)
        self._loop.stop()
        self._loop = None
        self._quiet.close()
        if self._keys is not None:
            self._keys.remove()

    async def _start(self, timeout_s: float) -> None:
        spec, made = self._spec, self._certificates
        security = None
        if made is not None:
            assert spec.shared_directory is not None
            self._keys = KeyFolder(spec.shared_directory, made.files("worker"))
            security = Security(
                tls_ca_file=made.ca,
                tls_scheduler_cert=made.certs["scheduler"],
                tls_scheduler_key=made.keys["scheduler"],
                require_encryption=True,
            )
        self._scheduler = Scheduler(
            host=get_ip_interface(spec.interface) if spec.interface else get_ip(),
            port=0,
            protocol="tcp" if made is None else "tls",
            security=security,
            dashboard=spec.dashboard,
            dashboard_address="127.0.0.1:0",
        )
        await self._scheduler
        deadline = time.monotonic() + timeout_s
        await self._scale(spec.num_workers // spec.workers_per_job)
        # From now on: a job can end before its workers have come.
        self._watcher = asyncio.create_task(self._watch())
        while missing := [n for n in self._wanted if not self._has_joined(n)]:
            if time.monotonic() > deadline:
                raise StartError(
                    f"{len(missing)} of {len(self._wanted)} {self.kind} jobs had no "
                    f"worker after {timeout_s:g} s; the queue shows:\n"
                    f"{await self._listing() or '(none of your jobs)'}\nlook at what it "
                    "waits for, at log_directory, or give more time with "
                    "start_timeout_s",
                    kind=self.kind,
                    address=self.address,
                    workers_asked=spec.num_workers,
                    waited_s=timeout_s,
                )
            await asyncio.sleep(_POLL_S)  # polling a condition, with a deadline

    async def _scale(self, num_jobs: int) -> None:
        for name in [n for n in self._wanted if self._is_given_up(n)]:
            self._restarts.forget(f"job {name}")  # its user may have mended it
            await self._submit(name)
        surplus = len(self._wanted) - num_jobs
        for _ in range(-surplus):
            name, self._next = self._next, self._next + 1
            self._wanted.add(name)
            await self._submit(name)
        if surplus > 0:
            newest_first = sorted(self._wanted, reverse=True)
            leaving = sorted(newest_first, key=self._has_joined)[:surplus]
            self._wanted -= set(leaving)
            assert self._scheduler is not None
            names = [worker for name in leaving for worker in self._names(name)]
            await self._scheduler.retire_workers(names=names)
            for name in leaving:
                self._restarts.forget(f"job {name}")
                await self._cancel(name)

    async def _submit(self, name: int) -> None:
        keys = None if self._keys is None else self._keys.path
        job = make_job(self.kind, self._spec, self.address, str(name), keys)
        self._restarts.began(f"job {name}", now_s=time.monotonic())
        self._seen_s[name] = time.monotonic()
        try:
            await job.start()
        except FileNotFoundError as error:
            raise StartError(
                f"{job.submit_command.split()[0]!r} is not on this machine; launch("
                f"{self.kind!r}) must run where jobs are submitted, as on a login node",
                kind=self.kind,
            ) from error
        except (RuntimeError, ValueError) as error:
            raise StartError(
                f"the queue refused a {self.kind} job: {error}\nsee the whole script "
                f"with cluster.queue.job_script({self.kind!r}, ...); where memory is "
                'nothing it hands out, skip_directives=("--mem",) leaves that out',
                kind=self.kind,
            ) from error
        self._jobs[name] = job

    async def _cancel(self, name: int) -> None:
        job = self._jobs.pop(name, None)
        if job is not None:
            self._old_ids.append(str(job.job_id))
            await job.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if self._keys is not None:
                self._keys.beat()
            listing = await self._listing()
            if listing is None:
                continue
            for name in list(self._wanted):
                job = self._jobs.get(name)
                if job is None or re.search(rf"(?<!\d){job.job_id}(?!\d)", listing):
                    continue
                why = f"the queue ended its job {job.job_id}"
                await self._cancel(name)
                asyncio.create_task(self._again(name, why))  # noqa: RUF006

    async def _again(self, name: int, why: str) -> None:
        while name in self._wanted:
            now_s = time.monotonic()
            delay_s = self._restarts.ended(f"job {name}", now_s=now_s, why=why)
            if delay_s is None:
                break
            await asyncio.sleep(delay_s)
            if name not in self._wanted:
                break
            try:
                await self._submit(name)
                break
            except StartError as error:
                why = str(error)

    async def _listing(self) -> str | None:
        """List the user's jobs; None if the queue does not answer."""
        try:
            asked = await asyncio.create_subprocess_exec(
                *SYSTEMS[self.kind].listing,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError:
            return None
        try:
            out, _ = await asyncio.wait_for(asked.communicate(), _ASK_S)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                asked.kill()
            raise
        return out.decode(errors="replace") if asked.returncode == 0 else None

    async def _close(self) -> None:
        self._wanted.clear()
        if self._watcher is not None:
            self._watcher.cancel()
        await asyncio.gather(*(self._cancel(name) for name in list(self._jobs)))
        if self._scheduler is not None:
            await self._scheduler.close()

    def _has_joined(self, name: int) -> bool:
        assert self._scheduler is not None
        there = {str(worker.name) for worker in self._scheduler.workers.values()}
        return there.issuperset(self._names(name))

    def _names(self, name: int) -> list[str]:
        num = self._spec.workers_per_job
        return [str(name)] if num == 1 else [f"{name}-{i}" for i in range(num)]

    def _is_given_up(self, name: int) -> bool:
        return self._restarts.is_given_up(f"job {name}")


class SlurmLauncher(QueueLauncher):
    """sbatch."""

    kind = "slurm"


class PbsLauncher(QueueLauncher):
    """qsub of PBS."""

    kind = "pbs"


class SgeLauncher(QueueLauncher):
    """qsub of Grid Engine."""

    kind = "sge"


class LsfLauncher(QueueLauncher):
    """bsub."""

    kind = "lsf"


class HtcondorLauncher(QueueLauncher):
    """condor_submit."""

    kind = "htcondor"
