"""DataLoader workers read s3:// by file systems of their own, which cross no fork."""

from __future__ import annotations

from typing import Any

import pytest

from dask_loader import DataLoader
from tests.remote.conftest import reached_by
from tests.remote.servers import FaultProxy
from tests.remote.test_s3 import NUM_ROWS, dataset, rows


# A child of a fork inherits locks of pyarrow's S3 that threads of its parent hold: it may
# hang, so spawn alone.
@pytest.mark.parametrize(
    ("context", "kind"),
    [
        ("fork", "options"),
        pytest.param("fork", "fsspec", marks=pytest.mark.slow),
        pytest.param("spawn", "options", marks=pytest.mark.slow),
        pytest.param("spawn", "arrow", marks=pytest.mark.slow),
    ],
)
def test_two_workers_read_each_row_once(
    data: str, s3_options: dict[str, Any], line: FaultProxy, context: str, kind: str
) -> None:
    path, given = reached_by(kind, data, s3_options)
    with dataset(path, **given) as ds:
        here = rows(ds)  # this process has its connections and threads by now
        line.fault, line.share, line.only = "503", 0.1, "GET"
        loader = DataLoader(ds, num_workers=2, multiprocessing_context=context)
        found = [i for batch in loader for i in batch["id"].tolist()]
    assert found == [row[0] for row in here] == list(range(NUM_ROWS))
