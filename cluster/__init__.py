"""Launch or reach a Dask cluster.

    import cluster

    with cluster.launch("local", workers=4) as c:
        client = c.client()
    with cluster.launch("ssh", hosts=["a", "b"], workers_per_host=2) as c:
        ...
    c = cluster.connect("tls://scheduler:8786", security=...)

What others need of it is an address and a distributed.Security. Dask itself is loaded
at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cluster.errors import (
    ClosedError,
    ClusterError,
    HostKeyError,
    InsecureWarning,
    NotOwnedError,
    SpecError,
    StartError,
    UnreachableError,
    WorkersMissingError,
)

if TYPE_CHECKING:
    from cluster.kinds import launch
    from cluster.lifecycle import Cluster
    from cluster.queue_spec import QueueSpec
    from cluster.remote import connect
    from cluster.security import create_certificates, load_certificates
    from cluster.spec import ClusterSpec
    from cluster.ssh_spec import SshSpec
    from cluster.torchrun import TorchrunSpec

__all__ = [
    "ClosedError",
    "Cluster",
    "ClusterError",
    "ClusterSpec",
    "HostKeyError",
    "InsecureWarning",
    "NotOwnedError",
    "QueueSpec",
    "SpecError",
    "SshSpec",
    "StartError",
    "TorchrunSpec",
    "UnreachableError",
    "WorkersMissingError",
    "connect",
    "create_certificates",
    "launch",
    "load_certificates",
]

_HOMES = {
    "Cluster": "cluster.lifecycle",
    "ClusterSpec": "cluster.spec",
    "QueueSpec": "cluster.queue_spec",
    "SshSpec": "cluster.ssh_spec",
    "TorchrunSpec": "cluster.torchrun",
    "connect": "cluster.remote",
    "create_certificates": "cluster.security",
    "launch": "cluster.kinds",
    "load_certificates": "cluster.security",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its file when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
