"""Reads files as a user would and says what came of each, a line of JSON for a line.

Run as `python -m tests.conformance.child MAX_BYTES`: it may die of a file, and its parent
goes on. MAX_BYTES bounds its memory.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import traceback
from typing import Any

import pyarrow.parquet as pq
import torch

from dask_loader import DaskLoaderError, ParquetDataset, Ragged
from tests.conformance.keys import decryption
from tests.conformance.values import choices, expected, same

# A few kilobytes can decode to gigabytes; pyarrow takes half a minute for it, and us none.
_MOST_BYTES = 1 << 30


def max_group_bytes(file: pq.ParquetFile) -> int:
    """Return the size of the largest row group, decompressed."""
    groups = range(file.num_row_groups)
    return max((file.metadata.row_group(i).total_byte_size for i in groups), default=0)


def delivered(column: Any) -> list[Any]:
    """Return a batch's column as Python's values."""
    if isinstance(column, torch.Tensor):
        return list(column.numpy().tolist())
    if not isinstance(column, Ragged):
        return list(column)
    values, ends = delivered(column.values), column.offsets.tolist()
    return [values[a:b] for a, b in itertools.pairwise(ends)]


def judge(path: str, keys: str) -> dict[str, Any]:
    """Read one file by both ways.

    Returns:
        "ours": "read" or "refused"; "error" and "text" where refused; "pyarrow": the same
        of pyarrow alone; "rows"; "equal": the columns that differ.
    """
    found: dict[str, Any] = {"pyarrow": "read", "holds": ""}
    given: dict[str, Any] = {}
    want: dict[str, list[Any]] | None = None
    try:
        properties = decryption(keys)(path) if keys else None
        with pq.ParquetFile(
            path,
            coerce_int96_timestamp_unit="us",
            page_checksum_verification=True,
            decryption_properties=properties,
        ) as file:
            given = choices(file.schema_arrow)
            fields = [f"{field.type}" for field in file.schema_arrow]
            found["holds"] = (
                f"{len(fields)} columns: {', '.join(dict.fromkeys(fields))}"
            )
            if max_group_bytes(file) > _MOST_BYTES:
                raise MemoryError("not tried: it would take gigabytes")
            want = expected(file)
    except Exception as error:
        found["pyarrow"] = f"{type(error).__name__}: {error}"
    try:
        given = {**given, "decryption": decryption(keys)} if keys else given
        with ParquetDataset(
            path, client="threads", footer_cache=False, **given
        ) as dataset:
            got: dict[str, list[Any]] = {}
            num_rows = dataset.num_rows
            for batch in dataset:
                for name, column in batch.items():
                    got.setdefault(name, []).extend(delivered(column))
            rows = {len(column) for column in got.values()}
            short = rows - {num_rows} != set()
            found |= {"ours": "read", "rows": num_rows, "short": short}
            # A file without columns has rows that nothing shows.
            found["short"] |= not rows and num_rows > 0 and bool(want)
    except DaskLoaderError as error:
        return found | {
            "ours": "refused",
            "error": type(error).__name__,
            "text": str(error),
        }
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return found | {
            "ours": "wrong error",
            "error": type(error).__name__,
            "text": f"{error} ({last.name}, line {last.lineno})",
        }
    if want is not None:
        names = got or {name: [] for name in want}
        found["differ"] = sorted(
            {name for name in want if not same(names.get(name), want[name])}
            | (set(names) - set(want))
        )
    return found


def main() -> None:
    """Answer each line of stdin, a JSON list of path and keys' name."""
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        path, keys = json.loads(line)
        try:
            answer = judge(path, keys)
        except Exception as error:
            answer = {"ours": "no verdict", "error": repr(error), "text": ""}
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
