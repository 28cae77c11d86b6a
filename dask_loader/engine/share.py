"""Which Dask workers share memory with this process, and the slabs that they fill."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping

from dask_loader.errors import ConfigError
from dask_loader.read.task import WindowTask
from dask_loader.transfer.places import FolderPlace, MemfdPlace, Place
from dask_loader.transfer.shared import Loan, SharedPool, SlabName
from dask_loader.transfer.window import block_bytes

log = logging.getLogger(__name__)

HAND_OVER_VARIABLE = "DASK_LOADER_HAND_OVER"
FOLDER_VARIABLE = "DASK_LOADER_SHARED_FOLDER"
_DEFAULT_FOLDER = "/dev/shm"
_WAYS = ("auto", "memory", "files", "comm")
# Texts are reckoned from footers; a little more than that is reserved.
_TEXT_SPARE = 1.1
_TEXT_SPARE_BYTES = 64 << 10

# Asks workers whether they can open a slab: their addresses, and who can.
Ask = Callable[[SlabName, list[str]], Mapping[str, bool]]


class Sharing:
    """Lends slabs to tasks as long as some Dask worker can open them.

    Used by the engine's consumer thread, closed by it; a loan's end by any thread.
    """

    def __init__(
        self, *, memory_limit: int, environ: Mapping[str, str] = os.environ
    ) -> None:
        """Begin without knowing any worker.

        Args:
            memory_limit: Bytes of slabs, at most.
            environ: DASK_LOADER_HAND_OVER is "auto" (the first of the others that serves),
                "memory" (anonymous), "files" (in DASK_LOADER_SHARED_FOLDER, by default
                /dev/shm) or "comm" (nothing is shared).

        Raises:
            ConfigError: It is something else.
        """
        self._way = environ.get(HAND_OVER_VARIABLE) or "auto"
        if self._way not in _WAYS:
            raise ConfigError(
                f"{HAND_OVER_VARIABLE}={self._way!r} must be one of {_WAYS!r}"
            )
        self._folder = environ.get(FOLDER_VARIABLE) or _DEFAULT_FOLDER
        self._memory_limit = memory_limit
        self._pool: SharedPool | None = None
        self._shares: dict[str, bool] = {}  # by worker address
        self._warned = False
        self._text_row_bytes = 0.0  # of the longest that were too long for their slab

    @property
    def used_bytes(self) -> int:
        """Bytes of slabs on loan or leased."""
        return 0 if self._pool is None else self._pool.used_bytes

    @property
    def place(self) -> str | None:
        """Where the slabs lie, for people; None where no worker shares memory."""
        shared = self._pool is not None and any(self._shares.values())
        return self._pool.place.name if shared and self._pool is not None else None

    def learn(self, workers: Iterable[str], ask: Ask) -> None:
        """Find out about workers that are new."""
        new = [address for address in workers if address not in self._shares]
        if not new or self._way == "comm":
            return
        if self._pool is not None:
            self._shares.update(self._probe(self._pool, new, ask))
            return
        for place in self._places():
            pool = SharedPool(place, self._memory_limit)
            found = self._probe(pool, new, ask)
            if any(found.values()):
                self._pool = pool
                self._shares.update(found)
                return
            pool.close()
        self._shares.update(dict.fromkeys(new, False))

    def lend(self, task: WindowTask) -> Loan | None:
        """Return a slab for a task's window, or None: it is to come over the comm."""
        if self._pool is None or not any(self._shares.values()):
            return None
        fixed = block_bytes(task.options.forms, task.num_rows)
        if any(not form.is_fixed for form in task.options.forms):
            planned = max(0, task.num_bytes - fixed)
            texts = max(planned, self._text_row_bytes * task.num_rows)
            fixed += int(texts * _TEXT_SPARE) + _TEXT_SPARE_BYTES
        try:
            return self._pool.lend(fixed)
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"no room for {fixed} bytes of shared memory in "
                    f"{self._pool.place.name} ({error}); windows come over the network "
                    "instead, at about half the speed",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return None

    def texts_were(self, num_bytes: int, task: WindowTask) -> None:
        """Learn from texts that were too long for their slab."""
        # By the row: a dictionary of few long texts says next to nothing in the footer.
        row_bytes = num_bytes / max(1, task.num_rows)
        self._text_row_bytes = max(self._text_row_bytes, row_bytes)

    def close(self) -> None:
        """Remove the slabs; what was handed over stays readable. Safe twice."""
        if self._pool is not None:
            self._pool.close()

    def _places(self) -> Iterable[Place]:
        if self._way in ("auto", "memory"):
            yield MemfdPlace()
        if self._way in ("auto", "files"):
            try:
                yield FolderPlace(self._folder)
            except OSError as error:
                if self._way == "files":
                    raise ConfigError(
                        f"{FOLDER_VARIABLE}={self._folder!r} cannot be used for shared "
                        f"memory ({error}); name a folder that this process can write"
                    ) from error
                log.debug("no shared files in %r: %s", self._folder, error)

    def _probe(self, pool: SharedPool, workers: list[str], ask: Ask) -> dict[str, bool]:
        try:
            loan = pool.lend(0)
        except OSError as error:
            log.debug("no memory to share in %s: %s", pool.place.name, error)
            return dict.fromkeys(workers, False)
        if loan is None:  # all slabs are in use: the workers are asked another time
            return {}
        try:
            answers = ask(loan.name, workers)
        finally:
            loan.give_back()
        return {address: answers.get(address) is True for address in workers}
