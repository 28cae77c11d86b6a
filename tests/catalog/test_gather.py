"""Which footers are opened at a start, and what is remembered of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import fsspec.implementations.memory
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dask_loader.catalog import footers as footers_module
from dask_loader.catalog import gather
from dask_loader.catalog.cache import FooterCache
from dask_loader.catalog.catalog import Catalog, read_catalog
from dask_loader.catalog.discover import discover
from dask_loader.catalog.storage import Storage
from dask_loader.errors import BadFileError, SchemaError

Write = Callable[..., str]
# Each asks for other columns or filters.
QUERIES: list[dict[str, Any]] = [
    {},
    {"columns": ("s",)},
    {"columns": ("x", "s")},
    {"filters": [("x", ">", 30)]},
    {"filters": [[("x", "<", 5)], [("s", "=", "12")]]},
    {"columns": ("s",), "filters": pc.field("x").isin([1, 2]) & (pc.field("x") < 9)},
]


@pytest.fixture(autouse=True)
def _files_settle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask_loader.catalog.storage.SETTLED_NS", 0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose footers were read, one entry for each reading."""
    paths: list[str] = []
    read = footers_module._read_tail

    def spy(storage: Storage, file: tuple[str, int]) -> bytes:
        paths.append(file[0])
        return read(storage, file)

    def never(storage: Storage, path: str) -> Any:
        raise AssertionError("a file was opened in another way")

    monkeypatch.setattr(footers_module, "_read_tail", spy)
    monkeypatch.setattr(footers_module, "footer_digest", never)
    return paths


@pytest.fixture
def files(write: Write) -> list[str]:
    """Five files with nulls here and there, one without a row group's worth of rows."""
    tables = [
        {
            "x": pa.array(range(n * 10, n * 10 + rows), pa.int64()),
            "s": pa.array([None if n == 2 else f"{i:02}" for i in range(rows)]),
        }
        for n, rows in enumerate((7, 1, 9, 0, 12))
    ]
    for table in tables:
        table["s"] = table["s"].cast(pa.string())
    return [
        write(f"d/{n}.parquet", table, row_group_size=5)
        for n, table in enumerate(tables)
    ]


@pytest.fixture
def cache(tmp_path: Path) -> FooterCache:
    return FooterCache(str(tmp_path / "cache"))


def read(paths: list[str], cache: FooterCache | None, **query: Any) -> Catalog:
    return read_catalog(
        Storage("file"),
        paths,
        columns=query.get("columns"),
        filters=query.get("filters"),
        run=lambda function, items: [function(item) for item in items],
        cache=cache,
        on_front=query.get("on_front"),
    )


def content(catalog: Catalog) -> dict[str, Any]:
    """All of a catalog in values that can be compared."""
    numbers = ("file_index", "row_group", "num_rows", "num_bytes", "num_kept")
    found = {name: getattr(catalog, name).tolist() for name in numbers}
    assert all(getattr(catalog, name).dtype == np.int64 for name in numbers)
    nulls = {name: counts.tolist() for name, counts in catalog.null_counts.items()}
    plain = ("files", "schema", "forms", "filter_text", "filter_columns")
    return {
        **found,
        **{name: getattr(catalog, name) for name in plain},
        "nulls": nulls,
        "prints": catalog.fingerprints(),
    }


@pytest.mark.parametrize("query", QUERIES)
def test_a_warm_start_reads_no_footer_and_knows_the_same(
    query: dict[str, Any], files: list[str], cache: FooterCache, opened: list[str]
) -> None:
    expected = content(read(files, None, **query))
    opened.clear()
    assert content(read(files, cache, **query)) == expected
    assert opened == files
    opened.clear()
    for _ in range(2):
        assert content(read(files, cache, **query)) == expected
    assert opened == []


def test_without_a_cache_each_footer_is_read_once(
    files: list[str], opened: list[str]
) -> None:
    for _ in range(2):
        opened.clear()
        read(files, None)
        assert opened == files


def test_another_query_takes_its_answers_from_remembered_footers(
    files: list[str], cache: FooterCache, opened: list[str]
) -> None:
    expected = [content(read(files, None, **query)) for query in QUERIES]
    read(files, cache)
    opened.clear()
    assert [content(read(files, cache, **query)) for query in QUERIES] == expected
    assert opened == []


