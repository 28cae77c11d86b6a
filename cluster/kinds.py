"""launch(): which kinds of cluster there are, and the way from a name to a Cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from cluster.errors import SpecError
from cluster.launcher import Launcher
from cluster.lifecycle import Cluster, open_cluster
from cluster.local import LocalLauncher
from cluster.spec import ClusterSpec, unknown_text

_LAUNCHERS: dict[str, Callable[[ClusterSpec], Launcher]] = {"local": LocalLauncher}


def launch(kind: str, spec: ClusterSpec | None = None, **options: Any) -> Cluster:
    """Start a Dask cluster and return when all its workers are there.

    Args:
        kind: "local": this machine, a process for each worker.
        spec: What to start; ClusterSpec() if left out.
        **options: Fields of ClusterSpec, in place of the ones in spec.

    Returns:
        A Cluster; close it, or use it in a with block.

    Raises:
        SpecError: The kind or an option is unknown, or a value is wrong.
        StartError: The cluster did not come up; nothing is left of it.
        WorkersMissingError: Nor did its workers, within start_timeout_s.
    """
    launcher = _LAUNCHERS.get(kind) if isinstance(kind, str) else None
    if launcher is None:
        raise SpecError(unknown_text("kind of cluster", kind, _LAUNCHERS))
    if spec is not None and not isinstance(spec, ClusterSpec):
        raise SpecError(
            f"spec={spec!r} must be a ClusterSpec; give single values by name, as in "
            f"launch({kind!r}, workers=2)"
        )
    known = [field.name for field in fields(ClusterSpec)]
    for name in options:
        if name not in known:
            raise SpecError(unknown_text(f"option for launch({kind!r})", name, known))
    spec = replace(spec or ClusterSpec(), **options)
    return open_cluster(
        launcher(spec), num_workers=spec.workers, timeout_s=spec.start_timeout_s
    )
