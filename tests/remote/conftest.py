"""An S3-compatible server on loopback, with a faulty line before it."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer
from pyarrow import fs as arrow_fs

from tests.remote.servers import FaultProxy, serving

SECRET = "marker-of-a-secret-7f3a"
NUM_FILES, FILE_ROWS, GROUP_ROWS = 4, 1200, 400


@pytest.fixture(scope="session")
def line() -> Iterator[FaultProxy]:
    """The way to the S3 server; counts the requests and may break."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        try:
            with serving(FaultProxy(server.get_host_and_port()[1])) as proxy:
                yield proxy
                proxy.hang.set()
        finally:
            server.stop()


@pytest.fixture
def s3_options(line: FaultProxy) -> dict[str, Any]:
    """What a user would give as storage_options."""
    line.reset()
    line.hang.clear()
    return {"key": "an-id", "secret": SECRET, "endpoint_url": line.url}


def parquet(first: int, num_rows: int = FILE_ROWS, **options: Any) -> bytes:
    """Return a Parquet file of four columns; `id` counts from `first`."""
    ids = range(first, first + num_rows)
    table = pa.table(
        {
            "id": ids,
            "a": [i * 0.5 for i in ids],
            "unread": [str(i) * 9 for i in ids],
            "b": [i % 7 for i in ids],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"row_group_size": GROUP_ROWS, **options})
    return sink.getvalue()


Put = Callable[[str, bytes], None]


@pytest.fixture
def put(line: FaultProxy, s3_options: dict[str, Any]) -> Put:
    """Write an object."""
    system = s3fs.S3FileSystem(**s3_options)
    if not system.exists("bucket"):
        system.mkdir("bucket")

    def write(path: str, content: bytes) -> None:
        system.pipe_file(path, content)
        line.log.clear()

    return write


@pytest.fixture
def data(put: Put) -> str:
    """A folder of four files of three row groups each."""
    for number in range(NUM_FILES):
        put(f"bucket/data/part-{number}.parquet", parquet(number * FILE_ROWS))
    return "s3://bucket/data/"


# Who makes the requests: s3fs as we make it, as the user does, or pyarrow's S3.
CLIENTS = ("options", "fsspec", "arrow")


def reached_by(
    kind: str, url: str, options: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return a path and what else a dataset is given to read an s3:// URL by a client."""
    if kind == "options":
        return url, {"storage_options": options}
    path = url.removeprefix("s3://").rstrip("/")
    if kind == "fsspec":
        return path, {"filesystem": s3fs.S3FileSystem(**options)}
    system = arrow_fs.S3FileSystem(
        access_key=options["key"],
        secret_key=options["secret"],
        endpoint_override=options["endpoint_url"].removeprefix("http://"),
        scheme="http",
        region="us-east-1",
        retry_strategy=arrow_fs.AwsStandardS3RetryStrategy(max_attempts=1),
        request_timeout=0.5,
    )
    return path, {"filesystem": system}


@pytest.fixture(autouse=True)
def _quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask_loader.catalog.patience._FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("dask_loader.catalog.patience._LONGEST_PAUSE_S", 0.05)
