"""A catalog of files as they are, made one of the dataset's columns.

Keys of directories are added, columns that some file lacks or has narrower are counted as
they will be delivered, and files that keys alone rule out are left unread. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray
from pyarrow import fs as arrow_fs

from dask_loader.catalog.fit import Agreement, Fit
from dask_loader.catalog.forms import Form, form_of
from dask_loader.catalog.keys import Keys

if TYPE_CHECKING:
    from dask_loader.catalog.catalog import Catalog

# Arrow's offsets beside text: 4 bytes a row.
_OFFSET_BYTES = 4


def adapt(
    catalog: Catalog,
    packed: Sequence[bytes],
    *,
    names: Sequence[str],
    agreement: Agreement,
    keys: Keys | None,
    dtypes: Mapping[str, str],
    any_type: bool,
) -> Catalog:
    """Return the catalog of the dataset's columns.

    Args:
        catalog: Its forms are those of the files' own columns, as the first file or schema=
            has them; its schema has the keys.
        packed: Each file's schema, in the order of its files.
        names: The columns to deliver, in order, keys too.
        agreement: From agree().
        keys: Of the directories.
        dtypes: NumPy dtypes that the user wants columns in, by column.
        any_type: Columns need no tensor form.
    """
    schema = _with_types(catalog.schema, agreement)
    fit = Fit(() if keys is None else keys.fields, tuple(agreement.types.items()))
    if not fit:
        return catalog
    old = {form.name: form for form in catalog.forms}
    told = dict(fit.keys)
    path = catalog.files[0].path
    num_bytes = catalog.num_bytes.copy()
    nulls = dict(catalog.null_counts)
    forms = []
    for name in names:
        form = old.get(name)
        if name in told or name in agreement.types:
            form = form_of(
                schema.field(name),
                path=path,
                dtype=dtypes.get(name),
                any_type=any_type,
            )
        assert form is not None
        forms.append(form)
        if name in told:
            texts = _key_texts(catalog, keys, name)
            num_bytes += catalog.num_rows * _key_bytes(form, texts)[catalog.file_index]
            is_null = np.array([text is None for text in texts], dtype=np.bool_)
        else:
            num_bytes += catalog.num_rows * (form.row_bytes - old[name].row_bytes)
            lacking = {p for p, lost in agreement.missing.items() if name in lost}
            is_null = np.array([p in lacking for p in packed], dtype=np.bool_)
        if is_null.any():
            of_group = is_null[catalog.file_index]
            known = nulls.get(name, np.zeros_like(catalog.num_rows))
            nulls[name] = np.where(of_group, catalog.num_rows, known)
    catalog = replace(
        catalog,
        schema=schema,
        forms=tuple(forms),
        num_bytes=num_bytes,
        null_counts=nulls,
        keys=keys,
        fit=fit,
    )
    return catalog if keys is None else _without_ruled_out(catalog, keys)


def _with_types(schema: pa.Schema, agreement: Agreement) -> pa.Schema:
    for name, kind in agreement.types.items():
        place = schema.get_field_index(name)
        if place >= 0:
            schema = schema.set(place, pa.field(name, kind))
    return schema


def _key_texts(catalog: Catalog, keys: Keys | None, name: str) -> list[str | None]:
    assert keys is not None
    place = keys.names.index(name)
    return [keys.texts(file.path)[place] for file in catalog.files]


def _key_bytes(form: Form, texts: Sequence[str | None]) -> NDArray[np.int64]:
    """Return the bytes that a key takes in each row of each file."""
    if form.is_fixed:
        return np.full(len(texts), form.row_bytes, dtype=np.int64)
    sizes = [_OFFSET_BYTES + len((text or "").encode()) for text in texts]
    return np.array(sizes, dtype=np.int64)


def _without_ruled_out(catalog: Catalog, keys: Keys) -> Catalog:
    """Return the catalog without rows of files that the filters rule out by keys."""
    if catalog.expression is None:
        return catalog
    paths = [file.path for file in catalog.files]
    if set(catalog.filter_columns) <= set(keys.names):
        table = keys.table(paths).append_column("", pa.array(np.arange(len(paths))))
        left = table.filter(catalog.expression).column("").to_numpy()
        stays = np.isin(np.arange(len(paths)), left)
        # Nothing is left to be decided for single rows.
        catalog = replace(
            catalog,
            expression=None,
            filter_columns=(),
            may_keep=np.ones_like(catalog.may_keep),
        )
    else:
        alive = _possible(catalog.expression, catalog, keys)
        stays = np.array([path in alive for path in paths], dtype=np.bool_)
        if not set(catalog.filter_columns) & set(keys.names):
            stays[:] = True
    gone = ~stays[catalog.file_index]
    return replace(
        catalog,
        num_kept=np.where(gone, 0, _all_rows(catalog)),
        ruled_out=tuple(np.flatnonzero(~stays).tolist()),
    )


def _all_rows(catalog: Catalog) -> Any:
    # Filters on keys alone were reckoned with the statistics too, which here say no more.
    return catalog.num_rows if catalog.expression is None else catalog.num_kept


def _possible(expression: pc.Expression, catalog: Catalog, keys: Keys) -> set[str]:
    """Return the files that the values of their keys do not rule out."""
    file_format, nowhere = pads.ParquetFileFormat(), arrow_fs.LocalFileSystem()
    fragments = [
        file_format.make_fragment(
            file.path,
            filesystem=nowhere,
            partition_expression=keys.guarantee(file.path),
        )
        for file in catalog.files
    ]
    dataset = pads.FileSystemDataset(
        fragments, catalog.filter_schema, file_format, nowhere
    )
    return {f.path for f in dataset.get_fragments(filter=expression)}
