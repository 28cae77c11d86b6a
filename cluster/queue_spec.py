"""What a cluster of batch jobs shall be: SLURM, PBS, SGE, LSF, HTCondor alike."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cluster.errors import SpecError
from cluster.spec import ClusterSpec, check_count, check_seconds

_TEXTS = ("queue", "account", "walltime", "interface", "python")


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueSpec(ClusterSpec):
    """Workers in the jobs of a batch queue; the scheduler lives in this process.

    Attributes:
        memory_limit: Per worker; a job asks for that of all its workers.
        shared_directory: Folder that this machine and the workers' both see. The keys
            of this cluster lie in a folder below it that only you can read, until it
            closes. Needed for TLS.
        certificates: Folder made by create_certificates(), for others that connect
            too; made for this cluster if left out.
        queue: Queue or partition; None for the queue system's own choice. A
            jobqueue.yaml is not read, for this or any other field.
        account: Account or project that pays.
        walltime: Longest time of a job, as the queue writes it ("01:00:00"); None for
            the queue system's own choice.
        workers_per_job: Workers in each job; workers must be a multiple of it.
        interface: Network interface of both sides, such as "ib0"; None for the one that
            leads outward.
        python: The interpreter of the jobs; None for this one.
        log_directory: Folder for what jobs write; None leaves it to the queue.
        extra_directives: More directives, without their prefix ("--qos=low").
        skip_directives: Lines with one of these in them are left out: "--mem" where
            memory is nothing that the queue hands out.
        prologue: Shell lines before the worker, such as "module load python".
        lease_s: A worker that finds no scheduler, or loses it, gives up after so long.
        join_timeout_s: Longest time from a worker's start until it has joined. That its
            job waits in the queue does not count; loading Python from a slow file system
            does.
        insecure: Plain tcp, in which whoever reaches it can run code as you.
    """

    memory_limit: str | int | None = "4 GiB"
    start_timeout_s: float = 600.0
    shared_directory: str | os.PathLike[str] | None = None
    certificates: str | os.PathLike[str] | None = None
    queue: str | None = None
    account: str | None = None
    walltime: str | None = "01:00:00"
    workers_per_job: int = 1
    interface: str | None = None
    python: str | None = None
    log_directory: str | os.PathLike[str] | None = None
    extra_directives: tuple[str, ...] = ()
    skip_directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    lease_s: float = 20.0
    join_timeout_s: float = 300.0
    insecure: bool = False

    def __post_init__(self) -> None:
        """Check each value by itself, and those that must fit each other.

        Raises:
            SpecError: One of them is of the wrong type or out of range.
        """
        ClusterSpec.__post_init__(self)
        check_count("workers_per_job", self.workers_per_job, at_least=1)
        check_seconds("lease_s", self.lease_s)
        check_seconds("join_timeout_s", self.join_timeout_s)
        if self.memory_limit in (None, "auto"):
            raise SpecError(
                f"memory_limit={self.memory_limit!r} is no size that a job can ask for; "
                'give one for each worker, such as "4 GiB"'
            )
        for name in _TEXTS:
            value = getattr(self, name)
            if value is None:
                continue
            # A line break would end a directive, and begin a command.
            if not isinstance(value, str) or not value or "\n" in value:
                raise SpecError(f"{name}={value!r} must be one line of text, or None")
        for name in ("extra_directives", "skip_directives", "prologue"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(
                isinstance(line, str) and line and "\n" not in line for line in value
            ):
                raise SpecError(f"{name}={value!r} must be a tuple of lines of text")
        if not isinstance(self.insecure, bool):
            raise SpecError(f"insecure={self.insecure!r} must be True or False")
        if self.insecure and self.certificates is not None:
            raise SpecError(
                f"insecure=True with certificates={self.certificates!r}: give one"
            )
        if self.workers % self.workers_per_job:
            raise SpecError(
                f"workers={self.workers!r} must be a multiple of workers_per_job="
                f"{self.workers_per_job!r}: a job has all of its workers or none"
            )
        if self.shared_directory is None and not self.insecure:
            raise SpecError(
                "shared_directory=None: the jobs read their keys from a folder that all "
                "machines see, such as one in your home; name one (or insecure=True, "
                "with which whoever reaches the cluster can run code as you)"
            )
