"""What a reader is told: plain values that travel to a thread or a Dask worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dask_loader.catalog.fit import Fit
from dask_loader.catalog.forms import Form
from dask_loader.catalog.storage import Stamp, Storage
from dask_loader.catalog.vocabulary import Vocabulary
from dask_loader.errors import WithoutSecrets
from dask_loader.read.nulls import NullPolicy

if TYPE_CHECKING:
    from dask_loader.read.transform import Transform


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """What is the same for all windows of a dataset.

    Attributes:
        storage: Where the files lie.
        forms: The columns to deliver, in order, as they are delivered: cast, and those of
            a feature together. With provenance, also those that are made. With a
            transform, of what it returns.
        nulls: What becomes of nulls.
        expression: Keeps the rows for which it is true; all where None.
        filter_columns: The columns that the expression reads.
        verify_checksums: Check the pages' checksums where there are any.
        fit: What makes a file's columns the dataset's.
        vocabularies: Of each column that is delivered as codes.
        transform: Makes the columns to deliver of those of the files.
        own_types: Columns are delivered in Arrow's own types, as files nest them.
    """

    storage: Storage
    forms: tuple[Form, ...]
    nulls: NullPolicy
    expression: Any = None
    filter_columns: tuple[str, ...] = ()
    verify_checksums: bool = True
    fit: Fit = field(default_factory=Fit)
    vocabularies: tuple[tuple[str, Vocabulary], ...] = ()
    transform: Transform | None = None
    own_types: bool = False

    @property
    def dictionaries(self) -> tuple[str, ...]:
        """The columns that are read as dictionaries; filters need their values."""
        if self.transform is not None:
            return ()  # and so does the user's function
        names = (name for name, _ in self.vocabularies)
        return tuple(name for name in names if name not in self.filter_columns)


@dataclass(frozen=True, slots=True, repr=False)
class SliceTask(WithoutSecrets):
    """Kept rows [start, stop) of one row group.

    Attributes:
        path: The file.
        stamp: The version that the catalog knows.
        row_group: Index in the file.
        group_rows: Rows of the row group before filtering.
        start: First row, counted after filtering.
        stop: One past the last.
        digest: Hash of the footer that the catalog read; "" checks nothing.
        file_index: Place of the file in the catalog.
        keys: What its directories say, as text, in the order of Fit.keys.
    """

    path: str
    stamp: Stamp
    row_group: int
    group_rows: int
    start: int
    stop: int
    digest: str = ""
    file_index: int = 0
    keys: tuple[str | None, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowTask:
    """One window to read.

    Attributes:
        options: Same for all windows.
        slices: In order.
        num_rows: Rows of all slices.
        key: Key of the permutation that mixes the rows; None keeps their order.
        num_bytes: Decoded bytes, as the plan reckons them.
        chain: Names the run of windows that this one belongs to: those of one split in one
            row group larger than a window, each a single slice. None if it is none.
        continues: Whether the chain has a next window.
    """

    options: ReadOptions
    slices: tuple[SliceTask, ...]
    num_rows: int
    key: tuple[object, ...] | None
    num_bytes: int
    chain: str | None = None
    continues: bool = False
