"""Waiting for windows with an eye on the cluster: who reads them, and whether it goes on.

A window may be under way several times at once, where those who read it seem to hang. The
first copy that is done is the one that counts.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future as LocalFuture
from concurrent.futures import wait
from typing import Any, NamedTuple, Protocol

import distributed
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from dask_loader.engine.connection import (
    ASK_TIMEOUT_S,
    Connection,
    ConnectionLostError,
    Live,
)
from dask_loader.errors import (
    ClosedError,
    DaskLoaderError,
    WindowError,
    WorkersMissingError,
)
from dask_loader.transfer.shared import Loan

log = logging.getLogger(__name__)

Fetch = LocalFuture[Any]

# How often a wait looks around: long against a round trip (10 ms), short for a person.
LOOK_AROUND_S = 1.0
# A hand-over that outlasts worker_timeout is begun again this often: its worker may have
# died, and the window is being read once more.
_MAX_HAND_OVERS = 5
# The first hand-over of a window that only one worker may read; the next ones are given
# twice as long each, for slow networks.
_FIRST_PATIENCE_S = 2.0
# A window that takes so many times as long as the longest so far is read by a second
# worker too, then by a third: theirs may hang, or be stopped.
_SLOW = 8.0
_MAX_COPIES = 3
# A worker that was so slow is given no window for a while, if there are others: its thread
# may hang for good. In times of what was found slow.
_SUSPECT_FOR = 5.0
# How many looks around go by between two at what the workers say of themselves.
_LOOKS_PER_STATUS = 5


class HomeLostError(Exception):
    """The one worker that was to read a window is gone."""


class KilledError(Exception):
    """Too many workers died that a window was given to."""


class Begun(NamedTuple):
    """A window that was submitted.

    Attributes:
        future: Dask's; None where the scheduler was lost before.
        live: The client that it belongs to.
        loan: The slab that its worker may write.
        place: Stream, number, and which try it is.
        home: The only worker that may read it, if there is one.
    """

    future: Any
    live: Live
    loan: Loan | None
    place: tuple[int, ...]
    home: str | None

    @property
    def key(self) -> Any:
        """Dask's name for it."""
        return None if self.future is None else self.future.key

    def tell(self, done: threading.Event) -> None:
        """Set an event as soon as there is anything to take, or never will be."""
        if self.future is None:
            done.set()
        else:
            self.future.add_done_callback(lambda _: done.set())

    def release(self) -> None:
        """Give it up, or let go of what was taken. Safe twice."""
        if self.future is not None:
            self.future.release()
        if self.loan is not None:
            self.loan.give_back()


class Watched(Protocol):
    """Who waits for a window."""

    given_up: threading.Event


