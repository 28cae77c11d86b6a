"""Job scripts of each queue as text, without any queue; and what a QueueSpec refuses."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dask
import pytest
from distributed.utils import get_ip

import cluster
from cluster import InsecureWarning, SpecError, StartError
from cluster.queue import job_script
from tests.cluster.conftest import WaitUntil

# Not importorskip(): importing it is what one of the tests looks at.
if importlib.util.find_spec("dask_jobqueue") is None:
    pytest.skip("needs dask-jobqueue", allow_module_level=True)

_WORKER = (
    "export DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT=20s{0}"
    "export DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP=20s{0}"
    "/usr/bin/python3 -m distributed.cli.dask_worker tls://SCHEDULER:8786 --name 0 "
    "--nthreads 1 --memory-limit 4.00GiB --nworkers 2 --nanny --death-timeout 300 "
    "--no-dashboard --tls-ca-file /shared/KEYS/ca.pem "
    "--tls-cert /shared/KEYS/worker.pem --tls-key /shared/KEYS/worker-key.pem"
)
_SCRIPTS = {
    "slurm": """#!/usr/bin/env bash
#SBATCH -J dask-worker
#SBATCH -p short
#SBATCH -A physics
#SBATCH -n 1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH -t 01:00:00
{}""",
    "pbs": """#!/usr/bin/env bash
#PBS -N dask-worker
#PBS -q short
#PBS -A physics
#PBS -l select=1:ncpus=2:mem=8192MB
#PBS -l walltime=01:00:00
{}""",
    "sge": """#!/usr/bin/env bash
#$ -N dask-worker
#$ -q short
#$ -P physics
#$ -l h_rt=01:00:00
#$ -cwd
#$ -j y
{}""",
    "lsf": """#!/usr/bin/env bash
#BSUB -J dask-worker
#BSUB -q short
#BSUB -P "physics"
#BSUB -n 2
#BSUB -R "span[hosts=1]"
#BSUB -M 8589935
#BSUB -W 01:00
{}""",
    "htcondor": """#!/usr/bin/env condor_submit
