"""Secrets that a user gives are nowhere that others look: planted, used, searched for."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import distributed
import fsspec
import psutil
import pyarrow as pa
import pytest

import cluster
from dask_loader import DaskLoaderError, ParquetDataset
from dask_loader.catalog.cache import _unpack
from dask_loader.catalog.storage import describe, make_storage
from dask_loader.engine.worker import run_window
from tests.remote.conftest import SECRET, parquet
from tests.remote.servers import FaultProxy, RangeServer, serving

_DEADLINE_S = 120.0
# Not fsspec's own and those below it: at DEBUG they write addresses as they are.
LOGGERS = ("distributed", "dask_loader", "asyncio", "aiohttp")
_MARK = "planted-5c1e"
USER, PASSWORD, SIGNATURE, HEADER, COOKIE, TOKEN, KEY, CLOSURE = (
    f"{_MARK}-{what}"
    for what in (
        *("user", "password", "signature", "header", "cookie", "token", "key"),
        "closure",
    )
)


class Watched:
    """A scheduler and a worker with its nanny: TLS, all logs at DEBUG, web pages on.

    Attributes:
        client: The test's own.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.certificates = cluster.create_certificates(folder / "certificates")
        settings = folder / "dask.yaml"
        settings.write_text(json.dumps({"logging": dict.fromkeys(LOGGERS, "debug")}))
        self.logs: list[Path] = []
        self.pids: list[int] = []
        self._stack, self._folder = stack, folder
        self._environ = {**os.environ, "DASK_CONFIG": str(settings)}
        self.security = cluster.load_certificates(self.certificates)
        file = folder / "scheduler.json"
        self._start("scheduler", "--port", "0", "--scheduler-file", str(file))
        self.address = self._wait_for(file)
        self._start("worker", self.address, "--nthreads", "2")
        self.client = stack.enter_context(
            distributed.Client(
                self.address, security=self.security, set_as_default=False
            )
        )
        self.client.wait_for_workers(1, timeout=_DEADLINE_S)

    def _start(self, role: str, *arguments: str) -> None:
        log = self._folder / f"{role}.log"
        self.logs.append(log)
        tls = {
            "ca-file": "ca.pem",
            "cert": f"{role}.pem",
            "key": f"{role}-key.pem",
        }
        with log.open("wb") as file:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", f"distributed.cli.dask_{role}"),
                    *(*arguments, "--host", "127.0.0.1", "--protocol", "tls"),
                    *("--dashboard-address", "127.0.0.1:0"),
                    *("--local-directory", str(self._folder)) * (role == "worker"),
                    *(
                        part
                        for name, value in tls.items()
                        for part in (f"--tls-{name}", str(self.certificates / value))
                    ),
                ],
                stdout=file,
                stderr=file,
                env=self._environ,
            )
        self.pids.append(process.pid)
        self._stack.callback(process.wait, _DEADLINE_S)
        self._stack.callback(process.terminate)

    def _wait_for(self, file: Path) -> str:
        deadline = time.monotonic() + _DEADLINE_S
        while time.monotonic() < deadline:
            with suppress(FileNotFoundError, json.JSONDecodeError):
                return str(json.loads(file.read_text())["address"])
            time.sleep(0.05)
        raise AssertionError(self.logs[0].read_text())

    def pages(self) -> dict[str, str]:
        """Return all web pages of the scheduler and the worker, as they are now."""
        found: dict[str, str] = {}
        port = self.client.run_on_scheduler(_web_port)
        workers = self.client.run(_worker_web_port)
        names = self.client.run_on_scheduler(_web_pages)
        asked = [(port, name) for name in names]
        asked += [(each, name) for each in workers.values() for name in _WORKER_PAGES]
        for each, name in asked:
            with suppress(HTTPError):  # a task that is forgotten by now
                with urlopen(f"http://127.0.0.1:{each}/{name}", timeout=60) as answer:
                    found[f"{each}/{name}"] = answer.read().decode()
        return found

    def graph(self) -> str:
        """Return all tasks and events, as the scheduler and the worker print them."""
        seen = self.client.run_on_scheduler(_all_of_scheduler)
        return str(seen) + str(self.client.run(_all_of_worker))

    def texts(self) -> dict[str, str]:
        """Return logs and command lines of all processes, this one's too."""
        found = {log.name: log.read_text() for log in self.logs}
        processes = [psutil.Process(pid) for pid in (*self.pids, os.getpid())]
        for process in list(processes):
            processes += process.children(recursive=True)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                found[f"arguments of {process.pid}"] = " ".join(process.cmdline())
                if process.pid != os.getpid():
                    found[f"environment of {process.pid}"] = str(process.environ())
        return found


