"""Short questions to a scheduler in another process, each on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from typing import Any

from distributed import rpc
from distributed.security import Security

_ASK_S = 10.0


class Asking:
    """Asks the scheduler at an address; used on one event loop.

    Every method raises OSError where the scheduler is not there, and TimeoutError where it
    takes longer than asked for.

    Attributes:
        address: The scheduler's; "" until it is known.
    """

    def __init__(self, security: Security | None) -> None:
        """Remember what lets it in."""
        self.address = ""
        self._security = security or Security()

    async def worker_names(self) -> set[object]:
        """Return the names of the workers that have joined."""
        async with self._asking() as scheduler:
            return _names(await scheduler.identity())

    async def dashboard_port(self) -> int:
        """Return the dashboard's port on the scheduler's host."""
        async with self._asking() as scheduler:
            return int((await scheduler.identity())["services"]["dashboard"])

    async def retire(
        self, candidates: Collection[int], num_workers: int, *, timeout_s: float
    ) -> list[int]:
        """Have what some workers hold moved to others; the workers themselves stay.

        Args:
            candidates: The names to choose from: the newest, and first who is not there.
            num_workers: So many of them.
            timeout_s: For all of it.

        Returns:
            The names of those that hold nothing any more.
        """
        async with self._asking(timeout_s) as scheduler:
            there = _names(await scheduler.identity())
            newest_first = sorted(candidates, reverse=True)
            leaving = sorted(newest_first, key=there.__contains__)[:num_workers]
            await scheduler.retire_workers(
                names=leaving, close_workers=False, remove=False
            )
        return leaving

    async def drop(self, names: Collection[int]) -> None:
        """Say who is lost, which it would notice by itself after a minute or so."""
        async with self._asking() as scheduler:
            workers = (await scheduler.identity())["workers"]
            for address, worker in workers.items():
                if worker["name"] in names:
                    await scheduler.unregister(
                        address=address, stimulus_id="cluster-host-lost"
                    )

    @contextlib.asynccontextmanager
    async def _asking(self, timeout_s: float = _ASK_S) -> AsyncIterator[Any]:
        async with (
            asyncio.timeout(timeout_s),
            rpc(
                self.address,
                timeout=timeout_s,
                connection_args=self._security.get_connection_args("client"),
            ) as scheduler,
        ):
            yield scheduler


def _names(identity: dict[str, Any]) -> set[object]:
    return {worker["name"] for worker in identity["workers"].values()}
