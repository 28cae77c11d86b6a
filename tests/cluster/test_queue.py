"""Job scripts of each queue as text, without any queue; and what a QueueSpec refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import cluster
from cluster import SpecError, StartError

pytest.importorskip("dask_jobqueue")

from cluster.queue import job_script

_WORKER = (
    "/usr/bin/python3 -m distributed.cli.dask_worker tls://SCHEDULER:8786 --name 0 "
    "--nthreads 1 --memory-limit 4.00GiB --nworkers 2 --nanny --death-timeout 20 "
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
    assert "\n".join(lines) == _SCRIPTS[kind].format(_WORKER)


def test_directives_are_added_and_left_out() -> None:
    written = job_script(
        "slurm",
        insecure=True,
        extra_directives=("--qos=low",),
        skip_directives=("--mem",),
        prologue=("module load python",),
    )
    assert "#SBATCH --qos=low\nmodule load python\n" in written
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
        ({"lease_s": 0}, r"lease_s=0 must be a number of seconds above 0"),
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
