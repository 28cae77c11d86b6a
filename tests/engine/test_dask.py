"""What only the Dask engine can get wrong: the cluster's side of it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import dask
import distributed
import pytest
import torch

import cluster
from dask_loader import (
    DataLoader,
    ParquetDataset,
    SchedulerUnreachableError,
    WindowError,
    WorkersMissingError,
)
from dask_loader.engine.dask import DaskEngine
from dask_loader.engine.stream import WindowStream
from dask_loader.engine.where import Where
from dask_loader.metrics import Meter

pytestmark = pytest.mark.cluster

_DEADLINE_S = 180.0


def until(condition: Callable[[], bool]) -> bool:
    """Poll a condition of another process, which has no event to wait for."""
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def engine(local_cluster) -> Iterator[DaskEngine]:
    made = DaskEngine(
        Where(local_cluster.address), worker_timeout_s=60, memory_limit=1 << 28
    )
    yield made
    made.close()


@pytest.fixture
def client(local_cluster) -> Iterator[distributed.Client]:
    made = local_cluster.client()
    yield made
    made.close()


@pytest.fixture
def busy_workers(local_cluster, client) -> Iterator[distributed.Event]:
    """Every worker's only thread waits for this event, so that tasks queue up."""
    event = distributed.Event("go on", client=client)
    event.clear()
    waiting = client.map(
        lambda _: distributed.Event("go on").wait(_DEADLINE_S), range(2), pure=False
    )
    assert until(lambda: sum(map(len, client.processing().values())) == 2)
    yield event
    event.set()
    client.gather(waiting)


def keys_on_scheduler(client) -> list:
    return client.run_on_scheduler(
        lambda dask_scheduler: [k for k in dask_scheduler.tasks if "read" in str(k)]
    )


def keys_on_workers(client) -> list:
    held = client.run(lambda dask_worker: list(dask_worker.data))
    return [key for keys in held.values() for key in keys if "read" in str(key)]


def stream_of(engine, tasks) -> WindowStream:
    return WindowStream(
        engine, iter(tasks), num_sharing=1, max_bytes=1 << 30, meter=Meter()
    )


def ids(dataset) -> list[list[int]]:
    return [batch["id"].tolist() for batch in dataset]


# ---- what lies on the cluster -------------------------------------------------------


def test_after_an_epoch_no_window_is_left_on_scheduler_and_workers(
    local_cluster, client, small_data
):
    with ParquetDataset(
        small_data, client=local_cluster, batch_size=16, shuffle_window=50
    ) as dataset:
        assert len(ids(dataset)) == len(dataset)
        assert until(lambda: not keys_on_scheduler(client))
        assert until(lambda: not keys_on_workers(client))
        assert not any(client.has_what().values())


def test_after_an_early_break_no_window_is_left(local_cluster, client, small_data):
    with ParquetDataset(
        small_data, client=local_cluster, batch_size=16, shuffle_window=50
    ) as dataset:
        for _ in dataset:
            break
        assert until(lambda: not keys_on_scheduler(client))
        assert until(lambda: not keys_on_workers(client))


def note(log: Path) -> int:
    with log.open("a") as file:
        file.write("run\n")
    return len(log.read_text())


def test_a_named_result_that_one_client_lets_go_stays_for_the_other(
    engine, local_cluster, client, tmp_path
):
    log = tmp_path / "log"
    theirs = client.submit(note, log, key="note-same")
    assert engine.map(note, [log], names=["same"]) == [4]
    assert engine.map(note, [log], names=["other"]) == [8]
    engine.close()
    again = DaskEngine(
        Where(local_cluster.address), worker_timeout_s=60, memory_limit=1 << 20
    )
    assert again.map(note, [log], names=["same"]) == [4]
    again.close()
    assert theirs.result(timeout=_DEADLINE_S) == 4


def test_named_results_are_forgotten_when_no_client_holds_them(
    engine, client, tmp_path
):
    log = tmp_path / "log"

    def forgotten() -> bool:
        keys = client.run_on_scheduler(lambda dask_scheduler: [*dask_scheduler.tasks])
        return "note-same" not in keys

    for expected in (4, 8):
        assert engine.map(note, [log], names=["same"]) == [expected]
        assert until(forgotten)


def test_windows_that_are_given_up_in_the_queue_are_forgotten(
    engine, client, busy_workers, tasks
):
    stream = stream_of(engine, tasks)
    assert until(lambda: len(keys_on_scheduler(client)) == 4)
    stream.close()
    assert until(lambda: not keys_on_scheduler(client))


