"""What the commands' options say is to be read, as datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dask_loader.catalog.discover import Found, discover
from dask_loader.catalog.flat import flat_schema
from dask_loader.catalog.footers import INT96_UNIT, parse_error
from dask_loader.catalog.keys import check_partitioning, find_keys
from dask_loader.dataset import ParquetDataset
from dask_loader.read.ranges import open_plain

# Options of the commands that are ParquetDataset's too, under the same names.
_PASSED = (
    "columns",
    "batch_size",
    "shuffle",
    "seed",
    "shuffle_window",
    "num_splits",
    "uneven",
    "drop_last",
    "client",
    "memory_limit",
    "storage_options",
)


class Source:
    """Files and how they are to be read.

    Attributes:
        found: The files.
        filters: As ParquetDataset takes them.
        keys: Of the directories, or None.
        schema: The columns that the user gave, or None for the files'.
    """

    def __init__(self, paths: Sequence[str], options: Mapping[str, Any]) -> None:
        """Find the files and look at the first one's schema.

        Args:
            paths: At least one.
            options: By the names of common_options; None is left to ParquetDataset.

        Raises:
            DaskLoaderError: Nothing is there, or it is no Parquet.
        """
        self._path = paths[0] if len(paths) == 1 else list(paths)
        given = {name: options[name] for name in _PASSED}
        self._options = {n: value for n, value in given.items() if value is not None}
        self.found = discover(self._path, options["storage_options"])
        found, partitioning = self.found, options.get("partitioning", "hive")
        self.schema: pa.Schema | None = None
        if options.get("schema"):
            given_file = discover(options["schema"], options["storage_options"])
            self.schema = _schema_of(given_file).remove_metadata()
        schema = _schema_of(found) if self.schema is None else self.schema
        chosen = check_partitioning(partitioning)
        self.keys = find_keys(chosen, found.base, found.paths, flat_schema(schema))
        self._options |= {"partitioning": partitioning, "schema": self.schema}
        if self.keys is not None:
            schema = self.keys.add_to(schema)
        self.filters = to_filters(options["filters"], schema)
        # No value is looked at, so nulls may become anything.
        names = options["columns"] or schema.names
        self._nulls = {
            name: None if _is_text(schema.field(name).type) else 0
            for name in names
            if schema.names.count(name) == 1
        }

    def dataset(self, *, rank: int, world_size: int, **more: Any) -> ParquetDataset:
        """Return a rank's dataset.

        Raises:
            DaskLoaderError: An option is wrong, or a file.
        """
        return ParquetDataset(
            self._path,
            filters=self.filters,
            nulls=self._nulls,
            rank=rank,
            world_size=world_size,
            **{**self._options, **more},
        )


def to_filters(conditions: Any, schema: pa.Schema) -> Any:
    """Turn what JSON can hold into filters: tuples, and times of the columns' own types.

    What cannot be turned is left for ParquetDataset to refuse.

    Args:
        conditions: [[column, op, value], ...], a list of such lists, or None.
        schema: The files'.
    """
    if conditions is None:
        return None
    return [
        _term(item, schema)
        if _is_term(item)
        else [_term(term, schema) for term in item]
        if isinstance(item, list | tuple)
        else item
        for item in conditions
    ]


def _is_term(item: Any) -> bool:
    return isinstance(item, list | tuple) and bool(item) and isinstance(item[0], str)


def _term(term: Any, schema: pa.Schema) -> Any:
    if not _is_term(term) or len(term) != 3:
        return term
    name, op, value = term
    if schema.names.count(name) == 1:
        kind = schema.field(name).type
        if isinstance(value, list | tuple):
            value = [_value(item, kind) for item in value]
        else:
            value = _value(value, kind)
    return name, op, value


def _value(value: Any, kind: pa.DataType) -> Any:
    if not isinstance(value, str) or _is_text(kind):
        return value
    try:
        return pa.scalar(value).cast(kind).as_py()
    except (pa.ArrowException, ValueError):
        return value


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _schema_of(found: Found) -> pa.Schema:
    path = found.paths[0]
    try:
        with pq.ParquetFile(
            open_plain(found.storage, path),
            coerce_int96_timestamp_unit=INT96_UNIT,
        ) as file:
            return file.schema_arrow
    except Exception as error:  # Arrow has no common class, see open_error
        raise parse_error(found.storage, path, error) from error
