"""A cluster over a real sshd: who is let in, what is started again, what stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import distributed
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cluster
from cluster import HostKeyError, InsecureWarning, SpecError, StartError
from cluster.restarts import RestartPolicy
from cluster.security import make_certificates
from dask_loader import ParquetDataset
from tests.asking import workers_of
from tests.cluster.serving import serve
from tests.cluster.sshd import Sshd
from tests.examples.training import check_ids, make_data, train

pytestmark = pytest.mark.cluster
fleet = pytest.importorskip("cluster.fleet")  # asyncssh is optional

_ROOT = Path(__file__).parents[2]


def _below(sshd: Sshd) -> dict[int, psutil.Process]:
    """The processes of its logins, this moment."""
    return {p.pid: p for p in sshd.process().children(recursive=True)}


def _refused(sshd: Sshd, **options: object) -> str:
    with pytest.raises(StartError) as caught:
        cluster.launch("ssh", **{**sshd.options, **options})
    return str(caught.value)


def test_a_host_with_another_key_than_known_is_refused_by_name(sshd: Sshd) -> None:
    with pytest.raises(
        HostKeyError,
        match=r"host '127\.0\.0\.1' showed a key that is not in known_hosts",
    ):
        cluster.launch(
            "ssh", **{**sshd.options, "known_hosts": sshd.folder / "wrong_hosts"}
        )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"key_file": "known_hosts"},
            r"the key or known_hosts cannot be used \(KeyImportError: .*; a key with a",
        ),
        ({"key_file": "other"}, "refused the login .*; check username= and key_file="),
        (
            {"ssh_port": 1},
            "cannot be reached by ssh .*Error.*; check its name, ssh_port=",
        ),
        (
            {"remote_python": "/no/such python"},
            r"'/no/such python' ended at once \(exit code 127\); it must be .*; it wrote:"
            ".*/no/such python",
        ),
        (
            {"environment": {"PYTHONHOME": "/dev/null"}},
            "scheduler: it ended on host .* with exit code 1; its last lines:\n.*encodings",
        ),
        (
            {"start_timeout_s": 0.2},
            r"the ssh cluster on 127\.0\.0\.1 did not start: not up after 0\.2 s, "
            "(connecting to 127|waiting for the scheduler)",
        ),
    ],
)
def test_a_start_that_fails_says_where_and_why_and_leaves_nothing(
    sshd: Sshd, wait_until, options: dict[str, object], text: str
) -> None:
    if "key_file" in options:
        options = {"key_file": sshd.folder / str(options["key_file"])}
    assert re.search(text, _refused(sshd, **options), re.DOTALL)
    wait_until(lambda: not _below(sshd), "the end of all logins")


def test_a_worker_that_cannot_start_fails_the_start_at_once(
    sshd: Sshd, wait_until
) -> None:
    with dask.config.set({"distributed.nanny.preload": ["no_such_module"]}):
        said = _refused(sshd, start_timeout_s=600)
    assert "worker 0: it ended on host '127.0.0.1' with exit code 1" in said
    assert "No module named 'no_such_module'" in said
    wait_until(lambda: not _below(sshd), "the end of all logins")


def test_an_interrupted_start_leaves_nothing(sshd: Sshd, wait_until) -> None:
    def interrupt() -> None:
        wait_until(lambda: len(_below(sshd)) >= 3, "a login and an agent")
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        cluster.launch("ssh", **sshd.options).close()
    thread.join()
    wait_until(lambda: not _below(sshd), "the end of all logins")


def test_one_bad_host_of_two_fails_the_start_and_is_named(
    sshd: Sshd, wait_until
) -> None:
    said = _refused(sshd, hosts=["127.0.0.1", "localhost.invalid"])
    assert said.startswith(
        "host 'localhost.invalid' cannot be reached by ssh (gaierror"
    )
    wait_until(lambda: not _below(sshd), "the end of all logins")


def test_plain_tcp_is_for_who_asks_for_it(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", InsecureWarning)
        with cluster.launch("ssh", workers=0, insecure=True, **sshd.options) as c:
            assert c.address.startswith("tcp://127.0.0.1:")
            assert c.security is None
    monkeypatch.setattr(fleet, "_is_loopback", lambda _: False)
    with (
        pytest.warns(InsecureWarning, match="listens to the network in plain tcp, as"),
        cluster.launch("ssh", workers=0, insecure=True, **sshd.options),
    ):
        pass


def test_a_host_that_cannot_reach_the_scheduler_is_refused(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([True, False])
    monkeypatch.setattr(fleet, "_is_loopback", lambda _: next(answers))
    text = r"the scheduler's host '127\.0\.0\.1' is .*: one is this machine's loopback"
    assert re.search(text, _refused(sshd, workers=0))


@pytest.mark.parametrize("package", ["asyncssh", "cryptography"])
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        SpecError, match=rf"package {package}, which is not installed; "
    ):
        cluster.launch("ssh", hosts=["nowhere"])


def test_options_reach_the_hosts_and_secrets_stay_out_of_sight(
    sshd: Sshd, tmp_path: Path
) -> None:
    folder = cluster.create_certificates(tmp_path / "certs")
    options = {
        "certificates": folder,
        "threads_per_worker": 3,
        "memory_limit": "1 GiB",
        "worker_ports": "21000:21400",
        "environment": {"OF_THE_USER": "here"},
        "local_directory": tmp_path / "scratch",
    }
    with cluster.launch("ssh", workers=1, **options, **sshd.options) as c:
        client = c.client()
        (worker,) = workers_of(client).values()
        assert worker["nthreads"] == 3
        assert worker["memory_limit"] == 2**30
        assert worker["local_directory"].startswith(str(tmp_path / "scratch"))
        ports = {
            int(address.rpartition(":")[2])
            for address in (*workers_of(client), worker["nanny"])
        }
        assert all(21000 <= port <= 21400 for port in ports)
        assert client.run(os.getenv, "OF_THE_USER").popitem()[1] == "here"
        private = Path(client.run(os.getenv, "CLUSTER_PRIVATE_FOLDER").popitem()[1])
        assert private.stat().st_mode & 0o777 == 0o700
        assert {f.stat().st_mode & 0o777 for f in private.glob("*.pem")} == {0o600}
        key = (folder / "worker-key.pem").read_text().split("\n")[1]
        assert key in (private / "worker-key.pem").read_text()
        assert not (private / "client-key.pem").exists()
        ours = [p for p in _below(sshd).values() if "sshd" not in p.name()]
        shown = [(p.cmdline(), p.environ()) for p in ours]
        assert shown
        assert key not in str(shown)
        assert key not in repr(c) + str(c.logs(num_lines=500)) + repr(c.security)
        with cluster.connect(c.address, cluster.load_certificates(folder)) as other:
            other.wait_for_workers(1)
    assert not private.exists()


def test_strangers_are_refused_and_the_cluster_goes_on(sshd: Sshd) -> None:
    with cluster.launch("ssh", workers=1, **sshd.options) as c:
        client = c.client()
        host, _, port = c.address.removeprefix("tls://").rpartition(":")
        (worker,) = workers_of(client)
        for address in (c.address, worker):
            stranger = make_certificates().client_security()
            with pytest.raises(cluster.UnreachableError, match="certificate"):
                cluster.connect(address, stranger, timeout_s=5)
            plain = address.replace("tls://", "tcp://")
            with pytest.raises(cluster.UnreachableError):
                cluster.connect(plain, timeout_s=1)
        context = ssl.create_default_context(cadata=c.security.tls_ca_file)
        context.check_hostname = False
        with (
            socket.create_connection((host, int(port)), 10) as raw,
            pytest.raises((ssl.SSLError, ConnectionError)),
            context.wrap_socket(raw) as wire,
        ):
            wire.recv(1)  # TLS 1.3 tells who has no certificate at the first read
            raise ConnectionError("closed")
        assert client.submit(sum, [1, 2]).result(timeout=180) == 3


def _has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _pid_of(client: distributed.Client, of: Callable[[], int]) -> int:
    (pid,) = client.run(of).values()
    return pid


@pytest.mark.slow
def test_what_cannot_be_started_again_is_given_up_and_told(
    sshd: Sshd, tmp_path: Path, wait_until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        cluster.fleet, "_PROCESSES", RestartPolicy(first_s=0.01, max_in_a_row=2)
    )
    preload = tmp_path / "preload.py"
    preload.touch()
    with (
        dask.config.set({"distributed.nanny.preload": [str(preload)]}),
        cluster.launch("ssh", workers=1, **sshd.options) as c,
    ):
        nanny = _pid_of(c.client(), os.getppid)
        preload.write_text("raise RuntimeError('it is broken')")
        os.kill(nanny, signal.SIGKILL)
        text = "worker 0 was given up after 3 starts: it ended on host '127.0.0.1' with"
        wait_until(lambda: text in repr(c), "giving up")
        assert "it is broken" in c.logs()["0"]
        with pytest.raises(cluster.WorkersMissingError, match=text):
            c.wait_for_workers(1, timeout_s=0.2)
        preload.write_text("")
        c.scale(1)
        assert "given up" not in repr(c)


@pytest.mark.slow
def test_what_dies_is_started_again_and_the_address_stays(
    sshd: Sshd, wait_until, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drop_all(dask_scheduler: distributed.Scheduler) -> None:
        for address in list(dask_scheduler.workers):
            await dask_scheduler.remove_worker(address, stimulus_id="test", close=False)

    monkeypatch.setattr(fleet, "_WATCH_S", 0.1)
    with cluster.launch("ssh", workers=1, **sshd.options) as c:
        client, address = c.client(), c.address
        nanny = _pid_of(client, os.getppid)
        worker = psutil.Process(_pid_of(client, os.getpid))
        os.kill(nanny, signal.SIGKILL)
        wait_until(lambda: _has_ended(worker), "the end of its worker")
        assert client.submit(os.getppid).result(timeout=180) != nanny

        # A scheduler that is stopped cannot be asked, and is not waited for.
        serving = psutil.Process(client.run_on_scheduler(os.getpid))
        serving.suspend()
        with pytest.raises(StartError, match="did not answer when it was scaled to 0"):
            c.scale(0, timeout_s=0.5)
        assert "0" in c.logs(timeout_s=2)
        serving.resume()

        stuck = psutil.Process(_pid_of(client, os.getpid))
        stuck.suspend()
        client.run_on_scheduler(drop_all)  # as it does by itself after minutes
        with monkeypatch.context() as patience:
            patience.setattr(c._launcher._fleet, "_stuck_s", 0.0)
            wait_until(lambda: _has_ended(stuck), "the end of who is stuck")
        assert client.submit(os.getpid).result(timeout=180) != stuck.pid

        scheduler = client.run_on_scheduler(os.getpid)
        worker = psutil.Process(_pid_of(client, os.getpid))
        client.close()
        os.kill(scheduler, signal.SIGKILL)
        wait_until(lambda: _has_ended(worker), "the end of its worker")
        wait_until(lambda: "workers=1" in repr(c), "a worker that joined again")
        assert c.address == address
        client = c.client()
        assert client.run_on_scheduler(os.getpid) != scheduler

        agent = psutil.Process(client.run_on_scheduler(os.getppid))
        worker = psutil.Process(_pid_of(client, os.getpid))
        client.close()
        agent.kill()  # as if the host had been lost
        wait_until(lambda: _has_ended(worker), "the end of its worker")
        wait_until(lambda: "workers=1" in repr(c), "a worker that joined again")
        assert c.address == address
        assert c.client().submit(sum, [1, 2]).result(timeout=180) == 3
        assert c.logs().keys() == {"scheduler", "0"}


@pytest.mark.slow
@pytest.mark.faults
def test_an_epoch_goes_on_over_the_death_of_its_scheduler(
    sshd: Sshd, tmp_path: Path
) -> None:
    data = tmp_path / "data.parquet"
    pq.write_table(pa.table({"id": range(20_000)}), data, row_group_size=500)
    options: dict[str, Any] = {
        "batch_size": 250,
        "shuffle": True,
        "shuffle_window": 500,
    }
    with ParquetDataset(data, client="threads", **options) as dataset:
        wanted = [batch["id"].tolist() for batch in dataset]
    with (
        cluster.launch("ssh", workers=1, **sshd.options) as c,
        ParquetDataset(data, client=c, worker_timeout="2 min", **options) as dataset,
    ):
        client = c.client()
        scheduler = client.run_on_scheduler(os.getpid)
        client.close()
        got = []
        for number, batch in enumerate(dataset):
            got.append(batch["id"].tolist())
            if number == 11:
                os.kill(scheduler, signal.SIGKILL)
        assert got == wanted
        assert c.client().run_on_scheduler(os.getpid) != scheduler


_DRIVER = """
import cluster, json, os, sys, threading

