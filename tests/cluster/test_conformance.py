"""What holds for every kind of cluster, launched or reached."""

from __future__ import annotations

import logging
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import distributed
import pytest
from torch.distributed import TCPStore

import cluster
from cluster import (
    ClosedError,
    Cluster,
    NotOwnedError,
    SpecError,
    WorkersMissingError,
)
from cluster.hunger import TOPIC
from tests.asking import workers_of
from tests.cluster.slurm import options_for

pytestmark = pytest.mark.cluster

Open = Callable[[], Cluster]
Use = Callable[[], AbstractContextManager[Cluster]]

_WORKERS = 2


# Sizes of these are none of ours.
_FIXED = ("remote", "torchrun")


@pytest.fixture(
    scope="module",
    params=[
        "local",
        "remote",
        *(
            pytest.param(k, marks=pytest.mark.slow)
            for k in ("ssh", "slurm", "torchrun")
        ),
    ],
)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any]:
    """A kind, and what has to run for it; begun before each test looks for leaks."""
    kind = request.param
    if kind == "slurm":
        request.getfixturevalue("slurm")
        return kind, tmp_path_factory.mktemp("slurm")
    if kind == "torchrun":
        # What a job's agent would run; the rank is this process.
        return kind, TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    needed = {"remote": "foreign", "ssh": "sshd"}.get(kind)
    return kind, needed and request.getfixturevalue(needed)


def _open(kind: str, running: Any) -> Cluster:
    if kind == "local":
        return cluster.launch("local", workers=_WORKERS)
    if kind == "ssh":
        return cluster.launch("ssh", workers=_WORKERS, **running.options)
    if kind == "slurm":
        return cluster.launch("slurm", **options_for(running))
    if kind == "torchrun":
        with pytest.MonkeyPatch.context() as patch:
            for name, value in _rank_of_a_job(running.port).items():
                patch.setenv(name, value)
            return cluster.launch("torchrun", workers=_WORKERS)
    reached = cluster.connect(running.address)
    reached.wait_for_workers(_WORKERS)
    return reached


