"""Try a transform on a dataset's first rows, where rows are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from dask_loader.catalog.forms import Form
from dask_loader.read.files import OpenFiles
from dask_loader.read.pieces import kept_tables, open_slice
from dask_loader.read.task import ReadOptions, SliceTask
from dask_loader.read.transform import Sample, Transform, sample_of

# Enough to tell columns without a fixed width by, and soon decoded.
TRIAL_ROWS = 16
# Filters may keep few: rows that are decoded at once until there are enough.
_READ_ROWS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What is tried, plain values that travel to a Dask worker.

    Attributes:
        options: Has the filters.
        forms: The columns of the files.
        schema: Theirs.
        transform: Without a schema yet.
    """

    options: ReadOptions
    forms: tuple[Form, ...]
    schema: pa.Schema
    transform: Transform


def try_transform(trial: Trial, piece: SliceTask | None) -> Sample:
    """Run the transform on the first kept rows of a row group.

    Args:
        trial: What to try.
        piece: The row group; None where the dataset has no rows.

    Raises:
        TransformError: It failed, or broke its promise.
        DataChangedError: The file is not the one that was planned.
        BadFileError: The file cannot be decoded.
    """
    table = trial.schema.empty_table()
    if piece is not None:
        with closing(OpenFiles()) as files:
            table = _first_rows(files, trial.options, trial.forms, piece)
    return sample_of(trial.transform, table, piece)


def _first_rows(
    files: OpenFiles, options: ReadOptions, forms: Sequence[Form], piece: SliceTask
) -> pa.Table:
    parts: list[pa.Table] = []
    with (
        open_slice(files, options, piece) as file,
        closing(
            kept_tables(file, piece, options, forms, max_rows=_READ_ROWS)
        ) as tables,
    ):
        for table in tables:
            parts.append(table)
            if sum(map(len, parts)) >= TRIAL_ROWS:
                break
    # Copied out of the pages that it was decoded from.
    return pa.concat_tables(parts).slice(0, TRIAL_ROWS).combine_chunks()
