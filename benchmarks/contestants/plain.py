"""The dataset that many write by hand: whole row groups, dealt out to the workers.

With shuffle the row groups come in random order and the rows of each are mixed. threads
above 0 read that many row groups ahead, with a thread each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from contestants.arrow import batches
from contestants.serve import Case, Epoch, serve


class RowGroups(IterableDataset[Any]):
    """Yields the batches of one worker's share of the row groups."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.places = [
            (name, index)
            for name in case.files
            for index in range(pq.read_metadata(name).num_row_groups)
        ]
        self.number = 0

    def __iter__(self) -> Iterator[Any]:
        """Read this worker's row groups of the next epoch."""
        rng = np.random.default_rng(self.number)
        self.number += 1
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        places = self.places
        if self.case.shuffle:
            places = [places[i] for i in rng.permutation(len(places))]
        for table in self._tables(places[first::step]):
            order = rng.permutation(table.num_rows) if self.case.shuffle else None
            yield from batches(table, self.case.batch_rows, order)

    def _tables(self, places: list[tuple[str, int]]) -> Iterable[pa.Table]:
        if not self.case.threads:
            yield from (_read(place, use_threads=True) for place in places)
            return
        with ThreadPoolExecutor(self.case.threads) as pool:
            ahead: deque[Any] = deque()
            for place in places:
                ahead.append(pool.submit(_read, place, use_threads=False))
                if len(ahead) > self.case.threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


def _read(place: tuple[str, int], *, use_threads: bool) -> pa.Table:
    name, index = place
    file = pq.ParquetFile(name, memory_map=True)
    return file.read_row_group(index, use_threads=use_threads)


@contextmanager
def plain(case: Case) -> Iterator[Epoch]:
    """Make torch's own DataLoader over it."""
    loader = DataLoader(
        RowGroups(case),
        batch_size=None,
        num_workers=case.num_workers,
        persistent_workers=case.num_workers > 0,
    )

    def epoch(_: int) -> Iterable[Any]:
        return loader

    yield epoch


if __name__ == "__main__":
    serve(plain)
