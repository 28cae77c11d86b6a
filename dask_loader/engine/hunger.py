"""Tells the scheduler how long this consumer waited, for whoever decides on workers.

A report is an event of the topic below, of plain numbers: nothing of ours is needed where
it is read. The cluster package's adapt() is one reader.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from dask_loader.engine.connection import Connection

log = logging.getLogger(__name__)

TOPIC = "dask-loader-hunger"
# One small message a second for each consumer that reads.
_EVERY_S = 1.0
_SEND_TIMEOUT_S = 10.0


class HungerReports:
    """Adds up one consumer's waits; used by the thread that takes windows."""

    def __init__(self, link: Connection, consumer: str) -> None:
        """Say nothing yet."""
        self._link = link
        self._consumer = consumer
        self._sent = time.monotonic()
        self._waited_s = 0.0
        self._windows = 0
        self._spoke = False

    def waited(self, seconds: float, *, windows: int) -> None:
        """Count a wait and the windows it ended with; says so about once a second."""
        self._waited_s += seconds
        self._windows += windows
        now = time.monotonic()
        if now - self._sent < _EVERY_S:
            return
        self._send({"waited_s": self._waited_s, "windows": self._windows})
        self._sent, self._waited_s, self._windows = now, 0.0, 0
        self._spoke = True

    def end(self) -> None:
        """Say that this consumer takes no more, if it ever said anything."""
        if self._spoke:
            self._spoke = False
            self._send({"ended": True})

    def _send(self, numbers: dict[str, Any]) -> None:
        message = {"consumer": self._consumer, **numbers}
        # Not waited for: what reads is worth more than what is told of it.
        self._link.live.client.loop.add_callback(self._tell, message)

    async def _tell(self, message: dict[str, Any]) -> None:
        try:
            told = self._link.live.client.scheduler.log_event(topic=TOPIC, msg=message)
            await asyncio.wait_for(told, _SEND_TIMEOUT_S)
        except Exception as error:  # tcp, tls and rpc failures have no common class
            log.debug("could not report to the scheduler: %s", error)
