"""The loop that a Dask user writes: a partition for each row group, a few ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask.dataframe as dd
import numpy as np
import torch
from distributed import Client, LocalCluster

from contestants.serve import Case, Epoch, serve


@contextmanager
def partitions(case: Case) -> Iterator[Epoch]:
    """Start a cluster of one single-threaded worker for each core."""
    num_workers = len(os.sched_getaffinity(0))
    frame = dd.read_parquet(case.files, split_row_groups=True)
    with (
        LocalCluster(
            n_workers=num_workers, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):

        def epoch(number: int) -> Iterator[Any]:
            rng = np.random.default_rng(number)
            chosen = frame
            if case.shuffle:
                chosen = frame.map_partitions(_mixed, number)
            parts = chosen.to_delayed()
            if case.shuffle:
                parts = [parts[i] for i in rng.permutation(len(parts))]
            ahead: deque[Any] = deque()
            for part in parts:
                ahead.append(client.compute(part))
                if len(ahead) > 2 * num_workers:
                    yield from _batches(ahead.popleft().result(), case)
            while ahead:
                yield from _batches(ahead.popleft().result(), case)

        yield epoch


def _mixed(frame: Any, seed: int) -> Any:
    return frame.sample(frac=1.0, random_state=seed)


def _batches(frame: Any, case: Case) -> Iterator[dict[str, Any]]:
    columns: dict[str, Any] = {}
    for name, kind in case.kinds.items():
        column = frame[name]
        if kind == "text":
            columns[name] = column.tolist()
        elif kind == "vector":
            columns[name] = torch.from_numpy(np.stack(column.to_numpy()))
        else:
            columns[name] = torch.from_numpy(np.array(column))
    for start in range(0, len(frame), case.batch_rows):
        end = start + case.batch_rows
        yield {name: column[start:end] for name, column in columns.items()}


if __name__ == "__main__":
    serve(partitions)