def test_only_what_changed_is_read(
    files: list[str], cache: FooterCache, opened: list[str], write: Write
) -> None:
    read(files, cache)
    opened.clear()
    changed = write("d/1.parquet", {"x": range(3), "s": ["a", "b", "c"]})
    added = write("d/5.parquet", {"x": range(4), "s": ["a"] * 4}, row_group_size=3)
    now = [files[4], added, files[0], changed]  # two are gone, the order is another
    expected = content(read(now, None))
    opened.clear()
    assert content(read(now, cache)) == expected
    assert sorted(opened) == [changed, added]
    opened.clear()
    assert content(read(now, cache)) == expected
    assert content(read(files, cache)) == content(read(files, None))
    assert opened == files  # by the last reading, which has no cache


def test_the_first_file_may_be_the_one_that_changed(
    files: list[str], cache: FooterCache, opened: list[str], write: Write
) -> None:
    read(files, cache)
    write("d/0.parquet", {"x": pa.array([1], pa.int64()), "s": ["q"]})
    expected = content(read(files, None))
    opened.clear()
    assert content(read(files, cache)) == expected
    assert opened == files[:1]


def test_a_file_rewritten_with_its_old_length_and_time_is_read_anew(
    write: Write, cache: FooterCache
) -> None:
    path = write("1.parquet", {"x": [1, 2]}, compression="none", use_dictionary=False)
    before, old = os.stat(path), read([path], cache)
    write("1.parquet", {"x": [3, 4]}, compression="none", use_dictionary=False)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(path).st_size == before.st_size
    new = read([path], cache)
    assert new.files[0].stamp == old.files[0].stamp
    assert new.files[0].digest != old.files[0].digest


def test_lists_of_files_of_one_folder_do_not_displace_each_other(
    files: list[str], cache: FooterCache, opened: list[str]
) -> None:
    train, test = files[:3], files[3:]
    read(train, cache)
    read(test, cache)
    opened.clear()
    assert content(read(train, cache))["files"][0].path == files[0]
    assert read(test, cache).total_rows == 12
    assert read(files, cache).total_rows == 29
    assert opened == []


