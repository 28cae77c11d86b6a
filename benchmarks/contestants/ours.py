"""What the contestants that run dask_loader share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from contestants.serve import MATRIX, Case, Epoch
from dask_loader import DataLoader, ParquetDataset


@contextmanager
def epochs(case: Case, client: Any) -> Iterator[Epoch]:
    """Read with this client: "threads", an address or a cluster."""
    options: dict[str, Any] = {}
    if case.matrix:
        options["features"] = {MATRIX: case.features}
        options["dtypes"] = {MATRIX: torch.float32}
    dataset = ParquetDataset(
        case.path,
        batch_size=case.batch_rows,
        shuffle=case.shuffle,
        client=client,
        **options,
    )
    with dataset:
        torch_options: dict[str, Any] = {}
        if case.num_workers:
            torch_options["persistent_workers"] = True
        loader = DataLoader(dataset, num_workers=case.num_workers, **torch_options)

        def epoch(number: int) -> DataLoader:
            loader.set_epoch(number)
            return loader

        yield epoch
