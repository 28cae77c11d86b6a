"""launch(): which kinds of cluster there are, and the way from a name to a Cluster."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields, replace
from typing import Any

from cluster.errors import SpecError
from cluster.lifecycle import Cluster, open_cluster
from cluster.spec import ClusterSpec, unknown_text


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """Where a kind lives; loaded when it is asked for: some need optional packages.

    Attributes:
        module: Its file.
        launcher: Its Launcher there, made from one spec.
        spec: Its ClusterSpec, there or imported there.
    """

    module: str
    launcher: str
    spec: str = "ClusterSpec"


_KINDS = {
    "local": _Kind(module="cluster.local", launcher="LocalLauncher"),
    "ssh": _Kind(module="cluster.ssh", launcher="SshLauncher", spec="SshSpec"),
}


def launch(kind: str, spec: ClusterSpec | None = None, **options: Any) -> Cluster:
    """Start a Dask cluster and return when all its workers are there.

    Args:
        kind: "local": this machine, a process for each worker. "ssh": hosts that you
            can log in to.
        spec: What to start, as the kind's spec class; its defaults if left out.
        **options: Fields of that class, in place of the ones in spec.

    Returns:
        A Cluster; close it, or use it in a with block.

    Raises:
        SpecError: The kind or an option is unknown, or a value is wrong.
        StartError: The cluster did not come up; nothing is left of it.
        WorkersMissingError: Nor did its workers, within start_timeout_s.
    """
    found = _KINDS.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise SpecError(unknown_text("kind of cluster", kind, _KINDS))
    module = importlib.import_module(found.module)
    spec_class: type[ClusterSpec] = getattr(module, found.spec)
    if spec is not None and not isinstance(spec, spec_class):
        raise SpecError(
            f"spec={spec!r} must be a {found.spec}; give single values by name, as in "
            f"launch({kind!r}, workers=2)"
        )
    known = [field.name for field in fields(spec_class)]
    for name in options:
        if name not in known:
            raise SpecError(unknown_text(f"option for launch({kind!r})", name, known))
    chosen = spec_class(**options) if spec is None else replace(spec, **options)
    return open_cluster(
        getattr(module, found.launcher)(chosen),
        num_workers=chosen.num_workers,
        timeout_s=chosen.start_timeout_s,
    )
