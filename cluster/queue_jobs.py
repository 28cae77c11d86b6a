"""What is submitted: a job of dask-jobqueue's for each queue system, and its script."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask.utils import parse_bytes

from cluster.errors import SpecError
from cluster.jobqueue import make
from cluster.queue_spec import QueueSpec

# Dask's wires break off after so long without an answer; it refuses less than this.
_SHORTEST_TCP_S = 11


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueSystem:
    """One queue system: its job class, and the command that lists the user's jobs."""

    job: str
    listing: tuple[str, ...]


SYSTEMS = {
    "slurm": QueueSystem(job="SLURMJob", listing=("squeue", "-h", "-o", "%i %T %r")),
    "pbs": QueueSystem(job="PBSJob", listing=("qstat",)),
    "sge": QueueSystem(job="SGEJob", listing=("qstat",)),
    "lsf": QueueSystem(job="LSFJob", listing=("bjobs", "-w")),
    "htcondor": QueueSystem(job="HTCondorJob", listing=("condor_q",)),
}


def make_job(
    kind: str, spec: QueueSpec, address: str, name: str, keys: Path | None
) -> Any:
    """Make the job of dask-jobqueue's for one job; nothing is submitted.

    Raises:
        SpecError: The package dask-jobqueue is missing.
    """
    extra = ["--no-dashboard"]
    if keys is not None:
        for option, file in (
            ("--tls-ca-file", "ca.pem"),
            ("--tls-cert", "worker.pem"),
            ("--tls-key", "worker-key.pem"),
        ):
            extra += [option, str(keys / file)]
    num = spec.workers_per_job
    options: dict[str, Any] = {}
    if kind == "htcondor":
        options["disk"] = "1 GB"
    else:
        walltime = spec.walltime
        if kind == "lsf" and walltime is not None and walltime.count(":") == 2:
            walltime = walltime.rpartition(":")[0]  # LSF knows no seconds
        options |= {"queue": spec.queue, "walltime": walltime}
        options["project" if kind in ("sge", "lsf") else "account"] = spec.account
    directives: Any = list(spec.extra_directives)
    if kind == "htcondor":
        pairs = (line.partition("=") for line in directives)
        directives = {key.strip(): value.strip() for key, _, value in pairs}
    return make(
        kind,
        SYSTEMS[kind].job,
        address,
        name=name,
        cores=num * spec.threads_per_worker,
        memory=str(num * parse_bytes(spec.memory_limit or 0)),
        processes=num,
        interface=spec.interface,
        death_timeout=f"{spec.join_timeout_s:g}",
        local_directory=_path(spec.local_directory),
        log_directory=_path(spec.log_directory),
        python=spec.python or sys.executable,
        worker_extra_args=extra,
        job_extra_directives=directives,
        job_directives_skip=list(spec.skip_directives),
        job_script_prologue=[*_leases(spec.lease_s), *spec.prologue],
        **options,
    )


def job_script(kind: str, spec: QueueSpec | None = None, **options: Any) -> str:
    """Write the script of one job, as launch() would submit it; nothing is started.

    The addresses and the folder of the keys are made up: both are known at launch.

    Raises:
        SpecError: The kind or a value is wrong, or dask-jobqueue is missing.
    """
    if kind not in SYSTEMS:
        raise SpecError(f"kind={kind!r} has no job script; {', '.join(SYSTEMS)} have")
    spec = QueueSpec(**options) if spec is None else spec
    keys = None if spec.insecure else Path(str(spec.shared_directory), "KEYS")
    address = f"{'tcp' if spec.insecure else 'tls'}://SCHEDULER:8786"
    return str(make_job(kind, spec, address, "0", keys).job_script())


def _leases(lease_s: float) -> list[str]:
    """Return what makes a worker give up: one that finds no scheduler, or loses it.

    Where the scheduler's machine says that it is gone, a worker ends at once; these are
    for machines that say nothing.
    """
    name = "export DASK_DISTRIBUTED__COMM__TIMEOUTS__"
    tcp_s = max(_SHORTEST_TCP_S, math.ceil(lease_s))
    return [f"{name}CONNECT={lease_s:g}s", f"{name}TCP={tcp_s}s"]


def _path(folder: str | os.PathLike[str] | None) -> str | None:
    return None if folder is None else os.path.abspath(folder)
