"""Write a seeded tabular Parquet set of any size: numbers go in, a folder comes out.

By default 40 columns x 42,600,000 rows in 16 files and 326 row groups of 131,072 rows
(the last has 1,600): 176 bytes a row, 7,497,600,000 bytes (7.5 GB) decoded, a bool
taking one byte. Columns:

  id                int64, 0 .. rows - 1 in order, each once
  label             float32, what a model should learn
  fNNN_<dtype>      features; dtypes take turns: float32, int32, int64, float64, int8, bool

The label is the sum of the first six features (or of all, if fewer), each standardised,
with signs +, -, +, ..., scaled to variance 1, plus noise of variance 0.25. So the best
R2 that a model can reach is 0.80, and its mean squared error 0.25.

Row groups are made and written one by one, so memory holds one of them at any size.
Each is drawn from Philox keyed by (seed, row group index): the content depends on
--seed, --rows, --columns and --row-group-rows, and not on --files. NumPy does not
promise the same numbers from its next versions.

  python examples/make_dataset.py /data/train
  python examples/make_dataset.py /data/big --rows 568_000_000 --files 256   # 100 GB
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from _folder import (
    OutputError,
    add_output_options,
    at_least,
    choose_files,
    row_bytes,
    write_folder,
)

Array = npt.NDArray[Any]

DEFAULT_FILES = 16
NUM_SIGNAL_FEATURES = 6
NOISE = 0.5  # standard deviation beside a signal of 1


class Kind(NamedTuple):
    """How features of one dtype are drawn, and the mean and deviation they have."""

    type: pa.DataType
    draw: Callable[[np.random.Generator, int], Array]  # num_rows values
    mean: float
    deviation: float


def _integers(dtype: type[np.integer[Any] | np.bool_], *, end: int) -> Kind:
    """Whole numbers in [0, end), all equally likely."""
    return Kind(
        pa.from_numpy_dtype(dtype),
        lambda rng, num_rows: rng.integers(0, end, num_rows, dtype=dtype),
        mean=(end - 1) / 2,
        deviation=math.sqrt((end**2 - 1) / 12),
    )


KINDS = (
    Kind(pa.float32(), lambda rng, n: rng.standard_normal(n, np.float32), 0.0, 1.0),
    _integers(np.int32, end=1000),  # a category
    _integers(np.int64, end=2**40),  # a hash
    Kind(pa.float64(), lambda rng, n: rng.standard_exponential(n), 1.0, 1.0),
    _integers(np.int8, end=100),
    _integers(np.bool_, end=2),
)
FEW_VALUES = ("_int32", "_int8")  # worth a dictionary in the files


def schema(num_columns: int) -> pa.Schema:
    """Name and type the columns: id, label, then features."""
    kinds = [KINDS[index % len(KINDS)] for index in range(num_columns - 2)]
    features = [
        (f"f{index:03d}_{np.dtype(kind.type.to_pandas_dtype()).name}", kind.type)
        for index, kind in enumerate(kinds)
    ]
    return pa.schema([("id", pa.int64()), ("label", pa.float32()), *features])


def row_group(index: int, *, first: int, end: int, seed: int, columns: int) -> pa.Table:
    """Make the row group at `index`, which holds the rows [first, end)."""
    num_rows = end - first
    rng = np.random.Generator(
        np.random.Philox(key=np.array([seed, index], dtype=np.uint64))
    )
    num_signal = min(NUM_SIGNAL_FEATURES, columns - 2)
    label = NOISE * rng.standard_normal(num_rows, dtype=np.float32)
    features: list[pa.Array] = []
    for feature in range(columns - 2):
        kind = KINDS[feature % len(KINDS)]
        values = kind.draw(rng, num_rows)
        if feature < num_signal:
            weight = (-1) ** feature / math.sqrt(num_signal) / kind.deviation
            label += (weight * (values - kind.mean)).astype(np.float32)
        features.append(pa.array(values))
    ids = pa.array(np.arange(first, end, dtype=np.int64))
    return pa.table([ids, pa.array(label), *features], schema=schema(columns))


def row_groups(
    *, rows: int, row_group_rows: int, seed: int, columns: int
) -> Iterator[pa.Table]:
    """Make all row groups in order; only the last one may be shorter."""
    for index, first in enumerate(range(0, rows, row_group_rows)):
        end = min(first + row_group_rows, rows)
        yield row_group(index, first=first, end=end, seed=seed, columns=columns)


def main(argv: list[str] | None = None) -> int:
    """Run the script and return its exit code: 0, or 2 if OUT cannot be written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output_options(parser, num_files=DEFAULT_FILES, row_group_rows=131_072)
    for flag, minimum, default in (
        ("--rows", 1, 42_600_000),
        ("--columns", 3, 40),
        ("--seed", 0, 0),
    ):
        parser.add_argument(
            flag, type=at_least(minimum), default=default, help="(default: %(default)s)"
        )
    args = parser.parse_args(argv)
    if args.seed >= 2**64:
        parser.error(f"argument --seed: {args.seed} is not below 2**64")

    started = time.perf_counter()
    columns = schema(args.columns)
    num_row_groups = -(-args.rows // args.row_group_rows)
    try:
        num_files = choose_files(args.files, DEFAULT_FILES, num_row_groups)
        disk_bytes = write_folder(
            args.out,
            row_groups(
                rows=args.rows,
                row_group_rows=args.row_group_rows,
                seed=args.seed,
                columns=args.columns,
            ),
            schema=columns,
            num_row_groups=num_row_groups,
            num_files=num_files,
            compression=args.compression,
            dictionary=[name for name in columns.names if name.endswith(FEW_VALUES)],
        )
    except OutputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(
        f"{args.out}: {args.rows:,} rows, {num_files} files, "
        f"{num_row_groups} row groups, {disk_bytes:,} bytes on disk, "
        f"{args.rows * row_bytes(columns):,} bytes decoded, "
        f"{time.perf_counter() - started:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