def test_closing_the_engine_forgets_what_was_submitted(
    local_cluster, client, busy_workers, tasks
):
    engine = DaskEngine(
        Where(local_cluster.address), worker_timeout_s=60, memory_limit=1 << 28
    )
    stream_of(engine, tasks)
    assert until(lambda: len(keys_on_scheduler(client)) == 4)
    engine.close()
    assert until(lambda: not keys_on_scheduler(client))


def test_a_window_that_was_taken_is_forgotten_though_its_asker_remembers(
    engine, client, tasks
):
    pending = engine.submit(tasks[0], stream=0, number=0)
    assert pending.result().num_rows == tasks[0].num_rows
    assert until(lambda: not keys_on_scheduler(client))
    assert until(lambda: not keys_on_workers(client))
    pending.cancel()


def test_no_window_passes_through_the_scheduler(local_cluster, client, small_data):
    def hide(dask_scheduler: distributed.Scheduler) -> None:
        dask_scheduler.hidden = dask_scheduler.handlers.pop("gather")

    def show(dask_scheduler: distributed.Scheduler) -> None:
        dask_scheduler.handlers["gather"] = dask_scheduler.hidden

    client.run_on_scheduler(hide)
    try:
        with ParquetDataset(small_data, client=local_cluster) as dataset:
            assert sum(map(len, ids(dataset))) == 1009
    finally:
        client.run_on_scheduler(show)


def test_keys_say_engine_stream_and_window_and_are_never_shared(
    local_cluster, engine, client, busy_workers, tasks
):
    other = DaskEngine(
        Where(local_cluster.address), worker_timeout_s=60, memory_limit=1 << 28
    )
    streams = [stream_of(e, tasks) for e in (engine, engine, other)]
    assert until(lambda: len(keys_on_scheduler(client)) == 12)
    keys = keys_on_scheduler(client)
    assert len(set(keys)) == 12
    prefixes = {key[0] for key in keys}
    assert len(prefixes) == 2  # the same windows, but another engine
    assert all(prefix.startswith("read-window-") for prefix in prefixes)
    assert len({key[:2] for key in keys}) == 3
    assert sorted(key[2] for key in keys) == sorted([0, 1, 2, 3] * 3)
    for stream in streams:
        stream.close()
    other.close()


def test_earlier_windows_are_more_urgent_whatever_the_order_of_submission(
    engine, client, busy_workers, tasks
):
    numbers = [2, 0, 3, 1]
    pending = [engine.submit(tasks[n], stream=0, number=n) for n in numbers]
    assert until(lambda: len(keys_on_scheduler(client)) == 4)
    priority = client.run_on_scheduler(
        lambda dask_scheduler: {
            key[2]: task.priority
            for key, task in dask_scheduler.tasks.items()
            if "read-window" in str(key)
        }
    )
    assert sorted(priority, key=priority.get) == [0, 1, 2, 3]
    for window in pending:
        window.cancel()


def test_slots_are_the_threads_of_all_workers(engine):
    assert engine.slots() == 2


def test_the_engine_is_no_default_client(engine):
    with pytest.raises(ValueError, match="No clients found"):
        distributed.default_client()


# ---- nobody there -------------------------------------------------------------------


def test_no_worker_at_all_is_an_error_that_names_the_scheduler(small_data):
    with (
        cluster.launch("local", workers=0) as empty,
        ParquetDataset(small_data, client=empty, worker_timeout="1 s") as dataset,
        pytest.raises(WorkersMissingError) as caught,
    ):
        next(iter(dataset))
    text = str(caught.value)
    assert "at 'tcp://127.0.0.1:" in text
    assert "has no worker, and none came in 1 s" in text
    assert "dask worker tcp://127.0.0.1:" in text


def test_a_worker_that_comes_late_is_waited_for(small_data):
    found = []

    def make(address: str) -> None:
        with ParquetDataset(small_data, client=address, batch_size=100) as dataset:
            found.extend(ids(dataset))

    with cluster.launch("local", workers=0) as growing:
        making = threading.Thread(target=make, args=(growing.address,))
        making.start()
        growing.scale(1)
        making.join(_DEADLINE_S)
    assert sorted(chain.from_iterable(found)) == list(range(1009))


def test_a_window_for_which_no_worker_comes_is_an_error_that_names_the_scheduler(
    tasks,
):
    with cluster.launch("local", workers=1) as shrinking:
        engine = DaskEngine(
            Where(shrinking.address), worker_timeout_s=1, memory_limit=1 << 28
        )
        assert engine.slots() == 1
        shrinking.scale(0)
        pending = engine.submit(tasks[0], stream=0, number=0)
        with pytest.raises(WorkersMissingError, match=shrinking.address):
            pending.result()
        with pytest.raises(WorkersMissingError, match="none came in 1 s"):
            engine.slots()
        engine.close()


