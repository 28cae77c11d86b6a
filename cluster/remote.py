"""A cluster that someone else runs: reached by its address, never scaled or ended."""

from __future__ import annotations

from distributed.comm.addressing import get_address_host, get_address_host_port
from distributed.security import Security
from distributed.utils import format_dashboard_link

from cluster.errors import NotOwnedError, SpecError
from cluster.lifecycle import Cluster, open_cluster
from cluster.link import SchedulerLink
from cluster.spec import check_seconds


class RemoteLauncher:
    """Finds a scheduler that runs already, and leaves it as it is."""

    kind = "remote"
    revives_scheduler = False
    troubles = ()

    def __init__(self, address: str, security: Security | None) -> None:
        """Remember where; nothing is sent yet."""
        self.address = address
        self.security = security
        self.dashboard_link: str | None = None

    def start(self, *, timeout_s: float) -> None:
        """See that the scheduler answers.

        Raises:
            UnreachableError: It does not, within timeout_s.
        """
        link = SchedulerLink(self.address, self.security)
        try:
            port = link.services(timeout_s=timeout_s).get("dashboard")
        finally:
            link.close()
        if port is not None:
            host = get_address_host(self.address)
            self.dashboard_link = str(format_dashboard_link(host, port))

    def scale(self, num_workers: int, *, timeout_s: float) -> None:  # noqa: ARG002
        """Refuse.

        Raises:
            NotOwnedError: Always.
        """
        raise NotOwnedError(
            f"the cluster at {self.address} was not launched by this program, so it "
            f"cannot be scaled to {num_workers} workers here; whoever runs it can, or "
            "use cluster.launch() for one of your own",
            kind=self.kind,
            address=self.address,
            workers_asked=num_workers,
        )

    def logs(self, *, num_lines: int, timeout_s: float) -> dict[str, str]:  # noqa: ARG002
        """Return nothing: the scheduler tells."""
        return {}

    def close(self) -> None:
        """Do nothing: it is not ours to end."""


def connect(
    address: str, security: Security | None = None, timeout_s: float = 15.0
) -> Cluster:
    """Reach a Dask cluster that someone else runs (Kubernetes, Coiled, a colleague).

    Args:
        address: Where its scheduler listens, such as "tls://scheduler:8786".
        security: Certificates for tls://; None takes Dask's configured ones, if any.
        timeout_s: Longest wait for the scheduler's first answer, and the default of
            the waits that follow.

    Returns:
        A Cluster whose close() ends its clients and nothing else.

    Raises:
        SpecError: The address cannot be one, or tls:// without certificates.
        UnreachableError: No Dask scheduler answers there in time.
    """
    check_seconds("timeout_s", timeout_s)
    if security is not None and not isinstance(security, Security):
        raise SpecError(
            f"security={security!r} must be a distributed.Security with the "
            "certificates, or None"
        )
    _check_address(address, security)
    return open_cluster(
        RemoteLauncher(address, security), num_workers=0, timeout_s=timeout_s
    )


def _check_address(address: object, security: Security | None) -> None:
    try:
        if not isinstance(address, str):
            raise ValueError("it is not text")
        get_address_host_port(address)
    except ValueError as error:
        raise SpecError(
            f"address={address!r} is not that of a scheduler ({error}); it looks like "
            "tcp://host:8786 or tls://host:8786"
        ) from error
    if address.startswith("tls://"):
        arguments = (security or Security()).get_connection_args("client")
        if arguments.get("ssl_context") is None:
            raise SpecError(
                f"address={address!r} needs certificates: pass security="
                "distributed.Security(tls_ca_file=..., tls_client_cert=..., "
                "tls_client_key=...)",
                address=address,
            )
