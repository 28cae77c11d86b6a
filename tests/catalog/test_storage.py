"""Stamps: is a file still the one that was looked at?"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader.catalog.storage import (
    SETTLED_NS,
    Stamp,
    Storage,
    make_storage,
    sight_of,
)
from dask_loader.errors import ConfigError, DataChangedError

Write = Callable[..., str]
LOCAL = Storage("file")


def test_an_untouched_file_has_the_same_stamp(write: Write) -> None:
    path = write("a.parquet")
    stamp = LOCAL.stamp(path)
    assert stamp.num_bytes == os.path.getsize(path)
    assert LOCAL.stamp(path) == stamp
    LOCAL.check(path, stamp)


def test_a_rewritten_file_is_told_by_length_or_by_time(write: Write) -> None:
    path = write("a.parquet")
    stamp = LOCAL.stamp(path)
    with open(path, "ab") as file:
        file.write(b"x")
    with pytest.raises(
        DataChangedError, match="changed after the dataset was made"
    ) as e:
        LOCAL.check(path, stamp)
    text = str(e.value)
    assert repr(path) in text
    assert f"had {stamp.num_bytes} bytes" in text
    assert f"has {stamp.num_bytes + 1}" in text
    assert "make the dataset again" in text
    assert e.value.path == path

    path = write("b.parquet")
    stamp = LOCAL.stamp(path)
    os.utime(path, ns=(0, int(stamp.version) + 1))
    with pytest.raises(DataChangedError, match=f"version '{int(stamp.version) + 1}'"):
        LOCAL.check(path, stamp)


def test_a_removed_file_is_a_changed_file(write: Write) -> None:
    path = write("a.parquet")
    stamp = LOCAL.stamp(path)
    os.remove(path)
    with pytest.raises(DataChangedError, match="cannot be found now") as caught:
        LOCAL.check(path, stamp)
    assert "was there when the dataset was made" in str(caught.value)
    assert caught.value.path == path


def test_a_remote_file_is_told_by_what_its_file_system_says() -> None:
    system = fsspec.filesystem("memory")
    storage = make_storage("memory", None)
    with system.open("/stamped.parquet", "wb") as file:
        pq.write_table(pa.table({"x": [1]}), file)
    stamp = storage.stamp("/stamped.parquet")
    assert stamp.version
    storage.check("/stamped.parquet", stamp)
    with system.open("/stamped.parquet", "wb") as file:
        pq.write_table(pa.table({"x": [2]}), file)
    with pytest.raises(DataChangedError, match="changed after the dataset was made"):
        storage.check("/stamped.parquet", stamp)
    system.rm("/stamped.parquet")
    with pytest.raises(DataChangedError, match="cannot be found now"):
        storage.check("/stamped.parquet", stamp)


@pytest.mark.parametrize(
    ("info", "version"),
    [
        ({"size": 3, "ETag": '"e"', "LastModified": "t"}, '"e"'),
        ({"size": 3, "etag": "", "mtime": 12.5}, "12.5"),
        ({"size": 3, "md5Hash": "m", "updated": "u"}, "m"),
        ({"size": 3}, ""),
    ],
)
def test_a_content_tag_goes_before_a_time(
    info: dict[str, Any], version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = fsspec.filesystem("memory")
    monkeypatch.setattr(system, "info", lambda _: info)
    assert Storage("memory").stamp("/any") == Stamp(3, version)


def test_a_storage_pickles_and_opens_one_file_system_a_process() -> None:
    storage = make_storage("memory", {"b": 1, "a": "x"})
    assert pickle.loads(pickle.dumps(storage)) == storage
    assert storage == make_storage("memory", {"a": "x", "b": 1})
    assert storage.fsspec() is storage.fsspec()


def test_an_identity_is_only_what_no_other_content_ever_has(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sight_of({"size": 3, "ETag": '"e"', "LastModified": "t"}).identity
    assert not sight_of({"size": 3, "LastModified": "t"}).identity
    assert not sight_of({"size": 3}).identity
    path = write("a.parquet")
    now = max(os.stat(path).st_ctime_ns, os.stat(path).st_mtime_ns)
    for age_ns, known in ((SETTLED_NS - 1, False), (SETTLED_NS, True)):
        monkeypatch.setattr("time.time_ns", lambda age=age_ns: now + age)
        assert bool(LOCAL.look(path).identity) is known
    known = LOCAL.look(path)
    os.utime(path, ns=(now, now))
    again = max(os.stat(path).st_ctime_ns, os.stat(path).st_mtime_ns)
    monkeypatch.setattr("time.time_ns", lambda: again + SETTLED_NS)
    assert LOCAL.look(path).identity not in ("", known.identity)


def test_memory_is_refused_to_a_cluster() -> None:
    Storage("memory").require_reach(None)
    Storage("s3").require_reach("tcp://there:1")
    with pytest.raises(ConfigError, match="memory:// lies in this process"):
        Storage("memory").require_reach("tcp://there:1")


def test_texts_lose_the_options_values_and_what_urls_hold() -> None:
    storage = make_storage("s3", {"key": "AKID", "client_kwargs": {"x": ["s3cret"]}})
    text = storage.scrub("AKID s3cret at https://me:pw@host/a?sig=abc&b=1")
    assert text == "*** *** at https://host/a?sig=***&b=1"
    assert "AKID" not in repr(storage)
