"""The values of a column, as the cache remembers them for each file.

Used only for a file of the same path and identity, with the same footer.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dask_loader.catalog.cache import FooterCache
from dask_loader.catalog.catalog import Catalog
from dask_loader.catalog.remembered import Remembered, root_of, still
from dask_loader.catalog.vocabulary import leaf_type, wide_type

KIND = "values"


def root_key(catalog: Catalog) -> str:
    """Return text for the folder that the catalog's files lie in."""
    return f"{catalog.storage.protocol} {root_of([f.path for f in catalog.files])}"


class FileValues:
    """The remembered values of one column. Used by one thread."""

    def __init__(self, cache: FooterCache | None, catalog: Catalog, name: str) -> None:
        """Load nothing yet.

        Args:
            cache: Where values are remembered.
            catalog: Has the files.
            name: The column.
        """
        self._cache = cache
        self._catalog = catalog
        self._paths = [file.path for file in catalog.files]
        self._identities = [file.identity for file in catalog.files]
        self.type = wide_type(leaf_type(catalog.schema.field(name).type))
        # Another Arrow may read other values.
        self._key = f"{root_key(catalog)} {name} {self.type} {pa.__version__}"

    def recall(self) -> dict[int, pa.Array]:
        """Return the values of each file of which the cache has them now."""
        table = Remembered(self._cache, KIND, self._key)
        rows = table.find(self._paths, self._identities)
        found = [file for file, row in enumerate(rows) if row >= 0]
        if not found:
            return {}
        kept = table.take([rows[file] for file in found])
        try:
            digests = kept["digest"].to_pylist()
            lists = kept["values"].combine_chunks()
        except KeyError:  # a table of something else
            return {}
        if lists.type != pa.large_list(self.type):
            return {}
        return {
            file: lists[row].values
            for row, file in enumerate(found)
            if digests[row] == self._catalog.files[file].digest and lists[row].is_valid
        }

    def remember(self, values: dict[int, pa.Array]) -> None:
        """Keep the values of files that have not changed meanwhile."""
        if self._cache is None or not values:
            return
        files = [self._catalog.files[file] for file in values]
        ends = np.cumsum([0, *(len(part) for part in values.values())])
        items = pa.concat_arrays([part.cast(self.type) for part in values.values()])
        kind = pa.large_list(self.type)
        lists = pa.LargeListArray.from_arrays(pa.array(ends), items, type=kind)
        table = pa.table({"digest": [file.digest for file in files], "values": lists})
        paths = [file.path for file in files]
        same = still(self._catalog.storage, paths, [file.identity for file in files])
        # Somebody else may have added to it while this process read.
        Remembered(self._cache, KIND, self._key).add(paths, same, table, "")
