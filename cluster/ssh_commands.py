"""What is said to a host and what is run there: keywords, a first message, arguments.

{folder} in an argument stands for the agent's private folder, which has the certificates.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dask

import cluster.agent
import cluster.nanny
from cluster.security import Certificates
from cluster.ssh_spec import SshSpec
from cluster.worker import config_text

SCHEDULER = "scheduler"


def connect_keywords(spec: SshSpec) -> dict[str, Any]:
    """Write the keywords for asyncssh.connect(); what is left out is ssh's own choice."""
    keywords: dict[str, Any] = {}
    if spec.username is not None:
        keywords["username"] = spec.username
    if spec.ssh_port is not None:
        keywords["port"] = spec.ssh_port
    if spec.key_file is not None:
        keywords["client_keys"] = [os.path.expanduser(spec.key_file)]
    if spec.known_hosts is not None:
        keywords["known_hosts"] = os.path.expanduser(spec.known_hosts)
    if not spec.check_host_keys:
        keywords["known_hosts"] = None
    return keywords


def hello(
    spec: SshSpec, certificates: Certificates | None, *, serves: bool
) -> dict[str, Any]:
    """Write what an agent gets first: its program, and what it shall have.

    Args:
        spec: Of the cluster.
        certificates: Of the cluster; a client's key goes to no host.
        serves: Whether the scheduler runs there.
    """
    files = {"nanny.py": Path(cluster.nanny.__file__).read_text()}
    if certificates is not None:
        files |= certificates.files("worker", *([SCHEDULER] if serves else []))
    return {
        "agent": Path(cluster.agent.__file__).read_text(),
        "files": files,
        "environment": {
            "DASK_INTERNAL_INHERIT_CONFIG": config_text(dask.config.global_config),
            **spec.environment,
        },
        "lease_s": spec.lease_s,
    }


def scheduler_arguments(spec: SshSpec, host: str, port: str) -> list[str]:
    """Write the arguments of a scheduler."""
    return [
        *("--scheduler", "--host", host, "--port", port),
        *("--scheduler-file", "{folder}/scheduler.json", "--no-show"),
        "--dashboard" if spec.dashboard else "--no-dashboard",
        *("--dashboard-address", "127.0.0.1:0", *_wire(spec, SCHEDULER)),
    ]


def worker_arguments(
    spec: SshSpec, scheduler_address: str, host: str, name: str
) -> list[str]:
    """Write the arguments of a worker and its nanny."""
    limit = 0 if spec.memory_limit is None else spec.memory_limit
    arguments = [
        *(scheduler_address, "--host", host),
        *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),
        *("--nworkers", "1", "--nthreads", str(spec.threads_per_worker)),
        *("--name", name, "--memory-limit", str(limit)),
        *("--death-timeout", f"{spec.start_timeout_s:g}", *_wire(spec, "worker")),
    ]
    folder = spec.local_directory
    if folder is None and dask.config.get("temporary-directory", None) is None:
        folder = "{folder}"  # removed with the rest
    if folder is not None:
        arguments += ["--local-directory", os.fspath(folder)]
    if spec.worker_ports is not None:
        ports = spec.worker_ports
        arguments += ["--worker-port", ports, "--nanny-port", ports]
    for module in dask.config.get("distributed.nanny.preload"):
        arguments += ["--preload-nanny", module]
    return arguments


def _wire(spec: SshSpec, role: str) -> list[str]:
    if spec.insecure:
        return ["--protocol", "tcp"]
    return [
        *("--protocol", "tls", "--tls-ca-file", "{folder}/ca.pem"),
        *("--tls-cert", f"{{folder}}/{role}.pem"),
        *("--tls-key", f"{{folder}}/{role}-key.pem"),
    ]
