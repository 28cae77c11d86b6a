"""An event loop in a thread of its own, so that plain code can wait with a deadline.

Dask's own blocking constructors have none: a Client of a scheduler that accepts the
connection and says nothing waits for ever, and both it and LocalCluster leave a loop
thread behind when they fail.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")

# What is left to do when a loop is stopped is to cancel its tasks: milliseconds.
_STOP_S = 10.0


class LoopThread:
    """Runs coroutines for other threads; made, used and stopped by one owner.

    The thread is a daemon: Dask's exit handlers, which close forgotten clusters, need
    it to live until the interpreter ends.
    """

    def __init__(self, name: str) -> None:
        """Start the thread and wait until its loop runs."""
        started: concurrent.futures.Future[asyncio.AbstractEventLoop]
        started = concurrent.futures.Future()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(started)), name=name, daemon=True
        )
        self._thread.start()
        self._loop = started.result()

    def submit(self, work: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Run a coroutine on the loop; its future may be waited for with a deadline."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """Cancel what still runs and end the thread; safe twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(timeout=_STOP_S)

    async def _main(
        self, started: concurrent.futures.Future[asyncio.AbstractEventLoop]
    ) -> None:
        started.set_result(asyncio.get_running_loop())
        await self._stopped.wait()