def _rank_of_a_job(port: int) -> dict[str, str]:
    """The environment of rank 0 of 1."""
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK"), "0")
    worlds = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    return {
        **ranks,
        **dict.fromkeys(worlds, "1"),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


@pytest.fixture
def opened(served: tuple[str, Any]) -> Open:
    """A way to open a cluster of two workers, which the test closes."""
    return partial(_open, *served)


@pytest.fixture(scope="module")
def shared(served: tuple[str, Any]) -> Iterator[Cluster]:
    """One for all the tests that leave it as it is."""
    with _open(*served) as running:
        yield running


@pytest.fixture
def used(shared: Cluster) -> Use:
    """The shared cluster; the clients that a test made are closed after it."""

    @contextmanager
    def use() -> Iterator[Cluster]:
        yield shared
        for client in shared._link._clients:
            client.close()

    return use


def test_it_says_who_and_where_it_is(used: Use) -> None:
    with used() as c:
        assert c.kind in ("local", "remote", "ssh", "slurm", "torchrun")
        scheme = "tls" if c.kind in ("ssh", "slurm") else "tcp"
        assert c.address.startswith(f"{scheme}://127.0.0.1:")
        assert c.scheduler_address == c.address
        assert (c.security is None) == (scheme == "tcp")
        assert repr(c).startswith(f"<Cluster {c.kind} {c.address} workers=2")
        assert c._repr_html_().startswith(f"<pre>&lt;Cluster {c.kind} ")


def test_a_client_computes_and_is_not_the_default(used: Use) -> None:
    with used() as c:
        client = c.client()
        assert client.submit(sum, [1, 2]).result(timeout=180) == 3
        assert client.direct_to_workers is True
        with pytest.raises(ValueError, match="No clients found"):
            distributed.default_client()


def test_each_call_makes_another_client(used: Use) -> None:
    with used() as c:
        first, second = c.client(), c.client()
        first.close()
        assert second.submit(sum, [1, 2]).result(timeout=180) == 3
        assert c.client() not in (first, second)


def test_a_client_serves_other_threads(used: Use) -> None:
    with used() as c:
        client = c.client()
        seen: list[int] = []
        work = threading.Thread(
            target=lambda: seen.append(client.submit(sum, [3, 4]).result(timeout=180))
        )
        work.start()
        work.join(timeout=180)
        assert seen == [7]


def test_the_address_is_reachable_from_another_process(used: Use) -> None:
    script = (
        "import distributed, pickle, sys\n"
        "security = pickle.loads(bytes.fromhex(sys.stdin.read()))\n"
        "address = sys.argv[1]\n"
        "with distributed.Client(address, security=security, timeout=120) as client:\n"
        "    print(client.submit(sum, [1, 2]).result(timeout=180))\n"
    )
    with used() as c:
        ran = subprocess.run(
            [sys.executable, "-c", script, c.address],
            input=pickle.dumps(c.security).hex(),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "3\n", "")


def test_a_client_of_dask_takes_the_object(used: Use) -> None:
    with used() as c, distributed.Client(c, set_as_default=False) as client:
        assert client.submit(sum, [1, 2]).result(timeout=180) == 3
        client.wait_for_workers(_WORKERS)
        assert c.address in client._repr_html_()


def test_logs_are_told_by_name(used: Use) -> None:
    def say() -> None:
        logging.getLogger("distributed.worker").error("first")
        logging.getLogger("distributed.worker").error("the task's own words")

    with used() as c:
        names = {str(w["name"]) for w in workers_of(c.client()).values()}
        c.client().run(say)
        logs = c.logs(num_lines=1)
        # A queue's jobs have files besides.
        assert set(logs) >= {"scheduler", *names}
        assert c.kind == "slurm" or set(logs) == {"scheduler", *names}
        for name in names:
            assert "the task's own words" in logs[name]
            assert "first" not in logs[name]
        for text in ("num_lines=0 must be", "timeout_s=0 must be"):
            name = text.split("=")[0]
            with pytest.raises(SpecError, match=text):
                c.logs(**{name: 0})


def test_waiting_ends_when_enough_workers_are_there(used: Use) -> None:
    with used() as c:
        c.wait_for_workers(0, timeout_s=10)
        c.wait_for_workers(1)
        c.wait_for_workers(_WORKERS, timeout_s=30)


def test_waiting_for_too_many_says_how_many_came(used: Use) -> None:
    with used() as c:
        with pytest.raises(
            WorkersMissingError,
            match=rf"asked for 9 workers, but the {c.kind} cluster at {c.address} has 2 "
            r"after 0\.2 s; look at",
        ) as caught:
            c.wait_for_workers(9, timeout_s=0.2)
        error = caught.value
        assert (error.workers_asked, error.workers_seen) == (9, 2)
        assert (error.kind, error.address, error.waited_s) == (c.kind, c.address, 0.2)
        c.wait_for_workers(_WORKERS, timeout_s=30)  # the error has ended nothing


def test_a_number_of_workers_is_checked(used: Use) -> None:
    with used() as c:
        for wrong in (-1, 1.0, True, "2", None):
            text = re.escape(
                f"num_workers={wrong!r} must be a whole number, at least 0"
            )
            with pytest.raises(SpecError, match=text):
                c.wait_for_workers(wrong)  # type: ignore[arg-type]
            with pytest.raises(SpecError, match=text):
                c.scale(wrong)  # type: ignore[arg-type]


def test_a_wait_needs_a_deadline(used: Use) -> None:
    with used() as c:
        text = r"timeout_s=0 must be a number of seconds above 0"
        with pytest.raises(SpecError, match=text):
            c.wait_for_workers(1, timeout_s=0)
        with pytest.raises(SpecError, match=text):
            c.scale(1, timeout_s=0)


def test_the_size_follows_the_hungry_or_is_refused(opened: Open, wait_until) -> None:
    with opened() as c:  # not the shared one, as workers come that were not there
        if c.kind in _FIXED:
            for change in (partial(c.scale, 1), partial(c.adapt, maximum=2)):
                with pytest.raises(
                    NotOwnedError, match="cannot be scaled to"
                ) as caught:
                    change()
                assert (caught.value.kind, caught.value.address) == (c.kind, c.address)
            c.wait_for_workers(_WORKERS)
            return
        c.scale(1)
        assert " workers=1" in repr(c)
        client = c.client()
        c.adapt(minimum=1, maximum=_WORKERS, interval_s=0.5)
        hungry = {"consumer": "the test", "waited_s": 60, "windows": 1}

        def has_grown() -> bool:
            client.log_event(TOPIC, hungry)
            return f" workers={_WORKERS}" in repr(c)

        wait_until(has_grown, "another worker for the hungry consumer")


def test_closing_ends_clients_threads_and_own_processes(
    opened: Open, children: Callable[[], set[int]], wait_until
) -> None:
    before, others = children(), set(threading.enumerate())
    c = opened()
    clients = [c.client(), c.client()]
    new = set(threading.enumerate()) - others
    threads = {t for t in new if t.name.startswith("cluster-")}
    assert threads
    c.close()
    assert [client.status for client in clients] == ["closed", "closed"]
    assert not any(thread.is_alive() for thread in threads)
    # Processes of ssh's own end a moment after the last of ours.
    wait_until(lambda: children() == before, "the end of all processes")
    c.close()
    assert repr(c) == f"<Cluster {c.kind}, closed>"


def test_leaving_the_block_by_an_error_closes_and_all_but_close_is_refused(
    opened: Open, capfd: pytest.CaptureFixture[str]
) -> None:
    c = opened()
    client = c.client()
    with pytest.raises(ZeroDivisionError), c:
        _ = 1 // 0
    assert client.status == "closed"
    c.close()
    assert capfd.readouterr() == ("", "")
    text = f"this {c.kind} cluster is closed; launch or connect another"
    for use in (
        c.client,
        lambda: c.scale(1),
        lambda: c.wait_for_workers(1),
        c.logs,
        lambda: c.address,
        lambda: c.scheduler_address,
        lambda: c.security,
        lambda: c.dashboard_link,
        c.__enter__,
        lambda: distributed.Client(c),
    ):
        with pytest.raises(ClosedError, match=text):
            use()
    assert c.status == distributed.Status.closed
    # Dask's own words, but an error and not a coroutine that nobody awaits.
    with pytest.raises(
        (RuntimeError, AttributeError, distributed.client.ClosedClientError)
    ):
        client.submit(os.getpid)
