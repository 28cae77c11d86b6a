"""Windows to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dask_loader.catalog.catalog import Catalog, read_catalog
from dask_loader.catalog.discover import discover
from dask_loader.read.nulls import NullPolicy
from dask_loader.read.task import ReadOptions, SliceTask, WindowTask


def catalog_of(path: Path) -> Catalog:
    found = discover(path)
    return read_catalog(
        found.storage,
        found.paths,
        columns=None,
        filters=None,
        run=lambda function, items: [function(item) for item in items],
    )


@pytest.fixture(scope="session")
def make_tasks() -> Callable[[Path], list[WindowTask]]:
    """Makes a window of each three row groups of a folder, every other one mixed."""

    def make(path: Path) -> list[WindowTask]:
        catalog = catalog_of(path)
        options = ReadOptions(
            storage=catalog.storage, forms=catalog.forms, nulls=NullPolicy()
        )
        slices = []
        for group, num_rows in enumerate(catalog.num_rows.tolist()):
            file = catalog.files[int(catalog.file_index[group])]
            index = int(catalog.row_group[group])
            # Some begin and end within the row group.
            start, stop = (num_rows // 5, num_rows) if group % 4 == 1 else (0, num_rows)
            slices.append(
                SliceTask(file.path, file.stamp, index, num_rows, start, stop)
            )
        tasks = []
        for first in range(0, len(slices), 3):
            members = tuple(slices[first : first + 3])
            num_rows = sum(s.stop - s.start for s in members)
            tasks.append(
                WindowTask(
                    options=options,
                    slices=members,
                    num_rows=num_rows,
                    key=("test", first) if first % 2 else None,
                    num_bytes=num_rows * 64,
                )
            )
        return tasks

    return make


@pytest.fixture(scope="session")
def tasks(small_data: Path, make_tasks: Any) -> list[WindowTask]:
    return make_tasks(small_data)
