"""A real SLURM on this machine: a controller and two nodes, of the tests' own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.faults]

_ROOT = Path(__file__).parents[2]
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
_DEADLINE_S = 30.0
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=2
MinJobAge=10
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout if done.returncode == 0 else f"failed: {done.stderr}"


def _jobs() -> list[str]:
    return _output("squeue", "-h", "-o", "%i").split()


@contextlib.contextmanager
def _daemon(log: Path, *command: str) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        yield
    finally:
        below = [psutil.Process(process.pid)]
        with contextlib.suppress(psutil.NoSuchProcess):
            below += below[0].children(recursive=True)
        for each in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(_DEADLINE_S)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    """Its folder; SLURM_CONF leads the programs of this process to it."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs root, slurm-wlm and munge (missing: {missing})")
    pytest.importorskip("cryptography")
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        # Not tmp_path: the path of a socket is short.
        made = stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-"))
        folder = Path(made)
        (folder / "state").mkdir()
        conf, key = folder / "slurm.conf", folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        conf.write_text(_CONF.format(host=host, folder=folder, ports=_free_ports(3)))
        patch.setenv("SLURM_CONF", str(conf))
        patch.setenv("PATH", _PATH)
        files = {
            "--key-file": "munge.key",
            "--socket": "munge.socket",
            "--pid-file": "munged.pid",
            "--log-file": "munged.txt",
            "--seed-file": "munged.seed",
        }
        options = [f"{name}={folder / file}" for name, file in files.items()]
        for name, *command in (
            ("munged", "munged", "--foreground", "--force", *options),
            ("slurmctld", "slurmctld", "-D", "-c", "-f", str(conf)),
            ("n1", "slurmd", "-D", "-N", "n1", "-f", str(conf)),
            ("n2", "slurmd", "-D", "-N", "n2", "-f", str(conf)),
        ):
            stack.enter_context(_daemon(folder / f"{name}.log", *command))
        deadline = time.monotonic() + _DEADLINE_S
        while _output("sinfo", "-h", "-o", "%T %D").strip() != "idle 2":
            if time.monotonic() > deadline:
                logs = [file.read_text()[-1500:] for file in folder.glob("*.log")]
                pytest.fail("SLURM did not come up:\n" + "\n---\n".join(logs))
            time.sleep(0.1)  # polling a condition, with a deadline
        yield folder


def _options(folder: Path) -> dict[str, object]:
    return {
        "workers": 2,
        "interface": "lo",
        "memory_limit": "1 GiB",
        "shared_directory": folder / "keys",
        "log_directory": folder / "logs",
        "skip_directives": ("--mem",),
        "lease_s": 10.0,  # a worker that has not come by then gives up, too
    }


def test_a_cancelled_job_is_replaced_and_close_leaves_none(
    slurm: Path, tmp_path: Path, wait_until
) -> None:
    with cluster.launch("slurm", **_options(tmp_path)) as launched:
        assert launched.address.startswith("tls://127.0.0.1:")
        client = launched.client()
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3
        first = _jobs()
        assert len(first) == 2
        _output("scancel", first[0])
        wait_until(
            lambda: (
                len(set(_jobs()) - set(first)) == 1 and "workers=2" in repr(launched)
            ),
            "another job in place of the cancelled one",
        )
        assert client.submit(sum, [3, 4]).result(timeout=30) == 7
        assert any(first[1] in name for name in launched.logs())
    wait_until(lambda: _jobs() == [], "an empty queue")
    assert os.listdir(tmp_path / "keys") == []


def test_a_killed_driver_leaves_no_job(slurm: Path, tmp_path: Path, wait_until) -> None:
    options = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in _options(tmp_path).items()
    }
    script = (
        "import cluster\n"
        f"c = cluster.launch('slurm', **{options!r})\n"
        "print(repr(c), flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
    ) as driver:
        try:
            assert driver.stdout is not None
            assert "workers=2" in driver.stdout.readline()
            assert len(_jobs()) == 2
        finally:
            driver.send_signal(signal.SIGKILL)
        driver.wait(30)
    wait_until(lambda: _jobs() == [], "an empty queue")
