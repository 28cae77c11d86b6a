"""What a Dask scheduler says of its workers."""

from __future__ import annotations

from typing import Any

import distributed


def workers_of(client: distributed.Client) -> dict[str, Any]:
    """Return what the scheduler says of each worker, by address.

    Not Client.scheduler_info(): a timer of the client's leaves the workers out of what it
    remembers, now and then just before it is returned.
    """
    found = client.sync(client.scheduler.identity)
    return dict(found["workers"])
