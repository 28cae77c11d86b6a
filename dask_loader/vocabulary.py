"""The vocabularies of a dataset: given, or found by one scan and remembered.

Found once, as rows that filters keep are counted once: the processes of one host wait for
the one that scans and take its values from the cache; those of several hosts give the
cluster tasks of equal names. All rows of all files count, whatever the filters keep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from dask_loader.catalog.cache import FooterCache
from dask_loader.catalog.catalog import Catalog
from dask_loader.catalog.forms import Form
from dask_loader.catalog.turn import Turn
from dask_loader.catalog.values import KIND, FileValues, root_key
from dask_loader.catalog.vocabulary import (
    Asked,
    Vocabulary,
    code_forms,
    fill_of,
    found_vocabulary,
    given_vocabulary,
    leaf_type,
    make_vocabulary,
    require_few_together,
)
from dask_loader.counting import slice_task
from dask_loader.engine.base import Engine
from dask_loader.errors import ConfigError
from dask_loader.read.nulls import NullPolicy
from dask_loader.read.task import ReadOptions
from dask_loader.read.values import Scan, distinct_values

# As row groups are counted. A scan reads some columns only, so this is much of it.
_SCAN_BYTES = 128 << 20
# As for counts.
_LONGEST_WAIT_S = 60.0
_LONGEST_WAIT_PER_TASK_S = 2.0

Vocabularies = tuple[tuple[str, Vocabulary], ...]


def find_vocabularies(
    catalog: Catalog,
    asked: Asked,
    *,
    nulls: Any,
    verify_checksums: bool,
    engine: Engine,
    cache: FooterCache | None,
) -> Vocabularies:
    """Return the vocabulary of each column that was asked for.

    Args:
        catalog: Has the files.
        asked: From check_vocabulary.
        nulls: As the user gave them: the value for nulls is one of the vocabulary.
        verify_checksums: Whether pages are checked.
        engine: Scans the columns whose values were not given.
        cache: Where values are remembered.

    Raises:
        ConfigError: A column can have none, a value does not fit, or they are too many.
        DaskLoaderError: A file changed, or cannot be decoded.
    """
    code_forms(catalog.forms, catalog.schema, asked)
    kinds = {name: leaf_type(catalog.schema.field(name).type) for name, _ in asked}
    fills = {name: fill_of(nulls, name, kinds[name]) for name, _ in asked}
    made = {
        name: given_vocabulary(name, values, fills[name], kinds[name])
        for name, values in asked
        if values is not None
    }
    told = () if catalog.keys is None else catalog.keys.names
    for name, values in asked:
        if values is None and name in told:
            parts_of_key = [_key_values(catalog, name)]
            made[name] = found_vocabulary(name, parts_of_key, fills[name], kinds[name])
    unknown = tuple(name for name, _ in asked if name not in made)
    if unknown:
        scanning = ReadOptions(
            storage=catalog.storage,
            forms=(),
            nulls=NullPolicy(),
            verify_checksums=verify_checksums,
            vocabularies=tuple(
                (name, make_vocabulary([], kinds[name])) for name in unknown
            ),
        )
        parts = _find(catalog, unknown, scanning, engine, cache)
        for name in unknown:
            made[name] = found_vocabulary(name, parts[name], fills[name], kinds[name])
    found = tuple((name, made[name]) for name, _ in asked)
    require_few_together(found)
    return found


def given_vocabularies(
    asked: Asked, forms: Sequence[Form], schema: pa.Schema, nulls: Any
) -> Vocabularies:
    """Return the vocabularies of columns that are in no file: a transform makes them.

    Args:
        asked: From check_vocabulary.
        forms: The columns.
        schema: Theirs, flat.
        nulls: As the user gave them.

    Raises:
        ConfigError: One was not given, or does not fit.
    """
    code_forms(forms, schema, asked)
    found = []
    for name, values in asked:
        if values is None:
            raise ConfigError(
                f"vocabulary={{{name!r}: True}}: the column is made by transform=, so its "
                "values are in no file; give them all in a list"
            )
        kind = leaf_type(schema.field(name).type)
        fill = fill_of(nulls, name, kind)
        found.append((name, given_vocabulary(name, values, fill, kind)))
    require_few_together(found)
    return tuple(found)


def _key_values(catalog: Catalog, name: str) -> pa.Array:
    """Return the values of a directory key in all files with rows, nulls left out."""
    assert catalog.keys is not None
    files = np.unique(catalog.file_index[catalog.num_rows > 0]).tolist()
    table = catalog.keys.table([catalog.files[file].path for file in files])
    return table.column(name).combine_chunks().unique().drop_null()


def _find(
    catalog: Catalog,
    names: Sequence[str],
    options: ReadOptions,
    engine: Engine,
    cache: FooterCache | None,
) -> dict[str, list[pa.Array]]:
    columns = {name: FileValues(cache, catalog, name) for name in names}
    known = {name: column.recall() for name, column in columns.items()}
    missing = _missing(catalog, known)
    if missing:
        of_missing = np.isin(catalog.file_index, missing)
        num_tasks = int(catalog.num_bytes[of_missing].sum()) // _SCAN_BYTES
        wait_s = _LONGEST_WAIT_S + _LONGEST_WAIT_PER_TASK_S * num_tasks
        with _turn(cache, catalog, names, missing, wait_s) as turn:
            if turn is not Turn.NONE:
                known = {name: column.recall() for name, column in columns.items()}
                missing = _missing(catalog, known)
            if turn is Turn.MINE:
                _scan(catalog, columns, known, missing, options, engine)
                missing = []
        # Not in turn: where nothing can be remembered, one after the other takes longest.
        _scan(catalog, columns, known, missing, options, engine)
    return {name: list(found.values()) for name, found in known.items()}


def _missing(catalog: Catalog, known: dict[str, dict[int, pa.Array]]) -> list[int]:
    """Return the files of which a column's values are not known."""
    files = np.unique(catalog.file_index).tolist()
    return [f for f in files if any(f not in found for found in known.values())]


