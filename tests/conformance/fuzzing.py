"""Damages small files byte by byte and reads them, in a process that may die of it.

Run as `python -m tests.conformance.fuzzing KIND PART FIRST LAST`: reads the damages FIRST
to LAST - 1 of a kind of file, a line for each: its number, a colon, and what came of it.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dask_loader import DaskLoaderError, ParquetDataset
from tests.conformance.child import delivered

ROWS = 120
NUM_FLIPS = 400
_COMMON = {"row_group_size": 50, "data_page_size": 200, "write_page_index": True}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"compression": "none", "use_dictionary": False},
    "plain checked": {
        "compression": "none",
        "use_dictionary": False,
        "write_page_checksum": True,
    },
    "snappy": {"compression": "snappy"},
    "zstd checked": {"compression": "zstd", "write_page_checksum": True},
    "v2 checked": {
        "compression": "gzip",
        "data_page_version": "2.0",
        "write_page_checksum": True,
    },
    "lz4 delta": {
        "compression": "lz4",
        "use_dictionary": False,
        "column_encoding": {"i": "DELTA_BINARY_PACKED", "s": "DELTA_BYTE_ARRAY"},
    },
}


def table() -> pa.Table:
    """Return what all files hold."""
    rng = np.random.default_rng(3)
    return pa.table(
        {
            "i": rng.integers(0, 1000, ROWS),
            "f": rng.random(ROWS, dtype=np.float32),
            "b": rng.random(ROWS) < 0.5,
            "s": [f"text {i % 7}" for i in range(ROWS)],
            "l": [list(range(i % 4)) for i in range(ROWS)],
        }
    )


def make(kind: str, path: Path) -> bytes:
    """Write a file of a kind; return its bytes."""
    pq.write_table(table(), path, **{**_COMMON, **KINDS[kind]})
    return path.read_bytes()


def flip(content: bytes, number: int) -> bytes:
    """Return the content with one bit of its pages and their headers turned over.

    The NUM_FLIPS positions are spread over all of them.
    """
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    low, high = (4 + (footer - 4) * n // NUM_FLIPS for n in (number, number + 1))
    rng = random.Random(f"flip {number}")
    found = bytearray(content)
    found[rng.randrange(low, max(low + 1, high))] ^= 1 << rng.randrange(8)
    return bytes(found)


def damage(content: bytes, part: str, number: int) -> bytes:
    """Return the content with damages.

    One bit where the part is "bits", else one to four in its "pages" or its "footer".
    """
    if part == "bits":
        return flip(content, number)
    rng = random.Random(f"{part} {number}")
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    low, high = (4, footer) if part == "pages" else (footer, len(content))
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(low, high)
        match rng.randrange(8):
            case 0 | 1 | 2 | 3:
                found[at] ^= 1 << rng.randrange(8)
            case 4 | 5:
                found[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            case 6:
                stop = min(high, at + rng.randrange(1, 9))
                found[at:stop] = rng.randbytes(stop - at)
            case _:
                stop = min(high, at + rng.randrange(1, 9))
                del found[at:stop]
                high -= stop - at
    return bytes(found)


def read(path: Path | str, **options: Any) -> dict[str, list[Any]]:
    """Read a whole file through a dataset."""
    found: dict[str, list[Any]] = {}
    with ParquetDataset(path, footer_cache=False, **options) as dataset:
        num_rows = dataset.num_rows
        for batch in dataset:
            for name, column in batch.items():
                found.setdefault(name, []).extend(delivered(column))
    short = [name for name, column in found.items() if len(column) != num_rows]
    assert not short, f"fewer rows than promised in {short!r}"
    return found


def judge(path: Path, sound: dict[str, list[Any]]) -> str:
    """Return "equal", "other values", "other rows", "refused" or what went wrong."""
    try:
        found = read(path, client="threads")
    except DaskLoaderError as error:
        named = path.name in str(error)
        if not named:
            return f"WRONG: file not named: {error!r}"
        return "refused" if error.row_group is None else "row group refused"
    except Exception as error:
        return f"WRONG: {error!r}"
    if repr(found) == repr(sound):  # unlike ==, tells -0.0 from 0.0
        return "equal"
    # A damaged footer may speak of other rows, or of fewer columns, and be believed.
    rows = {len(column) for column in found.values()}
    return "other values" if rows == {ROWS} else "other rows"


def main() -> None:
    """Read the damages that the command line names."""
    kind, part, first, last = *sys.argv[1:3], int(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.parquet"
        content = make(kind, path)
        sound = read(path, client="threads")
        for number in range(first, last):
            path.write_bytes(damage(content, part, number))
            print(f"{number}:", end="", flush=True)  # noqa: T201
            verdict = judge(path, sound).replace("\n", " ")
            print(verdict, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
