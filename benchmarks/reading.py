"""CPU seconds of an epoch in threads: local files read or mapped, pages checked or not.

Writes one file of about 0.7 GB (or takes one that is there), reads it once, so that it is
in the system's cache, then in turns each way. Medians, and medians of the ratios of runs
beside each other: these bear a machine that others use.

    python benchmarks/reading.py /tmp/reading.parquet --runs 9
"""

from __future__ import annotations

import argparse
import mmap
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dask_loader import ParquetDataset
from dask_loader.read import files

GROUP_ROWS, NUM_GROUPS = 250_000, 14
LocalFile = files.LocalFile


class MappedFile(LocalFile):
    """What LocalFile would be if it mapped."""

    def __init__(self, path: str, **options: Any) -> None:
        with open(path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._file = pa.BufferReader(pa.py_buffer(mapping))
        self._first_read = None
        pq.ParquetFile.__init__(self, self._file, **options)


WAYS: dict[str, tuple[Any, bool]] = {
    "read, checked": (LocalFile, True),
    "read, unchecked": (LocalFile, False),
    "mapped, checked": (MappedFile, True),
}


def write(path: Path, compression: str, num_groups: int) -> None:
    """Write numbers of four types with page checksums."""
    rng = np.random.default_rng(0)
    rows, writer = GROUP_ROWS, None
    for _ in range(num_groups):
        columns: dict[str, Any] = {}
        for i in range(16):
            columns[f"f{i}"] = rng.standard_normal(rows, np.float32)
        for i in range(10):
            columns[f"i{i}"] = rng.integers(0, 1000, rows, np.int32)
        for i in range(6):
            columns[f"l{i}"] = rng.integers(0, 1 << 40, rows)
        for i in range(4):
            columns[f"d{i}"] = rng.standard_normal(rows)
        table = pa.table(columns)
        if writer is None:
            writer = pq.ParquetWriter(
                path, table.schema, compression=compression, write_page_checksum=True
            )
        writer.write_table(table, row_group_size=rows)
    if writer is not None:
        writer.close()


def cpu_s(path: Path, way: str, *, shuffle: bool) -> tuple[float, float]:
    """Return the CPU seconds and the decoded bytes of an epoch."""
    files.LocalFile, checked = WAYS[way]  # type: ignore[misc]
    start_s = time.process_time()
    with ParquetDataset(
        path,
        batch_size=4096,
        shuffle=shuffle,
        client="threads",
        verify_checksums=checked,
    ) as dataset:
        for _ in dataset:
            pass
        return time.process_time() - start_s, dataset.stats()["bytes"]


def main() -> None:
    """Measure, and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("--compression", default="snappy")
    parser.add_argument("--row-groups", type=int, default=NUM_GROUPS)
    given = parser.parse_args()
    if not given.path.exists():
        write(given.path, given.compression, given.row_groups)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu_s(given.path, "read, checked", shuffle=given.shuffle)
    for number in range(given.runs):
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            seconds, num_bytes = cpu_s(given.path, way, shuffle=given.shuffle)
            found[way].append(seconds / num_bytes * 1e9)
    first = found["read, checked"]
    for way, values in found.items():
        ratio = statistics.median(b / a for a, b in zip(first, values, strict=True))
        median = statistics.median(values)
        print(f"{way:16} {median:.3f} CPU s/GB, {ratio - 1:+.1%} beside the first")


if __name__ == "__main__":
    main()
