"""Files and a runner of commands."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from dask_loader.cli import main

NUM_ROWS = 1009


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files, one of them a row group larger than the windows of most tests."""
    path = tmp_path_factory.mktemp("verify")
    ids = np.arange(NUM_ROWS)
    table = pa.table(
        {
            "id": ids,
            "x": pa.array([None if i % 5 == 0 else i / 7 for i in ids], pa.float32()),
            "day": [date(2026, 1, 1) + timedelta(days=int(i) // 100) for i in ids],
            "s": [None if i % 3 == 0 else f"row {i}" for i in ids],
        }
    )
    for number, (start, stop) in enumerate(((0, 400), (400, 401), (401, NUM_ROWS))):
        part = table.slice(start, stop - start)
        pq.write_table(
            part, path / f"part-{number}.parquet", row_group_size=67 + 999 * number
        )
    return path


@pytest.fixture
def run() -> Callable[..., Result]:
    """run("verify", ...) -> the command's result, as in a shell."""

    def invoke(*arguments: Any) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke
