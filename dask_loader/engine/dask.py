"""The engine on a Dask cluster: one plain future for each window.

A worker on this host writes the window into memory that this process lends it (see
transfer/shared.py), and the future's result is a word. From any other the window comes
directly, as out-of-band buffers; its data stay on the worker until they are handed over,
then the future is released at once, so nothing piles up there. Two threads take finished
windows over in order while the trainer works on earlier ones; more would only hold more
memory.

Windows of a row group larger than a window go to one worker, which goes on where it
stands in the row group. Should that worker be gone, any other begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future as LocalFuture
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import distributed
from distributed.comm.core import CommClosedError, connect
from distributed.scheduler import KilledWorker

from dask_loader.engine.base import (
    Item,
    Result,
    chain_name,
    chain_prefix,
    describe_slices,
)
from dask_loader.engine.environment import Environments
from dask_loader.engine.functions import Functions
from dask_loader.engine.hunger import HungerReports
from dask_loader.engine.reach import Reach, Sample
from dask_loader.engine.share import HAND_OVER_VARIABLE, Sharing
from dask_loader.engine.where import Where
from dask_loader.engine.worker import end_chains, probe, run_window
from dask_loader.errors import (
    ClosedError,
    DaskLoaderError,
    EngineError,
    SchedulerUnreachableError,
    WindowError,
    WorkersMissingError,
)
from dask_loader.read.task import WindowTask
from dask_loader.read.transform import Function, load_function
from dask_loader.transfer.parcel import Parcel
from dask_loader.transfer.shared import Loan, SlabName
from dask_loader.transfer.slabs import SlabPool
from dask_loader.transfer.texts import unpack_texts
from dask_loader.transfer.window import WindowData, block_bytes, lay_out
from dask_loader.transfer.writer import Outcome

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 15.0
# How often a wait looks around: long against a round trip (10 ms), short for a person.
_LOOK_AROUND_S = 1.0
_ASK_TIMEOUT_S = 10.0
_HAND_OVER_THREADS = 2
_CLOSE_WAIT_S = 5.0
# A hand-over that outlasts worker_timeout is begun again this often: its worker may have
# died, and the window is being read once more.
_MAX_HAND_OVERS = 5
# The first hand-over of a window that only one worker may read; the next ones are given
# twice as long each, for slow networks.
_FIRST_PATIENCE_S = 2.0
# A slab that a stopped worker holds is given up; the window is read again into another.
_MAX_SLABS = 5


class DaskEngine:
    """Runs windows as futures of its own client."""

    def __init__(
        self, where: Where, *, worker_timeout_s: float, memory_limit: int
    ) -> None:
        """Connect.

        Args:
            where: The scheduler.
            worker_timeout_s: Longest time without any worker.
            memory_limit: Bytes of slabs that workers of this host may be lent.

        Raises:
            SchedulerUnreachableError: Nobody answers there.
        """
        self._address = where.address
        self._worker_timeout_s = worker_timeout_s
        self._token = f"{os.getpid():x}{uuid.uuid4().hex[:8]}"
        self._stop = threading.Event()
        _mend_after_fork()
        self._handing_over: set[LocalFuture[WindowData]] = set()
        self._sharing = Sharing(memory_limit=memory_limit)
        self._received = SlabPool(0)  # only counts what came over the comm
        self._homes: dict[str, str] = {}  # worker of each chain
        self._functions = Functions(self._submit_function)
        self._workers: dict[str, int] = {}  # their threads, when last asked
        self._environments = Environments()
        self._reach = Reach()
        self._client = _connect(where)
        self._hunger = HungerReports(self._client, self._token)
        self._executor = ThreadPoolExecutor(
            _HAND_OVER_THREADS, thread_name_prefix="dask-loader-hand-over"
        )

    @property
    def name(self) -> str:
        """For people."""
        return f"Dask cluster at {self._address}"

    @property
    def held_bytes(self) -> int:
        """Bytes of slabs on loan or leased, and of windows that came over the comm."""
        return self._sharing.used_bytes + self._received.leased_bytes

    def cost(self, task: WindowTask) -> int:
        """Return the window's bytes; what else a task takes is its worker's."""
        return task.num_bytes

    def slots(self, *, wait: bool = True) -> int:
        """Return the threads of all workers; waits for a first worker if asked to."""
        threads = self._fit_workers(wait=wait)
        self._sharing.learn(threads, self._ask_sharing)
        return sum(threads.values())

    def will_read(self, sample: Sample) -> None:
        """Have workers look at the files, once each, before their first task."""
        self._reach.sample = sample

    def _fit_workers(self, *, wait: bool) -> dict[str, int]:
        """Return the workers' threads once they were found fit for reading."""
        waited_s = 0.0
        while True:
            threads = self._ask_threads()
            if threads or not wait:
                self._environments.check(threads, self._run_on)
                self._reach.check(self._environments.known(threads), self._run_on)
                return threads
            if waited_s >= self._worker_timeout_s:
                raise self._no_workers(waited_s)
            self._stop.wait(_LOOK_AROUND_S)
            waited_s += _LOOK_AROUND_S

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        names: Sequence[str] | None = None,
    ) -> list[Result]:
        """Run a function over items on the cluster."""
        name = getattr(getattr(function, "func", function), "__name__", "map")
        # The scheduler runs a key once, and forgets it when no client wants it any more.
        keys = (
            f"{name}-{self._token}" if names is None else [f"{name}-{n}" for n in names]
        )
        if items:
            self._fit_workers(wait=True)
        futures = self._client.map(function, list(items), key=keys, pure=False)
        try:
            return [self._take(future, name) for future in futures]
        finally:
            # Not cancelled: a client that asks for the same key at this very moment would
            # be told that it was.
            for future in futures:
                future.release()

    def submit(self, task: WindowTask, *, stream: int, number: int) -> _Pending:
        """Ask for a window."""
        if self._stop.is_set():
            raise ClosedError("the dataset was closed while it was being read")
        task = chain_name(self._token, stream, task)
        pending = _Pending(self._hunger)
        begun = self._begin(task, pending, (stream, number))
        pending.taken = self._executor.submit(self._hand_over, task, pending, begun)
        self._handing_over.add(pending.taken)
        pending.taken.add_done_callback(self._handing_over.discard)
        return pending

    def end(self, stream: int) -> None:
        """Let workers close the row groups that the stream was in the middle of."""
        self._hunger.end()
        prefix = chain_prefix(self._token, stream)
        chains = [name for name in list(self._homes) if name.startswith(prefix)]
        workers = list({self._homes.pop(name, "") for name in chains} - {""})
        if workers and not self._stop.is_set():
            self._run_on(workers, end_chains, prefix)

    def close(self) -> None:
        """Stop waiting, and disconnect; the scheduler then forgets our futures."""
        self._stop.set()
        # A transfer that is cut off is logged as an error by its worker: let it end. A
        # stuck one ends when the client does, and with it the wait for it.
        wait(list(self._handing_over), timeout=_CLOSE_WAIT_S)
        with _quiet(unless=self._client.status == "running"):
            self._client.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._sharing.close()

    def _begin(
        self, task: WindowTask, pending: _Pending, place: tuple[int, ...]
    ) -> _Begun:
        """Submit a task, with a slab if there is one."""
        loan = self._sharing.lend(task)
        home = self._home(task)
        task, function = self._functions.split(task)
        future = self._client.submit(
            run_window,
            task,
            None if loan is None else loan.name,
            function,
            # The first part is what Dask's dashboard groups by.
            key=(f"read-window-{self._token}", *place),
            priority=-place[1],
            pure=False,
            workers=home and [home],
        )
        pending.begun = _Begun(future, loan, place, home)
        return pending.begun

    def _submit_function(self, function: Function) -> Any:
        return self._client.submit(
            load_function,
            function.name,
            function.payload,
            key=f"load-transform-{function.key}",
        )

    def _home(self, task: WindowTask) -> str | None:
        """Return the worker that reads a chain; None where any may read the window."""
        if task.chain is None:
            return None
        home = self._homes.get(task.chain)
        if home not in self._workers:
            held = list(self._homes.values())
            home = min(self._workers, key=held.count, default=None)
        if home is not None:
            self._homes[task.chain] = home
        if not task.continues:
            self._homes.pop(task.chain, None)
        return home

    def _hand_over(
        self, task: WindowTask, pending: _Pending, begun: _Begun
    ) -> WindowData:
        what = describe_slices(task)
        for attempt in range(_MAX_SLABS):
            if attempt:
                begun = self._begin(task, pending, (*begun.place[:2], attempt))
            try:
                found = self._take(begun.future, what, pending, begun.home)
                window = self._accept(task, begun.loan, found)
            except _HomeLostError:
                window = None
            finally:
                begun.future.release()
                if begun.loan is not None:
                    begun.loan.give_back()
            if window is not None:
                return window
            if pending.given_up.is_set() or self._stop.is_set():
                raise ClosedError(f"{what} was given up")
        raise WindowError(
            f"{what}: {_MAX_SLABS} Dask workers in turn stopped or left while they read "
            f"it; see their logs, or set {HAND_OVER_VARIABLE}=comm to do without shared "
            "memory"
        )

    def _accept(
        self, task: WindowTask, loan: Loan | None, found: Parcel | Outcome
    ) -> WindowData | None:
        """Open what a task returned; None if it must be read again."""
        if isinstance(found, Parcel):
            window = found.open()
            for group in window.groups:
                self._received.count(group.block)
            if loan is not None and window.texts:
                texts = sum(int(text.nbytes) for text in window.texts.values())
                self._sharing.texts_were(texts, task)
            return window
        assert loan is not None
        accepted = loan.accept() if found is Outcome.DONE else None
        if accepted is None:
            loan.drop()
            return None
        block, packed = accepted
        forms = task.options.forms
        block = block[: block_bytes(forms, task.num_rows)]
        window = WindowData(task.num_rows, lay_out(forms, task.num_rows, block))
        window.home = loan.name
        if len(packed):
            window.texts = unpack_texts(packed)
        return window

    def _ask_sharing(self, slab: SlabName, workers: list[str]) -> Mapping[str, bool]:
        return self._run_on(workers, probe, slab)

    def _run_on(
        self, workers: list[str], function: Callable[[Item], Result], item: Item
    ) -> dict[str, Result]:
        """Run a small function on workers at once, past their queues.

        Returns:
            The results of those that answered in time.
        """

        async def ask(address: str) -> Any:
            # One by one: a worker that is silent must not silence the others.
            answering = self._client._run(
                function, item, workers=[address], on_error="return"
            )
            return (await asyncio.wait_for(answering, _ASK_TIMEOUT_S))[address]

        async def ask_all() -> list[Any]:
            return await asyncio.gather(*map(ask, workers), return_exceptions=True)

        try:
            answers = dict(zip(workers, self._client.sync(ask_all), strict=True))
        except Exception as error:  # tcp, tls and rpc failures have no common class
            log.debug("no answer from %s: %s", workers, error)
            return {}
        return {
            address: answer
            for address, answer in answers.items()
            if not isinstance(answer, BaseException)
        }

    def _take(
        self,
        future: Any,
        what: str,
        pending: _Pending | None = None,
        home: str | None = None,
    ) -> Any:
        """Wait for a future with an eye on the cluster, then fetch it from its worker."""
        # A worker may die between the end of a task and the fetching of its result. Where
        # no other may run the task again, that is to be found out soon.
        limit_s = self._worker_timeout_s
        patience_s = limit_s if home is None else min(_FIRST_PATIENCE_S, limit_s)
        tries = 0
        while tries < _MAX_HAND_OVERS:
            self._await_done(future, what, pending, home)
            try:
                return future.result(timeout=patience_s)
            except (TimeoutError, distributed.TimeoutError):
                # Lost on the way: the scheduler has it made again, if there is a worker.
                workers = self._ask_threads()
                if not workers:
                    raise self._no_workers(self._worker_timeout_s) from None
                if home is not None and home not in workers:
                    raise _HomeLostError from None
                tries += patience_s >= limit_s
                patience_s = min(2 * patience_s, limit_s)
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
        self, future: Any, what: str, pending: _Pending | None, home: str | None
    ) -> None:
        # Not distributed.wait(): it asks for a default client, and ours is none.
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        lonely_s = 0.0
        while not done.wait(_LOOK_AROUND_S):
            given_up = pending is not None and pending.given_up.is_set()
            if self._stop.is_set() or given_up:
                raise ClosedError(f"{what} was given up")
            workers = self._ask_threads()
            if home is not None and workers and home not in workers:
                raise _HomeLostError
            lonely_s = 0.0 if workers else lonely_s + _LOOK_AROUND_S
            if lonely_s >= self._worker_timeout_s:
                raise self._no_workers(lonely_s)

    def _ask_threads(self) -> dict[str, int]:
        try:
            threads: dict[str, int] = self._client.sync(
                self._client.scheduler.ncores, callback_timeout=_ASK_TIMEOUT_S
            )
        except Exception as error:  # tcp, tls and rpc failures have no common class
            raise SchedulerUnreachableError(
                f"the Dask scheduler at {self._address!r} answered before and does not "
                f"answer now ({type(error).__name__}: {error}); check that it runs, and "
                "start again from the last state"
            ) from error
        self._workers = {address: n for address, n in threads.items() if n}
        return self._workers

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


class _HomeLostError(Exception):
    """The one worker that was to read a window is gone."""


class _Begun(NamedTuple):
    future: Any
    loan: Loan | None
    place: tuple[int, ...]
    home: str | None


class _Pending:
    def __init__(self, hunger: HungerReports) -> None:
        self.given_up = threading.Event()
        self._hunger = hunger
        self.begun: _Begun
        self.taken: LocalFuture[WindowData]

    def result(self) -> WindowData:
        # The hand-over thread has the deadlines. A long wait is told of while it lasts.
        done = False
        while not done:
            began = time.monotonic()
            done = bool(wait([self.taken], timeout=_LOOK_AROUND_S).done)
            self._hunger.waited(time.monotonic() - began, windows=int(done))
        return self.taken.result()

    def cancel(self, *, wait: bool = False) -> None:
        del wait  # workers decode
        self.given_up.set()
        self.begun.future.release()
        if self.taken.cancel() and self.begun.loan is not None:
            self.begun.loan.give_back()


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
