"""Daft: its Arrow iterator, which beats its own torch datasets, and our tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import daft
import pyarrow as pa

from contestants.arrow import batches
from contestants.serve import Case, Epoch, serve


@contextmanager
def frames(case: Case) -> Iterator[Epoch]:
    """Plan once; with shuffle it exchanges all rows, which needs them in memory."""
    frame = daft.read_parquet(case.files)

    def epoch(number: int) -> Iterator[Any]:
        chosen = frame.shuffle(seed=number) if case.shuffle else frame
        for piece in chosen.to_arrow_iter():
            yield from batches(pa.Table.from_batches([piece]), case.batch_rows)

    yield epoch


if __name__ == "__main__":
    serve(frames)
