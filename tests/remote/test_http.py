"""Plain web servers: ranges, changes, addresses with signatures; and odd schemes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from dask_loader import ParquetDataset
from dask_loader.errors import (
    ConfigError,
    DataChangedError,
    DataNotFoundError,
    StorageError,
)
from tests.remote.conftest import parquet
from tests.remote.servers import RangeServer, serving

SIGNATURE = "marker-of-a-signature-81c2"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[RangeServer]:
    (tmp_path / "a.parquet").write_bytes(parquet(0))
    with serving(RangeServer(tmp_path)) as server:
        yield server


def dataset(url: str) -> ParquetDataset:
    return ParquetDataset(
        url, columns=["id"], client="threads", footer_cache=False, shuffle_window=400
    )


def ids(data: ParquetDataset) -> list[int]:
    return [i for batch in data for i in batch["id"].tolist()]


@pytest.mark.parametrize("with_tags", [True, False])
def test_a_web_server_is_read_in_ranges_and_changes_are_told(
    web: RangeServer, with_tags: bool
) -> None:
    web.with_tags = with_tags
    with dataset(f"{web.url}/a.parquet") as ds:
        assert ids(ds) == list(range(1200))
        # fsspec asks for a length by a GET where a HEAD does not tell: not so here.
        assert all(asked for method, _, asked in web.log if method == "GET")

        file = web.folder / "a.parquet"
        file.write_bytes(parquet(1))
        os.utime(file, (1_000_000_000, 1_000_000_000))
        with pytest.raises(DataChangedError, match="make the dataset again"):
            ids(ds)


@pytest.mark.parametrize("with_tags", [True, False])
def test_metadata_on_a_web_server_stands_for_its_files(
    web: RangeServer, with_tags: bool
) -> None:
    web.with_tags = with_tags
    footers = []
    for number, name in enumerate(("a.parquet", "b.parquet")):
        (web.folder / name).write_bytes(parquet(number * 1200))
        os.utime(web.folder / name, (1_000_000_000, 1_000_000_000))
        footers.append(pq.read_metadata(web.folder / name))
        footers[-1].set_file_path(name)
    schema = footers[0].schema.to_arrow_schema()
    pq.write_metadata(schema, web.folder / "_metadata", metadata_collector=footers)
    with dataset(f"{web.url}/_metadata") as ds:
        assert ids(ds) == list(range(2400))
    with pytest.raises(ConfigError, match="by an address with a query"):
        dataset(f"{web.url}/_metadata?X-Amz-Signature={SIGNATURE}")
    (web.folder / "b.parquet").write_bytes(parquet(7))
    with pytest.raises(DataChangedError, match=r"b\.parquet' is not the file that"):
        dataset(f"{web.url}/_metadata")
    (web.folder / "b.parquet").unlink()
    with pytest.raises(DataNotFoundError, match=r"1 files that .*/b\.parquet"):
        dataset(f"{web.url}/_metadata")


@pytest.mark.parametrize("with_tags", [True, False])
def test_a_file_that_changes_within_a_row_group_is_told_however_it_is_found(
    web: RangeServer, with_tags: bool
) -> None:
    web.with_tags = with_tags
    file = web.folder / "a.parquet"
    file.write_bytes(parquet(0, 40_000, row_group_size=40_000))
    options = {"columns": ["id"], "shuffle_window": 400, "batch_size": 100}
    with ParquetDataset(
        f"{web.url}/a.parquet", client="threads", footer_cache=False, **options
    ) as ds:
        batches = iter(ds)
        assert next(batches)["id"].tolist() == list(range(100))
        # Not Parquet any more where its pages were.
        file.write_bytes(bytes(file.stat().st_size))
        os.utime(file, (1_000_000_000, 1_000_000_000))
        with pytest.raises(DataChangedError, match="make the dataset again"):
            list(batches)
        with pytest.raises(DataChangedError, match="make the dataset again"):
            list(ds)


def test_a_signature_in_an_address_is_used_and_never_printed(web: RangeServer) -> None:
    url = f"{web.url}/a.parquet?X-Amz-Signature={SIGNATURE}"
    with dataset(url) as ds:
        assert ids(ds) == list(range(1200))
        assert SIGNATURE not in ds.explain() + repr(ds) + str(ds.state_dict())
        (web.folder / "a.parquet").unlink()
        with pytest.raises(DataChangedError) as caught:
            ids(ds)
    assert SIGNATURE not in str(caught.value) + str(caught.value.path)
    assert SIGNATURE in web.log[-1][1]


def test_a_web_server_that_is_gone_is_named(tmp_path: Path) -> None:
    with serving(RangeServer(tmp_path)) as server:
        url = f"{server.url}/a.parquet"
    with pytest.raises(StorageError, match="8 tries in"):
        dataset(url)


def test_memory_is_read_by_threads() -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/remote-test/a.parquet", parquet(0))
    try:
        with dataset("memory://remote-test/") as ds:
            assert ids(ds) == list(range(1200))
    finally:
        system.rm("/remote-test", recursive=True)


@pytest.mark.parametrize(
    ("url", "package"), [("gs://b/x", "gcsfs"), ("abfs://c/x", "adlfs")]
)
def test_a_package_that_is_missing_is_named(url: str, package: str) -> None:
    try:
        __import__(package)
    except ImportError:
        with pytest.raises(ConfigError, match=f"pip install {package} .or pip install"):
            ParquetDataset(url)
