"""The footers of a dataset's files: from the cache where it has them, else from the files.

Two tables are kept for the files below one folder. "answers" hold what one query took from
each footer, for starts like the last one. "footers" hold the footers themselves, for any
other query. A row is used only for a file of the same path and identity.

Footers are read in this process, which has listed the files and so can reach them. Only
where there is very much to read and a cluster to read it, the cluster does; it then must
see the same files under the same paths, as it must to read their rows.
"""

from __future__ import annotations

import os.path
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
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
from dask_loader.catalog.schema import unpack_schema
from dask_loader.catalog.storage import Sight, Storage
from dask_loader.errors import DataChangedError

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
# What the cache keeps of files that are no longer in the dataset, or are in another one
# below the same folder.
_MAX_OTHERS_BYTES = 32 << 20


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
        self.sights = _look(storage, paths, listed)
        self._cache = cache
        root = f"{storage.protocol} {_root(paths)}"
        # Another Arrow may read another type out of the same footer.
        self._answers = _Kept(cache, "answers", f"{root} {asked} {pa.__version__}")
        self._tails = _Kept(cache, "footers", root)
        self._first_tail: bytes | None = None

    def first_schema(self) -> pa.Schema:
        """Return the first file's schema, without metadata.

        Raises:
            BadFileError: The file is not readable Parquet.
        """
        rows = self._answers.find(self._paths[:1], self.sights[:1])
        if rows[0] >= 0:
            return unpack_schema(self._answers.column("schema")[rows[0]].as_py())
        self._first_tail = next(self._read([0]))
        return parse_schema(self._paths[0], self._first_tail)

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
        rows = self._answers.find(self._paths, self.sights, name)
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
        sights = [self.sights[i] for i in numbers]
        rows = self._tails.find(paths, sights)
        sizes = [sight.stamp.num_bytes for sight in sights]
        missing = [
            file
            for file, row in zip(zip(paths, sizes, strict=True), rows, strict=True)
            if row < 0
        ]
        read = read_tails(self._storage, missing)
        for row in rows:
            yield self._tails.column("tail")[row].as_py() if row >= 0 else next(read)

    def _keep(
        self, kept: _Kept, numbers: Sequence[int], table: pa.Table, name: str
    ) -> None:
        if self._cache is None:
            return
        sights = [self.sights[i] for i in numbers]
        paths = [self._paths[i] for i in numbers]
        if self._storage.is_local:  # changed while it was read?
            same = [
                sight.identity if _still(self._storage, path, sight) else ""
                for path, sight in zip(paths, sights, strict=True)
            ]
        else:
            same = [sight.identity for sight in sights]
        kept.add(paths, same, table, name)


class _Kept:
    """One table of the cache: loaded when it is first asked for."""

    def __init__(self, cache: FooterCache | None, kind: str, key: str) -> None:
        self._cache, self._kind, self._key = cache, kind, key
        self._loaded = cache is None
        self._table: pa.Table | None = None
        self._rows: dict[tuple[bytes, str], int] = {}

    def find(
        self, paths: Sequence[str], sights: Sequence[Sight], name: str | None = None
    ) -> list[int]:
        """Return each file's row, -1 where there is none.

        Args:
            paths: Of the files.
            sights: As they are now.
            name: What the table must have been kept for.
        """
        if not self._loaded:
            self._load()
        if self._table is None or (name is not None and self._name() != name):
            return [-1] * len(paths)
        find = self._rows.get
        return [
            find((_path_bytes(path), sight.identity), -1)
            for path, sight in zip(paths, sights, strict=True)
        ]

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of the table, for rows that find() returned."""
        assert self._table is not None
        return self._table[name]

    def take(self, rows: list[int]) -> pa.Table:
        """Return rows that find() returned."""
        assert self._table is not None
        if rows == list(range(len(self._table))):
            return self._table
        return self._table.take(pa.array(rows, pa.int64()))

    def add(
        self, paths: list[str], identities: list[str], table: pa.Table, name: str
    ) -> None:
        """Keep rows; those with an empty identity are left out.

        Args:
            paths: Of the files.
            identities: Of the files.
            table: A row for each file.
            name: What the table is kept for; rows kept for something else are dropped.
        """
        assert self._cache is not None
        keys = [_path_bytes(path) for path in paths]
        table = table.append_column("path", pa.array(keys, pa.binary()))
        table = table.append_column("identity", pa.array(identities, pa.string()))
        told_apart = [i for i, identity in enumerate(identities) if identity]
        if not told_apart:
            return
        table = table.take(told_apart)
        parts = [table]
        if self._table is not None and self._name() == name:
            now = set(keys)
            others = self._table["path"].to_pylist()
            rows = [i for i, path in enumerate(others) if path not in now]
            left = self._table.take(pa.array(rows, pa.int64()))
            each = max(1, left.nbytes // max(1, len(left)))
            parts.append(left.slice(0, _MAX_OTHERS_BYTES // each))
        whole = concat(parts).replace_schema_metadata({"name": name})
        self._cache.save(self._kind, self._key, whole)

    def _load(self) -> None:
        assert self._cache is not None
        self._loaded = True
        self._table = self._cache.load(self._kind, self._key)
        if self._table is None:
            return
        try:
            pairs = zip(
                self._table["path"].to_pylist(),
                self._table["identity"].to_pylist(),
                strict=True,
            )
            # A file that could not be told apart has no row, and "" finds none.
            self._rows = {pair: row for row, pair in enumerate(pairs) if pair[1]}
        except KeyError:
            self._table = None

    def _name(self) -> str:
        assert self._table is not None
        return str((self._table.schema.metadata or {}).get(b"name", b"").decode())


def concat(tables: Iterable[pa.Table]) -> pa.Table:
    """Join tables of parse_footers; columns of nulls that one lacks are null there."""
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def _look(
    storage: Storage, paths: Sequence[str], listed: Mapping[str, Sight]
) -> list[Sight]:
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


def _still(storage: Storage, path: str, sight: Sight) -> bool:
    try:
        return storage.look(path) == sight
    except DataChangedError:
        return False


def _root(paths: Sequence[str]) -> str:
    """Return the folder that all paths lie in."""
    # What the first and the last in sorting have in common, all have.
    ends = (min(paths), max(paths))
    return os.path.commonpath([path.rpartition("/")[0] for path in ends])


def _path_bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogatepass")
