"""A cluster inside a torchrun job: it comes up with the job and ends with it.

Every rank calls launch("torchrun"). Rank 0 starts the scheduler, local rank 0 of each
node its workers, and the address travels through torch's own store, in which a job that
was started again must not see the old address. The store of a process group is made
anew with the group. That of torchrun itself stays: the keys there carry the restart
count, as torch's own do; but each node counts for itself, and one that joins again
because another failed does not count that. Hence restarts on several nodes need the
first kind of store.

Each process ends when the rank that started it does, also by SIGKILL; one that ends
before is started again by that rank, the scheduler at its address.

The store has no login, so no key of TLS goes through it: on several nodes each reads
the certificates from a folder. What is in the store is the address only; who changes
that leads nobody to a false scheduler, as its certificate would be refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dask
from distributed.comm.addressing import get_address_host_port
from distributed.security import Security

from cluster.errors import InsecureWarning, NotOwnedError, SpecError, StartError
from cluster.programs import Programs
from cluster.security import Certificates, read_certificates
from cluster.spec import ClusterSpec
from cluster.worker import environment

_POLL_S = 0.05
_LOOPBACK = "127.0.0.1"
_NEEDED = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_RUN_ID",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchrunSpec(ClusterSpec):
    """Workers on the nodes of a torchrun job; every rank gives the same.

    Attributes:
        workers: On each node.
        host: Address of this node for the others; None for the one by which it reaches
            MASTER_ADDR. On one node all listen on loopback.
        certificates: Folder made by create_certificates(), readable on all nodes.
            Needed for several nodes.
        insecure: Plain tcp, in which whoever reaches it can run code as you.
    """

    host: str | None = None
    certificates: str | os.PathLike[str] | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        """Check each value by itself.

        Raises:
            SpecError: One of them is of the wrong type.
        """
        ClusterSpec.__post_init__(self)
        if not isinstance(self.insecure, bool):
            raise SpecError(f"insecure={self.insecure!r} must be True or False")
        if self.dashboard:
            raise SpecError(
                "dashboard=True: a torchrun cluster has none, as it has no login and "
                "nodes are not the machine that you look from; leave it out"
            )
        if self.insecure and self.certificates is not None:
            raise SpecError(
                f"insecure=True with certificates={self.certificates!r}: give one"
            )

    @property
    def num_workers(self) -> int:
        """Workers on all nodes together."""
        return self.workers * int(os.environ.get("GROUP_WORLD_SIZE", "1"))


class TorchrunLauncher:
    """Starts this rank's share of the cluster, and ends it."""

    kind = "torchrun"
    revives_scheduler = True

    def __init__(self, spec: TorchrunSpec) -> None:
        """Remember what to start, and read the certificates.

        Raises:
            SpecError: Not in a torchrun job, or several nodes without certificates.
        """
        env = os.environ
        missing = [name for name in _NEEDED if name not in env]
        if missing:
            raise SpecError(
                f"launch('torchrun') works inside a torchrun job, and {missing[0]} is "
                "not set here; start the script with torchrun --nproc-per-node=2 "
                "script.py (elsewhere, launch('local') is the same on one machine)"
            )
        self._spec = spec
        self._env = dict(env)
        self._is_local_first = env["LOCAL_RANK"] == "0"
        self._is_first = env["RANK"] == "0"
        self._is_one_node = env["GROUP_WORLD_SIZE"] == "1"
        if not (self._is_one_node or spec.certificates or spec.insecure):
            raise SpecError(
                f"certificates=None on {env['GROUP_WORLD_SIZE']} nodes: make some once "
                "with cluster.create_certificates(FOLDER), where all nodes can read "
                "them, and give certificates=FOLDER (or insecure=True, with which "
                "whoever reaches the cluster can run code as you)"
            )
        self._certificates: Certificates | None = None
        if spec.certificates is not None:
            self._certificates = read_certificates(spec.certificates)
        self._address = ""
        self._folder: Path | None = None
        self._programs: Programs | None = None

    @property
    def address(self) -> str:
        """Where the scheduler listens, the same in all ranks."""
        return self._address

    @property
    def security(self) -> Security | None:
        """What a client needs to get in, in memory."""
        made = self._certificates
        return None if made is None else made.client_security()

    @property
    def dashboard_link(self) -> str | None:
        """None: the dashboard is off, as it has no login."""
        return None

    @property
    def troubles(self) -> tuple[str, ...]:
        """Processes of this rank's that have ended, and whether they start again."""
        return () if self._programs is None else self._programs.troubles

    def start(self, *, timeout_s: float) -> None:
        """Start this rank's share, and learn the address.

        Raises:
            StartError: The scheduler did not come up in time.
        """
        deadline = time.monotonic() + timeout_s
        rank = self._env["RANK"]
        try:
            store, prefix = self._store(timeout_s)
            # The first call in each rank belongs together, and so does the second.
            call = store.add(f"{prefix}/calls/{rank}", 1)
        except RuntimeError as error:  # torch's DistError is one
            where = f"{self._env['MASTER_ADDR']}:{self._env['MASTER_PORT']}"
            raise StartError(
                f"rank {rank} cannot reach torchrun's store at {where} ({error}); see "
                "whether rank 0's node and its torchrun still run",
                kind=self.kind,
                waited_s=timeout_s,
            ) from error
        key = f"{prefix}/address/{call}"
        if self._is_local_first:
            self._folder = Path(tempfile.mkdtemp(prefix="dask-cluster-"))
            self._programs = Programs(
                self._folder, _program_environment(self._env, str(self._folder))
            )
        if self._is_first:
            try:
                self._address = self._start_scheduler(deadline)
            except StartError as error:
                store.set(key, f"failed: {error}")
                raise
            store.set(key, self._address)
        try:
            left_s = max(deadline - time.monotonic(), 0.1)
            store.wait([key], timedelta(seconds=left_s))
            self._address = store.get(key).decode()
        except (RuntimeError, ValueError) as error:
            raise StartError(
                f"rank {rank} had no address from rank 0 after {timeout_s:g} s; every "
                f"rank must call launch('torchrun'), in the same order{self._restart()}",
                kind=self.kind,
                waited_s=timeout_s,
            ) from error
        if self._address.startswith("failed: "):
            raise StartError(f"rank 0: {self._address[8:]}", kind=self.kind)
        if self._is_local_first:
            for i in range(self._spec.workers):
                name = f"{self._env.get('GROUP_RANK', '0')}-{i}"
                self._start_worker(name)
        if self._is_first and not self._is_one_node and self._spec.insecure:
            warnings.warn(
                f"the torchrun cluster at {self._address} listens to the network in "
                "plain tcp, as insecure=True asks for: whoever reaches it can run code "
                "as you; certificates= makes it safe",
                InsecureWarning,
                stacklevel=4,
            )

    def scale(self, num_workers: int, *, timeout_s: float) -> None:  # noqa: ARG002
        """Refuse.

        Raises:
            NotOwnedError: Always: each rank has a part of it only.
        """
        raise NotOwnedError(
            f"the torchrun cluster at {self._address} cannot be scaled to {num_workers} "
            "workers: each node has workers=, as given to launch('torchrun')",
            kind=self.kind,
            address=self._address,
            workers_asked=num_workers,
        )

    def logs(self, *, num_lines: int, timeout_s: float) -> dict[str, str]:  # noqa: ARG002
        """Return the last lines of this rank's own processes."""
        return {} if self._programs is None else self._programs.logs(num_lines)

    def close(self) -> None:
        """End this rank's processes, workers first; safe twice."""
        if self._programs is not None:
            self._programs.close(last="scheduler")  # workers take leave of it
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _store(self, timeout_s: float) -> tuple[Any, str]:
        """Reach torch's store: the agent's, else the one of init_process_group()."""
        import torch.distributed as dist

        env = self._env
        prefix = f"dask-cluster/{env['TORCHELASTIC_RUN_ID']}"
        # By the environment, which all ranks share: some may not be initialised yet.
        if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = dist.TCPStore(  # type: ignore[attr-defined]
                env["MASTER_ADDR"],
                int(env["MASTER_PORT"]),
                is_master=False,
                timeout=timedelta(seconds=timeout_s),
            )
            return store, f"{prefix}/{env['TORCHELASTIC_RESTART_COUNT']}"
        if not dist.is_initialized():
            raise SpecError(
                "torchrun runs no store of its own here (TORCHELASTIC_USE_AGENT_STORE "
                "is not True): call torch.distributed.init_process_group() before "
                "launch('torchrun')"
            )
        return dist.distributed_c10d._get_default_store(), prefix

    def _restart(self) -> str:
        """Say what keeps a job of several nodes from being started again."""
        if self._is_one_node or self._env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return ""
        return (
            "; a job of several nodes that torchrun has started again also needs "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
        )

    def _start_scheduler(self, deadline: float) -> str:
        assert self._folder is not None
        assert self._programs is not None
        file = self._folder / "scheduler.json"

        def arguments(port: int | None) -> list[str]:
            written = ["--scheduler", "--host", self._host(), "--port", str(port or 0)]
            written += ["--dashboard-address", f"{_LOOPBACK}:0", "--no-dashboard"]
            written += ["--scheduler-file", str(file)]
            return [*written, *self._tls("scheduler")]

        self._programs.start("scheduler", arguments(None))
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                address = str(json.loads(file.read_text())["address"])
                _, port = get_address_host_port(address)
                self._programs.start_again_with("scheduler", arguments(port))
                return address
            if not self._programs.is_up("scheduler"):
                break
            time.sleep(_POLL_S)  # polling a file that another process writes
        # Dask's last line says that it failed; the cause is some 30 lines above.
        log = self._programs.tail("scheduler", 60)
        raise StartError(
            f"the scheduler did not come up; it wrote:\n{log}", kind=self.kind
        )

    def _start_worker(self, name: str) -> None:
        assert self._programs is not None
        spec = self._spec
        limit = 0 if spec.memory_limit is None else spec.memory_limit
        arguments = [self._address, "--host", self._host(), "--name", name]
        arguments += ["--nworkers", "1", "--nthreads", str(spec.threads_per_worker)]
        arguments += ["--memory-limit", str(limit), "--no-dashboard"]
        arguments += ["--dashboard-address", f"{_LOOPBACK}:0"]
        arguments += ["--death-timeout", f"{spec.start_timeout_s:g}"]
        if spec.local_directory is not None:
            arguments += ["--local-directory", os.path.abspath(spec.local_directory)]
        self._programs.start(name, [*arguments, *self._tls("worker")])

    def _tls(self, role: str) -> list[str]:
        if self._spec.certificates is None:
            return []
        folder = Path(os.path.abspath(self._spec.certificates))
        return [
            *("--protocol", "tls", "--tls-ca-file", str(folder / "ca.pem")),
            *("--tls-cert", str(folder / f"{role}.pem")),
            *("--tls-key", str(folder / f"{role}-key.pem")),
        ]

    def _host(self) -> str:
        if self._spec.host is not None or self._is_one_node:
            return self._spec.host or _LOOPBACK
        # Connecting by UDP sends nothing: it only looks up the way there.
        where = self._env["MASTER_ADDR"], int(self._env["MASTER_PORT"])
        family, kind, _, _, address = socket.getaddrinfo(
            *where, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])


def _program_environment(env: Mapping[str, str], folder: str) -> dict[str, str]:
    """Write that of a scheduler or a worker, which must not take itself for a rank.

    A rank that is killed leaves the folder to them; spilled data are there too, unless
    Dask's configuration or local_directory= names another.
    """
    kept = {
        name: value
        for name, value in env.items()
        if name not in _NEEDED and not name.startswith("TORCHELASTIC_")
    }
    config = dask.config.global_config
    if config.get("temporary-directory") is None:
        config = config | {"temporary-directory": folder}
    return environment(kept, sys.path, config) | {"CLUSTER_PRIVATE_FOLDER": folder}
