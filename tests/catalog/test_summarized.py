"""Files that `_metadata` names: their times, and what cannot be read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dask_loader.catalog.discover import discover
from dask_loader.catalog.storage import Storage
from dask_loader.catalog.summarized import read_summary, short, time_of
from dask_loader.errors import BadFileError, DataChangedError

WHEN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
WHEN_NS = int(WHEN.timestamp()) * 10**9


@pytest.mark.parametrize(
    ("info", "time_ns"),
    [
        ({"LastModified": WHEN, "mtime": 1}, WHEN_NS),
        ({"last_modified": WHEN.isoformat()}, WHEN_NS),
        ({"updated": "2026-03-04T05:06:07Z"}, WHEN_NS),
        ({"Last-Modified": "Wed, 04 Mar 2026 05:06:07 GMT"}, WHEN_NS),
        ({"mtime": 1.5}, 1_500_000_000),
        ({"created": 2}, 2_000_000_000),
        ({"created": datetime(2026, 3, 4, 5, 6, 7)}, None),
        ({"mtime": "yesterday"}, None),
        ({"mtime": [1]}, None),
        ({"size": 4}, None),
        ({}, None),
    ],
    ids=str,
)
def test_times_are_read_as_stores_write_them(info: Any, time_ns: int | None) -> None:
    assert time_of(info) == time_ns


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"cannot be read .*; name the folder"):
        read_summary(Storage("file"), str(tmp_path))
    with pytest.raises(DataChangedError, match="cannot be found now"):
        read_summary(Storage("file"), str(tmp_path / "_metadata"))


def test_an_empty_metadata_is_none(tmp_path: Path) -> None:
    (tmp_path / "_metadata").touch()
    with pytest.raises(BadFileError, match="it is not a Parquet file"):
        discover(tmp_path / "_metadata")


def test_texts_name_a_few_files() -> None:
    assert short(["a", "b", "c"]) == "'a', 'b', 'c'"
    assert short(["a", "b", "c", "d", "e"]) == "'a', 'b', 'c' and 2 more"