class Watch:
    """Waits for futures of one engine; used by all of its threads.

    Attributes:
        workers: Threads of each worker, when last asked.
        longest_s: The longest that a window was waited for, of those that did not hang.
    """

    def __init__(
        self,
        link: Connection,
        *,
        address: str | None,
        worker_timeout_s: float,
        window_timeout_s: float,
        stop: threading.Event,
    ) -> None:
        """Watch the cluster behind a connection.

        Args:
            link: To the scheduler.
            address: Its address, for error texts.
            worker_timeout_s: Longest time without any worker that takes work.
            window_timeout_s: Longest wait for a window.
            stop: Set to end any wait.
        """
        self._link = link
        self._address = address
        self._worker_timeout_s = worker_timeout_s
        self._window_timeout_s = window_timeout_s
        self._stop = stop
        self._suspects: dict[str, float] = {}  # workers, and until when
        self.workers: dict[str, int] = {}
        self.longest_s = 0.0

    def lost_or(self, error: Exception, live: Live) -> Exception:
        """Return what to raise for an error of a client that may have been closed."""
        renewed = self._link.live.generation != live.generation
        if renewed or live.client.status != "running":
            return ConnectionLostError(live.generation, str(error) or repr(error))
        return error

    def take(
        self,
        race: list[Begun],
        what: str,
        pending: Watched | None = None,
        again: Callable[[list[str]], Begun] | None = None,
    ) -> tuple[Begun, Any]:
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
        fetches: dict[Any, Fetch] = {}
        while tries < _MAX_HAND_OVERS:
            first = self._await_first(race, what, pending, again)
            # A worker may die between the end of a task and the fetching of its result.
            # Where no other may run the task again, that is to be found out soon.
            short_s = limit_s if first.home is None else min(_FIRST_PATIENCE_S, limit_s)
            patience_s = min(2 * patience_s, limit_s) or short_s
            fetch = fetches.get(first.key)
            if fetch is None or fetch.done():
                fetch = fetches[first.key] = self._fetch(first)
            try:
                return first, self._fetched(fetch, first, patience_s)
            except (TimeoutError, distributed.TimeoutError):
                # Lost on the way: the scheduler has it made again, if there is a worker.
                workers = self.ask_threads()
                if first.home is not None and first.home not in workers:
                    raise HomeLostError from None
                if not workers:
                    raise self.no_workers(patience_s) from None
                tries += patience_s >= limit_s
            except (DaskLoaderError, ConnectionLostError):
                raise
            except Exception as error:
                raise self._explain(error, first, what) from error
        raise WindowError(
            f"{what} was made, but could not be fetched from its Dask worker in "
            f"{_MAX_HAND_OVERS} tries of {self._worker_timeout_s:g} s; check that this "
            "machine can reach the workers' addresses"
        )

    def _fetch(self, begun: Begun) -> Fetch:
        """Begin to fetch a result from its worker.

        Whoever gives up lets it go on, until the future is released: Dask's client lets
        several fetches wait for one task, and who cancels that cancels the others.
        """
        client = begun.live.client
        # future.result() would go on asking a scheduler that is gone for 10 s.
        return asyncio.run_coroutine_threadsafe(
            client.gather(begun.future, asynchronous=True), client.loop.asyncio_loop
        )

    def _fetched(self, fetch: Fetch, begun: Begun, patience_s: float) -> Any:
        """Wait for a result, as long as the scheduler is there.

        Raises:
            TimeoutError: It did not come in time.
            ConnectionLostError: Dask's client has noticed that the scheduler is gone.
        """
        client = begun.live.client
        deadline = time.monotonic() + patience_s
        while not wait([fetch], timeout=LOOK_AROUND_S).done:
            if client.status != "running":
                raise ConnectionLostError(begun.live.generation, client.status)
            if time.monotonic() > deadline:
                raise TimeoutError
        return fetch.result()

    def _await_first(
        self,
        race: list[Begun],
        what: str,
        pending: Watched | None,
        again: Callable[[list[str]], Begun] | None,
    ) -> Begun:
        """Wait with an eye on the cluster."""
        # Not distributed.wait(): it asks for a default client, and ours is none.
        done = threading.Event()
        for begun in race:
            begun.tell(done)
        began = time.monotonic()
        slow_s = max(self._worker_timeout_s, _SLOW * self.longest_s)
        lonely_s = 0.0
        for looks in itertools.count(1):
            if done.wait(LOOK_AROUND_S):
                break
            given_up = pending is not None and pending.given_up.is_set()
            if self._stop.is_set() or given_up:
                raise ClosedError(f"{what} was given up")
            if race[0].live.generation != self._link.live.generation:
                break
            workers = self.ask_threads()
            if workers and all(b.home and b.home not in workers for b in race):
                raise HomeLostError
            if workers and looks % _LOOKS_PER_STATUS == 0:
                self._check_paused(looks * LOOK_AROUND_S)
            lonely_s = 0.0 if workers else lonely_s + LOOK_AROUND_S
            if lonely_s >= self._worker_timeout_s:
                raise self.no_workers(lonely_s)
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
        self, race: list[Begun], workers: Mapping[str, int], slow_s: float
    ) -> list[str]:
        """Return the workers that may be better than those that read a window now.

        Args:
            race: The window.
            workers: All.
            slow_s: What it took to call it slow; 0 if it is not: then there are others
                only if all who read it were slow before.
        """
        suspects = self.suspected()
        if not slow_s and not suspects:
            return []
        readers = self._readers(race)
        if not readers or (not slow_s and not suspects.issuperset(readers)):
            return []
        if slow_s:
            until_s = time.monotonic() + _SUSPECT_FOR * slow_s
            self._suspects.update(dict.fromkeys(readers, until_s))
        return [w for w in workers if w not in readers and w not in suspects]

    def suspected(self) -> set[str]:
        """Return the workers that were very slow of late."""
        now_s = time.monotonic()
        return {w for w, until_s in self._suspects.copy().items() if until_s > now_s}

    def _readers(self, race: list[Begun]) -> list[str]:
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

    def _too_slow(self, what: str, race: list[Begun], waited_s: float) -> WindowError:
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

    def ask_threads(self) -> dict[str, int]:
        """Return the threads of each worker.

        Raises:
            ConnectionLostError: There is no answer.
        """
        threads: dict[str, int] = self._ask("ncores")
        self.workers = {address: n for address, n in threads.items() if n}
        return self.workers

    def no_workers(self, waited_s: float) -> WorkersMissingError:
        """Return the error that says so."""
        return WorkersMissingError(
            f"the Dask scheduler at {self._address!r} has no worker, and none came in "
            f"{waited_s:g} s; start workers with `dask worker {self._address}`, or wait "
            'longer with worker_timeout="5 min"'
        )

    def _explain(self, error: Exception, begun: Begun, what: str) -> Exception:
        forgotten = begun.future.status in ("cancelled", "lost")
        gone = isinstance(self.lost_or(error, begun.live), ConnectionLostError)
        if forgotten or gone or isinstance(error, CommClosedError):
            # Dask's own text has several lines.
            why = getattr(error, "reason", None) or type(error).__name__
            return ConnectionLostError(begun.live.generation, why)
        if isinstance(error, KilledWorker):
            return KilledError(str(error))
        hint = ""
        if isinstance(error, ImportError) or "No module named" in str(error):
            hint = "; install the same packages on the Dask workers as here"
        return WindowError(
            f"{what} failed on a Dask worker: {type(error).__name__}: {error}{hint}"
        )
