"""S3: requests counted, faults survived or named, changes told, secrets kept."""

from __future__ import annotations

import io
import json
import pickle
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest
import s3fs
from pyarrow import fs as arrow_fs

from dask_loader import ParquetDataset
from dask_loader.errors import (
    ConfigError,
    DataChangedError,
    DataNotFoundError,
    StorageError,
)
from tests.remote.conftest import (
    FILE_ROWS,
    NUM_FILES,
    SECRET,
    Put,
    parquet,
    reached_by,
)
from tests.remote.servers import FaultProxy

NUM_ROWS = NUM_FILES * FILE_ROWS


def dataset(
    path: str, options: dict[str, Any] | None = None, **others: Any
) -> ParquetDataset:
    given: dict[str, Any] = {
        "footer_cache": False,
        "client": "threads",
        "batch_size": 400,
    }
    given |= {"shuffle_window": 400, "columns": ["id", "a", "b"]}
    given |= {"storage_options": options}
    return ParquetDataset(path, **(given | others))


def rows(data: ParquetDataset) -> list[tuple[int, float, int]]:
    found = []
    for batch in data:
        columns = [batch[name].tolist() for name in ("id", "a", "b")]
        found += list(zip(*columns, strict=True))
    return found


def expected(num_rows: int = NUM_ROWS) -> list[tuple[int, float, int]]:
    return [(i, i * 0.5, i % 7) for i in range(num_rows)]


def methods(line: FaultProxy) -> Counter[str]:
    return Counter(method for method, _, _ in line.log)


# For each window, and for each file of each process: s3fs's answers tell of which version
# they are, so no look is needed; pyarrow asks for a length before each read.
@pytest.mark.parametrize(
    ("client", "gets", "heads"),
    [("options", 1, 0), ("fsspec", 1, 0), ("arrow", 1, 2)],
)
def test_a_window_costs_one_read(
    data: str,
    s3_options: dict[str, Any],
    line: FaultProxy,
    client: str,
    gets: int,
    heads: int,
) -> None:
    path, given = reached_by(client, data, s3_options)
    with dataset(path, **given) as ds:
        if client == "options":
            # Is it a file or a folder (2 or 3), a list, a look that tells whether the
            # list may be trusted; then one for each footer.
            assert len(line.log) <= 5 + NUM_FILES
        line.log.clear()
        assert rows(ds) == expected()
    counts = methods(line)
    num_windows = NUM_FILES * 3
    assert counts["GET"] == num_windows * gets + NUM_FILES  # and the footers
    assert counts["HEAD"] == num_windows * heads + (NUM_FILES if heads else 0)


@pytest.mark.parametrize("lacking", ["etag", "content-range"])
def test_a_store_whose_answers_do_not_tell_is_looked_at_after_each_window(
    data: str, s3_options: dict[str, Any], line: FaultProxy, lacking: str
) -> None:
    with dataset(data, s3_options) as ds:
        line.log.clear()
        line.lacking = lacking
        assert rows(ds) == expected()
    assert methods(line)["HEAD"] == NUM_FILES * 3


def test_a_store_that_tags_answers_in_its_own_way_is_looked_at(
    data: str, s3_options: dict[str, Any], line: FaultProxy
) -> None:
    with dataset(data, s3_options) as ds:
        line.tag = '"of-this-answer"'
        assert rows(ds) == expected()


def test_metadata_costs_one_read_and_no_footers(
    data: str, put: Put, s3_options: dict[str, Any], line: FaultProxy
) -> None:
    system = s3fs.S3FileSystem(**s3_options)
    footers = []
    for path in system.glob(f"{data}*.parquet"):
        with system.open(path) as file:
            footers.append(pq.read_metadata(file))
        footers[-1].set_file_path(path.rpartition("/")[2])
    sink = io.BytesIO()
    schema = footers[0].schema.to_arrow_schema()
    line.log.clear()
    with dataset(data, s3_options):
        without = methods(line)["GET"]
    pq.write_metadata(schema, sink, metadata_collector=footers)
    written = int(time.time())
    while int(time.time()) == written:  # S3 tells times in seconds
        time.sleep(0.01)
    put(f"{data}_metadata", sink.getvalue())
    with dataset(f"{data}_metadata", s3_options) as ds:
        made = methods(line)
        # Of GETs, one is the listing. Looks: is it a file, and may the list be trusted.
        assert made["GET"] == 2
        assert made["HEAD"] <= 5
        line.log.clear()
        assert rows(ds) == expected()
    counts = methods(line)
    assert counts["GET"] == NUM_FILES * 3 + NUM_FILES
    line.log.clear()
    with dataset(data, s3_options):
        assert methods(line)["GET"] == without + 1
    put(f"{data}{footers[0].row_group(0).column(0).file_path}", parquet(7))
    with pytest.raises(DataChangedError, match=r"is not the file that '_metadata'"):
        dataset(f"{data}_metadata", s3_options)


