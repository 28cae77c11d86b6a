"""How many rows the filters keep, as the cache remembers it for each file.

A count is used only for a file of the same path and identity, with the same footer, under
the same filters. What is delivered of the rows, and how, does not change it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dask_loader.catalog.cache import FooterCache
from dask_loader.catalog.catalog import Catalog
from dask_loader.catalog.remembered import Remembered, root_of, still
from dask_loader.catalog.turn import Turn

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_KIND = "counts"


class Counts:
    """The remembered counts of one catalog with filters. Used by one thread."""

    def __init__(self, cache: FooterCache | None, catalog: Catalog) -> None:
        """Load nothing yet.

        Args:
            cache: Where counts are remembered.
            catalog: Its num_kept is what statistics leave over.
        """
        self._cache = cache
        self._catalog = catalog
        self._paths = [file.path for file in catalog.files]
        self._identities = [file.identity for file in catalog.files]
        root = f"{catalog.storage.protocol} {root_of(self._paths)}"
        # Another Arrow may compare otherwise.
        self._key = f"{root} {name_of_filters(catalog)} {pa.__version__}"
        self._table: Remembered | None = None

    def recall(self) -> tuple[Ints, Bools]:
        """Load what the cache has now.

        Returns:
            num_kept: Rows after filtering, int64, shape (row groups,); 0 where that is
                not known.
            known: Whether it is; True where statistics leave nothing over. Same shape.
        """
        catalog = self._catalog
        possible, file_index = catalog.num_kept, catalog.file_index
        kept = np.zeros_like(possible)
        self._table = Remembered(self._cache, _KIND, self._key)
        rows = self._table.find(self._paths, self._identities)
        found = [file for file, row in enumerate(rows) if row >= 0]
        if not found:
            return kept, possible == 0
        table = self._table.take([rows[file] for file in found])
        try:
            digests = table["digest"].to_pylist()
            lists = table["num_kept"].combine_chunks().cast(pa.list_(pa.int64()))
        except (KeyError, pa.ArrowException):  # a table of something else
            return kept, possible == 0
        lengths = lists.value_lengths().to_pylist()
        num_groups = np.bincount(file_index, minlength=len(self._paths)).tolist()
        usable = [
            row
            for row, file in enumerate(found)
            if digests[row] == catalog.files[file].digest
            and lengths[row] == num_groups[file]
        ]
        told = np.zeros(len(self._paths), dtype=np.bool_)
        told[[found[row] for row in usable]] = True
        of_told = told[file_index]
        # Files are in the catalog's order, and so are their row groups.
        numbers = lists.take(pa.array(usable, pa.int64())).flatten()
        kept[of_told] = numbers.fill_null(-1)
        wrong = np.flatnonzero((kept < 0) | (kept > possible))
        told[file_index[wrong]] = False
        of_told = told[file_index]
        return np.where(of_told, kept, 0), of_told | (possible == 0)

    def remember(self, num_kept: Ints, counted: Bools) -> None:
        """Keep the counts of files that have not changed meanwhile.

        Args:
            num_kept: Rows after filtering, int64, shape (row groups,).
            counted: The row groups that were counted, whose files are to be remembered,
                same shape.
        """
        if self._cache is None:
            return
        catalog = self._catalog
        ends = np.cumsum(np.bincount(catalog.file_index, minlength=len(self._paths)))
        begins = np.concatenate(([0], ends[:-1]))
        files = np.unique(catalog.file_index[counted]).tolist()
        paths = [self._paths[file] for file in files]
        identities = [self._identities[file] for file in files]
        lists = [num_kept[begins[file] : ends[file]].tolist() for file in files]
        table = pa.table(
            {
                "digest": [catalog.files[file].digest for file in files],
                "num_kept": pa.array(lists, pa.list_(pa.int64())),
            }
        )
        same = still(catalog.storage, paths, identities)
        # Somebody else may have added to it while this process counted.
        Remembered(self._cache, _KIND, self._key).add(paths, same, table, "")

    def turn(self, missing: Bools, *, wait_s: float) -> AbstractContextManager[Turn]:
        """Wait for other processes of this host that count the same.

        Args:
            missing: The row groups that are to be counted, shape (row groups,).
            wait_s: Longest wait.
        """
        files = np.unique(self._catalog.file_index[missing]).tolist()
        if self._cache is None or not any(self._identities[file] for file in files):
            return nullcontext(Turn.NONE)  # nothing of it will be remembered
        return self._cache.turn(_KIND, self._key, wait_s=wait_s)


def name_of_filters(catalog: Catalog) -> str:
    """Return text that differs where filters keep other rows."""
    text = f"{catalog.filter_text} {catalog.filter_columns!r}"
    return f"{text} {catalog.keys!r} {catalog.fit!r}" if catalog.fit else text
