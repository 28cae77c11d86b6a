"""The footers of a dataset's files: from the cache where it has them, else from the files.

Two tables are kept for the files below one folder. "answers" hold what one query took from
each footer, for starts like the last one. "footers" hold the footers themselves, for any
other query. A row is used only for a file of the same path and identity.

Footers are read in this process, which has listed the files and so can reach them. Only
where there is very much to read and a cluster to read it, the cluster does; it then must
see the same files under the same paths, as it must to read their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from dask_loader.catalog.cache import FooterCache
from dask_loader.catalog.footers import (
    FooterQuery,
    parse_footers,
    parse_schema,
    read_footers,
    read_tails,
)
from dask_loader.catalog.remembered import Remembered, concat, root_of, still
from dask_loader.catalog.schema import unpack_schema
from dask_loader.catalog.storage import Sight, Storage

# Runs a function over items, in order: here, in threads, or on a cluster.
MapFunction = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]

# Footers of this many bytes take about a second to read and parse here.
_MOST_HERE_BYTES = 64 << 20
# A task of 50 footers keeps Dask's cost per task small against the reading.
_FILES_PER_TASK = 50
# From more than these on, footers take so long (here about 0.4 ms each, elsewhere a round
# trip for each 32) that what the first of them say is worth hearing early.
_MANY_FOOTERS, _FIRST_FOOTERS = 500, 100
_MANY_REMOTE_FOOTERS, _FIRST_REMOTE_FOOTERS = 64, 32
# Files that are looked at side by side where each look is a round trip.
_LOOKS = 32


class Footers:
    """Footers of some files, in order. Used by one thread, for one dataset."""

    def __init__(
        self,
        storage: Storage,
        paths: Sequence[str],
        *,
        listed: Mapping[str, Sight],
        cache: FooterCache | None,
        asked: str,
    ) -> None:
        """Look at all files, but open none.

        Args:
            storage: Where the files lie.
            paths: In the dataset's order, at least one.
            listed: What a listing just said of remote files.
            cache: Where footers are remembered.
            asked: The user's part of the query as text; it names the answers.

        Raises:
            DataChangedError: A file is gone.
        """
        self._storage = storage
        self._paths = paths
        self.sights = look_at(storage, paths, listed)
        self._identities = [sight.identity for sight in self.sights]
        self._cache = cache
        root = f"{storage.protocol} {root_of(paths)}"
        # Another Arrow may read another type out of the same footer.
        self._answers = Remembered(cache, "answers", f"{root} {asked} {pa.__version__}")
        self._tails = Remembered(cache, "footers", root)
        self._first_tail: bytes | None = None

    def first_schema(self) -> pa.Schema:
        """Return the first file's schema, without metadata.

        Raises:
            BadFileError: The file is not readable Parquet.
        """
        rows = self._answers.find(self._paths[:1], self._identities[:1])
        if rows[0] >= 0:
            return unpack_schema(self._answers.column("schema")[rows[0]].as_py())
        self._first_tail = next(self._read([0]))
        return parse_schema(self._storage, self._paths[0], self._first_tail)

    def answer(
        self,
        query: FooterQuery,
        name: str,
        run: MapFunction,
        on_front: Callable[[pa.Table], None] | None = None,
    ) -> pa.Table:
        """Return what a query takes from all footers; see parse_footers.

        Args:
            query: What to take.
            name: Text that differs where queries do.
            run: Runs the reading of very many footers.
            on_front: Where many footers are to be read, it is given the rows of the first
                files before the other footers are read.

        Raises:
            BadFileError: A file is not readable Parquet.
        """
        rows = self._answers.find(self._paths, self._identities, name)
        missing = [number for number, row in enumerate(rows) if row < 0]
        if not missing:
            return self._answers.take(rows)
        first = self._first_tail if missing[0] == 0 else None
        if first is None:
            first = next(self._read(missing[:1]))
        files = [(self._paths[i], self.sights[i].stamp.num_bytes) for i in missing]
        num_first = 0 if on_front is None else self._num_first(len(missing))
        elsewhere = len(first) * len(missing) > _MOST_HERE_BYTES
        parts: list[pa.Table] = []
        with closing(
            self._read(missing[1:num_first] if elsewhere else missing[1:])
        ) as others:
            tails = [first]
            if on_front is not None and num_first:
                tails += islice(others, num_first - 1)
                parts.append(parse_footers(query, files[:num_first], tails))
                on_front(self._whole(rows[: missing[num_first]], parts[0]))
            if elsewhere:
                starts = range(num_first, len(files), _FILES_PER_TASK)
                chunks = [files[i : i + _FILES_PER_TASK] for i in starts]
                parts += run(partial(read_footers, query), chunks)
            else:
                tails += others
                left = parse_footers(query, files[num_first:], tails[num_first:])
                parts.append(left)
                if self._cache is not None:
                    self._keep(self._tails, missing, pa.table({"tail": tails}), "")
        fresh = concat(parts)
        self._keep(self._answers, missing, fresh, name)
        return self._whole(rows, fresh)

    def _num_first(self, num_missing: int) -> int:
        """Return how many footers to read before the others; 0 where they are few."""
        many, first = _MANY_REMOTE_FOOTERS, _FIRST_REMOTE_FOOTERS
        if self._storage.is_local:
            many, first = _MANY_FOOTERS, _FIRST_FOOTERS
        return first if num_missing > many else 0

    def _whole(self, rows: list[int], fresh: pa.Table) -> pa.Table:
        """Join remembered answers, and fresh ones where there are none, in order."""
        if len(fresh) == len(rows):
            return fresh
        known = [row for row in rows if row >= 0]
        places = iter(range(len(known), len(rows)))
        known_places = iter(range(len(known)))
        order = [next(known_places) if row >= 0 else next(places) for row in rows]
        return concat([self._answers.take(known), fresh]).take(order)

    def _read(self, numbers: Sequence[int]) -> Generator[bytes, None, None]:
        """Yield the footers of some files, remembered ones or from the files."""
        paths = [self._paths[i] for i in numbers]
        identities = [self._identities[i] for i in numbers]
        rows = self._tails.find(paths, identities)
        sizes = [self.sights[i].stamp.num_bytes for i in numbers]
        missing = [
            file
            for file, row in zip(zip(paths, sizes, strict=True), rows, strict=True)
            if row < 0
        ]
        read = read_tails(self._storage, missing)
        for row in rows:
            yield self._tails.column("tail")[row].as_py() if row >= 0 else next(read)

    def _keep(
        self, kept: Remembered, numbers: Sequence[int], table: pa.Table, name: str
    ) -> None:
        if self._cache is None:
            return
        paths = [self._paths[i] for i in numbers]
        identities = [self._identities[i] for i in numbers]
        kept.add(paths, still(self._storage, paths, identities), table, name)


def look_at(
    storage: Storage, paths: Sequence[str], listed: Mapping[str, Sight]
) -> list[Sight]:
    """Look at files, but open none.

    Args:
        storage: Where they lie.
        paths: At least one.
        listed: What a listing just said of remote files.

    Raises:
        DataChangedError: A file is gone.
    """
    if storage.is_local:
        return [storage.look(path) for path in paths]
    # A listing says in one round trip what else takes one for each file; if it says the
    # same as looking does, which differs between file systems.
    first = storage.look(paths[0])
    trusted = listed if listed.get(paths[0]) == first else {}
    unknown = [path for path in paths[1:] if path not in trusted]
    found = {**trusted, paths[0]: first}
    if unknown:
        with ThreadPoolExecutor(_LOOKS, thread_name_prefix="dask-loader-look") as pool:
            found.update(zip(unknown, pool.map(storage.look, unknown), strict=True))
    return [found[path] for path in paths]
