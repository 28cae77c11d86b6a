"""Files, tasks and an oracle for the reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader.catalog.catalog import read_catalog
from dask_loader.catalog.storage import Storage
from dask_loader.read.files import OpenFiles
from dask_loader.read.nulls import make_null_policy
from dask_loader.read.task import ReadOptions, SliceTask, WindowTask


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """write("a.parquet", {"x": [1]}, **writer_options) -> path."""

    def write_one(name: str, columns: Any, **options: Any) -> str:
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, tmp_path / name, **options)
        return str(tmp_path / name)

    return write_one


@pytest.fixture
def files() -> Iterator[OpenFiles]:
    """Open files, closed at the end."""
    opened = OpenFiles()
    yield opened
    opened.close()


@pytest.fixture
def allocate() -> Callable[[int], Any]:
    """Blocks full of old bytes, so that what is not written shows."""
    return lambda num_bytes: np.full(num_bytes, 0xA5, dtype=np.uint8)


@pytest.fixture
def plan() -> Callable[..., WindowTask]:
    """plan([path, ...], ranges, columns=, filters=, nulls=, key=) -> WindowTask.

    ranges: (row group in the order of the catalog, start, stop); None for all rows.
    """

    def plan_window(
        paths: list[str],
        ranges: list[tuple[int, int, int]] | None = None,
        *,
        columns: tuple[str, ...] | None = None,
        filters: Any = None,
        nulls: Any = "error",
        key: tuple[object, ...] | None = None,
        verify_checksums: bool = True,
    ) -> WindowTask:
        catalog = read_catalog(
            Storage("file"),
            paths,
            columns=columns,
            filters=filters,
            run=lambda function, items: [function(item) for item in items],
        )
        if ranges is None:
            groups = enumerate(catalog.num_rows.tolist())
            ranges = [(group, 0, rows) for group, rows in groups]
        slices = tuple(
            SliceTask(
                catalog.files[catalog.file_index[group]].path,
                catalog.files[catalog.file_index[group]].stamp,
                int(catalog.row_group[group]),
                int(catalog.num_rows[group]),
                start,
                stop,
            )
            for group, start, stop in ranges
        )
        options = ReadOptions(
            storage=catalog.storage,
            forms=catalog.forms,
            nulls=make_null_policy(nulls, catalog.forms),
            expression=catalog.expression,
            filter_columns=catalog.filter_columns,
            verify_checksums=verify_checksums,
        )
        num_rows = sum(stop - start for _, start, stop in ranges)
        return WindowTask(
            options=options, slices=slices, num_rows=num_rows, key=key, num_bytes=0
        )

    return plan_window
