"""A store that goes bad while an epoch is read: named with its place, in bounded time."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dask_loader.errors import StorageError
from tests.remote.conftest import CLIENTS, FILE_ROWS, SECRET, Put, parquet, reached_by
from tests.remote.servers import FaultProxy
from tests.remote.test_s3 import dataset, expected, rows

PATH = "bucket/trouble/a.parquet"


@pytest.fixture
def one_group(put: Put) -> str:
    """A file of one row group, so that one thing at a time goes wrong."""
    put(PATH, parquet(0, row_group_size=FILE_ROWS))
    return f"s3://{PATH}"


@pytest.mark.parametrize("window", [400, FILE_ROWS])  # in a chain and whole
@pytest.mark.parametrize(
    ("method", "what"), [("GET", "read bytes"), ("HEAD", "look at")]
)
@pytest.mark.parametrize("warm", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_failure_in_an_epoch_names_file_row_group_tries_and_seconds(
    one_group: str,
    s3_options: dict[str, Any],
    line: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    window: int,
    method: str,
    what: str,
    warm: bool,
) -> None:
    monkeypatch.setattr("dask_loader.catalog.patience.MAX_TRIES", 3)
    with dataset(one_group, s3_options, shuffle_window=window) as ds:
        if warm:  # the footer is known
            assert rows(ds) == expected(FILE_ROWS)
        line.fault, line.only = "503", method
        line.lacking = "etag"  # so that there is a look
        with pytest.raises(StorageError) as caught:
            rows(ds)
    text = str(caught.value)
    assert re.match(rf"row group 0: cannot {what} .*'{PATH}': 3 tries in \d", text)
    assert text.count("row group") == 1
    assert (caught.value.path, caught.value.row_group) == (PATH, 0)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("client", CLIENTS)
def test_access_that_is_denied_in_an_epoch_is_named_at_once(
    one_group: str,
    s3_options: dict[str, Any],
    line: FaultProxy,
    warm: bool,
    client: str,
) -> None:
    path, given = reached_by(client, one_group, s3_options)
    with dataset(path, shuffle_window=FILE_ROWS, **given) as ds:
        if warm:
            assert rows(ds) == expected(FILE_ROWS)
        line.log.clear()
        line.fault = "403"
        with pytest.raises(StorageError, match="the store denies access") as caught:
            rows(ds)
    assert len(line.log) == line.faults["403"] == 1
    assert (caught.value.path, caught.value.row_group) == (PATH, 0)
    assert "storage_options" in str(caught.value)
    assert SECRET not in repr(caught.value)


@pytest.mark.parametrize(
    ("client", "text"),
    [
        ("options", "ReadTimeoutError"),
        pytest.param("arrow", "Timeout was reached", marks=pytest.mark.slow),
    ],
)
def test_a_connection_that_says_nothing_is_given_up_and_tried_again(
    one_group: str,
    s3_options: dict[str, Any],
    line: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    client: str,
    text: str,
) -> None:
    monkeypatch.setattr("dask_loader.catalog.storage.SILENCE_S", 0.5)
    monkeypatch.setattr("dask_loader.catalog.patience.MAX_TRIES", 2)
    own = s3_options | {"key": "of-a-client-with-little-patience"}
    path, given = reached_by(client, one_group, own)
    with dataset(path, shuffle_window=FILE_ROWS, **given) as ds:
        line.fault = "hang"
        with pytest.raises(StorageError, match=rf"2 tries in .*{text}"):
            rows(ds)
    line.hang.set()
    # pyarrow's S3, once pickled, has its own tries within each.
    assert line.faults["hang"] == 2 or client == "arrow"


def test_a_body_that_crawls_is_ended_by_the_deadline(
    one_group: str,
    s3_options: dict[str, Any],
    line: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with dataset(one_group, s3_options, shuffle_window=FILE_ROWS) as ds:
        # Longer than it is silent between two bytes, far less than the body would take.
        monkeypatch.setattr("dask_loader.catalog.patience.DEADLINE_S", 1.0)
        line.fault = "crawl"
        with pytest.raises(StorageError, match=r"row group 0: .* tries in \d+\.\d s"):
            rows(ds)
    line.hang.set()


def test_bodies_cut_short_give_every_row_once_bit_for_bit(
    data: str, s3_options: dict[str, Any], line: FaultProxy
) -> None:
    options = {"shuffle": True, "seed": 5, "batch_size": 100}
    with dataset(data, s3_options, **options) as ds:
        quiet = [{k: v.numpy().tobytes() for k, v in b.items()} for b in ds]
    line.fault, line.share, line.only = "cut", 0.3, "GET"
    with dataset(data, s3_options, **options) as ds:
        found = [{k: v.numpy().tobytes() for k, v in b.items()} for b in ds]
    assert found == quiet
    assert line.faults["cut"] > 1
    assert len(found) == 48
