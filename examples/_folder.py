"""What the two writers share: row groups go in, a folder of Parquet files comes out.

The files are written into ``OUT.partial-<random>`` beside the folder, which is renamed
to ``OUT`` as the last step: ``OUT`` is there whole or not at all. An error or Ctrl-C
removes the partial folder; one that a killed run left behind can be deleted. A folder
that holds something is never written to.
"""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


class OutputError(Exception):
    """The folder cannot be written as asked."""


def at_least(minimum: int) -> Callable[[str], int]:
    """Make an argparse type: a whole number that is not below `minimum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number"
            ) from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is below {minimum}")
        return value

    return parse


def add_output_options(
    parser: argparse.ArgumentParser, *, num_files: int, row_group_rows: int
) -> None:
    """Add OUT and the options on files, with these defaults."""
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="folder to make; new or empty"
    )
    parser.add_argument(
        "--files",
        type=at_least(1),
        help=f"(default: {num_files}, or one per row group if there are fewer)",
    )
    parser.add_argument(
        "--row-group-rows",
        type=at_least(1),
        default=row_group_rows,
        help="rows of each row group but the last (default: %(default)s)",
    )
    parser.add_argument(
        "--compression",
        choices=["none", "snappy", "gzip", "lz4", "zstd"],
        default="snappy",
        help="(default: %(default)s)",
    )


def choose_files(asked: int | None, default: int, num_row_groups: int) -> int:
    """Return how many files to write, each with a row group at least.

    Raises:
        OutputError: More files were asked for than there are row groups.
    """
    if asked is not None and asked > num_row_groups:
        raise OutputError(
            f"--files {asked} needs as many row groups and there are {num_row_groups}; "
            "give fewer files or a smaller --row-group-rows"
        )
    return asked or min(default, num_row_groups)


def row_bytes(schema: pa.Schema) -> int:
    """Bytes of one row decoded to NumPy arrays or tensors, where a bool takes one."""
    return sum(np.dtype(field.type.to_pandas_dtype()).itemsize for field in schema)


def write_folder(
    out: Path,
    row_groups: Iterable[pa.Table],
    *,
    schema: pa.Schema,
    num_row_groups: int,
    num_files: int,
    compression: str,
    dictionary: list[str],
) -> int:
    """Write each table as one row group, `num_row_groups` in all, and return the bytes.

    Row groups keep their order; files hold equally many of them, or one more. Memory
    is bounded by the one table in hand and its encoded copy.

    Args:
        out: The folder to make; it may exist if it is empty.
        row_groups: Made one by one while they are written.
        schema: Of each table.
        num_row_groups: How many tables come.
        num_files: At most `num_row_groups`.
        compression: A codec's name as Parquet has it, or "none".
        dictionary: Names of the columns with few values, which are worth a dictionary.

    Raises:
        OutputError: `out` is neither new nor an empty folder.
    """
    tables = iter(row_groups)
    with _new_folder(out) as folder:
        for index in range(num_files):
            first = num_row_groups * index // num_files
            end = num_row_groups * (index + 1) // num_files
            with pq.ParquetWriter(
                folder / f"part-{index:05d}.parquet",
                schema,
                compression=compression,
                use_dictionary=dictionary,
            ) as writer:
                for table in itertools.islice(tables, end - first):
                    writer.write_table(table, row_group_size=table.num_rows)
        return sum(path.stat().st_size for path in folder.iterdir())


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Lend a folder beside `out` that becomes `out` if the block ends well."""
    out = out.resolve()
    if os.path.ismount(out):
        raise OutputError(f"{out} is a mount point; name a folder inside it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        kind = "is not empty" if out.is_dir() else "is not a folder"
        raise OutputError(f"{out} exists and {kind}; name a new folder or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        yield partial
        try:
            partial.rename(out)  # replaces an empty folder, never one with content
        except OSError as error:
            raise OutputError(f"{out} was taken in the meantime: {error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
