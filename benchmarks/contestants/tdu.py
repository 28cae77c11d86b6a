"""torch-dataloader-utils: its own DataLoader, and our tensors of its Arrow batches.

Its own tensors are copies, and lists stay Python lists. We convert in the collate_fn, so
in the workers where there are some.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from torch_dataloader_utils import StructuredDataset

from contestants.arrow import batches
from contestants.serve import Case, Epoch, serve


@contextmanager
def loader(case: Case) -> Iterator[Epoch]:
    """Make its DataLoader; without a buffer its shuffle only reorders splits."""
    options: dict[str, Any] = {}
    if case.shuffle and case.mix == "rows":
        options["shuffle_buffer_size"] = case.buffer_rows
    made, dataset = StructuredDataset.create_dataloader(
        case.path,
        format="parquet",
        batch_size=case.batch_rows,
        shuffle=case.shuffle,
        num_workers=case.num_workers,
        output_format="arrow",
        collate_fn=_tensors,
        **options,
    )

    def epoch(number: int) -> Iterator[Any]:
        dataset.set_epoch(number)
        yield from made

    yield epoch


def _tensors(batch: Any) -> dict[str, Any]:
    return next(batches(pa.Table.from_batches([batch]), batch.num_rows))


if __name__ == "__main__":
    serve(loader)