def _turn(
    cache: FooterCache | None,
    catalog: Catalog,
    names: Sequence[str],
    missing: Sequence[int],
    wait_s: float,
) -> AbstractContextManager[Turn]:
    if cache is None or not any(catalog.files[file].identity for file in missing):
        return nullcontext(Turn.NONE)  # nothing of it will be remembered
    key = f"{root_key(catalog)} {sorted(names)!r}"
    return cache.turn(KIND, key, wait_s=wait_s)


def _scan(
    catalog: Catalog,
    columns: dict[str, FileValues],
    known: dict[str, dict[int, pa.Array]],
    missing: Sequence[int],
    options: ReadOptions,
    engine: Engine,
) -> None:
    """Read the columns in the missing files, and keep their values."""
    if not missing:
        return
    names = tuple(columns)
    groups = np.flatnonzero(np.isin(catalog.file_index, missing)).tolist()
    scans = _scans(catalog, groups, names)
    keys = [_task_name(catalog, options, scan) for scan in scans]
    results = engine.map(partial(distinct_values, options), scans, names=keys)
    by_file: dict[int, list[list[pa.Array]]] = {}
    for group, found in zip(groups, (g for r in results for g in r), strict=True):
        by_file.setdefault(int(catalog.file_index[group]), []).append(found)
    for place, name in enumerate(names):
        column = columns[name]
        read = {}
        for file, found_in in by_file.items():
            parts = [found[place].cast(column.type) for found in found_in]
            read[file] = pa.chunked_array(parts, column.type).unique()
        column.remember(read)
        known[name].update(read)


def _scans(
    catalog: Catalog, groups: Sequence[int], names: tuple[str, ...]
) -> list[Scan]:
    chunks: list[list[int]] = []
    room = 0
    for group in groups:
        if room <= 0:
            chunks.append([])
            room = _SCAN_BYTES
        chunks[-1].append(group)
        room -= max(1, int(catalog.num_bytes[group]))
    return [
        Scan(
            tuple(slice_task(catalog, g, 0, int(catalog.num_rows[g])) for g in chunk),
            names,
        )
        for chunk in chunks
    ]


def _task_name(catalog: Catalog, options: ReadOptions, scan: Scan) -> str:
    """Return text that is the same in all processes, and for no other values."""
    facts = (
        catalog.storage.protocol,
        [(s.path, s.stamp, s.digest, s.row_group, s.group_rows) for s in scan.slices],
        scan.columns,
        options.verify_checksums,
    )
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
