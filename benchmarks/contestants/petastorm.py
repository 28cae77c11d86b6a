"""petastorm: its batch reader with threads, and its own batched DataLoader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from petastorm import make_batch_reader
from petastorm.pytorch import BatchedDataLoader

from contestants.serve import Case, Epoch, serve


@contextmanager
def batched(case: Case) -> Iterator[Epoch]:
    """Make a reader for each epoch: one that is at its end cannot begin again early."""
    urls = [f"file://{name}" for name in case.files]

    def epoch(number: int) -> Iterator[Any]:
        reader = make_batch_reader(
            urls,
            reader_pool_type="thread",
            workers_count=len(os.sched_getaffinity(0)),
            shuffle_row_groups=case.shuffle,
            seed=number,
            num_epochs=1,
        )
        capacity = case.buffer_rows if case.shuffle else 0
        with BatchedDataLoader(
            reader, batch_size=case.batch_rows, shuffling_queue_capacity=capacity
        ) as loader:
            yield from loader

    yield epoch


if __name__ == "__main__":
    serve(batched)
