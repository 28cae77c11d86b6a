"""A client of one scheduler, which is made anew where the scheduler was lost.

Dask's own client reconnects too, but for as long as it was told when it was made, and
closes itself after that. What was submitted before is forgotten by then, in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import distributed
from distributed.comm.core import connect
from distributed.utils import LoopRunner

from dask_loader.engine.where import Where
from dask_loader.errors import ClosedError, SchedulerUnreachableError

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 15.0
ASK_TIMEOUT_S = 10.0
# A scheduler of somebody else's: long enough for a hiccup of the network, or for one that
# its own keeper starts again at once.
_FOREIGN_PATIENCE_S = 15.0
_KNOCK_S = (2.0, 4.0, 8.0)  # a closed port is found out at once, a cut line is not
_PAUSE_S = 0.2
_CLOSE_S = 5.0


class Live(NamedTuple):
    """A client, and how often it was made anew before."""

    client: Any
    generation: int


class ConnectionLostError(Exception):
    """What was submitted is forgotten; never seen outside of the engine."""

    def __init__(self, generation: int, why: str, *, silent: bool = False) -> None:
        """Tell.

        Args:
            generation: Of the client that it was submitted by.
            why: In few words.
            silent: Whether the scheduler was asked and gave no answer.
        """
        super().__init__(why)
        self.generation = generation
        self.silent = silent


class Connection:
    """The client of now; used by all threads of an engine.

    Attributes:
        live: The client, with its generation.
    """

    def __init__(
        self, where: Where, *, patience_s: float, stop: threading.Event
    ) -> None:
        """Connect.

        Args:
            where: The scheduler.
            patience_s: Longest wait for a scheduler that is started again by the cluster
                that it belongs to; others are waited for 15 s.
            stop: Set to end any wait.

        Raises:
            SchedulerUnreachableError: Nobody answers there.
        """
        self._where = where
        self._patience_s = patience_s if where.revived else _FOREIGN_PATIENCE_S
        self._stop = stop
        self._lock = threading.Lock()
        self._gone: SchedulerUnreachableError | None = None
        self._gone_since_s = 0.0
        _mend_after_fork()
        # One loop for all clients: who still waits for something of the old one, in
        # another thread, is told of its end.
        self._runner = LoopRunner(asynchronous=False)
        self._runner.start()
        try:
            self.live = Live(_connect(where, self._runner.loop, _CONNECT_TIMEOUT_S), 0)
        except BaseException:
            self._runner.stop()
            raise

    def renew(self, lost: ConnectionLostError) -> None:
        """Connect again, or wait for the thread that does.

        Nothing is done if it was done since, or if the client is well: another user may
        have restarted the cluster.

        Raises:
            SchedulerUnreachableError: It does not come back in time.
            ClosedError: The engine was closed meanwhile.
        """
        with self._lock:
            if self.live.generation != lost.generation:
                return
            if not lost.silent and self._answers():
                return
            just_gone = self._gone is not None and (
                time.monotonic() - self._gone_since_s < _FOREIGN_PATIENCE_S
            )
            if not just_gone:
                log.warning(
                    "lost the Dask scheduler at %s (%s); connecting again",
                    self._where.address,
                    str(lost),  # whoever keeps the record must not keep windows
                )
            self._drop()
            # Other threads need not wait as long for what has just not come. Who begins
            # anew after the error finds one that is back.
            patience_s = _KNOCK_S[0] if just_gone else self._patience_s
            try:
                client = self._again(str(lost), patience_s)
            except SchedulerUnreachableError as error:
                if just_gone:
                    raise SchedulerUnreachableError(str(self._gone)) from None
                self._gone, self._gone_since_s = error, time.monotonic()
                raise
            self._gone = None
            self.live = Live(client, lost.generation + 1)

    def close(self) -> None:
        """Disconnect; the scheduler then forgets our futures. Safe twice."""
        with self._lock:
            self._drop()
            self._runner.stop()

    def _again(self, why: str, patience_s: float) -> Any:
        began = time.monotonic()
        knocks = 0
        while True:
            if self._stop.is_set():
                raise ClosedError("the dataset was closed while it was being read")
            left_s = patience_s - (time.monotonic() - began)
            timeout_s = min(left_s, _KNOCK_S[min(knocks, len(_KNOCK_S) - 1)])
            knocks += 1
            try:
                return _connect(
                    self._where, self._runner.loop, max(timeout_s, _PAUSE_S)
                )
            except SchedulerUnreachableError as error:
                if left_s <= timeout_s:
                    raise SchedulerUnreachableError(
                        f"the Dask scheduler at {self._where.address!r} answered before "
                        f"and was lost ({why}), and did not come back within "
                        f"{patience_s:g} s; check that it runs, and start again "
                        "from the last state"
                    ) from error
            self._stop.wait(_PAUSE_S)

    def _answers(self) -> bool:
        client = self.live.client
        if client.status != "running":
            return False
        try:
            client.sync(client.scheduler.ncores, callback_timeout=ASK_TIMEOUT_S)
        except Exception as error:  # tcp, tls and rpc failures have no common class
            log.debug("no answer from %s: %s", self._where.address, error)
            return False
        return True

    def _drop(self) -> None:
        client = self.live.client
        if client.status == "closed":
            return
        with _quiet(unless=client.status == "running"):
            try:
                client.close(timeout=_CLOSE_S)
            except (TimeoutError, distributed.TimeoutError) as error:
                log.debug("a client was left behind: %s", error)


def _mend_after_fork() -> None:
    """Give a forked process the thread that distributed unpickles large messages in.

    The parent's executor believes it has a thread, which only the parent has: messages
    above distributed.comm.offload (10 MiB) would wait for ever.
    """
    executor = distributed.utils._offload_executor
    if any(not thread.is_alive() for thread in executor._threads):
        distributed.utils._offload_executor = ThreadPoolExecutor(
            1, thread_name_prefix="Dask-Offload"
        )


def _connect(where: Where, loop: Any, timeout_s: float) -> Any:
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="dask-loader-knock") as thread:
            thread.submit(asyncio.run, _knock(where, timeout_s)).result()
        return distributed.Client(
            where.address,
            loop=loop,
            security=where.security,
            timeout=_CONNECT_TIMEOUT_S,
            set_as_default=False,
            direct_to_workers=True,
            name="dask-loader",
        )
    except Exception as error:  # OSError, TimeoutError, ValueError, TypeError, ssl
        raise SchedulerUnreachableError(
            f"no Dask scheduler answers at {where.address!r} within "
            f"{timeout_s:g} s ({type(error).__name__}: {error}); check the "
            "address, that it runs, and for tls:// that client= carries its security"
        ) from error


async def _knock(where: Where, timeout_s: float) -> None:
    # Client's own timeout does not cover what comes after the connection: a listener that
    # accepts and says nothing would be waited for without end.
    security = where.security or distributed.Security()
    arguments = security.get_connection_args("client")

    async def ask() -> None:
        comm = await connect(where.address, timeout=timeout_s, **arguments)
        try:
            await comm.write({"op": "identity", "reply": True})
            await comm.read()
        finally:
            comm.abort()

    await asyncio.wait_for(ask(), timeout_s)


@contextlib.contextmanager
def _quiet(*, unless: bool) -> Iterator[None]:
    # A client that lost its scheduler and is closed while it tries to reconnect logs two
    # tracebacks about having been told to stop.
    names = () if unless else ("distributed.client", "distributed.utils")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
