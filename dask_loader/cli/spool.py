"""The numbers of the rows that came, on disk: eight bytes for each row."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_ROW_BYTES = 8


class Spool:
    """Keeps all ranks' batches in a temporary file without a name. Use with `with`."""

    def __init__(self, num_ranks: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (__exit__ closes it)
        self._num_rows = 0
        # Of each rank's batches: the first row in the file, and the rows.
        self._batches: list[list[tuple[int, int]]] = [[] for _ in range(num_ranks)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def num_steps(self, rank: int) -> int:
        """Return a rank's next step."""
        return len(self._batches[rank])

    def skip(self, rank: int, step: int) -> None:
        """Let a rank's next batch be that of a later step."""
        missing = step - self.num_steps(rank)
        self._batches[rank] += [(self._num_rows, 0)] * missing

    def append(self, rank: int, numbers: Ints) -> None:
        """Add a rank's next batch."""
        self._file.seek(_ROW_BYTES * self._num_rows)
        self._file.write(numbers.astype("<i8").tobytes())
        self._batches[rank].append((self._num_rows, len(numbers)))
        self._num_rows += len(numbers)

    def read(self, rank: int, step: int) -> Ints:
        """Return a batch; none where the rank has no such step."""
        if step >= self.num_steps(rank):
            return np.zeros(0, dtype=np.int64)
        first, num_rows = self._batches[rank][step]
        self._file.seek(_ROW_BYTES * first)
        packed = self._file.read(_ROW_BYTES * num_rows)
        return np.frombuffer(packed, dtype="<i8").astype(np.int64)

    def find(self, numbers: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Yield (number, rank, step) of each arrival of these numbers."""
        wanted = np.array(numbers, dtype=np.int64)
        for rank in range(len(self._batches)):
            for step in range(self.num_steps(rank)):
                batch = self.read(rank, step)
                for number in batch[np.isin(batch, wanted)].tolist():
                    yield number, rank, step
