"""Hugging Face datasets: streaming, in its Arrow format, and our tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from contestants.arrow import batches
from contestants.serve import Case, Epoch, serve

# A shuffled epoch of several files ends with a sleep of 5 s, a guard for the exit of the
# interpreter. It would be most of an epoch here.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0


class Streaming(IterableDataset[Any]):
    """Yields the batches of one worker's share of the files."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.number = 0
        self.stream = datasets.load_dataset(
            "parquet", data_files=case.files, split="train", streaming=True
        ).with_format("arrow")

    def __iter__(self) -> Iterator[Any]:
        """Read the next epoch."""
        case = self.case
        stream = self.stream
        worker = get_worker_info()
        if worker is not None:
            if worker.id >= stream.num_shards:
                return  # fewer files than workers
            shards = min(worker.num_workers, stream.num_shards)
            stream = stream.shard(num_shards=shards, index=worker.id)
        if case.shuffle:
            stream = stream.shuffle(seed=self.number, buffer_size=case.buffer_rows)
        self.number += 1
        for table in stream.iter(case.batch_rows):
            yield from batches(table, case.batch_rows)


@contextmanager
def streaming(case: Case) -> Iterator[Epoch]:
    """Make torch's own DataLoader over it."""
    loader = DataLoader(
        Streaming(case),
        batch_size=None,
        num_workers=case.num_workers,
        persistent_workers=case.num_workers > 0,
    )

    def epoch(_: int) -> Iterable[Any]:
        return loader

    yield epoch


if __name__ == "__main__":
    serve(streaming)
