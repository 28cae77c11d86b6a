"""From what the user writes to a list of files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader.catalog.discover import discover
from dask_loader.errors import ConfigError, DataNotFoundError

Write = Callable[..., str]


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's in-memory file system with two small files under /data."""
    system = fsspec.filesystem("memory")
    for name in ("/data/k=1/a.parquet", "/data/k=2/b.parquet", "/data/_SUCCESS"):
        with system.open(name, "wb") as file:
            pq.write_table(pa.table({"x": [1, 2]}), file)
    yield system
    system.rm("/data", recursive=True)


def names(folder: Path, path: Any) -> list[str]:
    return [os.path.relpath(found, folder) for found in discover(path).paths]


def test_a_file_is_itself_whatever_it_is_called(write: Write) -> None:
    for name in ("a.parquet", "data.bin", "_hidden", ".dot"):
        path = write(name)
        assert discover(path).paths == (path,)


def test_a_folder_is_searched_below_and_its_names_are_sorted(
    tmp_path: Path, write: Write
) -> None:
    for name in ("b.parquet", "sub/deep/c.parq", "a.pq", "sub/D.PARQUET", "notes.txt"):
        write(name)
    expected = ["a.pq", "b.parquet", "sub/D.PARQUET", "sub/deep/c.parq"]
    assert names(tmp_path, tmp_path) == expected


def test_hidden_names_are_left_out_at_every_depth(tmp_path: Path, write: Write) -> None:
    hidden = ("_x.parquet", ".y.parquet", "_temp/a.parquet", "s/.git/a.parquet")
    for name in (*hidden, "s/seen.parquet"):
        write(name)
    assert names(tmp_path, tmp_path) == ["s/seen.parquet"]


def test_the_given_folder_itself_may_be_hidden(tmp_path: Path, write: Write) -> None:
    write("_out/.run/a.parquet")
    assert names(tmp_path, tmp_path / "_out" / ".run") == ["_out/.run/a.parquet"]


def test_hive_folders_are_searched_also_where_the_key_begins_with_an_underscore(
    tmp_path: Path, write: Write
) -> None:
    for name in ("_day=2/p.parquet", "_day=10/p.parquet", "_day=1/p.parquet"):
        write(name)
    expected = [f"_day={day}/p.parquet" for day in (1, 2, 10)]
    assert names(tmp_path, tmp_path) == expected


def test_numbers_in_names_sort_by_value(tmp_path: Path, write: Write) -> None:
    for name in ("part.10", "part.2", "part.1", "part.02", "q.1"):
        write(f"{name}.parquet")
    found = names(tmp_path, tmp_path)
    assert [n.removesuffix(".parquet") for n in found] == [
        "part.1",
        "part.02",
        "part.2",
        "part.10",
        "q.1",
    ]
    assert names(tmp_path, f"{tmp_path}/p*.parquet") == found[:-1]


def test_a_glob_finds_files_and_folders(tmp_path: Path, write: Write) -> None:
    for name in ("day=1/a.parquet", "day=2/b.parquet", "other/c.parquet", "d.bin"):
        write(name)
    assert names(tmp_path, f"{tmp_path}/day=*") == [
        "day=1/a.parquet",
        "day=2/b.parquet",
    ]
    assert names(tmp_path, f"{tmp_path}/day=?/*.parquet") == [
        "day=1/a.parquet",
        "day=2/b.parquet",
    ]
    assert names(tmp_path, f"{tmp_path}/**/*.parquet") == [
        "day=1/a.parquet",
        "day=2/b.parquet",
        "other/c.parquet",
    ]
    assert names(tmp_path, f"{tmp_path}/*.bin") == ["d.bin"]


def test_a_name_with_glob_signs_that_exists_is_taken_literally(write: Write) -> None:
    path = write("x[1]/a?.parquet")
    assert discover(path).paths == (path,)
    assert discover(os.path.dirname(path)).paths == (path,)


def test_a_list_keeps_its_order_and_a_folder_in_it_is_sorted(
    tmp_path: Path, write: Write
) -> None:
    for name in ("z.parquet", "a.parquet", "d/2.parquet", "d/1.parquet"):
        write(name)
    given = [tmp_path / "z.parquet", str(tmp_path / "d"), f"{tmp_path}/a*.parquet"]
    expected = ["z.parquet", "d/1.parquet", "d/2.parquet", "a.parquet"]
    assert names(tmp_path, given) == expected
    assert names(tmp_path, tuple(given)) == expected


