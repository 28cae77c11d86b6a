"""A real SLURM of the tests' own on this machine: a controller and two nodes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
_DEADLINE_S = 180.0
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


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout if done.returncode == 0 else f"failed: {done.stderr}"


def jobs() -> list[str]:
    return output("squeue", "-h", "-o", "%i").split()


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


@contextlib.contextmanager
def serve_slurm() -> Iterator[None]:
    """Run one until the block ends; SLURM_CONF leads this process's programs to it."""
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
        while output("sinfo", "-h", "-o", "%T %D").strip() != "idle 2":
            if time.monotonic() > deadline:
                logs = [file.read_text()[-1500:] for file in folder.glob("*.log")]
                pytest.fail("SLURM did not come up:\n" + "\n---\n".join(logs))
            time.sleep(0.1)  # polling a condition, with a deadline
        yield


def options_for(folder: Path) -> dict[str, object]:
    """Fields of a spec that fits it."""
    return {
        "workers": 2,
        "interface": "lo",
        "memory_limit": "1 GiB",
        "shared_directory": folder / "keys",
        "log_directory": folder / "logs",
        "skip_directives": ("--mem",),
        "lease_s": 10.0,  # a worker that has not come by then gives up, too
    }
