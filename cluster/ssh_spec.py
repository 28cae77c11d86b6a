"""What an ssh cluster shall be: hosts, and how to get in."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.errors import SpecError
from cluster.spec import ClusterSpec, check_count, check_seconds

# A lease that is renewed five times; shorter, and a busy program loses its cluster.
_SHORTEST_LEASE_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SshSpec(ClusterSpec):
    """Dask on hosts that you can log in to by ssh, without a password.

    Attributes:
        hosts: Names, addresses, or aliases of ~/.ssh/config. The workers are dealt to
            them in turn; a host that is there twice gets twice as many.
        workers_per_host: So many on each host; workers is then left alone. 0: workers
            says how many there are in all.
        scheduler_host: Where the scheduler runs; the first of hosts if left out.
        scheduler_port: Its port; 0 takes a free one.
        worker_ports: Ports of the workers and nannies, such as "9000:9100", two for each
            worker of a host; None takes free ones.
        username: Of the login; None leaves it to ~/.ssh/config, or takes your own name.
        ssh_port: Of the login; None leaves it to ~/.ssh/config, or takes 22.
        key_file: Private key for the login; None takes the usual ones, and ssh-agent's.
        known_hosts: File with the hosts' keys; None takes ~/.ssh/known_hosts.
        check_host_keys: Refuse hosts whose key is not in there. Without it, whoever
            answers at the address gets the certificates.
        remote_python: The interpreter on the hosts, which has distributed and what the
            tasks import; None takes the same path as here.
        environment: Variables for the processes there. Who has root there can read them.
        certificates: Folder of create_certificates(); None makes new ones, which end
            with the cluster.
        insecure: Plain tcp: whoever reaches a port can run code as you.
        lease_s: Hosts that hear nothing of this program for so long end everything.
    """

    hosts: Sequence[str] = ()
    workers_per_host: int = 0
    scheduler_host: str | None = None
    scheduler_port: int = 0
    worker_ports: str | None = None
    username: str | None = None
    ssh_port: int | None = None
    key_file: str | os.PathLike[str] | None = None
    known_hosts: str | os.PathLike[str] | None = None
    check_host_keys: bool = True
    remote_python: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    certificates: str | os.PathLike[str] | None = None
    insecure: bool = False
    lease_s: float = 20.0

    def __post_init__(self) -> None:
        """Check each value, and those that exclude each other.

        Raises:
            SpecError: One of them is of the wrong type or out of range.
        """
        ClusterSpec.__post_init__(self)
        if isinstance(self.hosts, str) or not isinstance(self.hosts, list | tuple):
            raise SpecError(f"hosts={self.hosts!r} must be a list of host names")
        object.__setattr__(self, "hosts", tuple(self.hosts))
        if not self.hosts:
            raise SpecError("hosts=() is empty; name at least one host")
        for host in self.hosts:
            _check_host(host)
        if self.scheduler_host is not None:
            _check_host(self.scheduler_host)
        check_count("workers_per_host", self.workers_per_host, at_least=0)
        if self.workers_per_host and self.workers != 1:
            raise SpecError(
                f"workers={self.workers!r} and workers_per_host="
                f"{self.workers_per_host!r} exclude each other; give one of them"
            )
        _check_port("scheduler_port", self.scheduler_port, at_least=0)
        if self.ssh_port is not None:
            _check_port("ssh_port", self.ssh_port, at_least=1)
        _check_ports(self.worker_ports)
        for name in ("username", "remote_python"):
            _check_text(name, getattr(self, name))
        for name in ("key_file", "known_hosts", "certificates"):
            _check_path(name, getattr(self, name))
        for name in ("check_host_keys", "insecure"):
            if not isinstance(getattr(self, name), bool):
                raise SpecError(f"{name}={getattr(self, name)!r} must be True or False")
        if not self.check_host_keys and self.known_hosts is not None:
            raise SpecError(
                f"known_hosts={str(self.known_hosts)!r} and check_host_keys=False exclude "
                "each other; give one of them"
            )
        if self.insecure and self.certificates is not None:
            raise SpecError(
                f"certificates={str(self.certificates)!r} and insecure=True exclude each "
                "other; give one of them"
            )
        _check_environment(self.environment)
        check_seconds("lease_s", self.lease_s)
        if self.lease_s < _SHORTEST_LEASE_S:
            raise SpecError(
                f"lease_s={self.lease_s!r} must be at least {_SHORTEST_LEASE_S:g}: a "
                "program that is busy for a moment would lose its cluster"
            )

    @property
    def num_workers(self) -> int:
        """How many to start with, over all hosts."""
        return self.workers_per_host * len(self.hosts) or self.workers


def _check_host(host: object) -> None:
    if not isinstance(host, str) or not re.fullmatch(r"[A-Za-z0-9_.:%\[\]-]+", host):
        raise SpecError(
            f"host {host!r} is not the name or address of one; user and port go into "
            "username= and ssh_port=, or into ~/.ssh/config"
        )
    if host.startswith("-"):
        raise SpecError(f"host {host!r} is not a name: it begins with a dash")


def _check_port(name: str, value: object, *, at_least: int) -> None:
    number = isinstance(value, int) and not isinstance(value, bool)
    if not number or not at_least <= float(value) <= 65535:  # type: ignore[arg-type]
        raise SpecError(f"{name}={value!r} must be a port, {at_least} to 65535")


def _check_ports(value: object) -> None:
    if value is None:
        return
    found = (
        re.fullmatch(r"(\d{1,5}):(\d{1,5})", value) if isinstance(value, str) else None
    )
    if found is None or not 0 < int(found[1]) < int(found[2]) <= 65535:
        raise SpecError(
            f"worker_ports={value!r} must be a range of ports, such as '9000:9100'"
        )


def _check_text(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise SpecError(f"{name}={value!r} must be text, not empty")


def _check_path(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise SpecError(f"{name}={value!r} must be a path")
    if not os.path.exists(os.path.expanduser(value)):
        raise SpecError(f"{name}={os.fspath(value)!r} does not exist")


def _check_environment(value: object) -> None:
    texts = isinstance(value, Mapping) and all(
        isinstance(text, str) for pair in value.items() for text in pair
    )
    if not texts:
        raise SpecError(f"environment={value!r} must be a dict of text to text")
