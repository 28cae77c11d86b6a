"""Small files to build catalogs from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader.catalog.catalog import Catalog, read_catalog
from dask_loader.catalog.storage import Storage

Write = Callable[..., str]
Read = Callable[..., Catalog]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write("a.parquet", {"x": [1]}, **writer_options) -> absolute path."""

    def write_one(name: str, columns: Any = None, **options: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = (
            columns
            if isinstance(columns, pa.Table)
            else pa.table(columns or {"x": [1]})
        )
        pq.write_table(table, path, **options)
        return str(path)

    return write_one


@pytest.fixture
def read() -> Read:
    """read(path, ..., columns=, filters=) -> Catalog, in this thread."""

    def read_here(*paths: str, columns: Any = None, filters: Any = None) -> Catalog:
        return read_catalog(
            Storage("file"),
            paths,
            columns=columns,
            filters=filters,
            run=lambda function, items: [function(item) for item in items],
        )

    return read_here
