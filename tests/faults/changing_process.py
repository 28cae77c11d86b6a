"""Reads a file that something happens to meanwhile, in a process that may die of it.

Run as `python -m tests.faults.changing_process PHASE FILE`; it prints, as JSON, the error
that came (its class, text, path and row group) and how many rows came before.

    truncated   the file is cut short in the midst of decoding a window
    forbidden   the right to read the file is taken away before the first batch
    unreadable  it is taken away before the dataset is made
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from dask_loader import DaskLoaderError, ParquetDataset

_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2

# A transform is tried on fewer rows when a dataset is made.
TRIAL_ROWS = 10_000


def obey_permissions() -> None:
    """Begin anew without root's power to read what it may not."""
    if os.geteuid() or os.environ.get("OBEYS"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for power in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        if libc.prctl(_PR_CAPBSET_DROP, power, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "cannot drop a capability")
    os.environ["OBEYS"] = "1"
    os.execv(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]])


def main() -> None:
    """Read, and print what came."""
    phase, path = sys.argv[1], Path(sys.argv[2])
    obey_permissions()
    rows = 0

    def truncating(table: pa.Table) -> pa.Table:
        if len(table) > TRIAL_ROWS:
            print("truncated", file=sys.stderr)  # noqa: T201
            os.truncate(path, 4096)
        return table

    options: dict[str, Any] = {"client": "threads", "footer_cache": False}
    if phase == "truncated":
        options["transform"] = truncating
    try:
        if phase == "unreadable":
            path.chmod(0)
        with ParquetDataset(path, shuffle=False, **options) as dataset:
            if phase == "forbidden":
                path.chmod(0)
            for batch in dataset:
                rows += len(batch["id"])
    except DaskLoaderError as error:
        found = [type(error).__name__, str(error), error.path, error.row_group, rows]
        print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
