"""What the user gave for client=, as plain values that any process can use."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import dask.config

from dask_loader.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Where:
    """Where reading happens.

    Attributes:
        address: The scheduler's, or None for threads of this process.
        security: A distributed.Security, or None. May hold keys: never printed.
        revived: Whether a scheduler that dies is started again at the same address.
    """

    address: str | None = None
    security: Any = field(default=None, repr=False)
    revived: bool = False


def resolve_client(client: Any) -> Where:
    """Read the address and security out of what the user gave.

    A live client is never kept: it does not pickle, hangs after a fork, and gathers
    through the scheduler unless it was made otherwise.

    Args:
        client: None for the active Dask client, else the configured scheduler address,
            else threads; "threads"; an address; a distributed.Client; or a cluster object
            with scheduler_address and, if it has them, security and revives_scheduler.

    Raises:
        ConfigError: It is none of these.
    """
    if client is None:
        return _active()
    if client == "threads":
        return Where()
    if isinstance(client, str):
        if not client.strip():
            raise ConfigError(
                f'client={client!r} is empty; give "threads", or an address such as '
                '"tcp://scheduler:8786"'
            )
        return Where(client if "://" in client else f"tcp://{client}")
    if hasattr(client, "scheduler") and hasattr(client, "gather"):
        return _of_client(client)
    address = getattr(client, "scheduler_address", None)
    if isinstance(address, str) and address:
        revived = getattr(client, "revives_scheduler", False) is True
        return Where(address, _some(getattr(client, "security", None)), revived)
    raise ConfigError(
        f'client={client!r} is none of None, "threads", a scheduler address, a '
        "distributed.Client, or a cluster object with a scheduler_address"
    )


def _active() -> Where:
    # A program that has not loaded distributed has no active client.
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        try:
            client = distributed.default_client()
        except ValueError:  # distributed's way to say that there is none
            client = None
        if client is not None:
            return _of_client(client)
    address = dask.config.get("scheduler-address", None)
    return resolve_client(address) if address else Where()


def _of_client(client: Any) -> Where:
    if getattr(client, "asynchronous", False):
        raise ConfigError(
            f"client={client!r} is asynchronous; pass its scheduler's address instead"
        )
    if client.scheduler is None or client.status not in ("running", "connecting"):
        raise ConfigError(
            f"client={client!r} is {client.status}; pass one that is connected, or an "
            "address"
        )
    return Where(client.scheduler.address, _some(client.security))


def _some(security: Any) -> Any:
    # A Security that says nothing is left out, so that an address alone is as good.
    return (
        security if security and getattr(security, "require_encryption", None) else None
    )
