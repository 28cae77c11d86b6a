"""Whether Dask workers have what tasks import; found out before the first task.

What runs there is sent by value, as a worker may have nothing of ours.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dask_loader.errors import WorkerEnvironmentError

# What a window's task imports, with the names that pip knows them by.
_NEEDED = {
    "dask_loader": "dask-loader",
    "pyarrow": "pyarrow",
    "numpy": "numpy",
    "fsspec": "fsspec",
}
_MISSING = "missing"


def _look(needed: dict[str, str]) -> dict[str, str]:
    """Return the version of Python and of each package, without importing any."""
    import importlib.metadata
    import importlib.util
    import platform

    found = {"python": platform.python_version()}
    for module, name in needed.items():
        try:
            there = importlib.util.find_spec(module) is not None
        except ImportError:
            there = False
        if not there:
            found[module] = "missing"
            continue
        try:
            found[module] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[module] = "unknown"  # on sys.path only
    return found


def look_by_value() -> Callable[[dict[str, str]], dict[str, str]]:
    """Return _look so that it is pickled with its code, not by its name."""
    code, scope = _look.__code__, {"__name__": "__main__", "__builtins__": __builtins__}
    function = types.FunctionType(code, scope, "look_at_environment")
    function.__module__ = "__main__"
    return function


class Environments:
    """Looks at each worker once; used by one engine."""

    def __init__(self) -> None:
        """Know no worker."""
        self._seen: set[str] = set()
        self._own = _look(_NEEDED)
        self._warned = False

    def check(
        self, workers: Mapping[str, Any], ask: Callable[..., dict[str, Any]]
    ) -> None:
        """Look at the workers that are new.

        Args:
            workers: By address.
            ask: Runs a function on workers at once: (workers, function, argument), and
                returns the answers of those that gave one.

        Raises:
            WorkerEnvironmentError: A package that tasks import is missing on one.
        """
        new = [address for address in workers if address not in self._seen]
        if not new:
            return
        # Who gave no answer is busy or gone, and is asked another time.
        answers = ask(new, look_by_value(), _NEEDED)
        if any(_MISSING in found.values() for found in answers.values()):
            raise WorkerEnvironmentError(
                "Dask workers lack packages that reading needs; install them in the "
                "workers' environment, or stop these workers:\n"
                + table(self._own, answers)
            )
        self._seen.update(answers)
        differing = {
            address: found
            for address, found in answers.items()
            if any(_minor(found[n]) != _minor(self._own[n]) for n in self._own)
        }
        if differing and not self._warned:
            self._warned = True
            warnings.warn(
                "Dask workers have other versions than this process; if something odd "
                "happens, install the same:\n" + table(self._own, differing),
                RuntimeWarning,
                stacklevel=2,
            )

    def known(self, workers: Iterable[str]) -> list[str]:
        """Return those that answered."""
        return [address for address in workers if address in self._seen]


def table(own: Mapping[str, str], found: Mapping[str, Mapping[str, str]]) -> str:
    """Draw what differs from this process, a line for each worker and package."""
    lines = [
        f"  {address}: {name} {versions[name]} (here {own[name]})"
        for address, versions in found.items()
        for name in own
        if versions[name] == _MISSING or _minor(versions[name]) != _minor(own[name])
    ]
    return "\n".join(lines)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
