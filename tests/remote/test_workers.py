"""DataLoader workers read s3:// by file systems of their own, which cross no fork."""

from __future__ import annotations

from typing import Any

import pytest
import s3fs
from pyarrow import fs as arrow_fs

from dask_loader import DataLoader, ParquetDataset
from tests.remote.conftest import SECRET
from tests.remote.servers import FaultProxy
from tests.remote.test_s3 import NUM_ROWS, dataset, rows


def made(
    kind: str, data: str, options: dict[str, Any], line: FaultProxy
) -> ParquetDataset:
    if kind == "options":
        return dataset(data, options)
    given: Any = s3fs.S3FileSystem(**options)
    if kind == "arrow":
        given = arrow_fs.S3FileSystem(
            access_key=options["key"],
            secret_key=SECRET,
            endpoint_override=line.url.removeprefix("http://"),
            scheme="http",
            region="us-east-1",
        )
    path = data.removeprefix("s3://").rstrip("/")
    return dataset(path, None, filesystem=given)  # type: ignore[arg-type]


# pyarrow's S3 has threads of its own, which no child of a fork has: spawn alone.
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
    with made(kind, data, s3_options, line) as ds:
        here = rows(ds)  # this process has its connections and threads by now
        line.fault, line.share, line.only = "503", 0.1, "GET"
        loader = DataLoader(ds, num_workers=2, multiprocessing_context=context)
        found = [i for batch in loader for i in batch["id"].tolist()]
    assert found == [row[0] for row in here] == list(range(NUM_ROWS))