def test_files_that_are_gone_are_forgotten_where_room_is_short(
    files: list[str],
    cache: FooterCache,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dask_loader.catalog.remembered._MAX_OTHERS_BYTES", 0)
    read(files[:3], cache)
    read(files[3:], cache)
    opened.clear()
    read(files[3:], cache)
    assert opened == []
    read(files[:3], cache)
    assert opened == files[:3]


def test_a_file_that_was_just_written_is_not_remembered(
    files: list[str],
    cache: FooterCache,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def years_ago(path: str) -> bool:
        return path != files[2]

    look = Storage.look

    def look_early(storage: Storage, path: str) -> Any:
        settled = 0 if years_ago(path) else 1 << 62
        monkeypatch.setattr("dask_loader.catalog.storage.SETTLED_NS", settled)
        return look(storage, path)

    monkeypatch.setattr(Storage, "look", look_early)
    for _ in range(2):
        opened.clear()
        read(files, cache)
    assert opened == [files[2]]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    files: list[str],
    cache: FooterCache,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parse = gather.parse_footers

    def parse_late(*args: Any) -> pa.Table:
        os.utime(files[1], ns=(0, 0))
        os.remove(files[3])
        return parse(*args)

    monkeypatch.setattr(gather, "parse_footers", parse_late)
    read(files, cache)
    monkeypatch.undo()
    opened.clear()
    kept = [Path(p.decode()).name for p in _kept_paths(cache)]
    assert kept == ["0.parquet", "2.parquet", "4.parquet"]


def _kept_paths(cache: FooterCache) -> list[bytes]:
    """The paths in the cache's one table of footers."""
    (file,) = Path(cache.folder).glob("*.footers")
    found: list[bytes] = _table(file)["path"].to_pylist()
    return found


def _table(file: Path) -> pa.Table:
    from dask_loader.catalog.cache import _unpack

    return _unpack(file.read_bytes(), file.name)


def test_damaged_cache_files_cost_time_and_change_nothing(
    files: list[str], cache: FooterCache, opened: list[str]
) -> None:
    query = QUERIES[3]
    expected = content(read(files, None, **query))
    rng = np.random.default_rng(0)
    for round_number in range(30):
        read(files, cache, **query)
        for file in Path(cache.folder).iterdir():
            whole = bytearray(file.read_bytes())
            if round_number % 3 == 0:
                del whole[int(rng.integers(len(whole))) :]
            else:
                whole[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
            file.write_bytes(whole)
        opened.clear()
        assert content(read(files, cache, **query)) == expected
        assert opened == files


def test_a_whole_table_of_something_else_changes_nothing(
    files: list[str], cache: FooterCache
) -> None:
    expected = content(read(files, cache))
    for file in Path(cache.folder).iterdir():
        cache.save("answers", "x", pa.table({"y": [1]}))
        (other,) = set(Path(cache.folder).glob("*.answers")) - {file} - _before(cache)
        file.write_bytes(other.read_bytes())
        other.unlink()
    assert content(read(files, cache)) == expected


def _before(cache: FooterCache) -> set[Path]:
    from dask_loader.catalog.cache import _name

    return set(Path(cache.folder).iterdir()) - {
        Path(cache.folder) / _name("answers", "x")
    }


def test_errors_are_the_same_on_a_warm_start(
    write: Write, cache: FooterCache, opened: list[str]
) -> None:
    good, other = write("1.parquet", {"x": [1]}), write("2.parquet", {"x": ["a"]})
    for _ in range(2):
        with pytest.raises(SchemaError, match="files disagree about column 'x'"):
            read([good, other], cache)
    assert opened == [good, other]
    with open(other, "wb") as file:
        file.write(b"no parquet")
    for _ in range(2):
        with pytest.raises(BadFileError, match="is not a readable Parquet file"):
            read([good, other], cache)


def test_very_many_footers_are_remembered_as_answers_only(
    files: list[str],
    cache: FooterCache,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gather, "_MOST_HERE_BYTES", 0)
    monkeypatch.setattr(gather, "_FILES_PER_TASK", 2)
    expected = content(read(files, None))
    assert content(read(files, cache)) == expected
    assert [file.suffix for file in Path(cache.folder).iterdir()] == [".answers"]
    opened.clear()
    assert content(read(files, cache)) == expected
    assert opened == []


# ---- file systems elsewhere


class Tagged(fsspec.implementations.memory.MemoryFileSystem):
    """Memory that tags contents, as object stores do, and counts its round trips."""

    protocol = "tagged"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    calls: list[str] = []  # noqa: RUF012
    listing_tags = True

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("tagged://", "memory://")))

    def _tag(self, info: dict[str, Any]) -> dict[str, Any]:
        if info["type"] == "file":
            info = {**info, "ETag": f'"{hash(self.store[info["name"]].getvalue())}"'}
        return info

    def info(self, path: str, **options: Any) -> Any:
        self.calls.append("info")
        return self._tag(super().info(path, **options))

    def find(self, path: str, **options: Any) -> Any:
        self.calls.append("find")
        found = super().find(path, **options)
        if not self.listing_tags or not options.get("detail"):
            return found
        return {name: self._tag(info) for name, info in found.items()}

    def cat_file(self, path: str, *args: Any, **options: Any) -> Any:
        self.calls.append("cat")
        return super().cat_file(path, *args, **options)


@pytest.fixture
def tagged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tagged]:
    fsspec.register_implementation("tagged", Tagged, clobber=True)
    system = fsspec.filesystem("tagged", secret="MARKER-OF-A-SECRET")
    for number in range(6):
        with system.open(f"/d/{number}.parquet", "wb") as file:
            pq.write_table(pa.table({"x": range(number + 1)}), file)
    Tagged.calls.clear()
    yield system
    system.rm("/d", recursive=True)


def read_tagged(cache: FooterCache | None) -> Catalog:
    found = discover("tagged:///d", {"secret": "MARKER-OF-A-SECRET"})
    return read_catalog(
        found.storage,
        found.paths,
        columns=None,
        filters=None,
        run=lambda function, items: [function(item) for item in items],
        listed=found.listed,
        cache=cache,
    )


