"""The job classes of dask-jobqueue, without what else comes with them.

Importing it replaces the program's handler of Ctrl-C by one that exits, and fails outside
the main thread. Its classes fill in from jobqueue.yaml whatever is None; here only the
spec counts, so that the same call submits the same job for everybody.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from importlib.resources import files
from types import ModuleType
from typing import Any

import dask
import yaml  # type: ignore[import-untyped]

from cluster.errors import SpecError

# Read once from the package, then used by name; the lock is for the name.
_LOCK = threading.Lock()


def make(kind: str, class_name: str, address: str, **options: Any) -> Any:
    """Make one job object; nothing is submitted.

    Args:
        kind: The file of dask-jobqueue's, and the section of its defaults.
        class_name: The job class in it.
        address: The scheduler's.
        **options: What the class takes; None is what dask-jobqueue itself brings, never
            what a jobqueue.yaml says.

    Raises:
        SpecError: The package dask-jobqueue is missing.
    """
    module = _load(kind)
    name = f"dask-cluster-{kind}"
    text = files("dask_jobqueue").joinpath("jobqueue.yaml").read_text()
    section = yaml.safe_load(text)["jobqueue"][kind] | {"walltime": None}
    with _LOCK, dask.config.set({f"jobqueue.{name}": section}):
        return getattr(module, class_name)(address, config_name=name, **options)


def _load(kind: str) -> ModuleType:
    name = f"dask_jobqueue.{kind}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        with _handlers_kept():
            return importlib.import_module(name)
    except ImportError as error:
        raise SpecError(
            f"launch({kind!r}) needs the package dask-jobqueue, which is not installed; "
            "install it (pip install dask-jobqueue)"
        ) from error


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Keep Ctrl-C as the program has it.

    In another thread than the main one Python lets nobody set a handler: there, doing
    nothing stands in for it during the import. The main thread can set its own still.
    """
    if threading.current_thread() is threading.main_thread():
        before = signal.getsignal(signal.SIGINT)
        try:
            yield
        finally:
            if before is not None:  # None: not set by Python, and cannot be set again
                signal.signal(signal.SIGINT, before)
        return
    real = signal.signal

    def stand_in(number: Any, handler: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            return real(number, handler)
        return signal.getsignal(number)

    signal.signal = stand_in  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = real
