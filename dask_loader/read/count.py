"""Count the rows that filters keep, reading only the columns that the filters need."""

from __future__ import annotations

from collections.abc import Sequence

from dask_loader.read.files import OpenFiles
from dask_loader.read.pieces import count_kept, open_slice
from dask_loader.read.task import ReadOptions, SliceTask


def count_rows(options: ReadOptions, slices: Sequence[SliceTask]) -> list[int]:
    """Return the rows kept of each (whole) row group.

    Raises:
        DataChangedError: A file is not the one that was planned.
        BadFileError: A file cannot be decoded.
    """
    files = OpenFiles()
    counts = []
    try:
        for piece in slices:
            with open_slice(files, options, piece) as file:
                counts.append(count_kept(file, piece, options))
    finally:
        files.close()
    return counts
