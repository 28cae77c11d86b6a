"""Dask's log, less what is no error: a launched cluster prints nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

# Everything below is noise of starting, scaling and closing.
LOG_LEVEL = logging.ERROR
# Dask gives these the same handler.
_DASKS = ("distributed", "bokeh", "tornado")


@contextlib.contextmanager
def dask_quiet() -> Iterator[None]:
    """Keep Dask's own log handlers from writing what is no error.

    LocalCluster's silence_logs does this too, but to whatever a program writes by these
    handlers, and it ends with the first of two clusters and before the last lines of
    closing.
    """

    def is_error(record: logging.LogRecord) -> bool:
        of_dask = record.name.partition(".")[0] in _DASKS
        return record.levelno >= LOG_LEVEL or not of_dask

    handlers = list(logging.getLogger("distributed").handlers)
    for handler in handlers:
        handler.addFilter(is_error)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_error)
