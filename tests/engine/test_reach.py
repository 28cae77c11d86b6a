"""Workers that do not see the files as this process does are named before any window."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import cluster
from dask_loader import ParquetDataset
from dask_loader.catalog.catalog import Catalog
from dask_loader.catalog.discover import Found
from dask_loader.catalog.storage import Sight, Stamp, Storage
from dask_loader.engine import reach
from dask_loader.engine.reach import (
    Reach,
    Sample,
    Seen,
    early_sample_of,
    look,
    sample_of,
    table,
)
from dask_loader.errors import DataChangedError, WorkerEnvironmentError
from tests.engine.conftest import catalog_of

_STAMP = Stamp(12, "1")


@pytest.fixture
def file(tmp_path: Path, small_data: Path) -> Path:
    return Path(shutil.copy(min(small_data.glob("*.parquet")), tmp_path / "a.parquet"))


def _sample(*files: Path) -> Sample:
    storage = Storage("file")
    return Sample(storage, tuple((str(f), storage.stamp(str(f))) for f in files))


def _run(workers: Any, function: Any, sample: Any) -> dict[str, Any]:
    return {worker: asyncio.run(function(sample)) for worker in workers}


# ---- which files ------------------------------------------------------------------------


def _found(protocol: str, *paths: str) -> Found:
    return Found(Storage(protocol), paths, {p: Sight(_STAMP, "") for p in paths})


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        (_found("file", "/d/x.parquet", "/d/y.parquet"), ["/d/x.parquet"]),
        (_found("file", "/mnt/a/x", "/mnt/b/y", "/mnt/a/z"), ["/mnt/a/x", "/mnt/b/y"]),
        (_found("file", *(f"/mnt/{i}/x" for i in range(9))), None),
        (_found("s3", "one/a/x", "one/b/y", "two/x"), ["one/a/x", "two/x"]),
        (_found("http", "http://h/a/x", "http://i/y"), ["http://h/a/x", "http://i/y"]),
    ],
)
def test_each_root_has_one_file_and_few_roots_are_looked_at(
    found: Found, chosen: list[str] | None
) -> None:
    paths = [path for path, _ in early_sample_of(found).files]
    assert paths == (chosen or [f"/mnt/{i}/x" for i in range(4)])


def test_a_remote_file_that_was_not_listed_is_not_asked_for_early() -> None:
    assert early_sample_of(Found(Storage("s3"), ("b/x",))).files == ()


def test_only_files_that_are_read_are_looked_at(small_data: Path) -> None:
    catalog: Catalog = catalog_of(small_data)
    assert sample_of(catalog).files[0][0] == catalog.files[0].path
    kept = catalog.num_kept * (catalog.file_index == 1)
    (only,) = sample_of(catalog.with_kept(kept)).files
    assert only == (catalog.files[1].path, catalog.files[1].stamp)
    assert sample_of(catalog.with_kept(kept * 0)).files == ()


def test_keys_of_encrypted_files_are_not_sent(small_data: Path) -> None:
    catalog = catalog_of(small_data)
    keys: Any = object()
    catalog = replace(catalog, storage=replace(catalog.storage, decryption=keys))
    assert sample_of(catalog).storage.decryption is None


# ---- what is wrong with a file ----------------------------------------------------------


def _shorter(file: Path) -> None:
    os.truncate(file, 100)


def _touched(file: Path) -> None:
    os.utime(file, ns=(5, 5))


def _no_parquet(file: Path) -> None:
    known = file.stat().st_mtime_ns
    file.write_bytes(b"x" * file.stat().st_size)
    os.utime(file, ns=(known, known))


def _folder_is_a_file(file: Path) -> None:
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("")


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda _: None, None),
        (Path.unlink, "nothing is there: another mount, or none?"),
        (_folder_is_a_file, "nothing is there: another mount, or none?"),
        (_shorter, "100 bytes, here NUM: another version of it?"),
        (
            _touched,
            "the same size, but of another time (5, here TIME): another version",
        ),
        (_no_parquet, "the same size and time, but it does not end as Parquet does"),
    ],
)
def test_what_is_wrong_is_said_in_words(
    file: Path, harm: Callable[[Path], None], text: str | None
) -> None:
    moved = file.parent / "data" / "a.parquet"
    moved.parent.mkdir()
    shutil.move(file, moved)
    sample = _sample(moved)
    stamp = sample.files[0][1]
    harm(moved)
    seen = asyncio.run(look(sample))
    assert seen.host
    if text is None:
        assert seen.wrong == ()
        return
    ((path, what),) = seen.wrong or ()
    assert path == str(moved)
    text = text.replace("NUM", str(stamp.num_bytes)).replace("TIME", stamp.version)
    assert what.startswith(text)


def test_a_file_system_that_is_not_installed_is_named() -> None:
    seen = asyncio.run(look(Sample(Storage("gopher"), (("x", _STAMP),))))
    ((_, what),) = seen.wrong or ()
    assert "cannot open the file system 'gopher'" in what


def test_secrets_of_the_options_are_in_no_text() -> None:
    storage = Storage("s3", (("secret", "marker-7f3a"), ("bad-marker-7f3a", "x")))
    seen = asyncio.run(look(Sample(storage, (("bucket/x", _STAMP),))))
    assert seen.wrong
    assert "marker-7f3a" not in repr(seen)


# ---- who is asked, and until when -------------------------------------------------------


def test_each_worker_looks_until_it_answers_and_then_no_more(file: Path) -> None:
    asked = []

    def ask(workers: list[str], function: Any, sample: Any) -> dict[str, Any]:
        asked.append(list(workers))
        answering = [w for w in workers if w != "busy" or len(asked) > 1]
        return _run(answering, function, sample)

    known = Reach()
    known.check(["a"], ask)
    assert not asked  # there is no file yet
    known.sample = _sample(file)
    for _ in range(3):
        known.check(["a", "busy"], ask)
    assert asked == [["a", "busy"], ["busy"]]


def test_all_workers_are_in_one_table_and_are_asked_again(file: Path) -> None:
    known = Reach()
    known.sample = _sample(file)
    gone = Seen("node7", ((str(file), "nothing is there"),))

    def ask(workers: Any, function: Any, sample: Any) -> dict[str, Any]:
        return _run(workers, function, sample) | {"tcp://1:1": gone, "tcp://2:2": gone}

    for _ in range(2):
        with pytest.raises(WorkerEnvironmentError) as caught:
            known.check(["tcp://1:1", "tcp://2:2", "tcp://3:3"], ask)
        lines = str(caught.value).splitlines()
        assert lines[0].startswith(
            "Dask workers do not see the files that this process"
        )
        assert lines[1:] == [
            f"  tcp://{i}:{i} (host node7): {str(file)!r}: nothing is there"
            for i in (1, 2)
        ]
    known.check(["tcp://1:1", "tcp://3:3"], _run)  # mended


def test_what_is_wrong_here_too_is_left_to_the_windows(file: Path) -> None:
    known = Reach()
    known.sample = _sample(file)
    file.unlink()
    known.check(["a"], _run)


def test_a_long_table_is_cut() -> None:
    seen = {f"w{i}": Seen("h", (("p", "x"),)) for i in range(25)}
    assert table(seen).splitlines()[-1] == "  and 5 more"
    assert len(table(seen).splitlines()) == 21


def test_a_mount_that_hangs_is_named_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "_ANSWER_S", 0.05)
    monkeypatch.setattr(reach, "_LOCAL_DEADLINE_S", 0.2)
    pipe = tmp_path / "a.parquet"  # opening it blocks until somebody writes
    os.mkfifo(pipe)
    known = Reach()
    storage = Storage("file")
    known.sample = Sample(storage, ((str(pipe), storage.stamp(str(pipe))),))
    asked = []

    def ask(workers: Any, function: Any, sample: Any) -> dict[str, Any]:
        asked.append(workers)
        return _run(workers, function, sample)

    text = (
        r"a \(host \S+\): '.*a.parquet': cannot be read for 0 s: a mount that hangs\?"
    )
    try:
        with pytest.raises(WorkerEnvironmentError, match=text):
            known.check(["a"], ask)
        assert len(asked) > 1
        assert len(reach._under_way) == 1  # all asked for the same look
    finally:
        with open(pipe, "wb"):
            pass


# ---- real workers -----------------------------------------------------------------------


@contextmanager
def _worker(folder: Path, *prefix: str, **environ: str) -> Iterator[cluster.Cluster]:
    with cluster.launch("local", workers=0) as launched:
        command = ["-m", "distributed.cli.dask_worker", launched.address, "--no-nanny"]
        with (folder / "log").open("wb") as log:
            worker = subprocess.Popen(
                [*prefix, sys.executable, *command, "--no-dashboard"],
                stdout=log,
                stderr=log,
                cwd=folder,
                env=os.environ | environ,
            )
        try:
            launched.wait_for_workers(1)
            yield launched
        finally:
            worker.kill()
            worker.wait(180)


def _needs_mounts() -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a mount of the worker's own needs root and unshare (util-linux)")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces cannot be made here")


@pytest.mark.cluster
def test_a_worker_with_another_mount_is_named_before_anything_is_read(
    small_data: Path, tmp_path: Path
) -> None:
    _needs_mounts()
    data, other = tmp_path / "data", tmp_path / "other"
    shutil.copytree(small_data, data)
    shutil.copytree(small_data, other, copy_function=shutil.copy)  # other times
    first = min(data.glob("*.parquet"))
    shutil.copystat(first, other / first.name)
    script = 'mount --bind "$0" "$1" && shift && exec "$@"'
    prefix = ("unshare", "-m", "sh", "-c", script, str(other), str(data))
    with _worker(tmp_path, *prefix) as launched:
        # The first file is the same; a later one is told by its window, with the worker.
        with ParquetDataset(data, client=launched, batch_size=64) as dataset:
            with pytest.raises(
                DataChangedError, match=r"seen by the Dask worker tcp://"
            ):
                list(dataset)
        os.utime(other / first.name, ns=(5, 5))
        with ParquetDataset(data, client=launched, batch_size=64) as dataset:
            with pytest.raises(
                WorkerEnvironmentError,
                match=rf"tcp://\S+ \(host \S+\): '{first}': the same size, but of ano",
            ):
                next(iter(dataset))
        (other / first.name).unlink()
        # Counting what a filter keeps is the first that runs on workers.
        with pytest.raises(
            WorkerEnvironmentError, match=r"nothing is there: another m"
        ):
            ParquetDataset(data, client=launched, filters=[("id", ">", 3)])
        shutil.copy2(first, other)
        for file in data.glob("*.parquet"):
            shutil.copystat(file, other / file.name)
        with ParquetDataset(data, client=launched, batch_size=None) as dataset:
            assert len(list(dataset)) == pq.ParquetDataset(data).read().num_rows


@pytest.mark.cluster
def test_a_worker_without_the_rights_is_named(small_data: Path, tmp_path: Path) -> None:
    caps = "-dac_override,-dac_read_search"
    prefix = ("setpriv", "--bounding-set", caps, "--inh-caps", caps)
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("a root that may not read all needs root and setpriv (util-linux)")
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("rights cannot be taken away here")
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    for file in data.iterdir():
        file.chmod(0)
    with _worker(tmp_path, *prefix) as launched:
        with ParquetDataset(data, client=launched, batch_size=64) as dataset:
            with pytest.raises(
                WorkerEnvironmentError,
                match=r"parquet': the user '\w+' may not read it",
            ):
                next(iter(dataset))
