"""The wire to a scheduler: questions with a deadline, and clients that get closed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from distributed import Client, rpc
from distributed.comm.addressing import get_address_host_port
from distributed.security import Security

from cluster.errors import UnreachableError
from cluster.loop import LoopThread

_T = TypeVar("_T")

# Shares of a question's time: connecting, connecting and the answer, and finding out
# afterwards why there was none.
_CONNECT_SHARE = 0.8
_ANSWER_SHARE = 0.9
_REASON_SHARE = 0.1
# Of a question for logs, what the workers get: one that is stuck holds up the others.
_WORKERS_SHARE = 0.5
# Closing a client of a scheduler that is gone: it has nobody to say good-bye to.
_CLOSE_CLIENT_S = 5.0


class SchedulerLink:
    """Speaks with one scheduler for one Cluster.

    Connections are made for each question and dropped after it: a question costs
    milliseconds, is rare, and a kept connection would log its own attempts to
    reconnect. Clients share this link's thread.
    """

    def __init__(self, address: str, security: Security | None) -> None:
        """Start the thread; nothing is sent yet."""
        self.address = address
        self._security = security or Security()
        self._loop = LoopThread("cluster-link")
        self._clients: list[Client] = []

    def num_workers(self, *, timeout_s: float) -> int:
        """Ask the scheduler how many workers it has.

        Raises:
            UnreachableError: No answer in time.
        """
        return len(self._wait(self._ask("ncores", timeout_s), timeout_s=timeout_s))

    def services(self, *, timeout_s: float) -> dict[str, int]:
        """Ask the scheduler for the ports of its services, the dashboard above all.

        Raises:
            UnreachableError: No answer in time.
        """
        identity = self._wait(self._ask("identity", timeout_s), timeout_s=timeout_s)
        return dict(identity["services"])

    def logs(self, *, num_lines: int, timeout_s: float) -> dict[str, str]:
        """Ask the scheduler and the workers for their last lines, by name.

        Raises:
            UnreachableError: No answer in time.
        """
        scheduler, info, workers = self._wait(
            self._ask_logs(num_lines, timeout_s), timeout_s=timeout_s
        )
        names = {address: str(w["name"]) for address, w in info["workers"].items()}
        told = {"scheduler": _as_text(scheduler)}
        return told | {
            names.get(address, address): _as_text(lines)
            for address, lines in workers.items()
        }

    def open_client(self, *, timeout_s: float) -> Client:
        """Make a client that close() will close.

        Raises:
            UnreachableError: The scheduler did not let it in, in time.
        """
        client = self._wait(self._open(timeout_s), timeout_s=timeout_s)
        self._clients = [c for c in self._clients if c.status != "closed"]
        self._clients.append(client)
        return client

    def close(self) -> None:
        """Close the clients and end the thread; safe twice."""
        clients, self._clients = self._clients, []
        for client in clients:
            # A client that cannot say good-bye ends with its loop, below.
            with contextlib.suppress(TimeoutError, OSError):
                client.close(timeout=_CLOSE_CLIENT_S)
        self._loop.stop()

    def _wait(self, work: Coroutine[Any, Any, _T], *, timeout_s: float) -> _T:
        began = time.monotonic()
        try:
            return self._loop.submit(work).result()
        # Whatever listens there may be no scheduler at all, and then anything can go
        # wrong: an HTTP server's greeting ends in a MemoryError.
        except Exception as error:
            waited_s = time.monotonic() - began
            raise UnreachableError(
                f"no Dask scheduler answers at {self.address} after {waited_s:.1f} s "
                f"({self._reason(error, timeout_s)}); check that one runs there, that "
                "this machine can reach it, and that both sides use TLS or neither; if "
                f"it is only slow, wait longer than {timeout_s:g} s",
                address=self.address,
                waited_s=waited_s,
            ) from error

    def _reason(self, error: BaseException, timeout_s: float) -> str:
        while error.__cause__ is not None:
            error = error.__cause__
        if isinstance(error, TimeoutError | asyncio.CancelledError):
            # Dask tells of its last attempt only, which ran out of time. One more:
            place = get_address_host_port(self.address)
            try:
                socket.create_connection(place, timeout_s * _REASON_SHARE).close()
            except OSError as refused:
                error = refused
            else:
                return "something listens there, but does not answer"
        return f"{type(error).__name__}: {error}"

    async def _ask(self, question: str, timeout_s: float) -> Any:
        async with self._asking(timeout_s) as scheduler:
            return await getattr(scheduler, question)()

    async def _ask_logs(self, num_lines: int, timeout_s: float) -> tuple[Any, Any, Any]:
        async with self._asking(timeout_s) as scheduler:
            own = await scheduler.logs(n=num_lines)
            info = await scheduler.identity()
            asking = {"op": "get_logs", "n": num_lines}
            try:
                async with asyncio.timeout(timeout_s * _WORKERS_SHARE):
                    told = await scheduler.broadcast(msg=asking, on_error="return")
            except TimeoutError as error:
                told = dict.fromkeys(info["workers"], error)
            return own, info, told

    @contextlib.asynccontextmanager
    async def _asking(self, timeout_s: float) -> AsyncIterator[Any]:
        async with (
            asyncio.timeout(timeout_s * _ANSWER_SHARE),
            rpc(
                self.address,
                timeout=timeout_s * _CONNECT_SHARE,
                connection_args=self._security.get_connection_args("client"),
            ) as scheduler,
        ):
            yield scheduler

    async def _open(self, timeout_s: float) -> Client:
        client = Client(
            self.address,
            asynchronous=True,
            direct_to_workers=True,
            security=self._security,
            set_as_default=False,
            timeout=timeout_s * _CONNECT_SHARE,
        )
        try:
            async with asyncio.timeout(timeout_s * _ANSWER_SHARE):
                await client
        except BaseException:
            with contextlib.suppress(TimeoutError, OSError):
                await client.close(timeout=_CLOSE_CLIENT_S)
            raise
        # Asynchronous here, blocking for the thread that gets it. Dask tells the two
        # apart by itself while the loop runs; afterwards this says "blocking", so that
        # a closed client raises instead of handing out coroutines.
        client._asynchronous = False
        return client


def _as_text(lines: object) -> str:
    """Put a log's lines in order; Dask tells them newest first, as (level, text)."""
    if not isinstance(lines, Sequence):
        return f"no answer: {lines!r}"
    return "\n".join(str(line) for _, line in reversed(lines))