def test_a_store_is_asked_once_for_each_footer_and_once_for_all_names(
    tagged: Tagged, cache: FooterCache
) -> None:
    assert read_tagged(cache).num_rows.tolist() == [1, 2, 3, 4, 5, 6]
    assert Tagged.calls.count("cat") == 6
    assert Tagged.calls.count("find") == 1
    cold = Tagged.calls.count("info")
    assert cold < 6
    Tagged.calls.clear()
    assert read_tagged(cache).num_rows.tolist() == [1, 2, 3, 4, 5, 6]
    assert Tagged.calls.count("cat") == 0
    assert Tagged.calls.count("info") == cold
    with tagged.open("/d/2.parquet", "wb") as file:
        pq.write_table(pa.table({"x": range(9)}), file)
    Tagged.calls.clear()
    assert read_tagged(cache).num_rows.tolist() == [1, 2, 9, 4, 5, 6]
    assert Tagged.calls.count("cat") == 1


def test_a_listing_that_says_otherwise_than_a_look_is_not_believed(
    tagged: Tagged, cache: FooterCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tagged, "listing_tags", False)
    catalog = read_tagged(cache)
    assert Tagged.calls.count("info") >= 6
    storage = catalog.storage
    for file in catalog.files:
        storage.check(file.path, file.stamp)


def test_secrets_do_not_enter_the_cache(tagged: Tagged, cache: FooterCache) -> None:
    read_tagged(cache)
    kept = list(Path(cache.folder).iterdir())
    assert len(kept) == 2
    for file in kept:
        table = _table(file)
        text = f"{file.name} {table.schema.metadata} {table.to_pylist()}"
        assert "MARKER" not in text
        assert b"MARKER" not in file.read_bytes()


def test_a_store_without_tags_is_not_remembered(
    cache: FooterCache,
) -> None:
    system = fsspec.filesystem("memory")
    with system.open("/untagged/1.parquet", "wb") as file:
        pq.write_table(pa.table({"x": [1]}), file)
    found = discover("memory:///untagged")
    read_catalog(
        found.storage,
        found.paths,
        columns=None,
        filters=None,
        run=lambda function, items: [function(item) for item in items],
        listed=found.listed,
        cache=cache,
    )
    assert not Path(cache.folder).exists()
    system.rm("/untagged", recursive=True)


@pytest.mark.parametrize("most_here", [gather._MOST_HERE_BYTES, 0])
@pytest.mark.parametrize("known", [(), (0,), (1, 3), (0, 1, 4)])
def test_the_first_files_are_told_of_before_the_others_are_read(
    known: tuple[int, ...],
    most_here: int,
    files: list[str],
    cache: FooterCache,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gather, "_MANY_FOOTERS", 1)
    monkeypatch.setattr(gather, "_FIRST_FOOTERS", 1)
    monkeypatch.setattr(gather, "_MOST_HERE_BYTES", most_here)
    if known:
        read([files[number] for number in known], cache)
    fronts, read_before = [], []

    def on_front(front: Catalog) -> None:
        fronts.append(front)
        read_before.extend(opened)

    opened.clear()
    whole = read(files, cache, on_front=on_front)
    missing = [path for path in files if files.index(path) not in known]
    assert opened == missing
    assert read_before == missing[:1]
    (front,) = fronts
    (length,) = {len(front.files), files.index(missing[1])}
    assert front.files == whole.files[:length]
    groups = int((whole.file_index < length).sum())
    for name in ("file_index", "row_group", "num_rows", "num_bytes", "num_kept"):
        numbers = getattr(whole, name)[:groups].tolist()
        assert getattr(front, name).tolist() == numbers
    assert front.forms == whole.forms
    assert content(whole) == content(read(files, None))


def test_first_files_that_disagree_are_told_of_with_all_the_others(
    files: list[str], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "_MANY_FOOTERS", 1)
    monkeypatch.setattr(gather, "_FIRST_FOOTERS", 3)
    write("d/1.parquet", {"x": ["a"], "s": ["b"]})
    fronts: list[Catalog] = []
    with pytest.raises(SchemaError, match=r"has type string in '.*1\.parquet'"):
        read(files, None, on_front=fronts.append)
    assert fronts == []