@pytest.mark.slow
@pytest.mark.faults
def test_an_unreachable_scheduler_is_named_with_the_time_that_was_waited(small_data):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = "tcp://{}:{}".format(*unused.getsockname())
        with pytest.raises(SchedulerUnreachableError) as caught:
            ParquetDataset(small_data, client=address)
    text = str(caught.value)
    assert f"no Dask scheduler answers at {address!r} within 15 s" in text
    assert "check the address" in text


# ---- workers that die ---------------------------------------------------------------


def _living(client: distributed.Client) -> int:
    """The process id of a worker that answers.

    One that was killed before may still be on the scheduler's list, alone.
    """
    deadline = time.monotonic() + 120
    while not (pids := client.run(os.getpid, on_error="ignore")):
        assert time.monotonic() < deadline, "no worker answers"
        time.sleep(0.05)  # polling a condition, with a deadline
    return next(iter(pids.values()))


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(
    ("num_workers", "shuffle"), [(1, False), (1, True), (2, False), (2, True)]
)
def test_killed_workers_change_no_batch(small_data, num_workers, shuffle):
    # With one worker its nanny's next one goes on, with two the other.
    options = {"batch_size": 4, "shuffle": shuffle, "shuffle_window": 10}
    with ParquetDataset(small_data, client="threads", **options) as dataset:
        wanted = list(dataset)
    with (
        cluster.launch("local", workers=num_workers) as failing,
        ParquetDataset(small_data, client=failing, **options) as dataset,
    ):
        client = failing.client()
        got = []
        for number, batch in enumerate(dataset):
            got.append(batch)
            if number in (0, 7, 100):
                os.kill(_living(client), signal.SIGKILL)
                failing.wait_for_workers(1)
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        for name, column in theirs.items():
            if isinstance(column, torch.Tensor):
                assert torch.equal(mine[name], column)
            else:
                assert mine[name] == column


@pytest.mark.faults
def test_a_window_that_kills_its_workers_is_an_error_that_names_it(tasks):
    class Deadly(distributed.WorkerPlugin):
        def transition(self, key, start, finish, **kwargs):  # noqa: ARG002
            if finish == "executing" and "read-window" in str(key):
                os.kill(os.getpid(), signal.SIGKILL)

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        cluster.launch("local", workers=1) as failing,
    ):
        engine = DaskEngine(
            Where(failing.address), worker_timeout_s=60, memory_limit=1 << 28
        )
        failing.client().register_plugin(Deadly(), name="deadly")
        pending = engine.submit(tasks[0], stream=0, number=0)
        with pytest.raises(
            WindowError,
            match=r"row group 0 of .*part-0.* killed every Dask worker that tried it",
        ):
            pending.result()
        engine.close()


# ---- TLS ----------------------------------------------------------------------------


@pytest.fixture
def security(tmp_path: Path) -> distributed.Security:
    """What distributed.Security.temporary() makes, without the cryptography package."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    subprocess.run(
        [openssl, *command.split(), "-subj", "/CN=dask-internal"]
        + ["-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    text = certificate.read_text()
    roles = ("scheduler", "worker", "client")
    return distributed.Security(
        require_encryption=True,
        tls_ca_file=text,
        **{f"tls_{role}_cert": text for role in roles},
        **{f"tls_{role}_key": key.read_text() for role in roles},
    )


@pytest.mark.slow
def test_a_tls_cluster_serves_the_main_process_and_spawned_dataloader_workers(
    security, small_data
):
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        security=security,
        protocol="tls://",
        # Its default port may be taken, and Dask leaves the socket that tried to garbage.
        dashboard_address="127.0.0.1:0",
    ) as launched:
        assert launched.scheduler_address.startswith("tls://")
        options = {"batch_size": 100, "shuffle": True, "shuffle_window": 50}
        with ParquetDataset(small_data, client=launched, **options) as dataset:
            wanted = ids(dataset)
            assert sorted(chain.from_iterable(wanted)) == list(range(1009))
            loader = DataLoader(dataset, num_workers=2, multiprocessing_context="spawn")
            loader.set_epoch(0)
            assert ids(loader) == wanted
        with pytest.raises(
            SchedulerUnreachableError, match="for tls:// that client= carries its"
        ):
            ParquetDataset(small_data, client=launched.scheduler_address)
