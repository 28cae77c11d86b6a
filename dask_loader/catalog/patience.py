"""Calls to a store: tried again where that may help, for a bounded time, then named.

Stores refuse for a moment (503, SlowDown), reset connections, answer late or cut answers
short. Libraries differ in which of these they try again and none has a deadline for the
whole, so their own retries are off and these are used for all.
"""

from __future__ import annotations

import asyncio
import builtins
import random
import re
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeGuard, TypeVar

from dask_loader.errors import DaskLoaderError, StorageError

_T = TypeVar("_T")

# With the pauses between them about 6 s for a store that refuses at once. Of reads from a
# store that refuses every third request, one in 6,500 fails all of eight tries.
MAX_TRIES = 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
# For one request with all its tries, whatever the store does meanwhile.
DEADLINE_S = 60.0
# A connection that says nothing for so long is given up; unless the user's options say.
SILENCE_S = 15.0

# As botocore has them; pyarrow writes ACCESS_DENIED.
_DENIED = (
    "accessdenied",
    "forbidden",
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "unable to locate credentials",
)
# A status stands behind the word or in brackets; other numbers may be lengths.
_DENIED_STATUS = re.compile(r"\b(?:status\D{0,6}|\()40[13]\b")


def is_beyond_the_end(error: Exception) -> bool:
    """Whether a store says that a range lies beyond a file's end (HTTP status 416)."""
    text = str(error)
    beyond = "InvalidRange" in text or "not satisfiable" in text.lower()
    return beyond or getattr(error, "status", None) == 416


def patiently(
    call: Callable[[float], _T], *, what: str, path: str, scrub: Callable[[str], str]
) -> _T:
    """Return what a call to a store gives, trying again where that may help.

    Args:
        call: Is told how many seconds it may take.
        what: What it does, for the error's text: "read bytes 0 to 9 of".
        path: What it does it to.
        scrub: Takes secrets out of a text.

    Raises:
        FileNotFoundError: There is no such file.
        StorageError: The store denies access, or all tries failed.
    """
    began = time.monotonic()
    last: BaseException
    for tries in range(1, MAX_TRIES + 1):
        try:
            return call(max(0.1, DEADLINE_S - (time.monotonic() - began)))
        except (FileNotFoundError, NotADirectoryError) as error:
            if not _hides_a_failure(error.__cause__):
                raise
            last = error.__cause__
        except DaskLoaderError:
            raise
        except (ImportError, TypeError, AttributeError):
            raise  # a fault of a program, which no second try mends
        except Exception as error:  # each store's library has its own
            last = error
        if _is_denied(last):
            raise _denied(last, what, path, scrub) from None
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (tries - 1))
        pause *= random.uniform(0.5, 1.0)  # so that workers do not come back together
        if time.monotonic() - began + pause > DEADLINE_S:
            break
        if tries < MAX_TRIES:
            time.sleep(pause)
    seconds = time.monotonic() - began
    # Not "from last": it may hold addresses with signatures.
    raise StorageError(
        f"cannot {what} {path!r}: {tries} tries in {seconds:.1f} s failed, the last with "
        f"{scrub(_words(last))}; see that the store is up and can be reached from there, "
        "then go on from the last checkpoint",
        path=path,
    ) from None


def run_on(file_system: Any, name: str, timeout_s: float, *args: Any, **kw: Any) -> Any:
    """Call a method of an fsspec file system, for a limited time if it can be stopped."""
    method = getattr(file_system, f"_{name}", None)
    if not getattr(file_system, "async_impl", False) or method is None:
        return getattr(file_system, name)(*args, **kw)
    # The public method would wait for ever for a store that sends a byte now and then.
    return finish(file_system, method(*args, **kw), timeout_s)


def finish(file_system: Any, work: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
    """Run a coroutine in a file system's loop, for a limited time.

    Raises:
        TimeoutError: It took longer; it is stopped.
    """
    future = asyncio.run_coroutine_threadsafe(work, file_system.loop)
    try:
        return future.result(timeout_s)
    except builtins.TimeoutError:
        future.cancel()
        raise


def _hides_a_failure(cause: BaseException | None) -> TypeGuard[BaseException]:
    """Whether fsspec calls a file missing since its web server could not be asked."""
    if cause is None or getattr(cause, "status", None) in (404, 410):
        return False
    passing = isinstance(cause, ConnectionError | TimeoutError)
    return passing or type(cause).__module__.startswith("aiohttp")


def _is_denied(error: BaseException) -> bool:
    if isinstance(error, PermissionError):
        return True
    if getattr(error, "status", None) in (401, 403):
        return True
    text = str(error)
    plain = text.replace("_", "").lower()
    return any(word in plain for word in _DENIED) or bool(_DENIED_STATUS.search(text))


def _denied(
    error: BaseException, what: str, path: str, scrub: Callable[[str], str]
) -> StorageError:
    return StorageError(
        f"cannot {what} {path!r}: the store denies access ({scrub(_words(error))}); give "
        "credentials that may list and read there, with storage_options={...} or as the "
        "store's own environment has them on each machine that reads",
        path=path,
    )


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
