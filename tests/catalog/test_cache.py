"""The cache's files: kept whole, or not there at all."""

from __future__ import annotations

import logging
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dask_loader.catalog import cache as cache_module
from dask_loader.catalog.cache import FooterCache, open_cache

TABLE = pa.table({"path": [b"/a", b"/b"], "num_rows": [[1, 2], []]})
OTHER = pa.table({"path": [b"/c"]})


@pytest.fixture
def cache(tmp_path: Path) -> FooterCache:
    return FooterCache(str(tmp_path / "some" / "folder"))


def only_file(cache: FooterCache) -> Path:
    (path,) = Path(cache.folder).iterdir()
    return path


def test_what_is_saved_is_loaded(cache: FooterCache) -> None:
    assert cache.load("answers", "key") is None
    cache.save("answers", "key", TABLE)
    cache.save("answers", "other", OTHER)
    cache.save("footers", "key", OTHER)
    assert cache.load("answers", "key").equals(TABLE)
    assert cache.load("answers", "other").equals(OTHER)
    assert cache.load("footers", "key").equals(OTHER)
    assert cache.load("footers", "other") is None
    cache.save("answers", "key", OTHER)
    assert cache.load("answers", "key").equals(OTHER)


def test_folder_and_files_are_the_users_alone(cache: FooterCache) -> None:
    before = os.umask(0)
    try:
        cache.save("answers", "key", TABLE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(cache.folder).st_mode) == 0o700
    assert stat.S_IMODE(only_file(cache).stat().st_mode) == 0o600


def test_a_damaged_file_counts_as_absent_and_is_written_anew(
    cache: FooterCache,
) -> None:
    cache.save("answers", "key", TABLE)
    file = only_file(cache)
    whole = file.read_bytes()
    flips = [
        whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :]
        for i in range(len(whole))
    ]
    cuts = [whole[:i] for i in range(0, len(whole), 7)]
    for damaged in (*flips, *cuts, whole + b"\0", whole + whole, b"PAR1"):
        file.write_bytes(damaged)
        assert cache.load("answers", "key") is None
    cache.save("answers", "key", TABLE)
    assert cache.load("answers", "key").equals(TABLE)


def test_a_file_in_the_place_of_another_counts_as_absent(cache: FooterCache) -> None:
    cache.save("answers", "key", TABLE)
    file = only_file(cache)
    cache.save("answers", "other", OTHER)
    (other,) = set(Path(cache.folder).iterdir()) - {file}
    other.replace(file)
    assert cache.load("answers", "key") is None
    cache.save("footers", "key", TABLE)
    for kept in Path(cache.folder).glob("*.footers"):
        kept.replace(kept.with_suffix(".answers"))
    assert cache.load("answers", "key") is None
    cache.save("answers", "key", TABLE)
    assert cache.load("answers", "key").equals(TABLE)


