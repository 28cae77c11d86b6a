"""Cluster: what the user holds. The same for every kind, from open to close."""

from __future__ import annotations

import html
import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from distributed import Client
from distributed.core import Status
from distributed.security import Security

from cluster.adapt import Adapting
from cluster.errors import ClosedError, ClusterError, SpecError, WorkersMissingError
from cluster.hunger import Hunger, clamp
from cluster.launcher import Launcher
from cluster.link import SchedulerLink
from cluster.spec import check_count, check_seconds

# Registering is a message per worker; asking is one too, of a few milliseconds.
_POLL_S = 0.05
# repr() must not block a log line or a notebook for long.
_REPR_S = 1.0
# A scheduler that has answered before lets a client in within milliseconds.
_CLIENT_S = 30.0
_SCALE_S = 60.0
_LOGS_S = 10.0
_INTERVAL_S = 3.0
_SILENCE_S = 60.0


class Cluster:
    """A running Dask cluster, launched or reached; made by launch() and connect().

    It is used by one thread; its clients may be used by any. close() ends it, as does
    leaving the with block: first the clients, then whatever launch() started. Errors
    leave it open, but for the scheduler's own end, after which only close() is of use.
    """

    def __init__(
        self, launcher: Launcher, link: SchedulerLink, resources: ExitStack
    ) -> None:
        """Take over a started launcher; open_cluster() is the way to make one."""
        self._launcher = launcher
        self._link = link
        self._resources = resources
        self._closed = False
        self._adapting: Adapting | None = None
        # A launcher is used by one thread at a time, and adapt() has one of its own.
        self._using = threading.RLock()

    @property
    def kind(self) -> str:
        """How it came about: "local" or "remote"."""
        return self._launcher.kind

    @property
    def address(self) -> str:
        """Where the scheduler listens: hand it to other processes."""
        return self._open().address

    @property
    def scheduler_address(self) -> str:
        """The same as address, by the name that Dask's own cluster objects use."""
        return self._open().address

    @property
    def security(self) -> Security | None:
        """What a client needs besides the address; None where the wire is plain."""
        return self._open().security

    @property
    def revives_scheduler(self) -> bool:
        """Whether a scheduler that dies is started again at the same address.

        Consumers then wait longer for it. Where it lives in the launching program, it
        ends with that.
        """
        return self._launcher.revives_scheduler

    @property
    def dashboard_link(self) -> str | None:
        """Where a browser finds the dashboard; None if it is off.

        A remote scheduler does not tell whether it serves one: the link may lead
        nowhere.
        """
        return self._open().dashboard_link

    @property
    def status(self) -> Status:
        """Running or closed, in Dask's words: distributed.Client(cluster) asks."""
        return Status.closed if self._closed else Status.running

    def client(self) -> Client:
        """Make a new client, which talks to the workers directly.

        It is not the process's default client, and close() closes it.

        Raises:
            UnreachableError: The scheduler is gone or does not answer.
            ClosedError: After close().
        """
        self._open()
        return self._link.open_client(timeout_s=_CLIENT_S)

    def scale(self, num_workers: int, *, timeout_s: float = _SCALE_S) -> None:
        """Have exactly so many workers, and return when it is so; ends adapt().

        Args:
            num_workers: 0 or more. What leaving workers hold moves to those that stay;
                with 0, results are lost with the last of them.
            timeout_s: Longest wait. Those that come later still join.

        Raises:
            SpecError: The number or the time is not one.
            WorkersMissingError: There were more or fewer when the time was up.
            StartError: A worker failed to start.
            NotOwnedError: The cluster was reached by connect().
            ClosedError: After close().
        """
        launcher = self._open()
        check_count("num_workers", num_workers, at_least=0)
        check_seconds("timeout_s", timeout_s)
        deadline = time.monotonic() + timeout_s
        self._stop_adapting()
        launcher.scale(num_workers, timeout_s=timeout_s)
        self._wait(num_workers, exactly=True, timeout_s=timeout_s, deadline=deadline)

    def adapt(
        self,
        *,
        minimum: int = 1,
        maximum: int,
        interval_s: float = _INTERVAL_S,
        silence_s: float = _SILENCE_S,
    ) -> None:
        """From now on, have as many workers as the consumers are hungry for.

        Consumers tell the scheduler how long they waited for windows, as those of
        dask_loader do. While one of them waits for more than a tenth of its time,
        workers are added; when none waits, they leave one by one, handing over what they
        hold, but not to a number that was too small before. Without consumers it is the
        minimum. A thread of this process decides: it ends with scale(), with close(),
        and with the process. A second call takes the place of the first.

        Args:
            minimum: Never fewer; at least 1, as nobody is hungry before work has begun.
            maximum: Never more.
            interval_s: From look to look; one step at each.
            silence_s: A consumer that says nothing for so long is taken for gone.

        Raises:
            SpecError: A number or a time is not one, or they exclude each other.
            StartError: A worker failed to start.
            UnreachableError: The scheduler is gone or does not answer.
            NotOwnedError: The cluster was reached by connect().
            ClosedError: After close().
        """
        launcher = self._open()
        check_count("minimum", minimum, at_least=1)
        check_count("maximum", maximum, at_least=1)
        if maximum < minimum:
            raise SpecError(
                f"maximum={maximum!r} is below minimum={minimum!r}; give at least as many"
            )
        check_seconds("interval_s", interval_s)
        check_seconds("silence_s", silence_s)
        self._stop_adapting()
        seen = self._link.num_workers(timeout_s=_CLIENT_S)
        target = clamp(seen, (minimum, maximum))
        launcher.scale(target, timeout_s=_SCALE_S)

        def scale(num_workers: int) -> None:
            with self._using:
                launcher.scale(num_workers, timeout_s=_SCALE_S)

        self._adapting = Adapting(
            self.client(),
            Hunger(target=target, minimum=minimum, maximum=maximum),
            scale=scale,
            count=lambda: self._link.num_workers(timeout_s=_CLIENT_S),
            interval_s=interval_s,
            silence_s=silence_s,
        )

    def wait_for_workers(
        self, num_workers: int, timeout_s: float | None = None
    ) -> None:
        """Return when there are at least so many workers.

        Args:
            num_workers: 0 or more.
            timeout_s: Longest wait; None for a minute, as distributed.Client passes it.

        Raises:
            SpecError: The number or the time is not one.
            WorkersMissingError: There were fewer when the time was up.
            UnreachableError: The scheduler is gone or does not answer.
            ClosedError: After close().
        """
        self._open()
        timeout_s = _SCALE_S if timeout_s is None else timeout_s
        check_count("num_workers", num_workers, at_least=0)
        check_seconds("timeout_s", timeout_s)
        deadline = time.monotonic() + timeout_s
        self._wait(num_workers, exactly=False, timeout_s=timeout_s, deadline=deadline)

    def logs(
        self, *, num_lines: int = 100, timeout_s: float = _LOGS_S
    ) -> dict[str, str]:
        """Return the last lines of the scheduler and of each worker, by name.

        Args:
            num_lines: At most so many of each.
            timeout_s: Longest wait. Who does not answer is told of in its place, as
                logs are read when something is broken.

        Raises:
            SpecError: The number or the time is not one.
            ClosedError: After close().
        """
        launcher = self._open()
        check_count("num_lines", num_lines, at_least=1)
        check_seconds("timeout_s", timeout_s)
        with self._using:
            kept = launcher.logs(num_lines=num_lines, timeout_s=timeout_s / 2)
        try:
            told = self._link.logs(num_lines=num_lines, timeout_s=timeout_s / 2)
        except ClusterError as error:
            told = {"scheduler": str(error)}
        return told | kept

    def close(self) -> None:
        """Close the clients and end what launch() started; safe twice."""
        self._closed = True
        self._stop_adapting()
        self._resources.close()

    def __enter__(self) -> Self:
        """Return itself.

        Raises:
            ClosedError: After close().
        """
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Say kind, address, workers now, and the dashboard's link if there is one."""
        if self._closed:
            return f"<Cluster {self.kind}, closed>"
        try:
            workers = str(self._link.num_workers(timeout_s=_REPR_S))
        except ClusterError:
            workers = "unknown"
        link = self.dashboard_link
        dashboard = "" if link is None else f" dashboard={link}"
        troubles = "".join(f"; {text}" for text in self._launcher.troubles)
        about = f"{self.kind} {self.address} workers={workers}{dashboard}{troubles}"
        return f"<Cluster {about}>"

    def _repr_html_(self) -> str:
        """Show the same in a notebook; a distributed.Client(cluster) asks for it."""
        return f"<pre>{html.escape(repr(self))}</pre>"

    def _stop_adapting(self) -> None:
        adapting, self._adapting = self._adapting, None
        if adapting is not None:
            adapting.stop()

    def _open(self) -> Launcher:
        if self._closed:
            raise ClosedError(
                f"this {self.kind} cluster is closed; launch or connect another",
                kind=self.kind,
            )
        return self._launcher

    def _wait(
        self, num_workers: int, *, exactly: bool, timeout_s: float, deadline: float
    ) -> None:
        while True:
            # The last question, at the deadline, still gets a moment for its answer.
            left_s = max(deadline - time.monotonic(), _REPR_S)
            seen = self._link.num_workers(timeout_s=left_s)
            if seen == num_workers or (seen > num_workers and not exactly):
                return
            if time.monotonic() >= deadline:
                troubles = "".join(f" ({text})" for text in self._launcher.troubles)
                raise WorkersMissingError(
                    f"asked for {num_workers} workers, but the {self.kind} cluster at "
                    f"{self.address} has {seen} after {timeout_s:g} s{troubles}; look at "
                    "the workers' logs(), ask for fewer, or wait longer with timeout_s",
                    kind=self.kind,
                    address=self.address,
                    workers_asked=num_workers,
                    workers_seen=seen,
                    waited_s=timeout_s,
                )
            time.sleep(_POLL_S)


def open_cluster(launcher: Launcher, *, num_workers: int, timeout_s: float) -> Cluster:
    """Start a launcher and wait for its workers; on any failure, close it again.

    Args:
        launcher: Not started yet.
        num_workers: How many to wait for.
        timeout_s: Longest wait, for the start and the workers together.

    Raises:
        StartError: It did not come up.
        UnreachableError: Its scheduler does not answer.
        WorkersMissingError: Its workers did not come in time.
    """
    deadline = time.monotonic() + timeout_s
    with ExitStack() as resources:
        resources.callback(launcher.close)
        launcher.start(timeout_s=timeout_s)
        link = SchedulerLink(launcher.address, launcher.security)
        resources.callback(link.close)
        cluster = Cluster(launcher, link, resources.pop_all())
        try:
            cluster._wait(
                num_workers, exactly=False, timeout_s=timeout_s, deadline=deadline
            )
        except BaseException:
            cluster.close()
            raise
        return cluster
