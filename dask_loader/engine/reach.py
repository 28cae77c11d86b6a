"""Whether Dask workers see the files that this process sees, before the first task.

A few files are looked at as windows will read them: through the same file system, its
options, and the credentials that a worker has. What is wrong here too is no difference
between machines, and left to the windows.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dask_loader.catalog.catalog import Catalog
from dask_loader.catalog.discover import Found
from dask_loader.catalog.encryption import ENCRYPTED_MAGIC
from dask_loader.catalog.patience import DEADLINE_S
from dask_loader.catalog.storage import Stamp, Storage
from dask_loader.errors import (
    DaskLoaderError,
    StorageError,
    WithoutSecrets,
    WorkerEnvironmentError,
)

_MAGICS = (b"PAR1", ENCRYPTED_MAGIC)
_MOST_FILES = 4
# Of so many files it is seen which root they belong to, spread over the dataset.
_MOST_ROOTS = 1000
# A mount whose server is gone blocks for ever; one that is mounted at the first look
# takes seconds. Stores have a deadline of their own, in patience.py.
_LOCAL_DEADLINE_S = 30.0
_REMOTE_DEADLINE_S = DEADLINE_S + 10
# A worker says "not yet" after so long, well before who asks takes it for busy (10 s).
_ANSWER_S = 5.0
_MOST_LINES = 20

Findings = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, repr=False)
class Sample(WithoutSecrets):
    """Files that stand for all of a dataset.

    Attributes:
        storage: Where they lie.
        files: Path and the version that the catalog knows of each.
    """

    storage: Storage
    files: tuple[tuple[str, Stamp], ...]


@dataclass(frozen=True, slots=True, repr=False)
class Seen(WithoutSecrets):
    """What a worker saw.

    Attributes:
        host: Its host's name.
        wrong: Path of each file that is not as it should be, and what is wrong with it
            in words; None while it is still looking.
    """

    host: str
    wrong: Findings | None


def sample_of(catalog: Catalog) -> Sample:
    """Choose files of which rows are to be read: few, as each worker looks at all."""
    groups = np.flatnonzero(catalog.num_kept > 0)
    groups = groups[:: len(groups) // _MOST_ROOTS + 1]
    files = [catalog.files[i] for i in catalog.file_index[groups].tolist()]
    stamps = {file.path: file.stamp for file in files}
    return _choose(catalog.storage, stamps, stamps.get)


def early_sample_of(found: Found) -> Sample:
    """Choose files before their footers are read, where looking at them costs little.

    Raises:
        DataChangedError: One is gone.
    """
    storage, listed = found.storage, found.listed

    def stamp(path: str) -> Stamp | None:
        if path in listed:
            return listed[path].stamp
        return storage.stamp(path) if storage.is_local else None

    return _choose(storage, found.paths[:: len(found.paths) // _MOST_ROOTS + 1], stamp)


def _choose(
    storage: Storage, paths: Iterable[str], stamp: Callable[[str], Stamp | None]
) -> Sample:
    """Take the first file of each root: of a bucket, or below two folders ("/mnt/a")."""
    roots: dict[tuple[str, ...], str] = {}
    for path in paths:
        roots.setdefault(_root(storage, path), path)
    chosen = [(path, stamp(path)) for path in list(roots.values())[:_MOST_FILES]]
    # The keys of encrypted files are no part of looking, and are not sent.
    return Sample(
        replace(storage, decryption=None),
        tuple((path, known) for path, known in chosen if known is not None),
    )


class Reach:
    """Has each worker look at the files once; used by one engine."""

    def __init__(self) -> None:
        """Know no worker, and no file."""
        self.sample: Sample | None = None
        self._seen: set[tuple[str, Sample]] = set()

    def check(
        self, workers: Iterable[str], ask: Callable[..., Mapping[str, Any]]
    ) -> None:
        """Have the workers look that have not yet; does nothing without a sample.

        Args:
            workers: Their addresses.
            ask: Runs a function on workers at once, past their queues: (workers,
                function, argument), and returns the answers of those that gave one.

        Raises:
            WorkerEnvironmentError: One does not see what this process sees.
        """
        sample = self.sample
        if sample is None or not sample.files:
            return
        new = [address for address in workers if (address, sample) not in self._seen]
        if not new:
            return
        answers = _ask_all(new, sample, ask)
        wrong = {address: seen for address, seen in answers.items() if seen.wrong}
        if wrong:
            here = _wrong_here(sample)
            wrong = {a: _without(seen, here) for a, seen in wrong.items()}
            wrong = {a: seen for a, seen in wrong.items() if seen.wrong}
        if wrong:
            raise WorkerEnvironmentError(
                "Dask workers do not see the files that this process sees; mount the "
                "same data at the same path and give the workers the same rights and "
                f"credentials, or stop these workers:\n{table(wrong)}"
            )
        self._seen.update((address, sample) for address in answers)


def table(wrong: Mapping[str, Seen]) -> str:
    """Draw what differs from this process, a line for each worker and file."""
    lines = [
        f"  {address} (host {seen.host}): {path!r}: {what}"
        for address, seen in wrong.items()
        for path, what in seen.wrong or ()
    ]
    more = len(lines) - _MOST_LINES
    return "\n".join(lines[:_MOST_LINES] + [f"  and {more} more"] * (more > 0))


async def look(sample: Sample) -> Seen:
    """Look at the files, in a thread: one that hangs does not stop the worker."""
    looking = asyncio.wrap_future(_begin(sample))
    done, _ = await asyncio.wait([looking], timeout=_ANSWER_S)
    return Seen(socket.gethostname(), looking.result() if done else None)


def _ask_all(
    workers: Sequence[str], sample: Sample, ask: Callable[..., Mapping[str, Any]]
) -> dict[str, Seen]:
    """Return what workers saw; who gave no answer at all is busy or gone."""
    limit_s = _limit_s(sample)
    began = time.monotonic()
    found: dict[str, Seen] = {}
    while workers:
        answers = ask(workers, look, sample)
        found |= answers
        workers = [a for a, seen in answers.items() if seen.wrong is None]
        waited_s = time.monotonic() - began
        if waited_s >= limit_s:
            silence = f"cannot be read for {waited_s:.0f} s: a mount that hangs?"
            for address in workers:
                named = ((sample.files[0][0], silence),)
                found[address] = replace(found[address], wrong=named)
            break
    return found


def _wrong_here(sample: Sample) -> set[str]:
    """Return the files that are not as they should be for this process either."""
    try:
        return {path for path, _ in _begin(sample).result(_limit_s(sample))}
    except TimeoutError:
        return set()  # windows would hang too, and have no deadline for that


def _limit_s(sample: Sample) -> float:
    return _LOCAL_DEADLINE_S if sample.storage.is_local else _REMOTE_DEADLINE_S


def _without(seen: Seen, paths: set[str]) -> Seen:
    left = tuple((path, what) for path, what in seen.wrong or () if path not in paths)
    return replace(seen, wrong=left)


def _root(storage: Storage, path: str) -> tuple[str, ...]:
    if storage.is_local:
        return tuple(path.split("/")[1:-1][:2])
    return (path.partition("://")[2].split("/")[0] or path.split("/")[0],)


# What is being looked at in this process, so that who asks again asks for the same look.
_lock = threading.Lock()
_under_way: dict[Sample, Future[Findings]] = {}


def _begin(sample: Sample) -> Future[Findings]:
    with _lock:
        looking = _under_way.get(sample)
        if looking is None:
            looking = _under_way[sample] = Future()
            # Not of a pool: Python waits for those at its end, and a mount may hang.
            threading.Thread(
                target=_look_and_tell, args=(sample, looking), daemon=True
            ).start()
        return looking


def _look_and_tell(sample: Sample, looking: Future[Findings]) -> None:
    try:
        looking.set_result(_look_at_all(sample))
    except BaseException as error:
        looking.set_exception(error)
        raise
    finally:
        with _lock:
            del _under_way[sample]


def _look_at_all(sample: Sample) -> Findings:
    found = ((path, _wrong(sample.storage, path, s)) for path, s in sample.files)
    return tuple((path, what) for path, what in found if what)


def _wrong(storage: Storage, path: str, stamp: Stamp) -> str:
    """Return what is wrong with a file in words; "" if it is the one that was stamped."""
    try:
        now = storage.stamp(path)
        if now.num_bytes != stamp.num_bytes:
            return (
                f"{now.num_bytes} bytes, here {stamp.num_bytes}: another version of it?"
            )
        if now.version != stamp.version:
            return (
                f"the same size, but of another time ({now.version}, here "
                f"{stamp.version}): another version of it, or a copy that did not keep "
                "its time (cp -p and rsync -t do)?"
            )
        if _tail(storage, path, stamp.num_bytes) not in _MAGICS:
            return "the same size and time, but it does not end as Parquet does"
    except Exception as error:  # each file system has its own
        return _words(storage, error)
    return ""


def _tail(storage: Storage, path: str, num_bytes: int) -> bytes:
    start = max(0, num_bytes - len(ENCRYPTED_MAGIC))
    if not storage.is_local:
        return storage.fetch(path, start, num_bytes)
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), num_bytes - start, start)


def _words(storage: Storage, error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if isinstance(cause, FileNotFoundError | NotADirectoryError):
        if storage.is_local:
            return "nothing is there: another mount, or none?"
        return "nothing is there: another store?"
    if isinstance(cause, PermissionError) and storage.is_local:
        return f"the user {_user()} may not read it"
    if isinstance(error, StorageError) and "denies access" in str(error):
        return "the store denies access: other credentials there, or none?"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    name = "" if isinstance(error, DaskLoaderError) else f"{type(error).__name__}: "
    return storage.scrub(f"{name}{error}")


def _user() -> str:
    try:
        return repr(pwd.getpwuid(os.geteuid()).pw_name)
    except KeyError:  # of no name, as in containers
        return str(os.geteuid())
