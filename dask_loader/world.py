"""Who this process is among the ranks: the only file that reads RANK and WORLD_SIZE.

torch is looked at only if the program has loaded it, so that this file needs none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_loader.errors import WorldError


@dataclass(frozen=True, slots=True)
class World:
    """One rank of a job.

    Attributes:
        rank: Data-parallel rank, 0 <= rank < world_size.
        world_size: How many ranks share the data.
        source: Where the two numbers come from, for error texts.
    """

    rank: int
    world_size: int
    source: str = "arguments"

    def __post_init__(self) -> None:
        """Check the two numbers against each other.

        Raises:
            WorldError: They are not whole numbers, or rank is not below world_size.
        """
        for name in ("rank", "world_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise WorldError(
                    f"{name}={value!r} (from {self.source}) is not a whole number"
                )
        if self.world_size < 1:
            raise WorldError(
                f"world_size={self.world_size!r} (from {self.source}) must be at least 1"
            )
        if not 0 <= self.rank < self.world_size:
            raise WorldError(
                f"rank={self.rank!r} (from {self.source}) must be at least 0 and below "
                f"world_size={self.world_size!r}; ranks are counted from 0",
                rank=self.rank,
            )


def resolve_world(
    *,
    rank: int | None,
    world_size: int | None,
    mesh: Any | None,
    environ: Mapping[str, str] | None = None,
) -> World:
    """Find this process's rank: arguments, mesh, torch.distributed, environment, 0 of 1.

    Args:
        rank: As the user gave it; goes together with world_size.
        world_size: As the user gave it.
        mesh: A torch DeviceMesh of one dimension, or a process group.
        environ: Instead of os.environ, for tests.

    Raises:
        WorldError: Only one of the two was given, they are out of range, or they
            disagree with an initialised torch.distributed.
    """
    environ = os.environ if environ is None else environ
    if (rank is None) != (world_size is None):
        raise WorldError(
            f"rank={rank!r} and world_size={world_size!r} go together: give both or "
            "neither"
        )
    if mesh is not None:
        if rank is not None:
            raise WorldError(
                f"mesh={mesh!r} already says the rank; leave out rank={rank!r} and "
                f"world_size={world_size!r}"
            )
        return _from_mesh(mesh)
    group = _torch_group()
    if rank is not None and world_size is not None:
        world = World(rank, world_size)
        given = (world.rank, world.world_size)
        if group is not None and given != (group.rank, group.world_size):
            raise WorldError(
                f"rank={rank!r} and world_size={world_size!r} were given, but "
                f"torch.distributed says rank {group.rank} of {group.world_size}: rows "
                "would be lost or come twice; leave out rank and world_size, or pass "
                "mesh= with the data-parallel mesh or process group",
                rank=rank,
            )
        return world
    return group or _from_environ(environ) or World(0, 1, "default")


def local_world_size(environ: Mapping[str, str] | None = None) -> int:
    """Return how many ranks torchrun started on this host (LOCAL_WORLD_SIZE), or 1."""
    text = (os.environ if environ is None else environ).get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(text)) if text.isdecimal() else 1


def _from_mesh(mesh: Any) -> World:
    # A DeviceMesh and a ProcessGroup both know size() and a rank, by different names.
    if hasattr(mesh, "get_local_rank"):
        if mesh.ndim != 1:
            raise WorldError(
                f"mesh={mesh!r} has {mesh.ndim} dimensions; pass the data-parallel one, "
                'such as mesh["dp"]'
            )
        return World(int(mesh.get_local_rank()), int(mesh.size()), "mesh")
    if callable(getattr(mesh, "rank", None)) and callable(getattr(mesh, "size", None)):
        return World(int(mesh.rank()), int(mesh.size()), "mesh")
    raise WorldError(f"mesh={mesh!r} is neither a torch DeviceMesh nor a process group")


def _torch_group() -> World | None:
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available():
        return None
    if not distributed.is_initialized():
        return None
    return World(
        distributed.get_rank(), distributed.get_world_size(), "torch.distributed"
    )


def _from_environ(environ: Mapping[str, str]) -> World | None:
    rank, world_size = environ.get("RANK"), environ.get("WORLD_SIZE")
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None:
        raise WorldError(
            f"RANK={rank!r} and WORLD_SIZE={world_size!r} in the environment go together: "
            "every rank would read everything; set both, unset both, or pass rank= and "
            "world_size="
        )
    try:
        numbers = int(rank), int(world_size)
    except ValueError as error:
        raise WorldError(
            f"RANK={rank!r} and WORLD_SIZE={world_size!r} in the environment must be "
            "whole numbers; unset them or pass rank= and world_size="
        ) from error
    return World(*numbers, "RANK and WORLD_SIZE")
