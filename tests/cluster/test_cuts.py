"""An epoch over lines that are cut and healed, or long, lossy and slow.

Scheduler, workers and trainer are programs on hosts of their own, which are network
namespaces: no window comes through shared memory.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader import ParquetDataset
from tests.cluster.cut_consumer import told
from tests.cluster.network import Network, network_of
from tests.cluster.sshd import Sshd, serve

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.faults]

# The scheduler's host, two of workers, the trainer's, and a trainer's that is far.
_SCHEDULER, _WORKERS, _NEAR, _FAR = "a", "bc", "d", "f"
_PORT = "8786"
_ROOT = Path(__file__).parents[2]
_DEADLINE_S = 180.0  # for a batch, or the begin of a program
_POLL_S = 0.05

_NUM_ROWS, _ROW_GROUP_ROWS = 60_000, 1000
_TAKEN_BEFORE = 17  # of 120 batches; no more than 8 windows are under way after it
_OPTIONS: dict[str, Any] = {
    "batch_size": 500,
    "shuffle": True,
    "shuffle_window": 1000,
    "num_splits": 2,
    "memory_limit": "64 MiB",
}
# Cuts as long as this are tried where it is set: minutes.
_LONG = os.environ.get("DASK_LOADER_LONG_CUTS")

Batches = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 windows of 120 kB: two seconds of the far host's line."""
    rng = np.random.default_rng(7)
    columns: dict[str, Any] = {"id": np.arange(_NUM_ROWS)}
    for number in range(12):
        columns[f"x{number}"] = rng.standard_normal(_NUM_ROWS)
    columns["name"] = [f"row {i}" for i in range(_NUM_ROWS)]
    path = tmp_path_factory.mktemp("data") / "data.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=_ROW_GROUP_ROWS)
    return path


@pytest.fixture(scope="module")
def wanted(data: Path) -> Batches:
    with ParquetDataset(data, client="threads", **_OPTIONS) as dataset:
        return [told(batch) for batch in dataset]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    hosts = _SCHEDULER + _WORKERS + _NEAR + _FAR
    with network_of(hosts, prefix="dcc", far=_FAR) as made:
        yield made


