"""A cluster on this machine: its size, its failures, and what it leaves behind."""

from __future__ import annotations

import _thread
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import cluster
import cluster.local
from cluster import StartError, WorkersMissingError

pytestmark = pytest.mark.cluster

_ROOT = Path(__file__).parents[2]


def test_it_scales_up_and_down() -> None:
    with cluster.launch("local") as c:
        client = c.client()
        for num_workers in (2, 1, 0, 1):
            c.scale(num_workers)
            assert len(client.nthreads()) == num_workers


def test_what_a_leaving_worker_holds_moves_to_another() -> None:
    with cluster.launch("local", workers=2) as c:
        client = c.client()
        held = client.scatter(list(range(8)), direct=False)
        c.scale(1)
        assert client.gather(held) == list(range(8))


def test_scaling_too_slowly_says_how_many_came() -> None:
    with cluster.launch("local", workers=0) as c:
        with pytest.raises(
            WorkersMissingError,
            match=r"asked for 1 workers, but .* has 0 after 0\.001 s",
        ):
            c.scale(1, timeout_s=0.001)
        c.wait_for_workers(1)  # it joins late


def test_scaling_with_workers_that_cannot_start_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("no room")

    with cluster.launch("local", workers=0) as c:
        monkeypatch.setattr(cluster.local, "Nanny", refuse)
        with pytest.raises(
            StartError,
            match=r"a worker of the local cluster at tcp://.* did not start "
            r"\(OSError\('no room'\)\) when it was scaled to 1",
        ):
            c.scale(1)


def test_no_memory_limit_means_none() -> None:
    with cluster.launch("local", workers=0, memory_limit=None) as c:
        c.scale(1)  # those that come later are like the first
        (worker,) = c.client().scheduler_info()["workers"].values()
    assert not worker["memory_limit"]


def test_options_reach_the_workers(tmp_path: Path) -> None:
    spec = cluster.ClusterSpec(
        threads_per_worker=3, memory_limit="1 GiB", local_directory=tmp_path
    )
    with cluster.launch("local", spec) as c:
        (worker,) = c.client().scheduler_info()["workers"].values()
    assert worker["nthreads"] == 3
    assert worker["memory_limit"] == 2**30
    assert worker["local_directory"].startswith(str(tmp_path))


def test_everything_listens_on_loopback_only() -> None:
    with cluster.launch("local", dashboard=True) as c:
        pids = [os.getpid(), *c.client().run(os.getpid).values()]
        hosts = {
            connection.laddr.ip
            for pid in pids
            for connection in psutil.Process(pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    assert hosts == {"127.0.0.1"}


def test_the_dashboard_is_served_on_request() -> None:
    with cluster.launch("local", workers=0, dashboard=True) as c:
        link = c.dashboard_link
        assert link is not None
        assert link.startswith("http://127.0.0.1:")
        assert f"dashboard={link}>" in repr(c)
        with urllib.request.urlopen(link, timeout=30) as page:
            assert page.status == 200


def test_without_a_dashboard_there_is_no_link_and_no_quarrel_about_its_port(
    recwarn: pytest.WarningsRecorder,
) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8787))
            taken.listen()
        except OSError:  # somebody else has it, which is as good
            pass
        with cluster.launch("local", workers=0) as c:
            assert c.dashboard_link is None
            assert "dashboard" not in repr(c)
    assert not recwarn.list


def test_two_at_once_do_not_disturb_each_other() -> None:
    with cluster.launch("local") as one, cluster.launch("local") as other:
        assert one.address != other.address
        one.close()
        assert other.client().submit(sum, [1, 2]).result(timeout=30) == 3


def test_the_environment_of_this_process_is_kept() -> None:
    before = dict(os.environ)
    with cluster.launch("local") as c:
        assert dict(os.environ) == before
        c.scale(2)
        assert dict(os.environ) == before
        threads = c.client().run(os.getenv, "OMP_NUM_THREADS")
        assert set(threads.values()) == {"1"}


def test_a_killed_worker_is_replaced() -> None:
    with cluster.launch("local") as c:
        client = c.client()
        (pid,) = client.run(os.getpid).values()
        worker = psutil.Process(pid)
        worker.kill()
        worker.wait(timeout=60)
        assert client.submit(os.getpid).result(timeout=60) != pid


def test_a_stopped_worker_does_not_hold_up_close(
    children: Callable[[], set[int]],
) -> None:
    before = children()
    c = cluster.launch("local", workers=2)
    client = c.client()
    held = client.scatter(list(range(8)), direct=False)
    pid = next(iter(client.run(os.getpid).values()))
    os.kill(pid, signal.SIGSTOP)
    c.close()
    del held
    assert children() == before


def test_a_start_that_takes_too_long_leaves_nothing(
    children: Callable[[], set[int]],
) -> None:
    before = children()
    with pytest.raises(
        StartError,
        match=r"the local cluster \(workers=2\) did not start: not up after 0\.1 s; the "
        "usual cause: each worker first imports the main script",
    ) as caught:
        cluster.launch("local", workers=2, start_timeout_s=0.1)
    assert (caught.value.workers_asked, caught.value.waited_s) == (2, 0.1)
    assert children() == before