def test_a_table_of_another_version_counts_as_absent(
    cache: FooterCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.save("answers", "key", TABLE)
    monkeypatch.setattr(cache_module, "_MAGIC", b"dask_loader footers 2\n")
    assert cache.load("answers", "key") is None


def test_a_link_is_not_followed(cache: FooterCache, tmp_path: Path) -> None:
    cache.save("answers", "key", TABLE)
    file, target = only_file(cache), tmp_path / "target"
    file.rename(target)
    content = target.read_bytes()
    file.symlink_to(target)
    assert cache.load("answers", "key") is None
    cache.save("answers", "key", OTHER)
    assert not file.is_symlink()
    assert target.read_bytes() == content
    assert cache.load("answers", "key").equals(OTHER)


def test_a_pipe_in_a_files_place_is_not_waited_for(cache: FooterCache) -> None:
    cache.save("answers", "key", TABLE)
    file = only_file(cache)
    file.unlink()
    os.mkfifo(file, 0o600)
    assert cache.load("answers", "key") is None
    cache.save("answers", "key", TABLE)
    assert cache.load("answers", "key").equals(TABLE)


def test_what_others_own_or_may_write_is_not_used(
    cache: FooterCache, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    cache.save("answers", "key", TABLE)
    file, folder = only_file(cache), Path(cache.folder)
    caplog.set_level(logging.DEBUG, "dask_loader")
    file.chmod(0o620)
    assert cache.load("answers", "key") is None
    assert "can be written by others" in caplog.text
    file.chmod(0o600)
    folder.chmod(0o770)
    assert cache.load("answers", "key") is None
    cache.save("answers", "new", TABLE)
    assert list(folder.iterdir()) == [file]
    folder.chmod(0o700)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    assert cache.load("answers", "key") is None
    cache.save("answers", "new", TABLE)
    assert list(folder.iterdir()) == [file]
    assert f"belongs to user {uid}" in caplog.text
    assert all(record.levelno == logging.DEBUG for record in caplog.records)


def test_a_folder_that_cannot_be_made_is_no_cache(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, "dask_loader")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        cache = FooterCache(str(folder))
        cache.save("answers", "key", TABLE)
        assert cache.load("answers", "key") is None
    assert "not kept" in caplog.text


def test_a_write_that_fails_leaves_nothing_behind(
    cache: FooterCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.save("answers", "key", TABLE)
    file = only_file(cache)

    def full(*args: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    cache.save("answers", "key", OTHER)
    assert only_file(cache) == file
    assert cache.load("answers", "key").equals(TABLE)


def test_a_table_that_is_too_large_is_neither_kept_nor_read(
    cache: FooterCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.save("answers", "key", TABLE)
    monkeypatch.setattr(cache_module, "_MAX_FILE_BYTES", 100)
    assert cache.load("answers", "key") is None
    cache.save("answers", "other", TABLE)
    assert len(list(Path(cache.folder).iterdir())) == 1


def test_what_was_used_longest_ago_goes_first(
    cache: FooterCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = "abcd"
    folder = Path(cache.folder)
    files: dict[str, Path] = {}
    for age, key in enumerate(keys):
        known = set(files.values())
        cache.save("answers", key, TABLE)
        (files[key],) = set(folder.iterdir()) - known
        os.utime(files[key], (1000 + age, 1000 + age))
    (folder / "notes.txt").write_text("not ours" * 1000)
    assert cache.load("answers", "a") is not None  # used just now
    room = 3 * files["a"].stat().st_size
    monkeypatch.setattr(cache_module, "_MAX_FOLDER_BYTES", room)
    cache.save("answers", "e", TABLE)
    left = [key for key in "abcde" if cache.load("answers", key) is not None]
    assert left == ["a", "d", "e"]
    assert (folder / "notes.txt").exists()


def test_what_a_killed_process_left_is_removed_after_a_while(
    cache: FooterCache,
) -> None:
    cache.save("answers", "key", TABLE)
    old, new = (Path(cache.folder) / f"{c * 32}.writing" for c in "ab")
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    cache.save("answers", "key", TABLE)
    assert not old.exists()
    assert new.exists()


def test_readers_beside_writers_see_whole_tables(cache: FooterCache) -> None:
    tables = [pa.table({"x": [number] * 1000}) for number in range(3)]

    def write(table: pa.Table) -> None:
        for _ in range(20):
            cache.save("answers", "key", table)

    cache.save("answers", "key", tables[0])
    threads = [threading.Thread(target=write, args=(table,)) for table in tables]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert cache.load("answers", "key") in tables
    for thread in threads:
        thread.join()
    only_file(cache)


@pytest.mark.parametrize(
    ("asked", "environ", "folder"),
    [
        (False, {"HOME": "/h"}, None),
        (False, {"HOME": "/h", "DASK_LOADER_FOOTER_CACHE": "/f"}, None),
        (True, {"HOME": "/h"}, "/h/.cache/dask_loader"),
        (True, {"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/dask_loader"),
        (True, {"HOME": "/h", "XDG_CACHE_HOME": "x"}, "/h/.cache/dask_loader"),
        (True, {"HOME": "/h", "DASK_LOADER_FOOTER_CACHE": "0"}, None),
        (
            True,
            {"HOME": "/h", "DASK_LOADER_FOOTER_CACHE": "1"},
            "/h/.cache/dask_loader",
        ),
        (True, {"HOME": "/h", "DASK_LOADER_FOOTER_CACHE": "/f"}, "/f"),
        (True, {}, None),  # nobody's home
        ("/f", {"DASK_LOADER_FOOTER_CACHE": "0"}, "/f"),
        (Path("/f/g"), {}, "/f/g"),
    ],
)
def test_where_the_cache_lies(
    asked: Any, environ: dict[str, str], folder: str | None
) -> None:
    found = open_cache(asked, environ)
    assert (found and found.folder) == folder


def test_a_relative_folder_is_taken_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = open_cache("here", {})
    assert found is not None
    assert found.folder == str(tmp_path / "here")
