"""dask_loader, read by a cluster on this host, one single-threaded worker for each core."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import cluster
from contestants.ours import epochs
from contestants.serve import Case, Epoch, serve


@contextmanager
def local_cluster(case: Case) -> Iterator[Epoch]:
    """Launch the cluster and read on it."""
    num_workers = len(os.sched_getaffinity(0))
    with (
        cluster.launch("local", workers=num_workers) as launched,
        epochs(case, launched) as epoch,
    ):
        yield epoch


if __name__ == "__main__":
    serve(local_cluster)
