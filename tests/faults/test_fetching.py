"""Windows that are read and not fetched yet when their worker is lost."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dask_loader.engine.connection import Connection
from dask_loader.engine.watch import Begun, HomeLostError, Watch
from dask_loader.engine.where import Where

pytestmark = [pytest.mark.faults, pytest.mark.cluster]


class _Fetching(Watch):
    """Tells when it has begun to fetch."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.fetches = threading.Semaphore(0)

    def _fetch(self, begun):
        try:
            return super()._fetch(begun)
        finally:
            self.fetches.release()


@pytest.fixture
def link(parts):
    parts.start_scheduler()
    link = Connection(Where(parts.address), patience_s=60.0, stop=threading.Event())
    yield link
    link.close()


def _watch(link: Connection, address: str) -> _Fetching:
    return _Fetching(
        link,
        address=address,
        worker_timeout_s=120.0,
        window_timeout_s=600.0,
        stop=threading.Event(),
    )


def test_where_the_only_worker_dies_with_what_it_read_another_is_waited_for(
    parts, link, wait_until
):
    worker = parts.start_worker()
    watch = _watch(link, parts.address)
    wait_until(watch.ask_threads, "a worker")
    (home,) = watch.workers
    future = link.live.client.submit(bytes, 1000, workers=[home])
    begun = Begun(future, link.live, None, (0, 0), home)
    wait_until(future.done, "the task")
    worker.send_signal(signal.SIGSTOP)  # so that the fetching begins, and no more
    with ThreadPoolExecutor(1) as thread:
        taken = thread.submit(watch.take, [begun], "a window")
        assert watch.fetches.acquire(timeout=120)
        worker.kill()
        # Not an error that says no worker came in worker_timeout: two seconds went by.
        with pytest.raises(HomeLostError):
            taken.result(timeout=110)
    begun.release()


def test_who_gives_up_fetching_disturbs_nobody_who_fetches_at_the_same_time(
    parts, link, wait_until
):
    worker = parts.start_worker()
    watch = _watch(link, parts.address)
    wait_until(watch.ask_threads, "a worker")
    client = link.live.client
    futures = client.map(bytes, range(1000, 1003))
    wait_until(lambda: all(f.done() for f in futures), "the tasks")
    worker.send_signal(signal.SIGSTOP)
    each = [Begun(f, link.live, None, (0, n), None) for n, f in enumerate(futures)]
    fetches = client.sync(_all_at_once, watch, each)
    with pytest.raises(TimeoutError):
        watch._fetched(fetches[0], each[0], 0.0)
    worker.send_signal(signal.SIGCONT)
    got = [watch._fetched(*both, 120.0) for both in zip(fetches, each, strict=True)]
    assert got == [bytes(1000), bytes(1001), bytes(1002)]
    for begun in each:
        begun.release()


async def _all_at_once(watch, each):
    # In one step of the client's loop, where it joins them.
    return [watch._fetch(begun) for begun in each]
