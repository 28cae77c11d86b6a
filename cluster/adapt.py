"""A thread that keeps as many workers as the consumers are hungry for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from distributed import Client

from cluster.errors import ClusterError
from cluster.hunger import TOPIC, Hunger, Listener

log = logging.getLogger(__name__)


class Adapting:
    """Listens to the consumers and scales; made, used and stopped by one Cluster.

    What it hears comes through the scheduler's events, so nothing of this package has to
    be installed there, nor on the workers.
    """

    def __init__(
        self,
        client: Client,
        hunger: Hunger,
        *,
        scale: Callable[[int], None],
        count: Callable[[], int],
        interval_s: float,
        silence_s: float,
    ) -> None:
        """Start.

        Args:
            client: Listens; closed by the Cluster.
            hunger: Where to begin.
            scale: Asks for so many workers.
            count: Tells how many there are.
            interval_s: From look to look.
            silence_s: See Listener.
        """
        self._client = client
        self._hunger = hunger
        self._scale = scale
        self._count = count
        self._interval_s = interval_s
        self._listener = Listener(silence_s=silence_s)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        client.subscribe_topic(TOPIC, self._hear)
        self._thread = threading.Thread(
            target=self._run, name="cluster-adapt", daemon=True
        )
        self._thread.start()

    @property
    def target(self) -> int:
        """How many workers there should be now."""
        return self._hunger.target

    def stop(self) -> None:
        """End the thread, after the scaling that is under way; safe twice."""
        self._stopped.set()
        self._thread.join()

    def _hear(self, event: tuple[float, Any]) -> None:
        with self._lock:
            self._listener.hear(event[1], time.monotonic())

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stopped.wait(self._interval_s):
            now = time.monotonic()
            with self._lock:
                look = self._listener.look(now, elapsed_s=now - began)
            began = now
            try:
                if self._count() != self._hunger.target:
                    continue  # what was seen is of another number of workers
                after = self._hunger.after(look)
                if after.target != self._hunger.target:
                    log.info(
                        "from %s to %s: %s", self._hunger.target, after.target, look
                    )
                    self._scale(after.target)
                self._hunger = after
            except ClusterError as error:
                # The scheduler is restarting, or a worker did not come: look again.
                log.warning("could not adapt the number of workers: %s", error)