_WORKER_PAGES = ("health", "metrics", "status", "main", "", "sitemap.json")


def _web_port(dask_scheduler: Any) -> int:
    return int(dask_scheduler.http_server.port)


def _worker_web_port(dask_worker: Any) -> int:
    return int(dask_worker.http_server.port)


def _web_pages(dask_scheduler: Any) -> list[str]:
    workers = [quote(address, safe="") for address in dask_scheduler.workers]
    keys = [quote(str(key), safe="") for key in dask_scheduler.tasks]
    return [
        *("info/main/workers.html", "info/main/exceptions.html", "info/main/logs.html"),
        *("json/counts.json", "json/identity.json", "json/index.html"),
        *("individual-plots.json", "sitemap.json", "health", "metrics", "status"),
        *(f"info/worker/{worker}.html" for worker in workers),
        *(f"info/logs/{worker}.html" for worker in workers),
        *(f"info/call-stacks/{worker}.html" for worker in workers),
        *(f"info/task/{key}.html" for key in keys),
        *(f"info/call-stack/{key}.html" for key in keys),
    ]


def _all_of_scheduler(dask_scheduler: Any) -> str:
    tasks = [
        (repr(t), repr(t.run_spec), str(t.run_spec), t.exception_text, t.traceback_text)
        for t in dask_scheduler.tasks.values()
    ]
    specs = [
        repr(getattr(t.run_spec, "args", "")) for t in dask_scheduler.tasks.values()
    ]
    return repr(
        [
            tasks,
            specs,
            list(dask_scheduler.transition_log),
            dask_scheduler.get_events(),
            dask_scheduler.identity(),
            dask_scheduler.get_logs(),
        ]
    )


def _all_of_worker(dask_worker: Any) -> str:
    tasks = dask_worker.state.tasks.values()
    return repr(
        [
            [(t, t.run_spec, getattr(t.run_spec, "args", "")) for t in tasks],
            list(dask_worker.state.log),
            dask_worker.get_logs(),
        ]
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with ExitStack() as stack:
        yield Watched(tmp_path_factory.mktemp("watched"), stack)


def own_log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return what this process logs from now on; caplog's records would keep windows."""
    written = io.StringIO()
    for name in LOGGERS:
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(written)])
        monkeypatch.setattr(logger, "propagate", False)
        monkeypatch.setattr(logger, "level", logging.DEBUG)
        logger.manager._clear_cache()  # type: ignore[attr-defined]
    return written


def all_texts(dataset: ParquetDataset) -> dict[str, str]:
    """Return what a dataset and its parts say of themselves."""
    run = dataset._course.plan_whole(dataset.world, 0)
    task = dataset._pipeline().partitions(run)[0][0]
    return {
        "dataset": f"{dataset!r} {dataset}",
        "explain": dataset.explain(),
        "state": json.dumps(dataset.state_dict()),
        "stats": str(dataset.stats()),
        "skipped": str(dataset.skipped),
        "options": repr(dataset._read_options) + repr(dataset.__dict__),
        "catalog": repr(dataset._catalog),
        "task": repr(task) + str(task),
        "delayed": "".join(
            repr(part) + repr(dict(part.dask)) + repr(part.dask.layers)
            for part in dataset.to_delayed(0)[:2]
        ),
    }


