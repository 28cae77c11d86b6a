"""Lance: the set converted to its own format, once and beside the set."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from lance.sampler import ShardedFragmentSampler
from lance.torch.data import LanceDataset

from contestants.arrow import batches
from contestants.serve import Case, Epoch, serve


@contextmanager
def converted(case: Case) -> Iterator[Epoch]:
    """Convert the set unless it is there.

    With shuffle, rows are either taken at random from all over the set, some 64 MiB of
    them at a time, or fragments come in another order.
    """
    stored = _convert(case)

    def tensors(batch: Any, **_: Any) -> dict[str, Any]:
        return next(batches(pa.Table.from_batches([batch]), batch.num_rows))

    def epoch(number: int) -> Iterator[Any]:
        if case.shuffle and case.mix == "rows":
            order = np.random.default_rng(number).permutation(case.num_rows)
            for start in range(0, case.num_rows, case.buffer_rows):
                table = stored.take(order[start : start + case.buffer_rows])
                yield from batches(table, case.batch_rows)
            return
        sampler = None
        if case.shuffle:
            sampler = ShardedFragmentSampler(
                rank=0, world_size=1, randomize=True, seed=number
            )
        yield from LanceDataset(
            stored, case.batch_rows, to_tensor_fn=tensors, sampler=sampler
        )

    yield epoch


def _convert(case: Case) -> Any:
    place = Path(f"{case.path}.lance")
    if not place.exists():
        partial = place.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        files = pads.dataset(case.files)
        # As many fragments as the set has files, at the least.
        rows = -(-case.num_rows // len(case.files))
        lance.write_dataset(
            files.to_batches(), str(partial), files.schema, max_rows_per_file=rows
        )
        partial.rename(place)
    return lance.dataset(str(place))


if __name__ == "__main__":
    serve(converted)