def test_a_start_that_fails_says_why_and_leaves_nothing(
    children: Callable[[], set[int]],
) -> None:
    before = children()
    with pytest.raises(StartError, match=r"did not start: NotADirectoryError\(20"):
        cluster.launch("local", local_directory="/dev/null/below")
    assert children() == before


def test_an_interrupted_start_leaves_nothing(
    children: Callable[[], set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = cluster.local.Nanny

    def interrupt(*args: object, **options: object) -> object:
        _thread.interrupt_main()
        return make(*args, **options)

    monkeypatch.setattr(cluster.local, "Nanny", interrupt)
    before = children()
    with pytest.raises(KeyboardInterrupt):
        cluster.launch("local", workers=2)
    assert children() == before


_SCRIPT = """
import cluster, os

if __name__ == "__main__":
    c = cluster.launch("local", workers=2)
    client = c.client()
    assert client.submit(sum, [1, 2]).result() == 3
    left = client.submit(sum, [3, 4])
    {end}
"""


def test_a_script_writes_nothing_and_leaves_nothing(run_script, tmp_path: Path) -> None:
    ran = run_script(_SCRIPT.format(end="c.close()"))
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_a_script_that_forgets_to_close_ends_all_the_same(
    run_script, wait_until
) -> None:
    # Dask's exit handler closes the cluster, and may complain that it is late.
    ran = run_script(_SCRIPT.format(end="print(*client.run(os.getpid).values())"))
    assert ran.code == 0
    pids = [int(pid) for pid in ran.out.split()]
    assert len(pids) == 2
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), "the workers' end")


def test_the_first_of_two_to_close_does_not_make_the_other_talk(run_script) -> None:
    ran = run_script(
        "import cluster\n"
        'if __name__ == "__main__":\n'
        '    with cluster.launch("local", workers=0) as c:\n'
        '        cluster.launch("local", workers=0).close()\n'
        "        c.scale(1)\n"
    )
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_a_script_without_a_main_guard_is_told_so(run_script) -> None:
    ran = run_script('import cluster\ncluster.launch("local")\n')
    assert ran.code == 1
    guard = (
        "each worker first imports the main script, so launch() must stand under "
        '`if __name__ == "__main__":`'
    )
    assert f"launch() was called while a worker was being started: {guard}" in ran.err
    assert (
        f"did not start: RuntimeError('Nanny failed to start.'); the usual cause: {guard}"
        in ran.err
    )


def test_a_daemonic_process_is_told_that_it_may_not(run_script) -> None:
    ran = run_script(
        "import multiprocessing, cluster\n"
        "def work():\n"
        "    try:\n"
        '        cluster.launch("local")\n'
        "    except cluster.StartError as error:\n"
        "        print(error)\n"
        'if __name__ == "__main__":\n'
        '    context = multiprocessing.get_context("spawn")\n'
        "    process = context.Process(target=work, daemon=True)\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    assert ran.code == 0
    assert re.fullmatch(
        r"launch\(\) was called in SpawnProcess-1, a daemonic process .*; launch in the "
        "main process and pass on the address\n",
        ran.out,
    )


def test_a_killed_driver_leaves_no_worker(tmp_path: Path, wait_until) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import cluster, os, threading\n"
        'if __name__ == "__main__":\n'
        '    with cluster.launch("local", workers=2) as c:\n'
        "        print(*c.client().run(os.getpid).values(), flush=True)\n"
        "        threading.Event().wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    ) as driver:
        assert driver.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in driver.stdout.readline().split()]
        assert len(workers) == 2
        driver.kill()
    wait_until(lambda: not any(w.is_running() for w in workers), "the workers' end")


def test_it_may_be_launched_outside_of_the_main_thread() -> None:
    seen: list[int] = []

    def work() -> None:
        with cluster.launch("local") as c:
            seen.append(c.client().submit(sum, [1, 2]).result(timeout=30))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=60)
    assert seen == [3]


@pytest.mark.torchrun
def test_a_torchrun_script_may_launch_in_one_rank_and_connect_in_the_other(
    run_script,
) -> None:
    ran = run_script(
        "import cluster, torch, torch.distributed as dist\n"
        'if __name__ == "__main__":\n'
        '    dist.init_process_group("gloo")\n'
        "    rank, box = dist.get_rank(), [None]\n"
        '    c = cluster.launch("local") if rank == 0 else None\n'
        "    if c: box = [c.address]\n"
        "    dist.broadcast_object_list(box)\n"
        "    c = c or cluster.connect(box[0])\n"
        "    assert c.client().submit(sum, [1, 2]).result(timeout=30) == 3\n"
        "    dist.barrier()\n"
        "    c.close()\n"
        "    dist.destroy_process_group()\n",
        *("-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"),
        *("--local-addr", "127.0.0.1"),
    )
    assert (ran.code, ran.out) == (0, ""), ran.err
