"""A cluster on this machine: its size, its failures, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import dask
import psutil
import pytest

import cluster
import cluster.local
from cluster import StartError, WorkersMissingError
from cluster.restarts import RestartPolicy
from tests.asking import workers_of

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


def test_scaling_with_workers_that_cannot_start_says_why() -> None:
    no_such = {"distributed.nanny.preload": ["no_such_module"]}
    text = (
        r"a worker of the local cluster at tcp://.* did not start \(worker 0 ended with "
        r"exit code 1 before it had joined\) when it was scaled to 1"
    )
    with cluster.launch("local", workers=0) as c, dask.config.set(no_such):
        with pytest.raises(StartError, match=text):
            c.scale(1)
        assert c.client().nthreads() == {}


def test_no_memory_limit_means_none() -> None:
    with cluster.launch("local", workers=0, memory_limit=None) as c:
        c.scale(1)  # those that come later are like the first
        (worker,) = workers_of(c.client()).values()
    assert not worker["memory_limit"]


def test_options_reach_the_workers(tmp_path: Path) -> None:
    spec = cluster.ClusterSpec(
        threads_per_worker=3, memory_limit="1 GiB", local_directory=tmp_path
    )
    with cluster.launch("local", spec) as c:
        (worker,) = workers_of(c.client()).values()
    assert worker["nthreads"] == 3
    assert worker["memory_limit"] == 2**30
    assert worker["local_directory"].startswith(str(tmp_path))


def test_everything_listens_on_loopback_only() -> None:
    with cluster.launch("local", dashboard=True) as c:
        workers = c.client().run(os.getpid).values()
        nannies = c.client().run(os.getppid).values()
        pids = [os.getpid(), *workers, *nannies]
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
        with urllib.request.urlopen(link, timeout=120) as page:
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
        assert other.client().submit(sum, [1, 2]).result(timeout=180) == 3


def test_the_environment_of_this_process_is_kept() -> None:
    before = dict(os.environ)
    with cluster.launch("local") as c:
        assert dict(os.environ) == before
        c.scale(2)
        assert dict(os.environ) == before
        threads = c.client().run(os.getenv, "OMP_NUM_THREADS")
        assert set(threads.values()) == {"1"}
        assert "OMP_NUM_THREADS" in before or "OMP_NUM_THREADS" not in os.environ


def test_a_killed_worker_is_replaced() -> None:
    with cluster.launch("local") as c:
        client = c.client()
        (pid,) = client.run(os.getpid).values()
        worker = psutil.Process(pid)
        worker.kill()
        worker.wait(timeout=180)
        assert client.submit(os.getpid).result(timeout=180) != pid


def test_a_killed_nanny_is_replaced_with_its_worker(wait_until) -> None:
    with cluster.launch("local") as c:
        client = c.client()
        (nanny,) = client.run(os.getppid).values()
        worker = psutil.Process(*client.run(os.getpid).values())
        os.kill(nanny, signal.SIGKILL)
        wait_until(lambda: _has_ended(worker), "the end of its worker")
        assert client.submit(os.getppid).result(timeout=180) != nanny
        assert c.logs().keys() == {"scheduler", "0"}
        c.scale(2)
        c.scale(0)
        assert client.nthreads() == {}


@pytest.mark.slow
def test_what_cannot_be_replaced_is_given_up_and_told(
    wait_until, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = RestartPolicy(first_s=0.01, max_in_a_row=2)
    monkeypatch.setattr(cluster.local, "RestartPolicy", lambda: policy)
    with cluster.launch("local") as c:
        (nanny,) = c.client().run(os.getppid).values()
        text = "worker 0 was given up after 3 starts: worker 0 ended with exit code 1"
        with dask.config.set({"distributed.nanny.preload": ["no_such_module"]}):
            os.kill(nanny, signal.SIGKILL)
            wait_until(lambda: text in repr(c), "giving up")
        with pytest.raises(WorkersMissingError, match=text):
            c.wait_for_workers(1, timeout_s=0.2)
        c.scale(1)  # another chance
        assert "given up" not in repr(c)


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
        match=r"the local cluster \(workers=2\) did not start: not up after 0\.1 s; see "
        "what the workers printed above, or give more time with start_timeout_s",
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


def test_a_worker_that_ends_early_fails_the_start_at_once(
    children: Callable[[], set[int]],
) -> None:
    before = children()
    with (
        dask.config.set({"distributed.worker.preload": ["no_such_module"]}),
        pytest.raises(
            StartError,
            match=r"did not start: worker [01] ended with exit code 1 before",
        ),
    ):
        cluster.launch("local", workers=2, start_timeout_s=600)
    assert children() == before


def test_an_interrupted_start_leaves_nothing(
    children: Callable[[], set[int]], wait_until
) -> None:
    before = children()

    def interrupt() -> None:
        wait_until(lambda: children() - before, "a worker's program")
        # As Ctrl-C does: a signal, which also ends a wait.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        cluster.launch("local", workers=2).close()
    thread.join()
    assert children() == before


_SCRIPT = """
import cluster, os

