"""Every error this package raises on purpose, one class for each thing a user can do.

    DaskLoaderError
    ├── ConfigError (ValueError)       an argument is wrong: nothing was read
    │   ├── ColumnError                a column is unknown, named twice, or not nameable
    │   ├── WorldError                 rank and world_size are wrong or disagree
    │   ├── RankMismatchError          ranks were given different arguments or data
    │   ├── PlanError                  the arguments are right alone, not together
    │   └── ResumeError                a checkpoint does not fit this dataset
    ├── DataError                      the data are at fault: the file is named
    │   ├── DataNotFoundError          no such path, nothing matches, no Parquet there
    │   ├── BadFileError               not Parquet, truncated, or not decodable
    │   ├── DecryptionError            encrypted, and keys are missing or wrong
    │   ├── SchemaError                two files disagree about a column
    │   ├── UnsupportedTypeError       a column has no tensor form
    │   ├── NullError                  nulls, and no policy for them
    │   ├── CastError                  a value does not fit the form asked for
    │   ├── TransformError             transform= failed, or broke its promise
    │   └── DataChangedError           a file is not the one the catalog was read from
    ├── EngineError                    the work could not be done
    │   ├── SchedulerUnreachableError  no Dask scheduler answers
    │   ├── WorkersMissingError        the scheduler has no worker, and none came
    │   ├── WorkerEnvironmentError     Dask workers lack a package, or do not see the files
    │   ├── RanksMissingError          a rank did not begin the epoch in time
    │   ├── StorageError               a store denies access, or fails again and again
    │   └── WindowError                a task failed, for a reason of its own
    └── ClosedError                    used after close()

Another try, from the last state and once the cause is mended, may help after
SchedulerUnreachableError, WorkersMissingError, RanksMissingError, StorageError and
WindowError. All others are final: they come again until the arguments, the data or the
environment are others. docs/reliability.md has what to do about each.

Each takes one string that says everything (what was wrong, where, what to do), since
torch rebuilds a worker's error from its text alone. The fields repeat the place for
programs; they survive pickling.
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

_USER = re.compile(r"(?<=://)[^/?#\s'\"]*@")
_SECRET = re.compile(
    r"([?&][^=&#\s'\"]*(?:auth|credential|key|password|secret|sig|token)[^=&#\s'\"]*=)"
    r"[^&#\s'\"]*",
    re.IGNORECASE,
)


def hide_secrets(text: str) -> str:
    """Return a text without what URLs in it hold of passwords, keys and signatures."""
    if "://" not in text:
        return text
    return _SECRET.sub(r"\1***", _USER.sub("", text))


class WithoutSecrets:
    """A dataclass with repr=False that holds paths: they are shown by hide_secrets.

    Dask prints the tasks that it is given.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """Show the fields as other dataclasses do."""
        shown = [f for f in fields(self) if f.repr]  # type: ignore[arg-type]
        values = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in shown)
        return hide_secrets(f"{type(self).__name__}({values})")


class DaskLoaderError(Exception):
    """Base of all errors raised by dask_loader.

    Attributes:
        path: The file concerned, or None.
        row_group: The row group's index in that file, or None.
        column: The column concerned, or None.
        rank: The rank concerned, or None.
    """

    def __init__(
        self,
        text: str,
        *,
        path: str | None = None,
        row_group: int | None = None,
        column: str | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(hide_secrets(text))
        self.path = None if path is None else hide_secrets(path)
        self.row_group = row_group
        self.column = column
        self.rank = rank

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the text, then put the fields back."""
        return (type(self), (str(self),), self.__dict__.copy())


class ConfigError(DaskLoaderError, ValueError):
    """An argument is wrong; raised before anything is read."""


class ColumnError(ConfigError):
    """A column is unknown, named twice, or cannot be named."""


class WorldError(ConfigError):
    """Rank or world_size are wrong, or disagree with torch.distributed."""


class RankMismatchError(ConfigError):
    """Ranks are about to read different things; the text names them and what differs."""


class PlanError(ConfigError):
    """The arguments cannot be kept together, memory_limit above all."""


class ResumeError(ConfigError):
    """A checkpoint does not fit this dataset, or is none."""


class DataError(DaskLoaderError):
    """The data are at fault; the text names the file."""


class DataNotFoundError(DataError, FileNotFoundError):
    """No such path, a pattern that matches nothing, a folder without Parquet."""


class BadFileError(DataError):
    """A file that is not Parquet, is truncated, or cannot be decoded."""


class DecryptionError(DataError):
    """A file or column is encrypted, and keys are missing or wrong."""


class SchemaError(DataError):
    """Two files disagree about a column."""


class UnsupportedTypeError(DataError, TypeError):
    """A column has no tensor form."""


class NullError(DataError):
    """Nulls were found and there is no policy for them."""


class CastError(DataError):
    """A value does not fit what its column is delivered as: a dtype, a length, codes."""


class TransformError(DataError):
    """The user's transform failed, or did not return the rows or columns it must."""


class DataChangedError(DataError):
    """A file is not the one that the catalog was read from."""


class EngineError(DaskLoaderError):
    """The work could not be done."""


class SchedulerUnreachableError(EngineError):
    """No Dask scheduler answered in time."""


class WorkersMissingError(EngineError):
    """The scheduler had no worker for longer than worker_timeout."""


class WorkerEnvironmentError(EngineError):
    """Dask workers lack a package, or do not see the files; the text has a table."""


class RanksMissingError(EngineError):
    """A rank did not begin the epoch that the others begin, within rank_timeout."""


class StorageError(EngineError):
    """A store denies access, or did not answer well in all tries; the text says which."""


class WindowError(EngineError):
    """A window's task failed for a reason that is none of ours."""


class ClosedError(DaskLoaderError):
    """Used after close()."""
