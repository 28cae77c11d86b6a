"""The catalog: every row group of a dataset as numbers, made once from all footers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dask_loader.catalog.adapt import adapt
from dask_loader.catalog.cache import FooterCache
from dask_loader.catalog.filters import (
    filter_columns,
    filter_text,
    make_filter,
    may_prune,
    name_filter,
)
from dask_loader.catalog.fit import Fit, agree, both
from dask_loader.catalog.flat import arrow_schema, filter_schema, flat_schema
from dask_loader.catalog.footers import FooterQuery, null_column
from dask_loader.catalog.forms import Form, form_of
from dask_loader.catalog.gather import Footers, MapFunction
from dask_loader.catalog.keys import Keys, Partitioning, find_keys
from dask_loader.catalog.schema import choose_columns
from dask_loader.catalog.storage import Sight, Stamp, Storage
from dask_loader.catalog.summarized import SummaryFooters
from dask_loader.catalog.summary import Summary
from dask_loader.errors import ColumnError, ConfigError, SchemaError, WithoutSecrets

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, repr=False)
class FileEntry(WithoutSecrets):
    """One file and the version of it that the catalog speaks of.

    Attributes:
        path: Where it lies.
        stamp: Tells this version from others in the time of a run.
        digest: Hash of its footer.
        identity: What no other content at this path ever has, or "", see Sight.
    """

    path: str
    stamp: Stamp
    digest: str
    identity: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Catalog(WithoutSecrets):
    """All row groups of a dataset, in the files' order.

    Attributes:
        storage: Where the files lie.
        files: In the dataset's order.
        schema: The dataset's columns: the first file's or the user's, and the keys.
        forms: The columns that are delivered, in order, as the files have them.
        expression: The filters, or None.
        filter_text: The filters as text, for fingerprints.
        filter_columns: The columns that the filters read.
        file_index: File of each row group, int64, shape (row groups,).
        row_group: Its index in that file, int64, same shape.
        num_rows: Its rows before filtering, int64, same shape.
        num_bytes: Its decoded bytes before filtering, int64, same shape.
        num_kept: Its rows after filtering, int64, same shape.
        null_counts: For each delivered column that has nulls or does not say: int64, same
            shape, -1 where the footer does not say.
        growth: Bytes of rows as they are delivered over num_bytes, at least 1: wider
            dtypes take more memory, and leave the order as it is.
        filter_schema: What filters may name.
        keys: Of the directories, or None.
        fit: What makes files' columns the dataset's.
        may_keep: Row groups that statistics do not rule out, bool, shape (row groups,).
        ruled_out: Files of which the filters keep no row, by their keys alone.
        skipped: Files that are left out as they cannot be read, and why.
        vocabularies: Column and digest of each vocabulary, for fingerprints.
        made: Names and forms of what a transform makes of the columns, for fingerprints.
    """

    storage: Storage
    files: tuple[FileEntry, ...]
    schema: pa.Schema
    forms: tuple[Form, ...]
    expression: Any
    filter_text: str
    filter_columns: tuple[str, ...]
    file_index: Ints
    row_group: Ints
    num_rows: Ints
    num_bytes: Ints
    num_kept: Ints
    null_counts: dict[str, Ints]
    growth: float = 1.0
    filter_schema: pa.Schema | None = None
    keys: Keys | None = None
    fit: Fit = field(default_factory=Fit)
    may_keep: NDArray[np.bool_] = field(default_factory=lambda: np.ones(0, np.bool_))
    ruled_out: tuple[int, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    vocabularies: tuple[tuple[str, str], ...] = ()
    made: tuple[Any, ...] = ()
    # Of the fields above; a copy by replace() has none yet.
    _prints: dict[str, str] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def total_rows(self) -> int:
        """Rows of the dataset after filtering."""
        return int(self.num_kept.sum())

    @property
    def delivered_schema(self) -> pa.Schema:
        """The delivered columns in Arrow's types, units and time zones included."""
        return pa.schema([self.schema.field(form.name) for form in self.forms])

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the files and of what is read of them; see OrderFacts.

        "files" leaves paths and times out, so that a copy of the same files elsewhere is
        the same data.
        """
        if not self._prints:  # each state_dict() asks; a million files take a second
            parts = {
                "files": [(f.digest, f.stamp.num_bytes) for f in self.files],
                "place": [f.path for f in self.files],
                "stamps": [f.stamp.version for f in self.files],
                "columns": [
                    (form.name, form.dtype, form.shape)
                    + ((form.depth, form.items) if form.depth else ())
                    for form in self.forms
                ]
                + list(self.made),
                "filters": self.filter_text,
            }
            parts.update(self._fit_parts(parts))
            if self.vocabularies:
                parts["vocabulary"] = sorted(self.vocabularies)
            self._prints.update({name: _hash(part) for name, part in parts.items()})
        return dict(self._prints)

    def _fit_parts(self, parts: dict[str, Any]) -> dict[str, Any]:
        """Return the facts that files alone do not tell: of keys, and of types."""
        read = {form.name for form in self.forms}
        found: dict[str, Any] = {}
        types = [(n, str(kind)) for n, kind in self.fit.columns if n in read]
        keys = [n for n, _ in self.fit.keys if n in read or n in self.filter_columns]
        if types:
            found["columns"] = [*parts["columns"], types]
        if self.keys is not None and keys:
            places = [self.keys.names.index(name) for name in keys]
            kinds = [(name, str(dict(self.keys.fields)[name])) for name in keys]
            texts = [self.keys.texts(file.path) for file in self.files]
            values = [[of_file[place] for place in places] for of_file in texts]
            found["files"] = [*parts["files"], kinds, values]
        if self.ruled_out:  # by keys that may be delivered to nobody
            found["files"] = [*found.get("files", parts["files"]), self.ruled_out]
        return found

    def place(self, group: int) -> tuple[str, int]:
        """Return the file and index of a row group, for texts."""
        return self.files[int(self.file_index[group])].path, int(self.row_group[group])

    def with_kept(self, num_kept: Ints) -> Catalog:
        """Return the catalog with other counts of rows after filtering."""
        return replace(self, num_kept=num_kept)


def read_catalog(
    storage: Storage,
    paths: Sequence[str],
    *,
    columns: tuple[str, ...] | None,
    filters: Any,
    run: MapFunction,
    listed: Mapping[str, Sight] | None = None,
    cache: FooterCache | None = None,
    on_front: Callable[[Catalog], None] | None = None,
    dtypes: Mapping[str, str] | None = None,
    base: str = "",
    partitioning: Partitioning | None = None,
    given: pa.Schema | None = None,
    widened: Mapping[str, pa.DataType] | None = None,
    any_type: bool = False,
    own_types: bool = False,
    summary: Summary | None = None,
) -> Catalog:
    """Read all footers and check them against each other.

    The first file decides the columns and their types, so that a wrong name costs one
    footer, not ten thousand. Rows after filtering are not counted here: num_kept is what
    statistics leave over.

    Args:
        storage: Where the files lie.
        paths: In the dataset's order, at least one.
        columns: From check_columns.
        filters: As the user gave them.
        run: Runs the reading of very many footers.
        listed: What a listing just said of remote files.
        cache: Where footers are remembered.
        on_front: Given the catalog of the first files, where very many footers are to be
            read, before the others are; not where those files disagree.
        dtypes: NumPy dtypes that the user wants columns in, by column.
        base: The folder below which directories may be keys.
        partitioning: How directories are keys; None ignores them.
        given: The user's schema, to which all files are fitted.
        widened: Types of columns that the first file has nothing but nulls of.
        any_type: Columns need no tensor form.
        own_types: Columns are delivered as files nest them.
        summary: Says what the footers say.

    Raises:
        ColumnError: A column is not there.
        ConfigError: The filters do not fit.
        UnsupportedTypeError: A column has no tensor form.
        BadFileError: A file is not readable Parquet.
        SchemaError: Two files disagree.
        DataChangedError: A file vanished meanwhile.
    """
    all_columns = columns is None
    asked = f"{columns!r} {name_filter(filters)}{' own' * own_types}"
    if given is not None or partitioning is not None:
        asked += _name_layout(partitioning, given)
    footers: Footers | SummaryFooters
    if summary is None:
        footers = Footers(storage, paths, listed=listed or {}, cache=cache, asked=asked)
    else:
        footers = SummaryFooters(storage, paths, summary, listed or {})
    nested = footers.first_schema() if given is None else given.remove_metadata()
    origin = paths[0] if given is None else "schema="
    keys = find_keys(partitioning, base, paths, flat_schema(nested))
    schema, asked_of = flat_schema(nested), filter_schema(nested)
    if own_types:
        schema = arrow_schema(nested)
        columns = tuple(nested.names) if columns is None else columns
        if all_columns and keys is not None:
            columns = tuple(dict.fromkeys((*columns, *keys.names)))
    if keys is not None:
        schema, asked_of = keys.add_to(schema), keys.add_to(asked_of)
    told = () if keys is None else keys.names
    names = choose_columns(schema, columns, path=origin)
    # What a column of nulls alone in the first file really is, only other files tell.
    empty = [f.name for f in flat_schema(nested) if pa.types.is_null(f.type)]
    may_widen = widened is None and given is None and empty != []
    again = partial(
        read_catalog,
        storage,
        paths,
        run=run,
        listed=listed,
        cache=cache,
        base=base,
        partitioning=partitioning,
        any_type=any_type,
        own_types=own_types,
        summary=summary,
    )
    of_files, own_of_files = asked_of, schema
    for column, kind in (widened or {}).items():
        schema, asked_of = (_with_type(s, column, kind) for s in (schema, asked_of))
    try:
        expression = make_filter(filters, asked_of, path=origin)
    except ConfigError as error:
        if not may_widen or isinstance(error, ColumnError):
            raise
        types = again(columns=tuple(empty), filters=None).schema
        return again(
            columns=None if all_columns else columns,
            filters=filters,
            dtypes=dtypes,
            widened={name: types.field(name).type for name in empty},
        )
    needed = filter_columns(expression, asked_of)
    query = FooterQuery(
        storage=storage,
        forms=tuple(
            form_of(
                schema.field(name),
                path=paths[0],
                dtype=(dtypes or {}).get(name),
                any_type=any_type,
            )
            for name in names
            if name not in told
        ),
        expression=expression,
        filter_columns=needed,
        filter_fields=pa.schema([asked_of.field(name) for name in needed]),
        keys=keys,
        may_lack=given is not None,
    )
    # Where only keys are asked for, no statistics are needed.
    prunes = set(needed) - set(told) != set()
    prunes = prunes and may_prune(filters, asked_of, query.filter_columns)
    query = replace(query, may_prune=prunes)
    text = filter_text(filters, expression, asked_of)
    taken = [(form, form.row_bytes) for form in query.forms]

    def catalog_of(table: pa.Table, first: Sequence[str]) -> Catalog:
        packed = table["schema"].to_pylist()
        agreement = agree(
            of_files,
            packed,
            first,
            [n for n in (*(() if own_types else names), *needed) if n not in told],
            all_columns=all_columns and given is None and not own_types,
            given=given is not None,
        )
        if own_types:
            own = agree(
                own_of_files,
                packed,
                first,
                [name for name in names if name not in told],
                all_columns=all_columns and given is None,
                given=given is not None,
                view=arrow_schema,
            )
            agreement = both(agreement, own)
        entries = tuple(
            FileEntry(path, sight.stamp, digest, sight.identity)
            for path, sight, digest in zip(
                first,
                footers.sights[: len(first)],
                table["digest"].to_pylist(),
                strict=True,
            )
        )
        made = make_catalog(query, schema, entries, table, filter_text=text)
        made = replace(made, filter_schema=asked_of)
        return adapt(
            made,
            packed,
            names=names,
            agreement=agreement,
            keys=keys,
            dtypes=dtypes or {},
            any_type=any_type,
        )

    def give_front(table: pa.Table) -> None:
        assert on_front is not None
        try:
            front = catalog_of(table, paths[: len(table)])
        except SchemaError:
            return  # said in its turn, once all footers are read
        on_front(front)

    name = repr((taken, text, query.filter_columns, prunes))
    if query.keys is not None or query.may_lack or widened:
        name += repr((query.keys, query.filter_fields))
    table = footers.answer(query, name, run, give_front if on_front else None)
    found = catalog_of(table, paths)
    told_now = {n: kind for n, kind in found.fit.columns if n in empty}
    if may_widen and told_now:
        # Bytes were reckoned for nulls.
        chosen = None if all_columns else columns
        return again(columns=chosen, filters=filters, dtypes=dtypes, widened=told_now)
    return found


def make_catalog(
    query: FooterQuery,
    schema: pa.Schema,
    files: tuple[FileEntry, ...],
    footers: pa.Table,
    *,
    filter_text: str,
) -> Catalog:
    """Lay the row groups of all files end to end.

    Args:
        query: What was taken from the footers.
        schema: The first file's.
        files: In the dataset's order.
        footers: From parse_footers, a row for each file.
        filter_text: The filters as text.
    """
    counts = _numbers(footers["num_rows"].combine_chunks().value_lengths())
    num_rows = _items(footers["num_rows"])
    survives = footers["survives"].combine_chunks().flatten()
    ends = np.cumsum(counts)
    nulls = {
        form.name: _items(footers[null_column(form.name)], counts)
        for form in query.forms
        if null_column(form.name) in footers.column_names
    }
    return Catalog(
        storage=query.storage,
        files=files,
        schema=schema.remove_metadata(),
        forms=query.forms,
        expression=query.expression,
        filter_text=filter_text,
        filter_columns=query.filter_columns,
        file_index=np.repeat(np.arange(len(files), dtype=np.int64), counts),
        row_group=np.arange(len(num_rows)) - np.repeat(ends - counts, counts),
        num_rows=num_rows,
        num_bytes=_items(footers["num_bytes"]),
        num_kept=num_rows * survives.to_numpy(zero_copy_only=False),
        may_keep=survives.to_numpy(zero_copy_only=False),
        # The cache may have had other files beside these.
        null_counts={name: found for name, found in nulls.items() if found.any()},
    )


def _name_layout(partitioning: Partitioning | None, given: pa.Schema | None) -> str:
    """Return text for what of the layout changes answers; none for the defaults."""
    if given is None and partitioning == Partitioning():
        return ""
    return repr((partitioning, None if given is None else str(given)))


def _with_type(schema: pa.Schema, name: str, kind: pa.DataType) -> pa.Schema:
    place = schema.get_field_index(name)
    return (
        schema.set(place, schema.field(place).with_type(kind)) if place >= 0 else schema
    )


def _hash(facts: Any) -> str:
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _items(lists: pa.ChunkedArray, counts: Ints | None = None) -> Ints:
    """Return the items of all lists; `counts` zeros in place of a null."""
    whole = lists.combine_chunks()
    items = _numbers(whole.flatten())
    if not whole.null_count:
        return items
    assert counts is not None
    spread = np.zeros(int(counts.sum()), dtype=np.int64)
    valid = whole.is_valid().to_numpy(zero_copy_only=False)
    spread[np.repeat(valid, counts)] = items
    return spread


def _numbers(array: pa.Array) -> Ints:
    # A copy: what Arrow lends cannot be written, and pickles with all its neighbours.
    return np.array(array, dtype=np.int64)
