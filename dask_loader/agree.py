"""Ranks compare what they are about to read, through torch's key-value store.

Never a collective: one that a rank does not come to would hang, or meet another collective
of the program's. Each rank writes its terms under a key of its own; rank 0 reads all of
them and writes one verdict. Main process only: DataLoader workers inherit sockets.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from dask_loader.errors import RankMismatchError, RanksMissingError
from dask_loader.world import World

# The first looks follow each other closely: ranks mostly begin together.
_FIRST_LOOK_S, _LAST_LOOK_S = 0.001, 0.1
# Of ranks that differ, and values, so many are named.
_MAX_NAMED = 8

# Datasets in the order in which they began an epoch that was compared, for each group of
# ranks: the same on every rank of a program that does the same on every rank.
_serials: dict[str, itertools.count[int]] = {}


class Agreement:
    """The comparisons of one dataset in one process, in the order of its epochs."""

    def __init__(self, *, timeout_s: float) -> None:
        """Compare nothing yet.

        Args:
            timeout_s: Longest wait for the others.
        """
        self._timeout_s = timeout_s
        self._name: str | None = None
        self._count = 0

    def check(self, world: World, mesh: Any, terms: Mapping[str, Any]) -> None:
        """Wait until all ranks have come with the same terms.

        Nothing is compared where torch.distributed is not initialised, or for one rank.

        Args:
            world: This rank.
            mesh: As the user gave it: the ranks that share the data, or None for all.
            terms: What must be equal, as plain values.

        Raises:
            RankMismatchError: Ranks differ; the text names them and what differs.
            RanksMissingError: A rank did not come in time, or the store is gone.
        """
        if world.world_size < 2 or not dist.is_available() or not dist.is_initialized():
            return
        group = _group_name(mesh)
        if self._name is None:
            serial = next(_serials.setdefault(group, itertools.count()))
            # Ranks that torchrun started again find the store of their forerunners.
            restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._name = f"dask_loader/{restarts}/{group}/{serial}"
        number, self._count = self._count, self._count + 1
        try:
            store = dist.distributed_c10d._get_default_store()
            meeting = _Meeting(store, f"{self._name}/{number}", world, self._timeout_s)
            meeting.hold(json.dumps(terms, sort_keys=True))
            if world.rank == 0 and number > 0:  # all have read the verdict before this
                _forget(store, f"{self._name}/{number - 1}", world.world_size)
        except dist.DistError as error:
            raise RanksMissingError(
                f"rank {world.rank} could not compare its plan with the other ranks: "
                f"torch.distributed's store does not answer ({error}); see what became of "
                "the process that holds it, mostly rank 0",
                rank=world.rank,
            ) from error


class _Meeting:
    """One comparison."""

    def __init__(self, store: Any, name: str, world: World, timeout_s: float) -> None:
        self._store = store
        self._name = name
        self._world = world
        self._timeout_s = timeout_s

    def hold(self, terms: str) -> None:
        rank, world_size = self._world.rank, self._world.world_size
        self._store.set(self._key(rank), terms)
        if rank == 0:
            keys = [self._key(other) for other in range(world_size)]
            if self._wait(lambda: self._store.check(keys)):
                verdict = _verdict([json.loads(self._store.get(key)) for key in keys])
            else:
                come = [self._store.check([key]) for key in keys]
                verdict = "missing " + _ranks(
                    [r for r in range(world_size) if not come[r]]
                )
            self._store.set(self._key("verdict"), verdict)
        else:
            verdict = self._await_verdict()
        kind, _, text = verdict.partition(" ")
        if kind == "missing":
            raise RanksMissingError(
                f"rank {rank} of {world_size} waited {self._timeout_s:g} s for {text} to "
                "begin the same epoch of the same dataset; see what became of it, raise "
                "rank_timeout= if it does something else first, or look at batches with "
                "take() where not all ranks do",
                rank=rank,
            )
        if kind == "differ":
            raise RankMismatchError(
                f"the ranks are about to read different things (this is rank {rank}): "
                f"{text}; make the dataset alike on every rank, and set the same epoch",
                rank=rank,
            )

    def _await_verdict(self) -> str:
        keys = [self._key("verdict")]
        ready = self._wait(lambda: self._store.check(keys))
        if not ready and self._store.check([self._key(0)]):
            # Rank 0 came late, and waits for somebody else: it will say for whom.
            ready = self._wait(lambda: self._store.check(keys))
        if not ready:
            return "missing rank 0"
        verdict: str = self._store.get(keys[0]).decode()
        return verdict

    def _wait(self, come: Callable[[], bool]) -> bool:
        # Not store.wait(): after one that timed out, torch 2.13's store loses answers.
        deadline = time.monotonic() + self._timeout_s
        pause = _FIRST_LOOK_S
        while not come():
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _LAST_LOOK_S)
        return True

    def _key(self, what: int | str) -> str:
        return f"{self._name}/{what}"


def _verdict(terms: Sequence[Mapping[str, Any]]) -> str:
    """Return "same", or "differ" and in which terms, by rank."""
    texts = []
    for name in dict.fromkeys(name for each in terms for name in each):
        ranks: dict[str, list[int]] = {}
        for rank, each in enumerate(terms):
            ranks.setdefault(repr(each.get(name)), []).append(rank)
        if len(ranks) > 1:
            values = [f"{v} on {_ranks(who)}" for v, who in ranks.items()]
            more = ["..."] if len(values) > _MAX_NAMED else []
            texts.append(f"{name} is " + ", ".join(values[:_MAX_NAMED] + more))
    return f"differ {'; '.join(texts)}" if texts else "same"


def _ranks(ranks: Sequence[int]) -> str:
    named = ", ".join(map(str, ranks[:_MAX_NAMED]))
    more = f" and {len(ranks) - _MAX_NAMED} more" if len(ranks) > _MAX_NAMED else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {named}{more}"


def _group_name(mesh: Any) -> str:
    """Name the ranks that share the data, alike on each of them."""
    if mesh is None:
        return "all"
    group = mesh.get_group() if hasattr(mesh, "get_local_rank") else mesh
    ranks = dist.get_process_group_ranks(group)
    return hashlib.blake2b(repr(ranks).encode(), digest_size=8).hexdigest()


def _forget(store: Any, name: str, world_size: int) -> None:
    for what in ("verdict", *range(world_size)):
        store.delete_key(f"{name}/{what}")
