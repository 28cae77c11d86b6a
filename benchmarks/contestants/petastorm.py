"""petastorm: its batch reader with threads, and its own batched DataLoader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from petastorm import make_batch_reader
from petastorm.pytorch import BatchedDataLoader

from contestants.serve import Case, Epoch, serve

_READERS = 10


@contextmanager
def batched(case: Case) -> Iterator[Epoch]:
    """Make a reader for each epoch: one that has ended early cannot begin again."""
    urls = [f"file://{name}" for name in case.files]

    def epoch(number: int) -> Iterator[Any]:
        # Now and then a reader ends before it begins: it finds that no work is under way,
        # then that all work was handed out, which it was in between. Then another is
        # made, lest the epoch be lost.
        for _ in range(_READERS):
            reader = make_batch_reader(
                urls,
                reader_pool_type="thread",
                workers_count=len(os.sched_getaffinity(0)),
                shuffle_row_groups=case.shuffle,
                seed=number,
                num_epochs=1,
            )
            capacity = case.buffer_rows if case.shuffle else 0
            empty = True
            with BatchedDataLoader(
                reader, batch_size=case.batch_rows, shuffling_queue_capacity=capacity
            ) as loader:
                for batch in loader:
                    empty = False
                    yield batch
            if not empty:
                return

    yield epoch


if __name__ == "__main__":
    serve(batched)
