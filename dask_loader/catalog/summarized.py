"""Files that a `_metadata` file speaks for: found, looked at, and their footers made of it.

No data file is opened for it but those that may be newer than `_metadata`: their own
footers are compared with what it says at once. All others are compared when they are first
read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import pyarrow as pa

from dask_loader.catalog.footers import (
    FooterQuery,
    parse_footers,
    parse_schema,
    read_tails,
)
from dask_loader.catalog.gather import look_at
from dask_loader.catalog.promise import require_kept, schema_digest
from dask_loader.catalog.storage import Sight, Storage, sight_of
from dask_loader.catalog.summary import Summary, parse_summary
from dask_loader.errors import (
    BadFileError,
    DataChangedError,
    DataNotFoundError,
)

# Returns the data files among those of a listing; of None it makes one.
Below = Callable[[Iterable[str] | None], Sequence[str]]

# Files that a text names.
_MAX_NAMED = 3
# Files that are looked at side by side where each look is a round trip.
_LOOKS = 32
_TIME_KEYS = (
    "LastModified",
    "last_modified",
    "Last-Modified",
    "mtime",
    "updated",
    "created",
)
# Their listings are links in pages, if there are any.
_WITHOUT_LISTING = ("http", "https")


@dataclass(frozen=True, slots=True)
class Parts:
    """The files of a `_metadata` file, as a look found them.

    Attributes:
        listed: What a listing just said of remote files.
        sizes: Bytes of each.
        suspects: Those that are not surely older than `_metadata`.
        others: Files in the folder that it does not name; none where no listing is made.
    """

    listed: Mapping[str, Sight]
    sizes: Mapping[str, int]
    suspects: tuple[str, ...]
    others: tuple[str, ...]


def read_summary(storage: Storage, path: str) -> Summary:
    """Read a `_metadata` file.

    Raises:
        BadFileError: It cannot be used.
        DataChangedError: It is gone.
        StorageError: The store denies access, or fails again and again.
    """
    size = storage.look(path).stamp.num_bytes
    if not storage.is_local:
        return parse_summary(path, storage.fetch(path, 0, size) if size else b"")
    try:
        with open(path, "rb") as file:
            return parse_summary(path, file.read())
    except OSError as error:
        raise BadFileError(
            f"{path!r} cannot be read ({error}); name the folder in its place",
            path=path,
        ) from error


def look_at_parts(storage: Storage, summary: Summary, below: Below) -> Parts:
    """Look at the files that a `_metadata` file names, but open none.

    Args:
        storage: Where they lie.
        summary: The `_metadata` file.
        below: Returns the data files among those of a listing; of None it makes one.

    Raises:
        DataNotFoundError: One is not there.
        StorageError: The store denies access, or fails again and again.
    """
    if storage.is_local:
        return _look_here(storage, summary, below)
    infos: dict[str, Any] = {}
    if storage.protocol not in _WITHOUT_LISTING:
        infos = storage.call("find", summary.folder, what="list", detail=True)
    wanted = [summary.path, *summary.parts]
    unknown = [p for p in wanted if not _is_file(infos.get(p))]
    if unknown:
        ask = partial(_info, storage)
        with ThreadPoolExecutor(_LOOKS, thread_name_prefix="dask-loader-look") as pool:
            found = zip(unknown, pool.map(ask, unknown), strict=True)
            infos = {**infos, **{path: info for path, info in found if info}}
    _require(summary, [path for path in summary.parts if path not in infos])
    made = time_of(infos.get(summary.path, {}))
    times = {path: time_of(infos[path]) for path in summary.parts}
    # A time that is not known may be any.
    suspects = [
        path
        for path, time_ns in times.items()
        if made is None or time_ns is None or time_ns >= made
    ]
    listed = {path: sight_of(infos[path]) for path in summary.parts}
    return Parts(
        listed,
        {path: sight.stamp.num_bytes for path, sight in listed.items()},
        tuple(suspects),
        tuple(path for path in below(infos) if path not in summary.parts),
    )


def check_suspects(storage: Storage, summary: Summary, parts: Parts) -> None:
    """Compare the own footers of files that may be newer than `_metadata` with it.

    Raises:
        DataChangedError: One says something else, or has fewer bytes than it should.
        BadFileError: One has no footer that can be read.
    """
    for path, size in parts.sizes.items():
        end = summary.parts[path].facts.end
        if end > size:
            raise DataChangedError(
                f"{path!r} has {size} bytes, and by {summary.path!r} a column chunk of it "
                f"ends at byte {end}: one of them is stale; name the folder "
                f"{summary.folder!r} in its place, or write it anew",
                path=path,
            )
    if not parts.suspects:
        return
    schema = schema_digest(_schema(storage, summary))
    files = [(path, parts.sizes[path]) for path in parts.suspects]
    for path, tail in zip(parts.suspects, read_tails(storage, files), strict=True):
        own = parse_schema(storage, path, tail)
        require_kept(summary.digest(path, schema), path, tail, own)


def warn_of_others(summary: Summary, others: Sequence[str], *, stacklevel: int) -> None:
    """Warn of data files in the folder that a `_metadata` file does not name."""
    if others:
        warnings.warn(
            f"{len(others)} Parquet files in {summary.folder!r} are not read, as "
            f"{summary.path!r} does not name them: {short(others)}; name the folder in "
            "its place to read all, or write it anew",
            stacklevel=stacklevel,
        )


class SummaryFooters:
    """Footers of the files of a `_metadata` file; in place of gather.Footers."""

    def __init__(
        self,
        storage: Storage,
        paths: Sequence[str],
        summary: Summary,
        listed: Mapping[str, Sight],
    ) -> None:
        """Look at all files, but open none.

        Args:
            storage: Where the files lie.
            paths: Those that `_metadata` names, in the dataset's order, at least one.
            summary: The `_metadata` file.
            listed: What a listing just said of remote files.

        Raises:
            DataChangedError: A file is gone.
        """
        self._storage, self._paths, self._summary = storage, paths, summary
        self.sights = look_at(storage, paths, listed)

    def first_schema(self) -> pa.Schema:
        """Return the schema of all files, without metadata.

        Raises:
            BadFileError: It is none.
        """
        return _schema(self._storage, self._summary)

    def answer(self, query: FooterQuery, *_: object) -> pa.Table:
        """Return what a query takes from all footers; see gather.Footers.

        Nothing is remembered, and nothing is read, so all is done here at once.

        Raises:
            BadFileError: A footer is damaged.
        """
        schema = schema_digest(self.first_schema())
        sizes = [sight.stamp.num_bytes for sight in self.sights]
        files = list(zip(self._paths, sizes, strict=True))
        tails = (self._summary.tail(path) for path in self._paths)
        try:
            table = parse_footers(query, files, tails)
        except BadFileError as error:
            raise BadFileError(
                f"as {self._summary.path!r} has it, {error}",
                path=self._summary.path,
                row_group=error.row_group,
                column=error.column,
            ) from error
        digests = [self._summary.digest(path, schema) for path in self._paths]
        place = table.schema.get_field_index("digest")
        return table.set_column(place, "digest", pa.array(digests, pa.string()))


def short(paths: Sequence[str]) -> str:
    """Return the first few paths, and how many more there are."""
    more = f" and {len(paths) - _MAX_NAMED} more" if len(paths) > _MAX_NAMED else ""
    return ", ".join(repr(path) for path in paths[:_MAX_NAMED]) + more


def _schema(storage: Storage, summary: Summary) -> pa.Schema:
    first = next(iter(summary.parts))
    return parse_schema(storage, summary.path, summary.tail(first))


def _look_here(storage: Storage, summary: Summary, below: Below) -> Parts:
    made_ns = int(storage.look(summary.path).stamp.version)
    sizes, suspects, missing = {}, [], []
    for path in summary.parts:
        try:
            stamp = storage.look(path).stamp
        except DataChangedError:
            missing.append(path)
            continue
        sizes[path] = stamp.num_bytes
        if int(stamp.version) >= made_ns:
            suspects.append(path)
    _require(summary, missing)
    others = [path for path in below(None) if path not in summary.parts]
    return Parts({}, sizes, tuple(suspects), tuple(others))


def _require(summary: Summary, missing: Sequence[str]) -> None:
    if missing:
        raise DataNotFoundError(
            f"{len(missing)} files that {summary.path!r} names are not there: "
            f"{short(missing)}; restore them, write '_metadata' anew, or name the folder "
            f"{summary.folder!r} in its place",
            path=missing[0],
        )


def _is_file(info: Any) -> bool:
    return bool(info) and info.get("type", "file") == "file" and bool(info.get("size"))


def _info(storage: Storage, path: str) -> Any:
    try:
        info = storage.call("info", path, what="look at")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return info if info.get("type", "file") == "file" else None


def time_of(info: Mapping[str, Any]) -> int | None:
    """Return when a remote file was written, in ns, or None where that is not said."""
    said = next((info[key] for key in _TIME_KEYS if info.get(key)), None)
    if isinstance(said, int | float):
        return int(said * 1e9)
    if isinstance(said, str):
        try:
            said = datetime.fromisoformat(said)
        except ValueError:
            try:
                said = parsedate_to_datetime(str(said))
            except ValueError:
                return None
    # Of a time without a zone nobody knows which one is meant.
    if not isinstance(said, datetime) or said.tzinfo is None:
        return None
    return int(said.timestamp() * 1e9)
