"""A trainer that takes as many batches as it is told to, and tells what is in each.

cut_consumer.py OPTIONS (JSON; an address that is revived is "revived": true; "ssh" are
the options of a cluster that it launches)

Each line of its input is a number of batches to take, or 0 for all that are left. Its
output has a line of JSON for each batch, then one for how that ended.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from contextlib import ExitStack
from itertools import islice
from typing import Any

import torch


class Revived:
    """What cluster.Cluster looks like to a consumer."""

    revives_scheduler = True

    def __init__(self, address: str) -> None:
        self.scheduler_address = address


def told(batch: dict[str, Any]) -> dict[str, Any]:
    """The ids of a batch, and a digest of all that is in it."""
    digest = hashlib.sha256()
    for name, column in batch.items():
        digest.update(name.encode())
        is_tensor = isinstance(column, torch.Tensor)
        digest.update(column.numpy().tobytes() if is_tensor else repr(column).encode())
    return {"ids": batch["id"].tolist(), "digest": digest.hexdigest()}


def say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    import cluster
    from dask_loader import DaskLoaderError, ParquetDataset

    options = json.loads(sys.argv[1])
    if options.pop("revived"):
        options["client"] = Revived(options["client"])
    with ExitStack() as stack:
        if "ssh" in options:
            launched = cluster.launch("ssh", **options.pop("ssh"))
            options["client"] = stack.enter_context(launched)
        dataset = stack.enter_context(ParquetDataset(**options))
        batches = None
        for line in sys.stdin:
            began = time.monotonic()
            try:
                batches = iter(dataset) if batches is None else batches
                for batch in islice(batches, int(line) or None):
                    say(told(batch))
            except DaskLoaderError as error:
                batches = None
                name, state = type(error).__name__, dataset.state_dict()
                say({"error": name, "text": str(error), "state": state})
            else:
                say({"took_s": time.monotonic() - began})


if __name__ == "__main__":
    main()
