"""Every error this package raises on purpose, one class for each thing a user can do.

    ClusterError
    ├── SpecError (ValueError)    an argument is wrong: nothing was started
    ├── StartError                the cluster did not come up; what began is closed again
    │   └── HostKeyError          an ssh host may not be the one it says it is
    ├── UnreachableError          no Dask scheduler answers at the address
    ├── WorkersMissingError       not the workers that were asked for, in time
    ├── NotOwnedError             someone else runs this cluster and decides its size
    └── ClosedError               used after close()

    InsecureWarning (UserWarning)  the network can reach it in plain tcp, as asked for

Each takes one string that says everything (what was wrong, where, what to do). The
fields repeat it for programs; they survive pickling.
"""

from __future__ import annotations

from typing import Any


class ClusterError(Exception):
    """Base of all errors raised by cluster.

    Attributes:
        kind: The kind of cluster concerned ("local", ...), or None.
        address: The scheduler's address, or None.
        workers_asked: How many workers were asked for, or None.
        workers_seen: How many the scheduler had when it was asked last, or None.
        waited_s: Seconds waited before giving up, or None.
    """

    def __init__(
        self,
        text: str,
        *,
        kind: str | None = None,
        address: str | None = None,
        workers_asked: int | None = None,
        workers_seen: int | None = None,
        waited_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.address = address
        self.workers_asked = workers_asked
        self.workers_seen = workers_seen
        self.waited_s = waited_s

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the text, then put the fields back."""
        return (type(self), (str(self),), self.__dict__.copy())


class SpecError(ClusterError, ValueError):
    """An argument is wrong; raised before anything is started."""


class StartError(ClusterError):
    """The cluster did not come up; whatever had begun is closed again."""


class HostKeyError(StartError):
    """An ssh host showed a key that known_hosts does not have; nothing was sent."""


class InsecureWarning(UserWarning):
    """A cluster listens to the network without TLS, as was asked for."""


class UnreachableError(ClusterError):
    """No Dask scheduler answers at the address."""


class WorkersMissingError(ClusterError):
    """The scheduler did not have the workers asked for within the time given."""


class NotOwnedError(ClusterError):
    """Someone else runs this cluster, so this program may not change it."""


class ClosedError(ClusterError):
    """Used after close()."""
