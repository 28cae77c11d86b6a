"""Whether a folder holds what the `_metadata` in it names. Footers stay the truth."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import pyarrow as pa

from dask_loader.catalog.cache import FooterCache
from dask_loader.catalog.storage import Storage
from dask_loader.catalog.summarized import read_summary, short
from dask_loader.errors import BadFileError, DataChangedError, DataNotFoundError


def require_complete(
    storage: Storage,
    path: str,
    paths: Sequence[str],
    *,
    cache: FooterCache | None,
    stacklevel: int,
) -> dict[str, int] | None:
    """See that a folder holds all files that the `_metadata` in it names.

    Args:
        storage: Where they lie.
        path: The `_metadata` file.
        paths: The data files in the folder.
        cache: Where its files are remembered.
        stacklevel: For the warning that it cannot be read.

    Returns:
        Rows of each file that it names; None where it cannot be used.

    Raises:
        DataNotFoundError: One is not there, or is left out for its name.
        StorageError: The store denies access, or fails again and again.
    """
    try:
        num_rows = _rows_by_file(storage, path, cache)
    except DataChangedError:
        return None  # deleted just now
    except BadFileError as error:
        warnings.warn(
            f"whether files are missing cannot be told: {error}, or delete it",
            stacklevel=stacklevel,
        )
        return None
    there = set(paths)
    missing = [named for named in num_rows if named not in there]
    if missing and storage.kind(missing[0]):
        raise DataNotFoundError(
            f"{path!r} names {missing[0]!r}, which is not read for its name (hidden, or "
            "no ending of Parquet's): rows would be missing; rename it, name the files "
            "outright, or write '_metadata' anew or delete it",
            path=missing[0],
        )
    if missing:
        raise DataNotFoundError(
            f"{len(missing)} files that {path!r} names are not there: {short(missing)}; "
            "rows would be missing: restore them; or, if they were deleted on purpose, "
            "write '_metadata' anew or delete it",
            path=missing[0],
        )
    return num_rows


def _rows_by_file(
    storage: Storage, path: str, cache: FooterCache | None
) -> dict[str, int]:
    """Return what a `_metadata` says; to take it apart takes 0.1 ms for each file."""
    identity = storage.look(path).identity
    key = f"{storage.protocol} {path} {identity} rows of files"
    known = cache.load("answers", key) if cache is not None and identity else None
    if known is not None and known.column_names == ["path", "num_rows"]:
        columns = (known[name].to_pylist() for name in known.column_names)
        return dict(zip(*columns, strict=True))
    parts = read_summary(storage, path).parts
    num_rows = {named: part.num_rows for named, part in parts.items()}
    if cache is not None and identity and storage.look(path).identity == identity:
        names = pa.array(num_rows, pa.string())
        counts = pa.array(num_rows.values(), pa.int64())
        cache.save("answers", key, pa.table({"path": names, "num_rows": counts}))
    return num_rows


def warn_of_stale(
    path: str, said: Mapping[str, int], num_rows: Mapping[str, int], *, stacklevel: int
) -> None:
    """Warn where a `_metadata` says other than the footers of the folder's files.

    Args:
        path: The `_metadata` file.
        said: From require_complete.
        num_rows: Rows of each file of the folder.
        stacklevel: For the warning.
    """
    unnamed = [p for p, n in num_rows.items() if n and p not in said]
    others = [p for p, n in said.items() if num_rows.get(p, n) != n]
    if not unnamed and not others:
        return
    stale = []
    if unnamed:
        stale.append(f"it does not name {len(unnamed)} files: {short(unnamed)}")
    if others:
        stale.append(
            f"it has another number of rows for {len(others)} files: {short(others)}"
        )
    warnings.warn(
        f"{path!r} is stale: {' and '.join(stale)}; all files are read as their own "
        "footers say, so no row is lost: write it anew or delete it",
        stacklevel=stacklevel,
    )
