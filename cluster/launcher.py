"""The seam between Cluster and the ways to get one: each kind is one Launcher.

A launcher knows how to bring processes up and down. It does not count workers, wait
for them or make clients: Cluster asks the scheduler, which is the same for each kind.
"""

from __future__ import annotations

from typing import Protocol

from distributed.security import Security


class Launcher(Protocol):
    """One way to get a Dask cluster, for one cluster.

    All methods are called from the thread that uses the Cluster, never two at a time.
    `start` comes first and once; the properties and `scale` come after it has
    returned; `close` may come at any time, also after a `start` that failed or was
    interrupted, and more than once.
    """

    @property
    def kind(self) -> str:
        """The name that launch() knows it by."""
        ...

    @property
    def revives_scheduler(self) -> bool:
        """Whether a scheduler that dies is started again at the same address."""
        ...

    @property
    def address(self) -> str:
        """Where the scheduler listens, such as tcp://127.0.0.1:8786."""
        ...

    @property
    def security(self) -> Security | None:
        """What a client needs to get in; None where the wire is plain."""
        ...

    @property
    def dashboard_link(self) -> str | None:
        """Where a browser finds the dashboard; None if there is none."""
        ...

    @property
    def troubles(self) -> tuple[str, ...]:
        """What supervision has given up on, each in a few words; empty if nothing."""
        ...

    def start(self, *, timeout_s: float) -> None:
        """Bring up a scheduler and ask for the first workers.

        Raises:
            StartError: It did not come up, or not within timeout_s.
        """
        ...

    def scale(self, num_workers: int, *, timeout_s: float) -> None:
        """Ask for this many workers; may return before they are there.

        Raises:
            StartError: A worker that was asked for failed to start.
            NotOwnedError: This launcher runs no processes of its own.
        """
        ...

    def logs(self, *, num_lines: int, timeout_s: float) -> dict[str, str]:
        """What its processes have written last, by name ("scheduler", "0", ...).

        Those that ended count too. A launcher that keeps nothing returns {}: then
        Cluster.logs() has what the scheduler and the workers tell by themselves.
        """
        ...

    def close(self) -> None:
        """End every process that this launcher started, and its threads.

        Bounded in time, and silent: what does not end by itself is killed.
        """
        ...
