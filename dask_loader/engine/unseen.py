"""Running a function on Dask workers without its arguments in anybody's log.

At level DEBUG a scheduler and its workers log each message as it is, and so the arguments
of Client.run as the bytes of a pickle: of storage options too. A memoryview has no such
text. (Tasks come in streams, of which nothing is logged.)
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import distributed
from distributed.protocol.serialize import to_serialize


def run_unseen(
    client: distributed.Client,
    function: Callable[[Any], Any],
    argument: Any,
    worker: str,
) -> Coroutine[Any, Any, dict[str, Any]]:
    """Run a function on a worker at once, past its queue; what it raises is returned."""
    hidden: Any = _Hidden(client)
    return distributed.Client._run(
        hidden, function, argument, workers=[worker], on_error="return"
    )


class _Hidden:
    """Stands for a client and for its scheduler, as Client._run needs them."""

    def __init__(self, client: Any) -> None:
        self.scheduler = self
        self._client = client

    async def broadcast(self, *, msg: dict[str, Any], **options: Any) -> Any:
        msg["args"] = to_serialize(memoryview(msg["args"]))
        return await self._client.scheduler.broadcast(msg=msg, **options)