def test_a_relative_path_becomes_absolute(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write("d/a.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("d/a.parquet", "./d", Path("d"), "d/../d/*.parquet", "~/d"):
        assert discover(given).paths == (path,)


def test_a_file_url_is_a_local_path(write: Write, tmp_path: Path) -> None:
    path = write("sp ace#ü%20.parquet")
    for given in (
        f"file://{path}",
        f"file://{tmp_path}",
        f"file://{tmp_path}/*.parquet",
    ):
        found = discover(given)
        assert found.paths == (path,)
        assert found.storage.is_local


@pytest.mark.parametrize(
    "path", ["memory://data", "memory:///data/", "memory://data/k=*"]
)
def test_a_url_goes_through_fsspec(memory: Any, path: str) -> None:
    found = discover(path)
    assert found.paths == ("/data/k=1/a.parquet", "/data/k=2/b.parquet")
    assert found.storage.protocol == "memory"
    assert not found.storage.is_local


def test_storage_options_are_kept_and_never_printed() -> None:
    with fsspec.filesystem("memory").open("/one.parquet", "wb") as file:
        pq.write_table(pa.table({"x": [1]}), file)
    found = discover("memory://one.parquet", {"token": "hush"})
    assert found.storage.options == (("token", "hush"),)
    assert "hush" not in repr(found)
    fsspec.filesystem("memory").rm("/one.parquet")


def test_a_link_to_a_file_or_a_folder_is_followed_where_it_is_named(
    tmp_path: Path, write: Write
) -> None:
    write("real/a.parquet")
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "b.parquet").symlink_to(tmp_path / "real" / "a.parquet")
    assert names(tmp_path, tmp_path / "folder") == [
        "folder/a.parquet",
        "folder/b.parquet",
    ]


def test_a_file_named_twice_is_refused(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.parquet")
    monkeypatch.chdir(tmp_path)
    for given in (
        [path, path],
        [path, "a.parquet"],
        [tmp_path, path],
        [path, "*.parquet"],
    ):
        with pytest.raises(ConfigError, match="is named twice in path=") as caught:
            discover(given)
        assert repr(path) in str(caught.value)
        assert "name each file once" in str(caught.value)


def test_two_file_systems_are_refused(write: Write) -> None:
    path = write("a.parquet")
    with pytest.raises(ConfigError, match=r"several file systems \['file', 'memory'\]"):
        discover([path, "memory://data"])


@pytest.mark.parametrize("path", [None, 3, b"a.parquet", {"a"}, ["a", 3], [["a"]]])
def test_what_is_no_path_is_refused(path: Any) -> None:
    text = r"must be text, a pathlib\.Path, or a list of these; got "
    with pytest.raises(ConfigError, match=text) as caught:
        discover(path)
    assert f"path={path!r}" in str(caught.value)


@pytest.mark.parametrize("path", [[], ()])
def test_an_empty_list_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError, match="is empty; name at least one file or folder"):
        discover(path)


@pytest.mark.parametrize("path", ["", ["a", ""]])
def test_an_empty_name_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError, match="holds '', which names no file"):
        discover(path)


def test_a_path_that_is_not_there_is_named_as_given_and_as_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataNotFoundError, match="there is nothing at 'no/such'"
    ) as caught:
        discover("no/such")
    assert f"looked for '{tmp_path}/no/such'" in str(caught.value)
    assert "check the path, and that this machine can see it" in str(caught.value)
    assert caught.value.path == f"{tmp_path}/no/such"


def test_a_broken_link_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").symlink_to(tmp_path / "gone")
    with pytest.raises(DataNotFoundError, match="there is nothing at"):
        discover(tmp_path / "a.parquet")


def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataNotFoundError, match="nothing matches the pattern"
    ) as caught:
        discover(f"{tmp_path}/*.parquet")
    assert repr(f"{tmp_path}/*.parquet") in str(caught.value)


def test_a_folder_without_parquet_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="no files at all") as caught:
        discover(tmp_path)
    assert f"the folder {str(tmp_path)!r} holds no Parquet" in str(caught.value)
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataNotFoundError, match=r"it holds '.*a\.csv'") as caught:
        discover(tmp_path)
    assert ".parquet or .parq or .pq" in str(caught.value)
    with pytest.raises(DataNotFoundError, match="folders that hold no Parquet"):
        discover(f"{tmp_path.parent}/{tmp_path.name}*")


@pytest.mark.parametrize("url", ["nonsense://b/x", "s3-of-nobody://b/x"])
def test_an_unknown_protocol_is_named_without_the_options(url: str) -> None:
    with pytest.raises(ConfigError, match="cannot open the file system") as caught:
        discover(url, {"key": "hush"})
    assert "storage_options ['key']" in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "install the package that serves it" in str(caught.value)


@pytest.mark.parametrize("options", [["key"], {1: "x"}, "anon"])
def test_storage_options_must_be_a_dict_with_text_keys(
    options: Any, write: Write
) -> None:
    with pytest.raises(
        ConfigError, match="storage_options must be a dict with text keys"
    ):
        discover(write("a.parquet"), options)


def test_a_remote_listing_is_asked_anew_and_kept_as_far_as_it_speaks(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(memory, "invalidate_cache", lambda *path: asked.append(path))
    found = discover("memory:///data")
    assert asked == [()]
    assert set(found.listed) == set(found.paths)
    for path, sight in found.listed.items():
        # Its times differ in form from those of a look, and so will not be believed.
        assert sight.stamp.num_bytes == found.storage.stamp(path).num_bytes
    assert discover("memory:///data/k=1/a.parquet").listed == {}
