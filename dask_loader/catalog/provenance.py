"""Columns that no file has and that say where each row came from. Pure.

Three of them are made where rows are decoded, and travel in the window like any column of
integers: the file's place in the catalog, the row group, the row. What a file is called,
and which rows are copies, is put in where batches are cut, so that no text travels.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from dask_loader.catalog.forms import Form
from dask_loader.errors import ConfigError, hide_secrets

FILE, ROW_GROUP, ROW, PADDED = "__file__", "__row_group__", "__row__", "__padded__"
NAMES = (FILE, ROW_GROUP, ROW, PADDED)

# As they lie in a window: `__file__` is an index into the catalog's files.
WINDOW_FORMS = (
    Form(FILE, "int32", made=True),
    Form(ROW_GROUP, "int32", made=True),
    Form(ROW, "int64", made=True),
)
# As they are delivered.
FIELDS = (
    pa.field(FILE, pa.string(), nullable=False),
    pa.field(ROW_GROUP, pa.int32(), nullable=False),
    pa.field(ROW, pa.int64(), nullable=False),
    pa.field(PADDED, pa.bool_(), nullable=False),
)


def add_provenance(
    forms: Sequence[Form], filter_columns: Sequence[str]
) -> tuple[Form, ...]:
    """Return the forms of a window with those that say where its rows came from.

    Args:
        forms: From deliver().
        filter_columns: The columns that the filters read.

    Raises:
        ConfigError: A column or feature has one of the names already.
    """
    taken = {form.feature or form.name for form in forms}
    taken |= {form.name for form in forms} | set(filter_columns)
    for name in NAMES:
        if name in taken:
            raise ConfigError(
                f"provenance=True adds a column {name!r}, and a column or feature that is "
                "read has this name already; rename it, leave it out with columns=[...], "
                "or do without provenance"
            )
    return (*forms, *WINDOW_FORMS)


def public_path(path: str) -> str:
    """Return a path without what a URL may hold of passwords, keys and signatures."""
    return hide_secrets(path)
