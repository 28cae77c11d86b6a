"""Ray Data on this host: its own batches of tensors; strings through Arrow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from contestants.arrow import batches
from contestants.serve import Case, Epoch, serve


@contextmanager
def ray_data(case: Case) -> Iterator[Epoch]:
    """Start Ray with a CPU slot for each core."""
    num_cpus = len(os.sched_getaffinity(0))
    ray.init(num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # In order where the epoch is; without this blocks come as they are ready.
    context.execution_options.preserve_order = not case.shuffle
    try:
        stored = ray.data.read_parquet(
            case.files, shuffle="files" if case.shuffle else None
        )
        options: dict[str, Any] = {"batch_size": case.batch_rows, "prefetch_batches": 4}

        def epoch(number: int) -> Iterator[Any]:
            if case.shuffle:
                options["local_shuffle_buffer_size"] = case.buffer_rows
                options["local_shuffle_seed"] = number
            if "text" not in case.kinds.values():
                yield from stored.iter_torch_batches(device="cpu", **options)
                return
            for table in stored.iter_batches(batch_format="pyarrow", **options):
                yield from batches(table, case.batch_rows)

        yield epoch
    finally:
        ray.shutdown()


if __name__ == "__main__":
    serve(ray_data)