c = cluster.launch("ssh", workers=1, lease_s=5, **json.loads(sys.argv[1]))
print(c.client().run(os.getenv, "CLUSTER_PRIVATE_FOLDER").popitem()[1], flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize(
    "how",
    [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)],
    ids=["killed", "stopped"],
)
def test_a_driver_that_is_gone_or_silent_leaves_nothing(
    sshd: Sshd, wait_until, how: signal.Signals
) -> None:
    options = {
        name: value if isinstance(value, int | list) else str(value)
        for name, value in sshd.options.items()
    }
    with subprocess.Popen(
        [sys.executable, "-c", _DRIVER, json.dumps(options)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    ) as driver:
        assert driver.stdout is not None
        private = Path(driver.stdout.readline().strip())
        ours = [p for p in _below(sshd).values() if "sshd" not in p.name()]
        assert len(ours) >= 4  # agent, scheduler, nanny, worker
        assert private.exists()
        driver.send_signal(how)
        # The suite's own deadline for this is longer than the lease.
        wait_until(lambda: all(map(_has_ended, ours)), "the end of all")
        wait_until(lambda: not private.exists(), "the end of the certificates")
        driver.kill()
    wait_until(lambda: not _below(sshd), "the end of the logins")


@pytest.mark.slow
@pytest.mark.torchrun
def test_the_example_trains_on_the_hosts_that_a_command_serves(
    sshd: Sshd, tmp_path: Path, wait_until
) -> None:
    certificates = cluster.create_certificates(tmp_path / "certs")
    data, file = make_data(tmp_path / "data"), tmp_path / "scheduler.json"
    flags = (
        *("--hosts", "127.0.0.1", "--ssh-port", str(sshd.port), "--workers", "2"),
        *("--key-file", str(sshd.folder / "id"), "--certificates", str(certificates)),
        *("--known-hosts", str(sshd.folder / "known_hosts")),
        *("--json", "--scheduler-file", str(file)),
    )
    with serve("cluster", "ssh", *flags) as served:
        about = json.loads(served.line)
        assert about == {
            "kind": "ssh",
            "address": json.loads(file.read_text())["address"],
            "dashboard_link": None,
        }
        ids = tmp_path / "ids"
        printed = train(
            data,
            *("--scheduler", about["address"], "--certificates", str(certificates)),
            *("--epochs", "2", "--ids", str(ids)),
        )
        assert f"read by: Dask cluster at {about['address']}" in printed
        check_ids(ids, data, num_ranks=2, num_epochs=2)
        served.ends_by(signal.SIGTERM, code=0)
    assert not file.exists()
    wait_until(lambda: not _below(sshd), "the end of all logins")