@pytest.mark.parametrize("fault", ["503", "reset", "cut"])
@pytest.mark.parametrize(
    ("client", "shuffle"),
    [
        ("options", False),
        pytest.param("arrow", False, marks=pytest.mark.slow),
        pytest.param("options", True, marks=pytest.mark.slow),
        pytest.param("fsspec", True, marks=pytest.mark.slow),
    ],
)
def test_faults_of_every_third_request_change_no_row(
    data: str,
    s3_options: dict[str, Any],
    line: FaultProxy,
    fault: str,
    client: str,
    shuffle: bool,
) -> None:
    path, given = reached_by(client, data, s3_options)
    with dataset(path, shuffle=shuffle, seed=3, **given) as quiet:
        order = rows(quiet)
    assert sorted(order) == expected()
    line.fault, line.share = fault, 0.3
    with dataset(path, shuffle=shuffle, seed=3, **given) as ds:
        assert rows(ds) == order
    assert line.faults[fault] > 3


@pytest.mark.parametrize(
    ("fault", "client", "num_tries"),
    [
        ("503", "options", 8),
        ("cut", "options", 8),
        pytest.param("reset", "options", 8, marks=pytest.mark.slow),
        # Its own tries are not ours to turn off, and take their time.
        pytest.param("503", "arrow", 2, marks=pytest.mark.slow),
        pytest.param("cut", "arrow", 2, marks=pytest.mark.slow),
    ],
)
def test_a_store_that_always_fails_is_named_with_the_tries(
    data: str,
    s3_options: dict[str, Any],
    line: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    client: str,
    num_tries: int,
) -> None:
    monkeypatch.setattr("dask_loader.catalog.patience.MAX_TRIES", num_tries)
    path, given = reached_by(client, data, s3_options)
    ds = dataset(path, **given)
    line.fault = fault
    text = rf"{num_tries} tries in .* s failed"
    with ds, pytest.raises(StorageError, match=text) as caught:
        rows(ds)
    assert caught.value.path == "bucket/data/part-0.parquet"
    assert "part-0.parquet" in str(caught.value)
    assert "see that the store is up" in str(caught.value)
    assert SECRET not in repr(caught.value)
    if fault != "cut":  # a listing without its end is no list
        with pytest.raises(StorageError, match="cannot look at 'bucket/data'"):
            dataset(path, **given)