c = cluster.launch("local", workers=2)
client = c.client()
assert client.submit(sum, [1, 2]).result() == 3
left = client.submit(sum, [3, 4])
{end}
"""


def test_a_script_without_a_main_guard_writes_nothing_and_leaves_nothing(
    run_script, tmp_path: Path
) -> None:
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
        'with cluster.launch("local", workers=0) as c:\n'
        '    cluster.launch("local", workers=0).close()\n'
        "    c.scale(1)\n"
    )
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_workers_do_not_import_what_the_script_imports(
    run_script, tmp_path: Path
) -> None:
    # In place of torch, which takes seconds: it tells by whom it is imported.
    marker = 'import os; open(f"imported-{os.getpid()}", "w").close()\n'
    (tmp_path / "heavy.py").write_text(marker)
    (tmp_path / "beside.py").write_text("def answer(): return 42\n")
    ran = run_script(
        "import heavy, cluster, sys\n"
        'with cluster.launch("local", workers=2) as c:\n'
        "    client = c.client()\n"
        '    print(*client.run(lambda: "heavy" in sys.modules).values())\n'
        '    print(*client.run(lambda: __import__("beside").answer()).values())\n'
    )
    assert (ran.code, ran.out, ran.err) == (0, "False False\n42 42\n", "")
    assert len(list(tmp_path.glob("imported-*"))) == 1


@pytest.mark.slow
@pytest.mark.torchrun
def test_workers_of_a_script_that_imports_torch_do_not_load_it(run_script) -> None:
    ran = run_script(
        "import torch, cluster, sys\n"
        'with cluster.launch("local", workers=2) as c:\n'
        '    print(*c.client().run(lambda: "torch" in sys.modules).values())\n'
    )
    assert (ran.code, ran.out, ran.err) == (0, "False False\n", "")


def test_the_dask_configuration_of_the_program_holds_in_the_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DASK_CLUSTER_TEST__SET", "before")
    setting = {"cluster-test.set": 7, "cluster-test.unsendable": threading.Lock()}
    with dask.config.set(setting), cluster.launch("local") as c:
        (seen,) = c.client().run(dask.config.get, "cluster-test").values()
    assert seen == {"set": 7}


def _start_driver(script: Path, text: str) -> subprocess.Popen[str]:
    script.write_text(text)
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )


_DRIVER = """
import cluster, os, threading, time

def work():
    c = cluster.launch("local", workers=2)
    pids = c.client().run(lambda: (os.getpid(), os.getppid())).values()
    busy = [c.client().submit(time.sleep, 600, pure=False) for _ in range(2)]
    print(*(pid for pair in pids for pid in pair), flush=True)
    threading.Event().wait()
"""

_IN_A_DAEMON = """
import multiprocessing

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=work, daemon=True)
    process.start()
    process.join()
"""


def _has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("way", ["work()\n", _IN_A_DAEMON], ids=["main", "daemonic"])
def test_a_killed_driver_leaves_no_worker_and_no_nanny(
    tmp_path: Path, wait_until, way: str
) -> None:
    with _start_driver(tmp_path / "script.py", _DRIVER + way) as driver:
        assert driver.stdout is not None
        pids = [int(pid) for pid in driver.stdout.readline().split()]
        ours = [psutil.Process(pid) for pid in pids]
        assert len(ours) == 4
        launcher = ours[1].parent()
        assert launcher is not None
        began = time.monotonic()
        launcher.kill()
        wait_until(lambda: all(map(_has_ended, ours)), "the workers' end")
        assert time.monotonic() - began < 30
        driver.kill()


def test_a_driver_killed_while_it_starts_leaves_nothing(
    tmp_path: Path, wait_until
) -> None:
    with _start_driver(tmp_path / "script.py", _DRIVER + "work()\n") as driver:
        process = psutil.Process(driver.pid)
        wait_until(lambda: len(process.children()) == 2, "the workers' programs")
        ours = process.children(recursive=True)
        began = time.monotonic()
        driver.kill()
        wait_until(lambda: all(map(_has_ended, ours)), "the programs' end")
        assert time.monotonic() - began < 30


def test_it_may_be_launched_outside_of_the_main_thread() -> None:
    seen: list[int] = []

    def work() -> None:
        with cluster.launch("local") as c:
            seen.append(c.client().submit(sum, [1, 2]).result(timeout=180))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=180)
    assert seen == [3]


@pytest.mark.slow
@pytest.mark.torchrun
def test_a_torchrun_script_may_launch_in_one_rank_and_connect_in_the_other(
    run_script,
) -> None:
    ran = run_script(
        "import cluster, torch, torch.distributed as dist\n"
        'dist.init_process_group("gloo")\n'
        "rank, box = dist.get_rank(), [None]\n"
        'c = cluster.launch("local") if rank == 0 else None\n'
        "if c: box = [c.address]\n"
        "dist.broadcast_object_list(box)\n"
        "c = c or cluster.connect(box[0])\n"
        "assert c.client().submit(sum, [1, 2]).result(timeout=180) == 3\n"
        "dist.barrier()\n"
        "c.close()\n"
        "dist.destroy_process_group()\n",
        *("-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"),
        *("--local-addr", "127.0.0.1"),
    )
    assert (ran.code, ran.out) == (0, ""), ran.err