def error_texts(error: BaseException) -> str:
    """Return all that a traceback of an error would show."""
    found, seen = "", set[int]()
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        found += f"{each!r} {each} {each.__dict__}"
        todo += [each.__cause__]
        todo += [] if each.__suppress_context__ else [each.__context__]
    return found


def assert_clean(texts: dict[str, str], secrets: list[str]) -> None:
    leaks = {
        f"{secret!r} in {name}: {text[max(0, at - 200) : at + 100]}"
        for name, text in texts.items()
        for secret in secrets
        if (at := text.find(secret)) >= 0
    }
    assert not leaks, "\n".join(sorted(leaks))


def key_lines(watched: Watched) -> list[str]:
    """Return the lines of all private keys."""
    keys = [path.read_text() for path in watched.certificates.glob("*-key.pem")]
    return [line for key in keys for line in key.splitlines() if "--" not in line]


@pytest.mark.slow
@pytest.mark.cluster
def test_nothing_that_opens_a_store_is_seen(
    watched: Watched,
    data: str,
    s3_options: dict[str, Any],
    line: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    log = own_log(monkeypatch)
    (tmp_path / "a.parquet").write_bytes(parquet(0))
    options = {
        "headers": {"X-Api-Key": HEADER},
        "cookies": {"session": COOKIE},
        "client_kwargs": {"headers": {"Proxy-Authorization": f"Basic {TOKEN}"}},
    }
    texts: dict[str, str] = {}
    planted = [USER, PASSWORD, SIGNATURE, HEADER, COOKIE, TOKEN, KEY, CLOSURE, SECRET]

    def decryption(path: str, used: str = KEY) -> None:
        assert used

    def transform(table: pa.Table, used: str = CLOSURE) -> pa.Table:
        assert used
        return table

    def large(table: pa.Table, used: str = CLOSURE * 10_000) -> pa.Table:
        assert used  # too large to travel with each task
        return table

    with serving(RangeServer(tmp_path)) as web:
        bare = web.url.removeprefix("http://")
        url = f"http://{USER}:{PASSWORD}@{bare}/a.parquet?X-Amz-Signature={SIGNATURE}"
        s3 = {**s3_options, "token": TOKEN}
        for number, (path, given) in enumerate([(url, options), (data, s3)]):
            with ParquetDataset(
                path,
                columns=["id"],
                batch_size=50,
                shuffle_window=100,
                transform=large if number else transform,
                decryption=decryption if number else None,
                storage_options=given,
                client=watched.client,
                footer_cache=tmp_path / "cache",
                provenance=True,
            ) as dataset:
                rows = iter(dataset)
                ids = next(rows)["id"].tolist()
                texts |= {f"{k} {number}": v for k, v in watched.pages().items()}
                texts[f"graph {number}"] = watched.graph()
                for batch in rows:
                    ids += batch["id"].tolist()
                    texts["files"] = str(batch["__file__"])
                assert sorted(ids) == list(range(len(ids)))
                texts |= {f"{k} {number}": v for k, v in all_texts(dataset).items()}
                # As the engine submits them; kept, so that pages of a failure are seen.
                run = dataset._course.plan_whole(dataset.world, 0)
                (task, *_), *_ = dataset._pipeline().partitions(run)
                if number == 0:
                    (tmp_path / "a.parquet").write_bytes(parquet(7, 100))
                else:
                    line.fault = "403"
                kept = watched.client.submit(run_window, task, None, pure=False)
                error = kept.exception(_DEADLINE_S)
                assert isinstance(error, DaskLoaderError)
                texts[f"error {number}"] = error_texts(error)
                texts |= {f"{k} {number}": v for k, v in watched.pages().items()}
                texts[f"failed graph {number}"] = watched.graph()
                with pytest.raises(DaskLoaderError) as failed:
                    list(dataset)
                texts[f"error of the epoch {number}"] = error_texts(failed.value)
                del kept, error, failed
    texts |= watched.texts()
    texts["own log"] = log.getvalue()
    texts["warnings"] = str([str(w.message) for w in recwarn])
    for file in (tmp_path / "cache").iterdir():
        table = _unpack(file.read_bytes(), file.name)
        texts[file.name] = f"{table.schema.metadata} {table.to_pylist()}"
        assert table.num_rows
    # The search would be worth nothing if these told nothing.
    everything = "".join(texts.values())
    for shown in (
        "read-window-",
        "load-transform-",
        "run_window(",
        "Exception information",
        "403",
        "***",
    ):
        assert shown in everything
    assert "Message from" in texts["scheduler.log"]
    assert "Run out-of-band function 'look'" in texts["worker.log"]
    assert_clean(texts, planted + key_lines(watched))


def test_addresses_are_shown_without_what_opens_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = own_log(monkeypatch)
    planted = [USER, PASSWORD, SIGNATURE]
    whole = parquet(0)
    for name, content in (("a", whole), ("b", parquet(1200)), ("c", whole[:-9])):
        (tmp_path / f"{name}.parquet").write_bytes(content)
    with serving(RangeServer(tmp_path)) as web:
        bare = web.url.removeprefix("http://")
        urls = [
            f"http://{USER}:{PASSWORD}@{bare}/{name}.parquet?X-Amz-Signature={SIGNATURE}"
            for name in "abc"
        ]
        options: dict[str, Any] = {"shuffle_window": 100, "columns": ["id"]}
        options |= {"footer_cache": tmp_path / "cache", "client": "threads"}
        with pytest.warns(UserWarning, match="1 of 3 files are left out") as warned:
            dataset = ParquetDataset(urls, on_bad_files="skip", **options)
        texts = {"warning": str(warned[0].message)}
        with dataset:
            texts |= all_texts(dataset)
        assert "/c.parquet?X-Amz-Signature=***'" in texts["explain"] + texts["warning"]
        with ParquetDataset(urls[:2], on_error="skip-window", **options) as dataset:
            (tmp_path / "b.parquet").write_bytes(parquet(7))
            list(dataset)
            texts |= {
                f"{name} again": text for name, text in all_texts(dataset).items()
            }
            texts["own log"] = log.getvalue()
    assert "/b.parquet?X-Amz-Signature=***'" in texts["skipped again"]
    assert "/b.parquet?X-Amz-Signature=***'" in texts["state again"]
    assert "/b.parquet?X-Amz-Signature=***'" in texts["own log"]
    for file in (tmp_path / "cache").iterdir():
        table = _unpack(file.read_bytes(), file.name)
        texts[file.name] = f"{table.schema.metadata} {table.to_pylist()}"
        assert table.num_rows
    assert_clean(texts, planted)


def test_addresses_that_differ_by_what_is_hidden_are_told_apart() -> None:
    from dask_loader.catalog.remembered import _path_bytes

    urls = ["s3://b/a", "https://h/a?key=1", "https://h/a?key=2", "https://h/a?key=***"]
    assert len({_path_bytes(url) for url in urls}) == 4
    assert _path_bytes(urls[0]) == urls[0].encode()
    assert b"key=1" not in _path_bytes(urls[1])


def test_errors_of_stores_are_scrubbed_of_whatever_the_options_hold() -> None:
    options = {
        "headers": {"X-Api-Key": HEADER},
        "client_kwargs": {"auth": (USER, PASSWORD), "cookies": [{"a": COOKIE}]},
        "sas": TOKEN.encode(),
    }
    said = f"failed with {HEADER} {USER}:{PASSWORD} {COOKIE} {TOKEN}"
    given = fsspec.filesystem("http", **options, skip_instance_cache=True)
    for storage in (make_storage("http", options), describe(given, None)):
        assert storage.scrub(said) == "failed with *** ***:*** *** ***"
        assert _MARK not in repr(storage)
