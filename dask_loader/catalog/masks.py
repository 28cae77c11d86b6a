"""Columns that tell where others are null: nulls="mask". Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pyarrow as pa

from dask_loader.catalog.forms import Form, Padding
from dask_loader.errors import ConfigError

# Of a column, and of the elements of a column of lists.
VALID, ITEMS_VALID = "__valid", "__items_valid"


def with_masks(forms: Sequence[Form], nullable: Collection[str]) -> tuple[Form, ...]:
    """Return forms with a mask after each column that may hold nulls.

    Args:
        forms: As columns are delivered.
        nullable: The names of those that may hold nulls.

    Raises:
        ConfigError: A column has a mask's name.
    """
    found: list[Form] = []
    for form in forms:
        found.append(form)
        if form.name in nullable and not form.made:
            found += _masks_of(form)
    names = [form.name for form in forms]
    for form in found:
        if form.mask_of and form.name in names:
            raise ConfigError(
                f'nulls="mask" adds a column {form.name!r}, and there is one of this name '
                "already; rename it, or leave it out with columns=[...]"
            )
    return tuple(found)


def mask_field(form: Form, schema: pa.Schema) -> pa.Field:
    """Return a mask's Arrow field.

    Args:
        form: Of a mask.
        schema: Has the column that it is of.
    """
    kind = schema.field(form.mask_of).type
    if form.name.endswith(ITEMS_VALID) or form.shape:
        return pa.field(form.name, _valid_type(kind), nullable=False)
    return pa.field(form.name, pa.bool_(), nullable=False)


def _masks_of(form: Form) -> list[Form]:
    mask = Form(form.name + VALID, "bool", mask_of=form.name)
    if form.pad is not None:
        pad = Padding(form.pad.length, False, form.pad.cut)
        items = replace(mask, name=form.name + ITEMS_VALID, shape=form.shape, pad=pad)
        return [mask, items]
    if form.depth:
        items = replace(
            mask,
            name=form.name + ITEMS_VALID,
            dtype="",
            depth=form.depth,
            items="bool",
            shape=form.shape,
            nested=form.nested,
        )
        return [mask, items]
    return [replace(mask, shape=form.shape)]


def _valid_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_list(kind):
        return pa.large_list(_valid_type(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(pa.field("item", _valid_type(kind.value_type)), kind.list_size)
    return pa.bool_()
