"""A process that counts what filters keep, and stops while it does until it may go on.

counting_process.py DATA CACHE LOG GATE: counts the rows of DATA with x above 10, with a
cache in CACHE. Each time the engine is asked to count, a line "process items" is added
to LOG, and the file GATE is waited for. Prints the number of rows.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from dask_loader.catalog import storage
from dask_loader.catalog.cache import FooterCache
from dask_loader.catalog.catalog import read_catalog
from dask_loader.catalog.discover import discover
from dask_loader.counting import with_counted_rows
from dask_loader.engine.threads import ThreadsEngine
from dask_loader.read.nulls import NullPolicy
from dask_loader.read.task import ReadOptions

_DEADLINE_S = 180.0


class Gated(ThreadsEngine):
    """Threads that wait for the gate."""

    def __init__(self, log: str, gate: str) -> None:
        super().__init__(memory_limit=1 << 20, local_world_size=1)
        self._log, self._gate = Path(log), Path(gate)

    def map(self, function: Any, items: Any, *, names: Any = None) -> list[Any]:
        with self._log.open("a") as log:
            log.write(f"{os.getpid()} {len(items)}\n")
        deadline = time.monotonic() + _DEADLINE_S
        while not self._gate.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return super().map(function, items, names=names)


def count(data: str, folder: str, log: str, gate: str) -> int:
    """Count as a dataset does."""
    storage.SETTLED_NS = 0
    cache, found = FooterCache(folder), discover(data)
    catalog = read_catalog(
        found.storage,
        found.paths,
        columns=None,
        filters=[("x", ">", 10)],
        run=lambda function, items: [function(item) for item in items],
        cache=cache,
    )
    options = ReadOptions(
        storage=catalog.storage,
        forms=catalog.forms,
        nulls=NullPolicy(),
        expression=catalog.expression,
        filter_columns=catalog.filter_columns,
    )
    engine = Gated(log, gate)
    try:
        return with_counted_rows(catalog, options, engine, cache).total_rows
    finally:
        engine.close()


if __name__ == "__main__":
    sys.stdout.write(f"{count(*sys.argv[1:])}\n")
