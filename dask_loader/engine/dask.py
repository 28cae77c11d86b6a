"""The engine on a Dask cluster: one plain future for each window, direct from its worker.

A future's data stay on the worker until they are handed over, then the future is released
at once, so nothing piles up there. Two threads take finished windows over in order while
the trainer works on earlier ones; more would only hold more memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future as LocalFuture
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import distributed
from distributed.comm.core import CommClosedError, connect
from distributed.scheduler import KilledWorker

from dask_loader.engine.base import Item, Result, describe_slices
from dask_loader.engine.where import Where
from dask_loader.engine.worker import run_window
from dask_loader.errors import (
    ClosedError,
    DaskLoaderError,
    EngineError,
    SchedulerUnreachableError,
    WindowError,
    WorkersMissingError,
)
from dask_loader.read.task import WindowTask
from dask_loader.transfer.slabs import SlabPool
from dask_loader.transfer.window import WindowData

_CONNECT_TIMEOUT_S = 15.0
# How often a wait looks around: long against a round trip (10 ms), short for a person.
_LOOK_AROUND_S = 1.0
_ASK_TIMEOUT_S = 10.0
_HAND_OVER_THREADS = 2
_CLOSE_WAIT_S = 5.0
# A hand-over that outlasts worker_timeout is begun again this often: its worker may have
# died, and the window is being read once more.
_MAX_HAND_OVERS = 5


class DaskEngine:
    """Runs windows as futures of its own client."""

    def __init__(self, where: Where, *, worker_timeout_s: float) -> None:
        """Connect.

        Args:
            where: The scheduler.
            worker_timeout_s: Longest time without any worker.

        Raises:
            SchedulerUnreachableError: Nobody answers there.
        """
        self._address = where.address
        self._worker_timeout_s = worker_timeout_s
        self._token = f"{os.getpid():x}{uuid.uuid4().hex[:8]}"
        self._stop = threading.Event()
        self._handing_over: set[LocalFuture[WindowData]] = set()
        self._client = _connect(where)
        self._executor = ThreadPoolExecutor(
            _HAND_OVER_THREADS, thread_name_prefix="dask-loader-hand-over"
        )

    @property
    def name(self) -> str:
        """For people."""
        return f"Dask cluster at {self._address}"

    @property
    def pool(self) -> SlabPool | None:
        """None: windows arrive in memory of their own."""
        return None

    def slots(self) -> int:
        """Return the threads of all workers; waits for a first worker."""
        waited_s = 0.0
        while True:
            threads = self._ask_threads()
            if threads:
                return threads
            if waited_s >= self._worker_timeout_s:
                raise self._no_workers(waited_s)
            self._stop.wait(_LOOK_AROUND_S)
            waited_s += _LOOK_AROUND_S

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> list[Result]:
        """Run a function over items on the cluster."""
        name = getattr(getattr(function, "func", function), "__name__", "map")
        futures = self._client.map(
            function, list(items), key=f"{name}-{self._token}", pure=False
        )
        try:
            return [self._take(future, name) for future in futures]
        finally:
            self._client.cancel(futures)

    def submit(self, task: WindowTask, *, stream: int, number: int) -> _Pending:
        """Ask for a window."""
        if self._stop.is_set():
            raise ClosedError("the dataset was closed while it was being read")
        # The first part is what Dask's dashboard groups by.
        key = (f"read-window-{self._token}", stream, number)
        future = self._client.submit(
            run_window, task, key=key, priority=-number, pure=False
        )
        pending = _Pending(future)
        pending.taken = self._executor.submit(self._hand_over, future, task, pending)
        self._handing_over.add(pending.taken)
        pending.taken.add_done_callback(self._handing_over.discard)
        return pending

    def close(self) -> None:
        """Stop waiting, and disconnect; the scheduler then forgets our futures."""
        self._stop.set()
        # A transfer that is cut off is logged as an error by its worker: let it end. A
        # stuck one ends when the client does, and with it the wait for it.
        wait(list(self._handing_over), timeout=_CLOSE_WAIT_S)
        with _quiet(unless=self._client.status == "running"):
            self._client.close()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _hand_over(
        self, future: Any, task: WindowTask, pending: _Pending
    ) -> WindowData:
        try:
            window: WindowData = self._take(
                future, describe_slices(task), pending.given_up
            ).open()
            return window
        finally:
            future.release()

    def _take(
        self, future: Any, what: str, given_up: threading.Event | None = None
    ) -> Any:
        """Wait for a future with an eye on the cluster, then fetch it from its worker."""
        for _ in range(_MAX_HAND_OVERS):
            self._await_done(future, what, given_up)
            try:
                return future.result(timeout=self._worker_timeout_s)
            except (TimeoutError, distributed.TimeoutError):
                # Lost on the way: the scheduler has it made again, if there is a worker.
                if not self._ask_threads():
                    raise self._no_workers(self._worker_timeout_s) from None
            except DaskLoaderError:
                raise
            except Exception as error:
                raise self._explain(error, future, what) from error
        raise WindowError(
            f"{what} was made, but could not be fetched from its Dask worker in "
            f"{_MAX_HAND_OVERS} tries of {self._worker_timeout_s:g} s; check that this "
            "machine can reach the workers' addresses"
        )

    def _await_done(
        self, future: Any, what: str, given_up: threading.Event | None
    ) -> None:
        # Not distributed.wait(): it asks for a default client, and ours is none.
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        lonely_s = 0.0
        while not done.wait(_LOOK_AROUND_S):
            if self._stop.is_set() or (given_up is not None and given_up.is_set()):
                raise ClosedError(f"{what} was given up")
            lonely_s = 0.0 if self._ask_threads() else lonely_s + _LOOK_AROUND_S
            if lonely_s >= self._worker_timeout_s:
                raise self._no_workers(lonely_s)

    def _ask_threads(self) -> int:
        try:
            threads = self._client.sync(
                self._client.scheduler.ncores, callback_timeout=_ASK_TIMEOUT_S
            )
        except Exception as error:  # tcp, tls and rpc failures have no common class
            raise SchedulerUnreachableError(
                f"the Dask scheduler at {self._address!r} answered before and does not "
                f"answer now ({type(error).__name__}: {error}); check that it runs, and "
                "start again from the last state"
            ) from error
        return sum(threads.values())

    def _no_workers(self, waited_s: float) -> WorkersMissingError:
        return WorkersMissingError(
            f"the Dask scheduler at {self._address!r} has no worker, and none came in "
            f"{waited_s:g} s; start workers with `dask worker {self._address}`, or wait "
            'longer with worker_timeout="5 min"'
        )

    def _explain(self, error: Exception, future: Any, what: str) -> EngineError:
        lost = isinstance(error, CommClosedError)
        if lost or future.status in ("cancelled", "lost"):
            return SchedulerUnreachableError(
                f"the Dask scheduler at {self._address!r} lost {what} ({error}); it was "
                "restarted or the connection broke: start again from the last state"
            )
        if isinstance(error, KilledWorker):
            return WindowError(
                f"{what} killed every Dask worker that tried it ({error}); give the "
                "workers more memory, or make shuffle_window smaller"
            )
        hint = ""
        if isinstance(error, ImportError) or "No module named" in str(error):
            hint = "; install the same packages on the Dask workers as here"
        return WindowError(
            f"{what} failed on a Dask worker: {type(error).__name__}: {error}{hint}"
        )


class _Pending:
    def __init__(self, future: Any) -> None:
        self._future = future
        self.given_up = threading.Event()
        self.taken: LocalFuture[WindowData]

    def result(self) -> WindowData:
        # The hand-over thread has the deadlines.
        return self.taken.result()

    def cancel(self) -> None:
        self.given_up.set()
        self.taken.cancel()
        self._future.release()


def _connect(where: Where) -> Any:
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="dask-loader-knock") as thread:
            thread.submit(asyncio.run, _knock(where)).result()
        return distributed.Client(
            where.address,
            security=where.security,
            timeout=_CONNECT_TIMEOUT_S,
            set_as_default=False,
            direct_to_workers=True,
            name="dask-loader",
        )
    except Exception as error:  # OSError, TimeoutError, ValueError, TypeError, ssl
        raise SchedulerUnreachableError(
            f"no Dask scheduler answers at {where.address!r} within "
            f"{_CONNECT_TIMEOUT_S:g} s ({type(error).__name__}: {error}); check the "
            "address, that it runs, and for tls:// that client= carries its security"
        ) from error


async def _knock(where: Where) -> None:
    # Client's own timeout does not cover what comes after the connection: a listener that
    # accepts and says nothing would be waited for without end.
    security = where.security or distributed.Security()
    arguments = security.get_connection_args("client")

    async def ask() -> None:
        comm = await connect(where.address, timeout=_CONNECT_TIMEOUT_S, **arguments)
        try:
            await comm.write({"op": "identity", "reply": True})
            await comm.read()
        finally:
            comm.abort()

    await asyncio.wait_for(ask(), _CONNECT_TIMEOUT_S)


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