class Programs:
    """A scheduler and workers, each on a host of its own."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.address = f"tcp://{network.address(_SCHEDULER)}:{_PORT}"
        self._folder = folder
        self._number = 0
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    @contextmanager
    def scheduler(self) -> Iterator[None]:
        module, options = "dask_scheduler", ("--port", _PORT, "--no-show")
        with self._run(_SCHEDULER, module, *options) as (_, log):
            _until(lambda: "Scheduler at" in log.read_text(), "a scheduler")
            yield

    @contextmanager
    def workers(self) -> Iterator[None]:
        """Start those that do not run."""
        with ExitStack() as stack:
            logs = []
            for host in _WORKERS:
                if host in self._workers and self._workers[host].poll() is None:
                    continue
                options = (self.address, "--nthreads", "1", "--no-nanny")
                folder = ("--local-directory", str(self._folder / host))
                self._workers[host], log = stack.enter_context(
                    self._run(host, "dask_worker", *options, *folder)
                )
                logs.append(log)
            for log in logs:
                _until(lambda log=log: "Registered to" in log.read_text(), log.name)
            yield

    @contextmanager
    def _run(self, host: str, module: str, *options: str) -> Iterator[Any]:
        self._number += 1
        log = self._folder / f"{self._number}-{host}.log"
        command = (sys.executable, "-m", f"distributed.cli.{module}", *options)
        where = ("--host", self.network.address(host), "--no-dashboard")
        with log.open("wb") as file:
            process = subprocess.Popen(
                self.network.inside(host, *command, *where),
                stdout=file,
                stderr=file,
                env=os.environ | {"PYTHONPATH": str(_ROOT)},
            )
        try:
            yield process, log
        finally:
            process.kill()
            process.wait(30)


def _until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {_DEADLINE_S:g} s: {what}"
        time.sleep(_POLL_S)


@pytest.fixture(scope="module")
def started(
    network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Programs]:
    made = Programs(network, tmp_path_factory.mktemp("programs"))
    with made.scheduler(), made.workers():
        yield made


@pytest.fixture
def programs(started: Programs) -> Iterator[Programs]:
    with started.workers():  # a cut may have ended some
        yield started


@pytest.fixture(scope="module")
def sshd(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    folder, host = tmp_path_factory.mktemp("sshd"), _WORKERS[0]
    with serve(
        folder, address=network.address(host), inside=network.inside(host)
    ) as served:
        yield served


class Consumer:
    """A trainer on a host, which takes batches when it is told to.

    Attributes:
        num_ends: How often it has taken all that it was told to.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.num_ends = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.num_ends += "took_s" in line
            self._lines.put(line)
        self._lines.put("")

    def tell(self, num_batches: int) -> None:
        """Let it take so many batches, or all that are left where it is 0."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{num_batches}\n")
        self.process.stdin.flush()

    def next(self) -> dict[str, Any]:
        """A batch, or how it ended with those it was told to take."""
        line = self._lines.get(timeout=_DEADLINE_S)
        assert line, f"the trainer ended: {self._log.read_text()[-3000:]}"
        return json.loads(line)

    def rest(self) -> tuple[Batches, dict[str, Any]]:
        """All batches that come until an end, and that."""
        got = []
        while "ids" in (said := self.next()):
            got.append(said)
        return got, said

    def lives_for(self, seconds: float) -> None:
        """Let so much time go by; it must not end."""
        with pytest.raises(subprocess.TimeoutExpired):
            self.process.wait(seconds)


@contextmanager
def _consumer(
    network: Network, host: str, folder: Path, **options: Any
) -> Iterator[Consumer]:
    options = _OPTIONS | {"revived": False} | options
    command = (sys.executable, "-m", "tests.cluster.cut_consumer", json.dumps(options))
    log = folder / "trainer.log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            network.inside(host, *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=_ROOT,
            # Hosts share no memory; namespaces would.
            env=os.environ
            | {"PYTHONPATH": str(_ROOT), "DASK_LOADER_HAND_OVER": "comm"},
        ) as process,
    ):
        try:
            yield Consumer(process, log)
        finally:
            process.kill()
            network.heal(host)


def _differ(got: Batches, wanted: Batches) -> list[int]:
    """Numbers of batches that are not as they should be; all after the last too."""
    longest = max(len(got), len(wanted))
    return [i for i in range(longest) if got[i : i + 1] != wanted[i : i + 1]]


def _cases(*short: Any, long: list[Any]) -> list[Any]:
    asked = pytest.mark.skipif(not _LONG, reason="DASK_LOADER_LONG_CUTS is not set")
    return [*short, *(pytest.param(*case, marks=asked) for case in long)]


@pytest.mark.parametrize(
    ("host", "cut_s", "silently"),
    _cases(
        (_NEAR, 5, True),
        long=[(_NEAR, 5, False), (_FAR, 5, True), (_FAR, 5, False)],
    ),
)
def test_a_short_cut_of_the_trainers_line_changes_no_batch(
    programs: Programs,
    data: Path,
    wanted: Batches,
    tmp_path: Path,
    host: str,
    cut_s: float,
    silently: bool,
) -> None:
    network, address = programs.network, programs.address
    with _consumer(network, host, tmp_path, path=str(data), client=address) as consumer:
        got = _take_over_a_cut(network, consumer, host, host, cut_s, silently)
        more, end = consumer.rest()
    assert "error" not in end, end
    assert _differ(got + more, wanted) == []


def _take_over_a_cut(
    network: Network,
    consumer: Consumer,
    host: str,
    cut_host: str,
    cut_s: float,
    silently: bool,
) -> Batches:
    """Cut a line when some batches were taken, heal it, and let all others be taken.

    Where the trainer is far it goes on meanwhile, for its windows take long to come: the
    line is cut while they do. Another one waits for the cut.
    """
    consumer.tell(0 if host == _FAR else _TAKEN_BEFORE)
    got = [consumer.next() for _ in range(_TAKEN_BEFORE)]
    if host != _FAR:
        assert "took_s" in consumer.next()
    num_ends = consumer.num_ends
    network.cut(cut_host, silently=silently)
    if host != _FAR:
        consumer.tell(0)
    consumer.lives_for(cut_s)
    if cut_host == host:
        assert consumer.num_ends == num_ends  # what was left could not come
    network.heal(cut_host)
    return got


@pytest.mark.parametrize("revived", [False, True])
@pytest.mark.parametrize("silently", [False, True])
@pytest.mark.parametrize("host", [_NEAR, _FAR])
@pytest.mark.skipif(not _LONG, reason="DASK_LOADER_LONG_CUTS is not set")
def test_after_a_long_cut_of_the_trainers_line_it_goes_on_or_names_it(
    programs: Programs,
    data: Path,
    wanted: Batches,
    tmp_path: Path,
    host: str,
    silently: bool,
    revived: bool,
) -> None:
    network, where = programs.network, {"client": programs.address}
    with _consumer(
        network, host, tmp_path, path=str(data), revived=revived, **where
    ) as consumer:
        got = _take_over_a_cut(network, consumer, host, host, 30, silently)
        more, end = consumer.rest()
        got += more
        if revived:
            assert "error" not in end, end
        if "error" in end:
            assert end["error"] == "SchedulerUnreachableError"
            assert "did not come back within 15 s" in end["text"]
            # In a program anew, and in the same one.
            with ParquetDataset(data, client="threads", **_OPTIONS) as dataset:
                dataset.load_state_dict(end["state"])
                assert _differ(got + [told(b) for b in dataset], wanted) == []
            consumer.tell(0)
            more, end = consumer.rest()
            got += more
    assert "error" not in end, end
    assert _differ(got, wanted) == []


@pytest.mark.parametrize("cut_s", [5, 30])
@pytest.mark.skipif(not _LONG, reason="DASK_LOADER_LONG_CUTS is not set")
def test_a_cut_of_the_line_to_an_ssh_cluster_of_the_trainers_own_changes_no_batch(
    network: Network,
    sshd: Sshd,
    data: Path,
    wanted: Batches,
    tmp_path: Path,
    cut_s: float,
) -> None:
    # Hosts that hear nothing for 20 s end everything, and are given it again.
    host = network.address(_WORKERS[0])
    ssh = {k: str(v) for k, v in sshd.options.items()}
    ssh |= {"hosts": [host], "ssh_port": sshd.port, "workers": 1, "username": "root"}
    with _consumer(network, _NEAR, tmp_path, path=str(data), ssh=ssh) as consumer:
        got = _take_over_a_cut(network, consumer, _NEAR, _NEAR, cut_s, True)
        more, end = consumer.rest()
    assert "error" not in end, end
    assert _differ(got + more, wanted) == []


@pytest.mark.parametrize(
    ("host", "cut_s", "silently"),
    _cases(
        (_NEAR, 10, False),
        long=[
            (host, cut_s, silently)
            for host in (_NEAR, _FAR)
            for cut_s in (5, 30)
            for silently in (False, True)
        ],
    ),
)
def test_a_cut_of_a_workers_line_changes_no_batch(
    programs: Programs,
    data: Path,
    wanted: Batches,
    tmp_path: Path,
    host: str,
    cut_s: float,
    silently: bool,
) -> None:
    cut_host = _WORKERS[0]
    network, address = programs.network, programs.address
    with _consumer(network, host, tmp_path, path=str(data), client=address) as consumer:
        try:
            got = _take_over_a_cut(network, consumer, host, cut_host, cut_s, silently)
            more, end = consumer.rest()
        finally:
            network.heal(cut_host)
    assert "error" not in end, end
    assert _differ(got + more, wanted) == []


def test_a_long_slow_and_lossy_line_changes_no_batch(
    programs: Programs, data: Path, wanted: Batches, tmp_path: Path
) -> None:
    network, address = programs.network, programs.address
    with _consumer(network, _FAR, tmp_path, path=str(data), client=address) as consumer:
        consumer.tell(0)
        got, end = consumer.rest()
    assert "error" not in end, end
    assert _differ(got, wanted) == []
