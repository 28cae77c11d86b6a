"""How many rows of each row group the filters keep: remembered, or counted by the engine.

Counted once: the processes of one host wait for the one that counts and take its counts
from the cache; those of several hosts give the cluster tasks of equal names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dask_loader.catalog.cache import FooterCache
from dask_loader.catalog.catalog import Catalog
from dask_loader.catalog.counts import Counts, name_of_filters
from dask_loader.catalog.turn import Turn
from dask_loader.engine.base import Engine
from dask_loader.read.count import count_rows
from dask_loader.read.nulls import NullPolicy
from dask_loader.read.task import ReadOptions, SliceTask

# Row groups are counted in tasks of about the decoding of one window.
_COUNT_BYTES = 64 << 20
# Another process that counts is waited for this long, and so much longer for each task:
# one thread takes a tenth of that for it. A stopped one holds nobody up for ever.
_LONGEST_WAIT_S = 60.0
_LONGEST_WAIT_PER_TASK_S = 1.0


def with_counted_rows(
    catalog: Catalog,
    read_options: ReadOptions,
    engine: Engine,
    cache: FooterCache | None,
) -> Catalog:
    """Return a catalog whose num_kept is exact.

    Only the columns that the filters need are read, and only of files whose counts are not
    remembered.

    Args:
        catalog: Its num_kept is what statistics leave over.
        read_options: Has the filters.
        engine: Counts.
        cache: Where counts are remembered.

    Raises:
        DaskLoaderError: A file changed, or cannot be decoded.
    """
    counts = Counts(cache, catalog)
    kept, known = counts.recall()
    if known.all():
        return catalog.with_kept(kept)
    num_tasks = int(catalog.num_bytes[~known].sum()) // _COUNT_BYTES
    wait_s = _LONGEST_WAIT_S + _LONGEST_WAIT_PER_TASK_S * num_tasks
    with counts.turn(~known, wait_s=wait_s) as turn:
        if turn is not Turn.NONE:
            kept, known = counts.recall()
        if turn is Turn.MINE:
            return _count(catalog, read_options, engine, counts, kept, known)
    # Not in turn: where nothing can be remembered, one after the other would take longest.
    return _count(catalog, read_options, engine, counts, kept, known)


def slice_task(catalog: Catalog, group: int, start: int, stop: int) -> SliceTask:
    """Return what a reader is told of kept rows [start, stop) of a row group."""
    file = catalog.files[int(catalog.file_index[group])]
    return SliceTask(
        file.path,
        file.stamp,
        int(catalog.row_group[group]),
        int(catalog.num_rows[group]),
        start,
        stop,
        file.digest,
        int(catalog.file_index[group]),
        () if catalog.keys is None else catalog.keys.texts(file.path),
    )


def _count(
    catalog: Catalog,
    read_options: ReadOptions,
    engine: Engine,
    counts: Counts,
    kept: NDArray[np.int64],
    known: NDArray[np.bool_],
) -> Catalog:
    missing = np.flatnonzero(~known).tolist()
    if missing:
        chunks = _chunks(catalog, missing)
        items = [
            [slice_task(catalog, g, 0, int(catalog.num_rows[g])) for g in chunk]
            for chunk in chunks
        ]
        # Nothing else of the options, so that tasks of equal names are equal.
        only = replace(read_options, forms=(), nulls=NullPolicy(), vocabularies=())
        names = [_task_name(catalog, only, item) for item in items]
        found = engine.map(partial(count_rows, only), items, names=names)
        for chunk, part in zip(chunks, found, strict=True):
            kept[chunk] = part
        counts.remember(kept, ~known)
    return catalog.with_kept(kept)


def _chunks(catalog: Catalog, groups: Sequence[int]) -> list[list[int]]:
    chunks: list[list[int]] = []
    room = 0
    for group in groups:
        if room <= 0:
            chunks.append([])
            room = _COUNT_BYTES
        chunks[-1].append(group)
        room -= int(catalog.num_bytes[group])
    return chunks


def _task_name(
    catalog: Catalog, options: ReadOptions, slices: Sequence[SliceTask]
) -> str:
    """Return text that is the same in all processes, and for no other counts."""
    facts = (
        catalog.storage.protocol,
        [(s.path, s.stamp, s.digest, s.row_group, s.group_rows) for s in slices],
        name_of_filters(catalog),
        options.verify_checksums,
    )
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
