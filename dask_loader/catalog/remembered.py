"""What the cache remembers of files, a row for each, found by path and identity.

One table is kept for the files below one folder, so that lists of files of one folder do
not displace each other, and a file that is added or changed costs its own row only.
"""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Iterable, Sequence

import pyarrow as pa

from dask_loader.catalog.cache import FooterCache
from dask_loader.catalog.storage import Storage
from dask_loader.errors import DataChangedError, hide_secrets

# What the cache keeps of files that are no longer in the dataset, or are in another one
# below the same folder.
_MAX_OTHERS_BYTES = 32 << 20


class Remembered:
    """One table of the cache: loaded when it is first asked for."""

    def __init__(self, cache: FooterCache | None, kind: str, key: str) -> None:
        self._cache, self._kind, self._key = cache, kind, key
        self._loaded = cache is None
        self._table: pa.Table | None = None
        self._rows: dict[tuple[bytes, str], int] = {}

    def find(
        self, paths: Sequence[str], identities: Sequence[str], name: str | None = None
    ) -> list[int]:
        """Return each file's row, -1 where there is none.

        Args:
            paths: Of the files.
            identities: Of the files as they are now, see Sight.
            name: What the table must have been kept for.
        """
        if not self._loaded:
            self._load()
        if self._table is None or (name is not None and self._name() != name):
            return [-1] * len(paths)
        find = self._rows.get
        return [
            find((_path_bytes(path), identity), -1)
            for path, identity in zip(paths, identities, strict=True)
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
        if not self._loaded:
            self._load()
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


def still(
    storage: Storage, paths: Sequence[str], identities: Sequence[str]
) -> list[str]:
    """Return the identities of files that have them even now, "" for the others.

    To be asked after reading: what was read of a file that changed meanwhile is not to be
    remembered. Remote files are not looked at again, as reading checks their stamps.
    """
    if not storage.is_local:
        return list(identities)
    return [
        identity if identity and _identity(storage, path) == identity else ""
        for path, identity in zip(paths, identities, strict=True)
    ]


def _identity(storage: Storage, path: str) -> str:
    try:
        return storage.look(path).identity
    except DataChangedError:
        return ""


def root_of(paths: Sequence[str]) -> str:
    """Return the folder that all paths lie in."""
    # What the first and the last in sorting have in common, all have.
    ends = (min(paths), max(paths))
    return os.path.commonpath([path.rpartition("/")[0] for path in ends])


def _path_bytes(path: str) -> bytes:
    name = path.encode("utf-8", "surrogatepass")
    shown = hide_secrets(path)
    if shown == path:
        return name
    # What a password or a signature stood for is told apart, and not kept.
    digest = hashlib.blake2b(name, digest_size=16).hexdigest()
    return f"{shown} {digest}".encode("utf-8", "surrogatepass")
