"""LIMIT: as many warm threads as cores decode, and nothing else.

Each thread calls read_row_group on files in the page cache. Where there are fewer row
groups than threads the columns are dealt out instead, each share read in batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow.parquet as pq

from contestants.serve import Case, Epoch, serve

# Rows of a batch where columns are dealt out: some 100 kB to 500 kB for each column.
_BATCH_ROWS = 65_536


@contextmanager
def limit(case: Case) -> Iterator[Epoch]:
    """Open a pool and each file's footer."""
    num_threads = len(os.sched_getaffinity(0))
    metadata = {name: pq.read_metadata(name) for name in case.files}
    places = [(f, g) for f, m in metadata.items() for g in range(m.num_row_groups)]

    def open_file(name: str) -> pq.ParquetFile:
        return pq.ParquetFile(name, memory_map=True, metadata=metadata[name])

    def row_group(place: tuple[str, int]) -> int:
        name, index = place
        table = open_file(name).read_row_group(index, use_threads=False)
        return int(table.num_rows)

    def columns(names: list[str]) -> int:
        num_rows = 0
        for name, index in places:
            batches = open_file(name).iter_batches(
                _BATCH_ROWS, row_groups=[index], columns=names, use_threads=False
            )
            num_rows += sum(batch.num_rows for batch in batches)
        return num_rows

    with ThreadPoolExecutor(num_threads) as pool:

        def epoch(_: int) -> Iterator[int]:
            if len(places) >= num_threads:
                yield from pool.map(row_group, places)
                return
            names = list(case.kinds)
            shares = [names[i::num_threads] for i in range(num_threads)]
            yield next(iter([*pool.map(columns, [s for s in shares if s])]))

        yield epoch


if __name__ == "__main__":
    serve(limit)
