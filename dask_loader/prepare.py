"""What is to be read: the catalog, how its columns are read, the task of each window."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from dask_loader.catalog.cache import open_cache
from dask_loader.catalog.catalog import Catalog
from dask_loader.catalog.delivery import Delivery, deliver
from dask_loader.catalog.discover import Found
from dask_loader.catalog.formats import whole_forms
from dask_loader.catalog.forms import Form, form_of
from dask_loader.catalog.layout import Layout, read_layout
from dask_loader.catalog.masks import with_masks
from dask_loader.catalog.provenance import add_provenance
from dask_loader.catalog.sanity import check_row_bytes
from dask_loader.catalog.vocabulary import code_forms
from dask_loader.counting import slice_task, with_counted_rows
from dask_loader.engine.ahead import Ahead
from dask_loader.engine.base import Engine
from dask_loader.engine.reach import early_sample_of, sample_of
from dask_loader.engine.threads import ThreadsEngine
from dask_loader.errors import DaskLoaderError, NullError, UnsupportedTypeError
from dask_loader.options import DatasetOptions
from dask_loader.plan.schedule import Request
from dask_loader.plan.stage import Stage
from dask_loader.read.nulls import NullPolicy, make_null_policy, null_error
from dask_loader.read.task import ReadOptions, WindowTask
from dask_loader.read.transform import Function, Transform
from dask_loader.read.trial import Trial, try_transform
from dask_loader.run import Run, make_run
from dask_loader.transfer.window import block_bytes
from dask_loader.vocabulary import (
    Vocabularies,
    find_vocabularies,
    given_vocabularies,
)
from dask_loader.world import World


def load_catalog(
    found: Found,
    options: DatasetOptions,
    engine: Engine,
    *,
    columns: tuple[str, ...] | None,
    filters: Any,
    nulls: Any,
    delivery: Delivery,
    layout: Layout | None = None,
    transform: Function | None = None,
    ahead: Ahead | None = None,
) -> tuple[Catalog, ReadOptions]:
    """Read the catalog, check the nulls, and count what the filters keep.

    Args:
        found: The files.
        options: Of the dataset.
        engine: Counts, and reads very many footers.
        columns: From check_columns.
        filters: As the user gave them.
        nulls: As the user gave them.
        delivery: How columns are delivered.
        layout: How files differ and what directories say.
        transform: What they are made of: the function of the user.
        ahead: Begins the first windows while the other footers are read, where the order
            lets it. Windows are left in it, also after an error.

    Raises:
        DaskLoaderError: An argument or a file is wrong.
    """

    def read_options_of(found: Catalog) -> ReadOptions:
        vocabularies = find_vocabularies(
            found,
            delivery.vocabulary,
            nulls=nulls,
            verify_checksums=options.verify_checksums,
            engine=engine,
            cache=cache,
        )
        return _read_options(
            found, options, nulls=nulls, delivery=delivery, vocabularies=vocabularies
        )

    def begin(front: Catalog) -> None:
        assert ahead is not None
        try:
            engine.will_read(sample_of(front))
            reading = read_options_of(front)
            front = replace(front, growth=_growth(front, reading.forms))
            _check_nulls(front, reading)
            ahead.start(_sure_windows(front, options, reading))
        except DaskLoaderError:
            return  # what is wrong is said in its turn, once all footers are read

    own_types = options.output_format == "arrow"
    in_order = not options.shuffle and options.num_splits in (None, 1)
    # Values that are to be found may be in the last file.
    in_order &= all(values is not None for _, values in delivery.vocabulary)
    begins = ahead is not None and in_order and filters is None and transform is None
    # What encrypted footers say is not left on a disk.
    encrypted = found.storage.decryption is not None
    cache = None if encrypted else open_cache(options.footer_cache, os.environ)
    engine.will_read(early_sample_of(found))
    catalog = read_layout(
        found,
        layout or Layout(),
        # With a transform, features and dtypes are of what it makes.
        columns=delivery.columns(columns) if transform is None else columns,
        filters=filters,
        run=engine.map,
        cache=cache,
        dtypes=delivery.wanted_dtypes if transform is None else None,
        any_type=transform is not None or own_types,
        own_types=own_types,
        on_front=begin if begins else None,
    )
    engine.will_read(sample_of(catalog))
    check_row_bytes(
        catalog.num_rows, catalog.num_bytes, options.memory_bytes, catalog.place
    )
    if transform is not None:
        plain = ReadOptions(
            storage=catalog.storage,
            forms=(),
            nulls=NullPolicy(),
            expression=catalog.expression,
            filter_columns=catalog.filter_columns,
            verify_checksums=options.verify_checksums,
            fit=catalog.fit,
            own_types=own_types,
        )
        if catalog.expression is not None:
            catalog = with_counted_rows(catalog, plain, engine, cache)
        tried = _try(transform, catalog, plain, engine)
        read_options = _read_options(
            catalog, options, nulls=nulls, delivery=delivery, transform=tried
        )
        growth = _growth(catalog, read_options.forms, tried)
        made = tuple(
            (f.name, f.dtype, f.shape, f.depth, f.items)
            for f in read_options.forms
            if not f.made
        )
        digests = tuple((n, v.digest) for n, v in read_options.vocabularies)
        catalog = replace(catalog, growth=growth, made=made, vocabularies=digests)
        return catalog, read_options
    read_options = read_options_of(catalog)
    catalog = replace(
        catalog,
        growth=_growth(catalog, read_options.forms),
        vocabularies=tuple((n, v.digest) for n, v in read_options.vocabularies),
    )
    if catalog.expression is None:
        if not own_types:
            _check_nulls(catalog, read_options)
    else:
        catalog = with_counted_rows(catalog, read_options, engine, cache)
    return catalog, read_options


def window_task(
    catalog: Catalog, read_options: ReadOptions, run: Run, request: Request
) -> WindowTask:
    """Return what a reader is told of a window."""
    window = request.window
    slices = tuple(
        slice_task(catalog, piece.group, piece.start, piece.stop)
        for piece in window.slices
    )
    # What the catalog reckons beyond the fixed widths are texts.
    texts = sum(
        piece.num_rows
        * int(catalog.num_bytes[piece.group])
        // int(catalog.num_rows[piece.group])
        for piece in window.slices
    ) - window.num_rows * sum(form.row_bytes for form in catalog.forms)
    if read_options.own_types:
        texts += window.num_rows * sum(form.row_bytes for form in catalog.forms)
    if read_options.transform is not None:
        texts = window.num_rows * read_options.transform.loose_row_bytes
    # Only a slice larger than a window is cut into several, each a window of its own.
    piece = window.slices[-1]
    last = run.epoch.split(window.split).num_windows - 1
    continues = piece.stop < int(catalog.num_kept[piece.group]) and window.index < last
    chained = continues or (piece.start > 0 and window.index > 0)
    in_chain = chained and len(window.slices) == 1
    return WindowTask(
        options=read_options,
        slices=slices,
        num_rows=window.num_rows,
        key=window.key,
        num_bytes=block_bytes(read_options.forms, window.num_rows) + max(0, texts),
        chain=f"{request.split}/{window.split}/{piece.group}" if in_chain else None,
        continues=in_chain and continues,
    )


def _sure_windows(
    front: Catalog, options: DatasetOptions, read_options: ReadOptions
) -> list[WindowTask]:
    """Return the first windows that are the same whatever files come after the front's.

    In the files' order and one split, windows are taken greedily: all but the last, which
    the next file might join.
    """
    run = make_run(front, options, World(0, 1), epoch=0, stages=(Stage(0, 1),))
    num_sure = run.epoch.split(0).num_windows - 1
    return [
        window_task(front, read_options, run, Request(i, 0, run.epoch.window(0, i)))
        for i in range(min(num_sure, Ahead.MAX_WINDOWS))
    ]


def _try(
    function: Function, catalog: Catalog, options: ReadOptions, engine: Engine
) -> Transform:
    """Run a transform on the first rows, where all others will be read."""
    transform = Transform(
        function=function,
        inputs=tuple(f.name for f in catalog.forms),
        own_types=options.own_types,
    )
    if not isinstance(engine, ThreadsEngine):
        _ = function.payload  # raises
    piece = None
    kept = np.flatnonzero(catalog.num_kept > 0)
    if len(kept):
        group = int(kept[0])
        piece = slice_task(catalog, group, 0, int(catalog.num_kept[group]))
    trial = Trial(
        options=options,
        forms=catalog.forms,
        schema=catalog.delivered_schema,
        transform=transform,
    )
    (sample,) = engine.map(partial(try_transform, trial), [piece])
    if sample.depends:
        warnings.warn(
            f"{transform.text} made something else of a row alone than with others beside "
            "it; which rows it is given together depends on row groups and memory, so "
            "batches may differ from run to run: make each row of its own columns only, "
            "without chance",
            stacklevel=4,
        )
    fields = zip(sample.schema, sample.column_bytes, strict=True)
    loose = [
        size for field, size in fields if not form_of(field, any_type=True).is_fixed
    ]
    return replace(
        transform,
        schema=sample.schema,
        row_bytes=max(1, sum(sample.column_bytes)),
        loose_row_bytes=sum(loose),
    )


def _read_options(
    catalog: Catalog,
    options: DatasetOptions,
    *,
    nulls: Any,
    delivery: Delivery,
    vocabularies: Vocabularies = (),
    transform: Transform | None = None,
) -> ReadOptions:
    forms, schema = catalog.forms, catalog.schema
    if transform is not None:
        schema, dtypes = transform.schema, delivery.wanted_dtypes
        forms = tuple(_made_form(f, dtypes.get(f.name), transform) for f in schema)
    own_types = options.output_format == "arrow"
    if own_types:
        forms, nulls = whole_forms(forms), NullPolicy()
    else:
        if transform is not None:
            vocabularies = given_vocabularies(delivery.vocabulary, forms, schema, nulls)
        forms = deliver(code_forms(forms, schema, delivery.vocabulary), delivery)
        nulls = make_null_policy(nulls, forms, schema)
        if nulls.mask:
            forms = with_masks(forms, _nullable(catalog, forms, transform))
    if options.provenance:
        forms = add_provenance(forms, catalog.filter_columns)
    return ReadOptions(
        storage=catalog.storage,
        forms=forms,
        nulls=nulls,
        expression=catalog.expression,
        filter_columns=catalog.filter_columns,
        verify_checksums=options.verify_checksums,
        fit=catalog.fit,
        vocabularies=vocabularies,
        transform=transform,
        own_types=own_types,
    )


def _nullable(
    catalog: Catalog, forms: Sequence[Form], transform: Transform | None
) -> set[str]:
    """Return the columns that may hold nulls: the same on every rank."""
    if transform is not None:
        return {form.name for form in forms}
    return {
        form.name
        for form in forms
        if catalog.schema.field(form.name).nullable or form.name in catalog.null_counts
    }


def _made_form(field: pa.Field, dtype: str | None, transform: Transform) -> Form:
    try:
        return form_of(field, dtype=dtype, any_type=transform.own_types)
    except UnsupportedTypeError as error:
        raise UnsupportedTypeError(
            f"{transform.text} makes a column {field.name!r} of type {field.type}, which "
            "has no tensor form; make numbers, text, or lists of these",
            column=field.name,
        ) from error


def _growth(
    catalog: Catalog, delivered: Sequence[Form], transform: Transform | None = None
) -> float:
    """Return the bytes of delivered rows over those of decoded rows; text left out."""
    before = sum(form.row_bytes for form in catalog.forms)
    # Where texts become codes, the plan reckons with more for the texts' offsets alone.
    texts = {form.name for form in catalog.forms if not form.number}
    if transform is not None:
        texts = set()
    fixed = (f for f in delivered if f.pad is not None or f.name not in texts)
    after = sum(form.row_bytes for form in fixed)
    if transform is not None or any(form.pad is not None for form in delivered):
        # Of how many elements a row has where it is decoded only the row groups tell.
        rows = catalog.num_rows > 0
        row_bytes = catalog.num_bytes[rows] / catalog.num_rows[rows]
        least = float(row_bytes.min(initial=np.inf))
        if transform is not None:
            return max(1.0, (after + transform.loose_row_bytes) / max(1.0, least))
        return max(1.0, 1 + (after - before) / max(1.0, least))
    if not before:  # all are texts, and what is made comes on top of them
        before = int(catalog.num_bytes.sum()) // max(1, int(catalog.num_rows.sum()))
        after += before
    return max(1.0, after / before) if before else 1.0


def _check_nulls(catalog: Catalog, read_options: ReadOptions) -> None:
    """Refuse nulls that the footers tell of, before anything is decoded."""
    for form in read_options.forms:
        allowed, _ = read_options.nulls.fill_for(form)
        counts = catalog.null_counts.get(form.name)
        if allowed or counts is None:
            continue
        found = (counts > 0) & (catalog.num_kept > 0)
        if not found.any():
            continue
        group = int(np.argmax(found))
        path, row_group = catalog.place(group)
        total = int(counts[found].sum())
        error: NullError = null_error(
            form,
            int(counts[group]),
            path=path,
            row_group=row_group,
            where=f" ({total} in the whole dataset)",
        )
        raise error