MY.DaskWorkerName = "htcondor--$F(MY.JobId)--"
batch_name = 0
RequestCpus = MY.DaskWorkerCores
RequestMemory = floor(MY.DaskWorkerMemory / 1048576)
RequestDisk = floor(MY.DaskWorkerDisk / 1024)
MY.JobId = "$(ClusterId).$(ProcId)"
MY.DaskWorkerCores = 2
MY.DaskWorkerMemory = 8589934592
MY.DaskWorkerDisk = 1000000000
Arguments = "-c '{}'"
Executable = /bin/sh
Queue""",
}


@pytest.mark.parametrize("kind", _SCRIPTS)
def test_the_script_of_a_job(kind: str) -> None:
    written = job_script(
        kind,
        shared_directory="/shared",
        workers=4,
        workers_per_job=2,
        queue="short",
        account="physics",
        python="/usr/bin/python3",
    )
    lines = [line for line in written.splitlines() if line.strip()]
    between = "; " if kind == "htcondor" else "\n"
    assert "\n".join(lines) == _SCRIPTS[kind].format(_WORKER.format(between))


def test_leases_go_into_the_script_before_the_users_lines() -> None:
    written = job_script(
        "slurm", insecure=True, lease_s=7.5, join_timeout_s=90, prologue=("a",)
    )
    # Dask refuses less than 11 s for the wires.
    assert (
        "CONNECT=7.5s\nexport DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP=11s\na\n" in written
    )
    assert " --death-timeout 90 " in written


def test_directives_are_added_and_left_out() -> None:
    written = job_script(
        "slurm",
        insecure=True,
        extra_directives=("--qos=low",),
        skip_directives=("--mem",),
        prologue=("module load python",),
    )
    assert "#SBATCH --qos=low\n" in written
    assert "\nmodule load python\n/" in written
    assert "--mem=" not in written
    assert " tcp://SCHEDULER:8786 " in written
    assert "--tls" not in written


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, r"shared_directory=None: the jobs read their keys from a folder"),
        (
            {"memory_limit": "auto"},
            r"memory_limit='auto' is no size that a job can ask",
        ),
        ({"memory_limit": None}, r"memory_limit=None is no size that a job can ask"),
        ({"queue": ""}, r"queue='' must be one line of text, or None"),
        ({"account": "a\nrm"}, r"account='a\\nrm' must be one line of text, or None"),
        ({"prologue": "module"}, r"prologue='module' must be a tuple of lines of text"),
        ({"insecure": 1}, r"insecure=1 must be True or False"),
        (
            {"insecure": True, "certificates": "certs"},
            r"insecure=True with certificates='certs': give one",
        ),
        ({"lease_s": 0}, r"lease_s=0 must be a number of seconds above 0"),
        (
            {"join_timeout_s": -1},
            r"join_timeout_s=-1 must be a number of seconds above",
        ),
        ({"workers_per_job": 0}, r"workers_per_job=0 must be a whole number"),
        (
            {"workers": 3, "workers_per_job": 2},
            r"workers=3 must be a multiple of workers_per_job=2",
        ),
    ],
)
def test_what_is_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        cluster.launch("slurm", **options)


def test_a_kind_without_jobs_has_no_script() -> None:
    with pytest.raises(SpecError, match="kind='local' has no job script; slurm, pbs"):
        job_script("local")


@pytest.mark.cluster
def test_a_machine_without_the_queue_says_so_and_keeps_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(StartError, match="'sbatch' is not on this machine; launch"):
        cluster.launch("slurm", interface="lo", shared_directory=tmp_path / "keys")
    assert os.listdir(tmp_path / "keys") == []


@pytest.mark.parametrize("in_thread", [False, True])
def test_ctrl_c_stays_as_the_program_has_it(run_script, *, in_thread: bool) -> None:
    ran = run_script(
        "import signal, sys, threading\n"
        "from cluster.queue import job_script\n"
        "def ask():\n"
        "    assert job_script('slurm', shared_directory='/shared')\n"
        f"if {in_thread}:\n"
        "    thread = threading.Thread(target=ask)\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "else:\n"
        "    ask()\n"
        "assert 'dask_jobqueue.runner' in sys.modules\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)\n"
    )
    assert (ran.code, ran.out, ran.err) == (0, "True\n", "")


@pytest.mark.parametrize("kind", _SCRIPTS)
def test_a_jobqueue_yaml_changes_nothing(kind: str, tmp_path: Path) -> None:
    plain = job_script(kind, shared_directory="/shared", walltime=None)
    theirs = {
        "queue": "theirs",
        "account": "theirs",
        "project": "theirs",
        "walltime": "09:09",
        "interface": "theirs",
        "local-directory": "theirs",
        "log-directory": str(tmp_path / "theirs"),
        "name": "theirs",
        "resource-spec": "theirs",
    }
    with dask.config.set({f"jobqueue.{kind}": theirs}):
        assert job_script(kind, shared_directory="/shared", walltime=None) == plain
    assert "00:30" not in plain  # dask-jobqueue's own walltime
    assert not list(tmp_path.iterdir())


def test_without_dask_jobqueue_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    monkeypatch.delitem(sys.modules, "dask_jobqueue.sge", raising=False)
    with pytest.raises(
        SpecError, match=r"needs the package dask-jobqueue.*pip install"
    ):
        job_script("sge", insecure=True)


@pytest.fixture
def queue_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put programs of a queue on the path; job 7 is listed until it is cancelled."""

    def make(sbatch: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in {
            "sbatch": sbatch,
            "squeue": f"test -e {folder}/gone || echo 7 PENDING Resources",
            "scancel": f"touch {folder}/gone",
        }.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return make


@pytest.mark.cluster
def test_a_job_that_the_queue_refuses(queue_of, tmp_path: Path) -> None:
    queue_of("echo no such partition >&2; exit 1")
    with pytest.raises(StartError, match="the queue refused a slurm job") as caught:
        cluster.launch("slurm", interface="lo", shared_directory=tmp_path / "keys")
    assert "no such partition" in str(caught.value)
    assert "cluster.queue.job_script('slurm', ...)" in str(caught.value)
    assert os.listdir(tmp_path / "keys") == []


@pytest.mark.cluster
def test_a_job_that_waits_past_the_deadline_is_cancelled(
    queue_of, tmp_path: Path
) -> None:
    queue_of("echo Submitted batch job 7")
    with pytest.raises(StartError, match="1 of 1 slurm jobs had no worker") as caught:
        cluster.launch(
            "slurm",
            interface="lo",
            shared_directory=tmp_path / "keys",
            start_timeout_s=0.5,
        )
    assert "7 PENDING Resources" in str(caught.value)
    assert caught.value.waited_s == 0.5
    assert (tmp_path / "bin" / "gone").exists()
    assert os.listdir(tmp_path / "keys") == []


@pytest.mark.cluster
def test_an_empty_cluster_warns_refuses_half_a_job_and_has_no_logs(
    queue_of, tmp_path: Path
) -> None:
    if get_ip().startswith("127."):
        pytest.skip("needs a network besides loopback")
    queue_of("exit 1")
    logs = tmp_path / "logs"
    options = {"workers_per_job": 2, "insecure": True, "log_directory": logs}
    with pytest.warns(InsecureWarning, match=r"the slurm cluster at tcp.* plain tcp"):
        launched = cluster.launch("slurm", workers=0, **options)
    with launched:
        with pytest.raises(SpecError, match="num_workers=3 must be a multiple of work"):
            launched.scale(3)
        shutil.rmtree(logs)
        assert list(launched.logs()) == ["scheduler"]


_DRIVER = """
import sys, cluster
c = cluster.launch("slurm", interface="lo", shared_directory=sys.argv[1], lease_s=1.5)
print(repr(c), flush=True)
input()
"""


@pytest.mark.cluster
@pytest.mark.faults
@pytest.mark.slow
def test_a_job_that_waited_joins_and_one_whose_driver_was_killed_ends(
    queue_of, tmp_path: Path, wait_until: WaitUntil
) -> None:
    script, shared = tmp_path / "job.sh", tmp_path / "keys"
    queue_of(f"cp $1 {script}.part; mv {script}.part {script}; echo job 7")
    with (
        (tmp_path / "job.log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-c", _DRIVER, str(shared)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as driver,
    ):

        def run_job() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                ["bash", script], stdout=log, stderr=log, cwd=tmp_path
            )

        try:
            wait_until(script.exists, "a job in the queue")
            submitted_s = time.monotonic()
            wait_until(
                lambda: time.monotonic() > submitted_s + 1.6, "more than a lease"
            )
            job = run_job()
            assert driver.stdout is not None
            assert "workers=1" in driver.stdout.readline()
            (keys,) = shared.iterdir()
            shutil.copytree(keys, tmp_path / "aside")
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait(180)
        job.wait(180)
        wait_until(lambda: os.listdir(shared) == [], "no keys")
        # Another job was pending, and has read its keys in time; nobody listens.
        shutil.copytree(tmp_path / "aside", keys)
        assert run_job().wait(100) != 0  # not after join_timeout_s, which is 300
    assert "Timed out trying to connect" in (tmp_path / "job.log").read_text()
