"""Count the rows that filters keep, reading only the columns that the filters need."""

from __future__ import annotations

from collections.abc import Sequence

from dask_loader.read.files import OpenFiles
from dask_loader.read.pieces import check_group, count_kept
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
            with files.borrow(
                options.storage,
                piece.path,
                piece.stamp,
                verify_checksums=options.verify_checksums,
                digest=piece.digest,
            ) as file:
                check_group(file, piece)
                counts.append(count_kept(file, piece, options))
    finally:
        files.close()
    return counts
