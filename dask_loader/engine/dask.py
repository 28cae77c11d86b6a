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
from typing import Any

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
)
from dask_loader.engine.environment import Environments
from dask_loader.engine.functions import Functions
from dask_loader.engine.hunger import HungerReports
from dask_loader.engine.reach import Reach, Sample
from dask_loader.engine.share import HAND_OVER_VARIABLE, Sharing
from dask_loader.engine.unseen import run_unseen
from dask_loader.engine.watch import (
    LOOK_AROUND_S,
    Begun,
    HomeLostError,
    KilledError,
    Watch,
)
from dask_loader.engine.where import Where
from dask_loader.engine.worker import end_chains, probe, run_window
from dask_loader.errors import (
    ClosedError,
    SchedulerUnreachableError,
    WindowError,
)
from dask_loader.read.task import WindowTask
from dask_loader.read.transform import Function, load_function
from dask_loader.transfer.parcel import Parcel
from dask_loader.transfer.received import window_in
from dask_loader.transfer.shared import Loan, SlabName
from dask_loader.transfer.slabs import SlabPool
from dask_loader.transfer.window import WindowData
from dask_loader.transfer.writer import Outcome

log = logging.getLogger(__name__)

_HAND_OVER_THREADS = 2
_CLOSE_WAIT_S = 5.0
# A slab that a stopped worker holds is given up; the window is read again into another.
_MAX_SLABS = 5
# A scheduler that is lost so often while one window is read will not do better.
_MAX_LOSSES = 5


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
        self._token = f"{os.getpid():x}{uuid.uuid4().hex[:8]}"
        self._stop = threading.Event()
        self._handing_over: set[LocalFuture[WindowData]] = set()
        self._sharing = Sharing(memory_limit=memory_limit)
        self._received = SlabPool(0)  # only counts what came over the comm
        self._homes: dict[str, str] = {}  # worker of each chain
        self._functions = Functions(self._submit_function)
        self._environments = Environments()
        self._reach = Reach()
        self._alone = threading.Lock()  # for windows that may kill workers
        self._link = Connection(where, patience_s=worker_timeout_s, stop=self._stop)
        self._watch = Watch(
            self._link,
            address=where.address,
            worker_timeout_s=worker_timeout_s,
            window_timeout_s=window_timeout_s,
            stop=self._stop,
        )
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
                threads = self._share(self._look_at(self._watch.ask_threads()))
            except ConnectionLostError:  # who waits for a window sees to it
                return 0
            return sum(threads.values())
        return self._persist(self._await_slots)

    def will_read(self, sample: Sample) -> None:
        """Have workers look at these files, once each, before their first task."""
        self._reach.sample = sample

    def _await_slots(self) -> int:
        return sum(self._share(self._await_workers()).values())

    def _await_workers(self) -> dict[str, int]:
        """Wait for a first worker; return the threads of all, found fit for reading."""
        waited_s = 0.0
        while True:
            threads = self._look_at(self._watch.ask_threads())
            if threads:
                return threads
            if waited_s >= self._worker_timeout_s:
                raise self._watch.no_workers(waited_s)
            self._stop.wait(LOOK_AROUND_S)
            waited_s += LOOK_AROUND_S

    def _look_at(self, threads: dict[str, int]) -> dict[str, int]:
        """Find out whether workers that are new are fit for reading."""
        self._environments.check(threads, self._run_on)
        self._reach.check(self._environments.known(threads), self._run_on)
        return threads

    def _share(self, threads: dict[str, int]) -> dict[str, int]:
        """Find out which workers that are new share memory with this process."""
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
            if items:
                self._await_workers()
            live = self._link.live
            try:
                futures = live.client.map(function, list(items), key=keys, pure=False)
            except Exception as error:
                raise self._watch.lost_or(error, live) from error
            begun = [Begun(f, live, None, (), None) for f in futures]
            try:
                return [self._watch.take([one], name)[1] for one in begun]
            except KilledError as killed:
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
    ) -> Begun:
        """Submit a task, with a slab if there is one."""
        live = self._link.live
        loan = self._sharing.lend(task)
        if among is None and self._watch.suspected():
            suspects = self._watch.suspected()
            among = [w for w in list(self._watch.workers) if w not in suspects] or None
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
            if not isinstance(self._watch.lost_or(error, live), ConnectionLostError):
                if loan is not None:
                    loan.give_back()
                raise
            future = None  # who hands it over begins anew
        pending.begun = Begun(future, live, loan, place, home)
        return pending.begun

    @staticmethod
    def _submit_function(client: Any, function: Function) -> Any:
        return client.submit(
            load_function,
            function,
            key=f"load-transform-{function.key}",
        )

    def _home(self, task: WindowTask, among: list[str] | None) -> str | None:
        """Return the worker that reads a chain; None where any may read the window."""
        if task.chain is None:
            return None
        home = self._homes.get(task.chain)
        candidates = list(self._watch.workers) if among is None else among
        if home not in candidates:
            held = list(self._homes.values())
            home = min(candidates, key=held.count, default=None)
        if home is not None:
            self._homes[task.chain] = home
        if not task.continues:
            self._homes.pop(task.chain, None)
        return home

    def _hand_over(
        self, task: WindowTask, pending: _Pending, begun: Begun
    ) -> WindowData:
        what = describe_slices(task)
        numbers = itertools.count(1)

        def again(among: list[str] | None = None) -> Begun:
            place = (*begun.place[:2], next(numbers))
            return self._begin(task, pending, place, among)

        try:
            return self._read(task, pending, begun, again)
        except KilledError:
            # Whatever waited on a worker that died is suspected. Of those that are read
            # again one by one, only the guilty one kills again.
            log.warning("%s killed Dask workers, or died with them; once more", what)
            with self._alone:
                try:
                    return self._read(task, pending, again(), again)
                except KilledError as killed:
                    raise WindowError(
                        f"{what} killed every Dask worker that tried it ({killed}); give "
                        "the workers more memory, or make shuffle_window smaller"
                    ) from killed

    def _read(
        self,
        task: WindowTask,
        pending: _Pending,
        begun: Begun,
        again: Callable[..., Begun],
    ) -> WindowData:
        what = describe_slices(task)
        race = [begun]
        failures = losses = 0
        while True:
            window = None
            began = time.monotonic()
            try:
                first, found = self._watch.take(race, what, pending, again)
                window = self._accept(task, first.loan, found)
                failures += window is None
            except HomeLostError:
                failures += 1
            except ConnectionLostError as lost:
                losses += 1
                self._reconnect(lost, losses)
            finally:
                for each in race:
                    each.release()
            if window is not None:
                if len(race) == 1:
                    self._watch.longest_s = max(
                        self._watch.longest_s, time.monotonic() - began
                    )
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
        whole = None
        if accepted is not None:
            whole = window_in(task.options.forms, task.num_rows, *accepted)
        if whole is None:
            loan.drop()
            return None
        whole.home = loan.name
        # Another program's word may be anything.
        whole.unchecked_rows = min(max(0, loan.unchecked_rows), task.num_rows)
        return whole

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
            answering = run_unseen(client, function, item, address)
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


class _Pending:
    def __init__(self, hunger: HungerReports) -> None:
        self.given_up = threading.Event()
        self._hunger = hunger
        self.begun: Begun
        self.taken: LocalFuture[WindowData]

    def result(self) -> WindowData:
        # The hand-over thread has the deadlines. A long wait is told of while it lasts.
        done = False
        while not done:
            began = time.monotonic()
            done = bool(wait([self.taken], timeout=LOOK_AROUND_S).done)
            self._hunger.waited(time.monotonic() - began, windows=int(done))
        return self.taken.result()

    def cancel(self, *, wait: bool = False) -> None:
        del wait  # workers decode
        self.given_up.set()
        if self.begun.future is not None:
            self.begun.future.release()
        if self.taken.cancel() and self.begun.loan is not None:
            self.begun.loan.give_back()
