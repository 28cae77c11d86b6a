"""What the user said of the files: keys, a schema, and what becomes of bad ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from dask_loader.catalog.cache import FooterCache
from dask_loader.catalog.catalog import Catalog, read_catalog
from dask_loader.catalog.complete import require_complete, warn_of_stale
from dask_loader.catalog.discover import Found
from dask_loader.catalog.footers import FooterQuery, read_footers
from dask_loader.catalog.keys import Partitioning, check_partitioning
from dask_loader.catalog.storage import Sight, Storage
from dask_loader.catalog.summarized import check_suspects
from dask_loader.catalog.summary import is_summary
from dask_loader.errors import BadFileError, ConfigError, SchemaError, hide_secrets

# Bad files that a text names; explain() counts the others.
MAX_NAMED = 10
# Files that are looked into side by side where each look is a round trip.
_LOOKS = 32


@dataclass(frozen=True, slots=True)
class Layout:
    """The user's choice, checked.

    Attributes:
        partitioning: How directories are keys; None ignores them.
        schema: The dataset's columns, or None for the first file's.
        skips_bad_files: Whether files that are no readable Parquet are left out.
    """

    partitioning: Partitioning | None = None
    schema: pa.Schema | None = None
    skips_bad_files: bool = False


def check_layout(partitioning: Any, schema: Any, on_bad_files: Any) -> Layout:
    """Check what the user gave for partitioning=, schema= and on_bad_files=.

    Raises:
        ConfigError: One is none of what it may be.
    """
    if schema is not None and (not isinstance(schema, pa.Schema) or not len(schema)):
        raise ConfigError(
            f"schema={schema!r} must be a pyarrow.Schema with a column, or None for the "
            "first file's"
        )
    if schema is not None:
        twice = {name for name in schema.names if schema.names.count(name) > 1}
        if twice:
            raise ConfigError(f"schema= has two columns called {min(twice)!r}")
    if on_bad_files not in ("error", "skip"):
        raise ConfigError(f"on_bad_files={on_bad_files!r} must be 'error' or 'skip'")
    return Layout(check_partitioning(partitioning), schema, on_bad_files == "skip")


def read_layout(found: Found, layout: Layout, **options: Any) -> Catalog:
    """Read the catalog; files that are no readable Parquet are left out if asked for.

    Args:
        found: The files.
        layout: The user's choice.
        options: For read_catalog.

    Raises:
        DaskLoaderError: See read_catalog; or no file can be read.
    """

    def read(
        paths: tuple[str, ...], listed: Mapping[str, Sight], **changed: Any
    ) -> Catalog:
        return read_catalog(
            found.storage,
            paths,
            listed=listed,
            base=found.base,
            partitioning=layout.partitioning,
            given=layout.schema,
            **{**options, **changed},
        )

    beside, said = _summary_beside(found, options.get("cache"))
    if found.summary is not None and found.parts is not None:
        if layout.skips_bad_files:
            raise ConfigError(
                "on_bad_files='skip' looks at each file's own footer, which "
                f"{found.summary.path!r} is there to spare; name the folder "
                f"{found.summary.folder!r}, or leave on_bad_files out"
            )
        check_suspects(found.storage, found.summary, found.parts)
        options = {**options, "summary": found.summary}
    try:
        catalog = read(found.paths, found.listed)
        if said is not None:
            rows = np.bincount(catalog.file_index, catalog.num_rows, len(found.paths))
            counts = dict(zip(found.paths, map(int, rows), strict=True))
            warn_of_stale(beside, said, counts, stacklevel=5)
        return catalog
    except SchemaError as error:
        raise _with_hint(error, found) from error
    except BadFileError:
        if not layout.skips_bad_files:
            raise
        bad = _unreadable(found.storage, found.paths)
        good = tuple(path for path in found.paths if path not in bad)
        if not bad or not good:
            raise
    _warn(bad, len(found.paths))
    listed: Mapping[str, Sight] = {
        p: s for p, s in found.listed.items() if p in {*good}
    }
    # What was begun for the first files may have been of a bad one.
    return replace(read(good, listed, on_front=None), skipped=tuple(bad.items()))


def _summary_beside(
    found: Found, cache: FooterCache | None
) -> tuple[str, dict[str, int] | None]:
    """Return the `_metadata` in the folder that was named, and what it says of files."""
    path = next(filter(is_summary, found.aside), "")
    if not path or found.storage.decryption is not None:
        return path, None
    return path, require_complete(
        found.storage, path, found.paths, cache=cache, stacklevel=6
    )


def _with_hint(error: SchemaError, found: Found) -> SchemaError:
    """Name the file that may hold the schema which an error says is to be given."""
    common = next((path for path in found.aside if not is_summary(path)), None)
    if common is None or "schema= (" not in str(error):
        return error
    return SchemaError(
        f"{error}; {common!r} may hold it: pyarrow.parquet.read_schema() reads it",
        path=error.path,
        row_group=error.row_group,
        column=error.column,
    )


def _unreadable(storage: Storage, paths: tuple[str, ...]) -> dict[str, str]:
    """Return the files whose footer cannot be read, and why."""
    with ThreadPoolExecutor(_LOOKS if not storage.is_local else 1) as pool:
        reasons = list(pool.map(partial(_reason, storage), paths))
    return {path: why for path, why in zip(paths, reasons, strict=True) if why}


def _reason(storage: Storage, path: str) -> str:
    try:
        size = storage.look(path).stamp.num_bytes
        read_footers(FooterQuery(storage=storage), [(path, size)])
    except BadFileError as error:
        return str(error)
    return ""


def _warn(bad: Mapping[str, str], num_files: int) -> None:
    named = ", ".join(repr(path) for path in list(bad)[:MAX_NAMED])
    more = f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
    text = (
        f"{len(bad)} of {num_files} files are left out, as they are no readable Parquet "
        f"(on_bad_files='skip'); how many rows they should have is not known: {named}{more}"
    )
    warnings.warn(hide_secrets(text), stacklevel=5)