def test_a_store_that_says_nothing_is_given_up(
    data: str,
    s3_options: dict[str, Any],
    line: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ds = dataset(data, s3_options)
    monkeypatch.setattr("dask_loader.catalog.patience.DEADLINE_S", 1.0)
    line.fault = "hang"
    with ds, pytest.raises(StorageError, match=r"cannot read bytes .* tries in "):
        rows(ds)
    line.hang.set()


@pytest.mark.parametrize("how", ["replaced", "grown", "cut short", "removed"])
@pytest.mark.parametrize("warm", [False, True])
def test_an_object_that_changes_is_named_and_never_mixed(
    put: Put, s3_options: dict[str, Any], how: str, warm: bool
) -> None:
    content = parquet(0)
    path = f"bucket/change-{how.replace(' ', '-')}-{warm}/a.parquet"
    put(path, content)
    ds = dataset(f"s3://{path}", s3_options)
    if warm:
        assert rows(ds) == expected(FILE_ROWS)
    if how == "removed":
        s3fs.S3FileSystem(**s3_options).rm(path)
    else:
        other = {
            "replaced": parquet(1),
            "grown": parquet(0, FILE_ROWS * 2),
            "cut short": content[: len(content) // 2],
        }[how]
        put(path, other)
    with ds, pytest.raises(DataChangedError, match="make the dataset again") as caught:
        rows(ds)
    assert caught.value.path == path


@pytest.mark.parametrize("client", ["options", "arrow"])
def test_an_object_that_is_replaced_between_footer_and_columns_is_told(
    put: Put, s3_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    path = "bucket/between/a.parquet"
    put(path, parquet(0, 400))
    where, given = reached_by(client, f"s3://{path}", s3_options)
    ds = dataset(where, **given)
    _before_columns(monkeypatch, lambda _: put(path, parquet(1, 400)))
    with (
        ds,
        pytest.raises(DataChangedError, match="changed after the dataset was made"),
    ):
        rows(ds)


def test_bytes_of_another_version_that_a_look_does_not_see_are_read_again(
    put: Put, s3_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "bucket/between/b.parquet"
    contents = [parquet(first, 400) for first in (0, 1)]
    put(path, contents[0])
    with dataset(f"s3://{path}", s3_options) as ds:
        reads = _before_columns(
            monkeypatch,
            lambda number: put(path, contents[number == 0]),
            lambda: put(path, contents[0]),
        )
        assert rows(ds) == expected(400)
    assert reads == [0, 1]


def _before_columns(
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[int], None],
    after: Callable[[], None] = lambda: None,
) -> list[int]:
    """Do something before and after each read of columns, which are numbered."""
    from dask_loader.catalog.storage import Storage

    fetch, reads = Storage._fetch, list[int]()

    def spy(self: Storage, name: str, start: int, stop: int) -> Any:
        if start == 0:  # the file's end, which is all of so short a file
            return fetch(self, name, start, stop)
        reads.append(len(reads))
        before(reads[-1])
        got = fetch(self, name, start, stop)
        after()
        return got

    monkeypatch.setattr(Storage, "_fetch", spy)
    return reads


def test_a_secret_is_in_no_text_state_or_file(
    data: str, s3_options: dict[str, Any], tmp_path: Path, caplog: Any, capfd: Any
) -> None:
    caplog.set_level("DEBUG", logger="dask_loader")
    texts = []
    with dataset(data, s3_options, footer_cache=tmp_path) as ds:
        assert rows(ds) == expected()
        texts += [repr(ds), str(ds), ds.explain(), json.dumps(ds.state_dict())]
        texts += [repr(ds._read_options), repr(ds._catalog)[:100_000]]
        assert SECRET.encode() in pickle.dumps(ds._read_options)  # it travels
    with pytest.raises(DataNotFoundError, match="there is nothing at") as caught:
        dataset("s3://no-such-bucket-is-here/x", s3_options)
    texts += [str(caught.value), repr(caught.value.__cause__), caplog.text]
    texts += capfd.readouterr()
    kept = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert kept
    assert not [t for t in texts if SECRET in t]
    assert not [k for k in kept if SECRET.encode() in k]


@pytest.mark.parametrize("client", ["fsspec", "arrow"])
def test_a_file_system_that_is_given_is_used(
    data: str, s3_options: dict[str, Any], client: str
) -> None:
    path, given = reached_by(client, data, s3_options)
    with dataset(path, **given) as ds:
        assert rows(ds) == expected()
        again = pickle.loads(pickle.dumps(ds))
        assert SECRET not in repr(ds._read_options)
    with again:
        assert rows(again) == expected()


def test_file_systems_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    for given, options, text in (
        (3, None, "filesystem='int' is no file system"),
        (arrow_fs.LocalFileSystem(), {"a": 1}, "are given both"),
        (_Stuck(), None, "cannot be sent to other processes"),
    ):
        with pytest.raises(ConfigError, match=text):
            ParquetDataset(tmp_path, filesystem=given, storage_options=options)
    with pytest.raises(ConfigError, match="chains file systems with '::'"):
        ParquetDataset("simplecache::s3://bucket/x")


class _Stuck(s3fs.S3FileSystem):  # type: ignore[misc]
    def __reduce__(self) -> Any:
        raise TypeError("stuck")


@pytest.mark.slow
@pytest.mark.cluster
def test_dask_workers_read_s3_with_the_users_credentials(
    data: str, s3_options: dict[str, Any], local_cluster: Any
) -> None:
    pages = []
    with local_cluster.client() as client:
        address = client.run_on_scheduler(_web_address)
        with dataset(data, s3_options, client=local_cluster.address) as ds:
            batches = iter(ds)
            found = next(batches)["id"].tolist()
            for page in client.run_on_scheduler(_web_pages):
                with suppress(HTTPError):  # a task that is forgotten by now
                    with urlopen(f"{address}/{page}", timeout=240) as answer:
                        pages.append(answer.read().decode())
            for batch in batches:
                found += batch["id"].tolist()
        logs = str(client.get_worker_logs()) + str(client.get_scheduler_logs())
        story = str(client.run_on_scheduler(_tasks))
    assert found == list(range(NUM_ROWS))
    assert len(pages) > 3
    assert SECRET not in logs + story + "".join(pages)


def _tasks(dask_scheduler: Any) -> str:
    return repr(list(dask_scheduler.transition_log)) + repr(dask_scheduler.tasks)


def _web_address(dask_scheduler: Any) -> str:
    return f"http://127.0.0.1:{dask_scheduler.http_server.port}"


def _web_pages(dask_scheduler: Any) -> list[str]:
    """Return the dashboard's pages of text: the tasks', the workers' and the logs."""
    workers = [quote(address, safe="") for address in dask_scheduler.workers]
    keys = [quote(str(key), safe="") for key in dask_scheduler.tasks]
    return [
        "info/main/workers.html",
        "info/logs.html",
        *(f"info/worker/{worker}.html" for worker in workers),
        *(f"info/call-stacks/{worker}.html" for worker in workers),
        *(f"info/task/{key}.html" for key in keys),
        "metrics",
    ]
