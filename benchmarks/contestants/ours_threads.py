"""dask_loader, read by threads of the training process or of DataLoader workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from contestants.ours import epochs
from contestants.serve import Case, Epoch, serve


@contextmanager
def threads(case: Case) -> Iterator[Epoch]:
    """Read in this process."""
    with epochs(case, "threads") as epoch:
        yield epoch


if __name__ == "__main__":
    serve(threads)
