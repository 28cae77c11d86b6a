"""torch-dataloader-utils: its own DataLoader and tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch_dataloader_utils import StructuredDataset

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
        **options,
    )

    def epoch(number: int) -> Iterator[Any]:
        dataset.set_epoch(number)
        yield from made

    yield epoch


if __name__ == "__main__":
    serve(loader)
