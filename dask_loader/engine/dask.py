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
import itertools
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future as LocalFuture
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import distributed
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from dask_loader.engine.base import (
    Item,
    Result,
    chain_name,
    chain_prefix,
    describe_slices,
)
from dask_loader.engine.connection import (
    ASK_TIMEOUT_S,
    Connection,
    ConnectionLostError,
    Live,
)
from dask_loader.engine.environment import Environments
from dask_loader.engine.functions import Functions
from dask_loader.engine.hunger import HungerReports
from dask_loader.engine.share import HAND_OVER_VARIABLE, Sharing
from dask_loader.engine.where import Where
from dask_loader.engine.worker import end_chains, probe, run_window
from dask_loader.errors import (
    ClosedError,
    DaskLoaderError,
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

# How often a wait looks around: long against a round trip (10 ms), short for a person.
_LOOK_AROUND_S = 1.0
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
# A scheduler that is lost so often while one window is read will not do better.
_MAX_LOSSES = 5
# A window that takes so many times as long as the longest so far is read by a second
# worker too, then by a third: theirs may hang, or be stopped.
_SLOW = 8.0
_MAX_COPIES = 3
# A worker that was so slow is given no window for a while, if there are others: its thread
# may hang for good. In times of what was found slow.
_SUSPECT_FOR = 5.0
# How many looks around go by between two at what the workers say of themselves.
_LOOKS_PER_STATUS = 5


class DaskEngine:
    """Runs windows as futures of its own client."""

    def __init__(
        self,
        where: Where,
        *,
        worker_timeout_s: float,
        memory_limit: int,
        window_timeout_s: float = math.inf,
    ) -> None:
        """Connect.

        Args:
            where: The scheduler.
            worker_timeout_s: Longest time without any worker; after it, a window that
                takes very long is read by a second worker too.
            memory_limit: Bytes of slabs that workers of this host may be lent.
            window_timeout_s: Longest wait for the window that is next.

        Raises:
            SchedulerUnreachableError: Nobody answers there.
        """
        self._address = where.address
        self._worker_timeout_s = worker_timeout_s
        self._window_timeout_s = window_timeout_s
        self._token = f"{os.getpid():x}{uuid.uuid4().hex[:8]}"
        self._stop = threading.Event()
        self._handing_over: set[LocalFuture[WindowData]] = set()
        self._sharing = Sharing(memory_limit=memory_limit)
        self._received = SlabPool(0)  # only counts what came over the comm
        self._homes: dict[str, str] = {}  # worker of each chain
        self._functions = Functions(self._submit_function)
        self._workers: dict[str, int] = {}  # their threads, when last asked
        self._environments = Environments()
        self._longest_s = 0.0  # a wait for a window, so far
        self._alone = threading.Lock()  # for windows that may kill workers
        self._suspects: dict[str, float] = {}  # workers, and until when
        self._link = Connection(where, patience_s=worker_timeout_s, stop=self._stop)
        self._hunger = HungerReports(self._link, self._token)
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
        if not wait:
            try:
                threads = self._look_at(self._ask_threads())
            except ConnectionLostError:  # who waits for a window sees to it
                return 0
            return sum(threads.values())
        return self._persist(self._await_slots)

    def _await_slots(self) -> int:
        waited_s = 0.0
        while True:
            threads = self._look_at(self._ask_threads())
            if threads:
                return sum(threads.values())
            if waited_s >= self._worker_timeout_s:
                raise self._no_workers(waited_s)
            self._stop.wait(_LOOK_AROUND_S)
            waited_s += _LOOK_AROUND_S

    def _look_at(self, threads: dict[str, int]) -> dict[str, int]:
        """Find out about workers that are new."""
        if threads:
            self._environments.check(threads, self._run_on)
            self._sharing.learn(threads, self._ask_sharing)
        return threads

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

        def run() -> list[Result]:
            live = self._link.live
            try:
                futures = live.client.map(function, list(items), key=keys, pure=False)
            except Exception as error:
                raise self._lost_or(error, live) from error
            begun = [_Begun(f, live, None, (), None) for f in futures]
            try:
                return [self._take([one], name)[1] for one in begun]
            except _KilledError as killed:
                raise WindowError(
                    f"{name} killed every Dask worker that tried it ({killed}); give the "
                    "workers more memory"
                ) from killed
            finally:
                # Not cancelled: a client that asks for the same key at this very moment
                # would be told that it was.
                for future in futures:
                    future.release()

        return self._persist(run)

    def _persist(self, work: Callable[[], Result]) -> Result:
        """Do some work, again where the scheduler was lost meanwhile and is back."""
        for losses in itertools.count(1):
            try:
                return work()
            except ConnectionLostError as lost:
                self._reconnect(lost, losses)
        raise AssertionError("endless")

    def _reconnect(self, lost: ConnectionLostError, losses: int) -> None:
        if losses > _MAX_LOSSES:
            raise SchedulerUnreachableError(
                f"the Dask scheduler at {self._address!r} was lost {losses} times in a "
                f"row ({lost}); see its log, and start again from the last state"
            ) from lost
        self._link.renew(lost)

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
        self._link.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._sharing.close()

    def _begin(
        self,
        task: WindowTask,
        pending: _Pending,
        place: tuple[int, ...],
        among: list[str] | None = None,
    ) -> _Begun:
        """Submit a task, with a slab if there is one."""
        live = self._link.live
        loan = self._sharing.lend(task)
        if among is None and self._suspected():
            suspects = self._suspected()
            among = [w for w in list(self._workers) if w not in suspects] or None
        home = self._home(task, among)
        light, function = task, None
        try:
            light, function = self._functions.split(task, live)
            future = live.client.submit(
                run_window,
                light,
                None if loan is None else loan.name,
                function,
                # The first part is what Dask's dashboard groups by.
                key=(f"read-window-{self._token}", *place),
                priority=-place[1],
                pure=False,
                workers=[home] if home else among,
            )
        except Exception as error:
            if not isinstance(self._lost_or(error, live), ConnectionLostError):
                if loan is not None:
                    loan.give_back()
                raise
            future = None  # who hands it over begins anew
        pending.begun = _Begun(future, live, loan, place, home)
        return pending.begun

    def _lost_or(self, error: Exception, live: Live) -> Exception:
        """Return what to raise for an error of a client that may have been closed."""
        renewed = self._link.live.generation != live.generation
        if renewed or live.client.status != "running":
            return ConnectionLostError(live.generation, str(error) or repr(error))
        return error

    @staticmethod
    def _submit_function(client: Any, function: Function) -> Any:
        return client.submit(
            load_function,
            function.name,
            function.payload,
            key=f"load-transform-{function.key}",
        )

    def _home(self, task: WindowTask, among: list[str] | None) -> str | None:
        """Return the worker that reads a chain; None where any may read the window."""
        if task.chain is None:
            return None
        home = self._homes.get(task.chain)
        candidates = list(self._workers) if among is None else among
        if home not in candidates:
            held = list(self._homes.values())
            home = min(candidates, key=held.count, default=None)
        if home is not None:
            self._homes[task.chain] = home
        if not task.continues:
            self._homes.pop(task.chain, None)
        return home

    def _hand_over(
        self, task: WindowTask, pending: _Pending, begun: _Begun
    ) -> WindowData:
        what = describe_slices(task)
        numbers = itertools.count(1)

        def again(among: list[str] | None = None) -> _Begun:
            place = (*begun.place[:2], next(numbers))
            return self._begin(task, pending, place, among)

        try:
            return self._read(task, pending, begun, again)
        except _KilledError:
            # Whatever waited on a worker that died is suspected. Of those that are read
            # again one by one, only the guilty one kills again.
            log.warning("%s killed Dask workers, or died with them; once more", what)
            with self._alone:
                try:
                    return self._read(task, pending, again(), again)
                except _KilledError as killed:
                    raise WindowError(
                        f"{what} killed every Dask worker that tried it ({killed}); give "
                        "the workers more memory, or make shuffle_window smaller"
                    ) from killed

    def _read(
        self,
        task: WindowTask,
        pending: _Pending,
        begun: _Begun,
        again: Callable[..., _Begun],
    ) -> WindowData:
        what = describe_slices(task)
        race = [begun]
        failures = losses = 0
        while True:
            window = None
            began = time.monotonic()
            try:
                first, found = self._take(race, what, pending, again)
                window = self._accept(task, first.loan, found)
                failures += window is None
            except _HomeLostError:
                failures += 1
            except ConnectionLostError as lost:
                losses += 1
                self._reconnect(lost, losses)
            finally:
                for each in race:
                    each.release()
            if window is not None:
                if len(race) == 1:
                    self._longest_s = max(self._longest_s, time.monotonic() - began)
                return window
            if pending.given_up.is_set() or self._stop.is_set():
                raise ClosedError(f"{what} was given up")
            if failures >= _MAX_SLABS:
                break
            race = [again()]
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
        client = self._link.live.client

        async def ask(address: str) -> Any:
            # One by one: a worker that is silent must not silence the others.
            answering = client._run(
                function, item, workers=[address], on_error="return"
            )
            return (await asyncio.wait_for(answering, ASK_TIMEOUT_S))[address]

        async def ask_all() -> list[Any]:
            return await asyncio.gather(*map(ask, workers), return_exceptions=True)

        try:
            answers = dict(zip(workers, client.sync(ask_all), strict=True))
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
        race: list[_Begun],
        what: str,
        pending: _Pending | None = None,
        again: Callable[[list[str]], _Begun] | None = None,
    ) -> tuple[_Begun, Any]:
        """Wait for the first of some futures, then fetch it from its worker.

        Args:
            race: All of the same window; grows if it takes very long.
            what: The window, for error texts.
            pending: Tells whether it was given up.
            again: Has the window read on one of some workers too.
        """
        limit_s = self._worker_timeout_s
        patience_s = 0.0
        tries = 0
        while tries < _MAX_HAND_OVERS:
            first = self._await_first(race, what, pending, again)
            # A worker may die between the end of a task and the fetching of its result.
            # Where no other may run the task again, that is to be found out soon.
            short_s = limit_s if first.home is None else min(_FIRST_PATIENCE_S, limit_s)
            patience_s = min(2 * patience_s, limit_s) or short_s
            try:
                return first, self._fetch(first, patience_s)
            except (TimeoutError, distributed.TimeoutError):
                # Lost on the way: the scheduler has it made again, if there is a worker.
                workers = self._ask_threads()
                if not workers:
                    raise self._no_workers(self._worker_timeout_s) from None
                if first.home is not None and first.home not in workers:
                    raise _HomeLostError from None
                tries += patience_s >= limit_s
            except DaskLoaderError:
                raise
            except Exception as error:
                raise self._explain(error, first, what) from error
        raise WindowError(
            f"{what} was made, but could not be fetched from its Dask worker in "
            f"{_MAX_HAND_OVERS} tries of {self._worker_timeout_s:g} s; check that this "
            "machine can reach the workers' addresses"
        )

    def _fetch(self, begun: _Begun, patience_s: float) -> Any:
        """Fetch a result from its worker, as long as the scheduler is there.

        Raises:
            TimeoutError: It did not come in time.
            ConnectionLostError: Dask's client has noticed that the scheduler is gone.
        """
        client = begun.live.client
        # future.result() would go on asking a scheduler that is gone for 10 s.
        fetching = asyncio.run_coroutine_threadsafe(
            client.gather(begun.future, asynchronous=True), client.loop.asyncio_loop
        )
        deadline = time.monotonic() + patience_s
        try:
            while not wait([fetching], timeout=_LOOK_AROUND_S).done:
                if client.status != "running":
                    raise ConnectionLostError(begun.live.generation, client.status)
                if time.monotonic() > deadline:
                    raise TimeoutError
            return fetching.result()
        finally:
            fetching.cancel()

    def _await_first(
        self,
        race: list[_Begun],
        what: str,
        pending: _Pending | None,
        again: Callable[[list[str]], _Begun] | None,
    ) -> _Begun:
        """Wait with an eye on the cluster."""
        # Not distributed.wait(): it asks for a default client, and ours is none.
        done = threading.Event()
        for begun in race:
            begun.tell(done)
        began = time.monotonic()
        slow_s = max(self._worker_timeout_s, _SLOW * self._longest_s)
        lonely_s = 0.0
        for looks in itertools.count(1):
            if done.wait(_LOOK_AROUND_S):
                break
            given_up = pending is not None and pending.given_up.is_set()
            if self._stop.is_set() or given_up:
                raise ClosedError(f"{what} was given up")
            if race[0].live.generation != self._link.live.generation:
                break
            workers = self._ask_threads()
            if workers and all(b.home and b.home not in workers for b in race):
                raise _HomeLostError
            if workers and looks % _LOOKS_PER_STATUS == 0:
                self._check_paused(looks * _LOOK_AROUND_S)
            lonely_s = 0.0 if workers else lonely_s + _LOOK_AROUND_S
            if lonely_s >= self._worker_timeout_s:
                raise self._no_workers(lonely_s)
            waited_s = time.monotonic() - began
            if waited_s >= self._window_timeout_s:
                raise self._too_slow(what, race, waited_s)
            if again is None or len(race) >= _MAX_COPIES:
                continue
            slow = waited_s >= slow_s
            others = self._others(race, workers, slow_s if slow else 0.0)
            if others:
                log.warning(
                    "%s takes %.0f s; another Dask worker reads it too", what, waited_s
                )
                race.append(again(others))
                race[-1].tell(done)
                slow_s = 2 * waited_s
        for begun in race:
            if begun.future is not None and begun.future.done():
                return begun
        raise ConnectionLostError(race[0].live.generation, "others connected anew")

    def _others(
        self, race: list[_Begun], workers: Mapping[str, int], slow_s: float
    ) -> list[str]:
        """Return the workers that may be better than those that read a window now.

        Args:
            race: The window.
            workers: All.
            slow_s: What it took to call it slow; 0 if it is not: then there are others
                only if all who read it were slow before.
        """
        suspects = self._suspected()
        if not slow_s and not suspects:
            return []
        readers = self._readers(race)
        if not readers or (not slow_s and not suspects.issuperset(readers)):
            return []
        if slow_s:
            until_s = time.monotonic() + _SUSPECT_FOR * slow_s
            self._suspects.update(dict.fromkeys(readers, until_s))
        return [w for w in workers if w not in readers and w not in suspects]

    def _suspected(self) -> set[str]:
        """Return the workers that were very slow of late."""
        now_s = time.monotonic()
        return {w for w, until_s in self._suspects.copy().items() if until_s > now_s}

    def _readers(self, race: list[_Begun]) -> list[str]:
        """Return the workers that a window was given to."""
        keys = {str(begun.key) for begun in race}
        given = self._ask("processing", workers=None)
        return [w for w, had in given.items() if keys & {str(k) for k in had}]

    def _check_paused(self, waited_s: float) -> None:
        """Give up where every worker has stopped to take work for lack of memory."""
        if waited_s < self._worker_timeout_s:
            return
        workers = self._ask("identity")["workers"]
        paused = [a for a, told in workers.items() if told.get("status") == "paused"]
        if paused and len(paused) == len(workers):
            raise WorkersMissingError(
                f"all {len(paused)} workers of the Dask scheduler at {self._address!r} "
                f"are paused: {', '.join(sorted(paused)[:3])}; they have no memory left, "
                "or no room on their spill disk. Give them more, or free what other "
                "computations keep there"
            )

    def _too_slow(self, what: str, race: list[_Begun], waited_s: float) -> WindowError:
        readers = self._readers(race)
        place = (
            f"on {' and '.join(readers)}" if readers else "waiting for a free worker"
        )
        return WindowError(
            f"{what} was not done within {waited_s:.0f} s (it is {place}); look at those "
            "workers' logs and what they wait for, or allow more with window_timeout="
        )

    def _ask(self, operation: str, **arguments: Any) -> Any:
        """Ask the scheduler something.

        Raises:
            ConnectionLostError: There is no answer.
        """
        live = self._link.live
        try:
            return live.client.sync(
                getattr(live.client.scheduler, operation),
                callback_timeout=ASK_TIMEOUT_S,
                **arguments,
            )
        except Exception as error:  # tcp, tls and rpc failures have no common class
            raise ConnectionLostError(
                live.generation, f"{type(error).__name__}: {error}", silent=True
            ) from error

    def _ask_threads(self) -> dict[str, int]:
        threads: dict[str, int] = self._ask("ncores")
        self._workers = {address: n for address, n in threads.items() if n}
        return self._workers

    def _no_workers(self, waited_s: float) -> WorkersMissingError:
        return WorkersMissingError(
            f"the Dask scheduler at {self._address!r} has no worker, and none came in "
            f"{waited_s:g} s; start workers with `dask worker {self._address}`, or wait "
            'longer with worker_timeout="5 min"'
        )

    def _explain(self, error: Exception, begun: _Begun, what: str) -> Exception:
        forgotten = begun.future.status in ("cancelled", "lost")
        gone = isinstance(self._lost_or(error, begun.live), ConnectionLostError)
        if forgotten or gone or isinstance(error, CommClosedError):
            # Dask's own text has several lines.
            why = getattr(error, "reason", None) or type(error).__name__
            return ConnectionLostError(begun.live.generation, why)
        if isinstance(error, KilledWorker):
            return _KilledError(str(error))
        hint = ""
        if isinstance(error, ImportError) or "No module named" in str(error):
            hint = "; install the same packages on the Dask workers as here"
        return WindowError(
            f"{what} failed on a Dask worker: {type(error).__name__}: {error}{hint}"
        )


class _HomeLostError(Exception):
    """The one worker that was to read a window is gone."""


class _KilledError(Exception):
    """Too many workers died that a window was given to."""


class _Begun(NamedTuple):
    future: Any  # None where the scheduler was lost before
    live: Live
    loan: Loan | None
    place: tuple[int, ...]
    home: str | None

    @property
    def key(self) -> Any:
        return None if self.future is None else self.future.key

    def tell(self, done: threading.Event) -> None:
        """Set an event as soon as there is anything to take, or never will be."""
        if self.future is None:
            done.set()
        else:
            self.future.add_done_callback(lambda _: done.set())

    def release(self) -> None:
        if self.future is not None:
            self.future.release()
        if self.loan is not None:
            self.loan.give_back()


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
        if self.begun.future is not None:
            self.begun.future.release()
        if self.taken.cancel() and self.begun.loan is not None:
            self.begun.loan.give_back()
