"""Turn what the user wrote (file, folder, glob, list, URL) into a list of files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fsspec.core import split_protocol
from fsspec.utils import get_protocol

from dask_loader.catalog.encryption import Decryption
from dask_loader.catalog.storage import (
    Sight,
    Storage,
    describe,
    make_storage,
    sight_of,
)
from dask_loader.catalog.summarized import (
    Parts,
    look_at_parts,
    read_summary,
    warn_of_others,
)
from dask_loader.catalog.summary import SCHEMA_ONLY, SUMMARY, Summary, is_summary
from dask_loader.errors import ConfigError, DataNotFoundError, WithoutSecrets

# In a folder these endings are taken for data; a file named outright may be called
# anything.
_ENDINGS = (".parquet", ".parq", ".pq")
_GLOB = re.compile(r"[*?\[]")
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True, repr=False)
class Found(WithoutSecrets):
    """The files of a dataset.

    Attributes:
        storage: Where they lie.
        paths: Absolute, in the dataset's order, each once.
        listed: What a remote file system's listing said of files, by path.
        base: The folder below which directories may be keys: the one that was given; of
            a file its own, of a glob the last one before the first wildcard, of a list
            the one that all of it has in common.
        summary: The `_metadata` file that was named in place of its folder.
        parts: Its files, as a look found them.
        aside: `_metadata` and `_common_metadata` of the one folder that was named.
    """

    storage: Storage
    paths: tuple[str, ...]
    listed: Mapping[str, Sight] = field(default_factory=dict)
    base: str = ""
    summary: Summary | None = None
    parts: Parts | None = None
    aside: frozenset[str] = frozenset()


def discover(
    path: Any,
    storage_options: dict[str, Any] | None = None,
    filesystem: Any = None,
    decryption: Decryption | None = None,
) -> Found:
    """Find the files.

    A folder is searched below, leaving out names that begin with "." or "_" (as Spark and
    Dask do); its files and those of a glob are sorted by name, numbers by value. A list
    keeps the user's order.

    Args:
        path: Text, os.PathLike, or a non-empty list of these.
        storage_options: For fsspec.
        filesystem: Of fsspec or pyarrow, instead of the paths' schemes.
        decryption: For encrypted files.

    Raises:
        StorageError: The store denies access, or fails again and again.
        ConfigError: It is none of these, or names two file systems, or a file twice.
        DataNotFoundError: Nothing is there, nothing matches, or nothing is Parquet.
    """
    entries = _entries(path)
    protocols = sorted({get_protocol(entry) for entry in entries})
    if len(protocols) > 1:
        raise ConfigError(
            f"path={path!r} names several file systems {protocols!r}; give paths of one"
        )
    _refuse_chained(entries)
    if filesystem is None:
        storage = make_storage(protocols[0], storage_options)
    else:
        storage = describe(filesystem, storage_options)
    storage = replace(storage, decryption=decryption)
    file_system = storage.fsspec()
    if not storage.is_local:
        file_system.invalidate_cache()  # listings may be kept from an earlier dataset
    listed: dict[str, Sight] = {}
    paths: list[str] = []
    bases: list[str] = []
    aside: set[str] = set()
    seen: set[str] = set()
    for entry in entries:
        base, below = _files(storage, entry, listed, aside)
        bases.append(base)
        for found in below:
            if found in seen:
                raise ConfigError(
                    f"{found!r} is named twice in path={path!r}; each row is delivered "
                    "once, so name each file once"
                )
            seen.add(found)
            paths.append(found)
    if any(map(is_summary, paths)):
        return _summarized(storage, path, paths)
    kept = frozenset(aside if len(entries) == 1 else ())
    return Found(storage, tuple(paths), listed, _common_folder(bases), aside=kept)


def _summarized(storage: Storage, path: Any, paths: list[str]) -> Found:
    """Return the files that a `_metadata` file names, in the order of its folder."""
    if len(paths) > 1:
        raise ConfigError(
            f"path={path!r} names '_metadata' beside other files, and it stands for a "
            "whole folder; name it alone, or the folder, or the data files"
        )
    if "?" in paths[0] and not storage.is_local:
        raise ConfigError(
            f"path={path!r} names '_metadata' by an address with a query, such as a "
            "signature, which other files would need one of their own for; name the files "
            "in a list"
        )
    if storage.decryption is not None:
        raise ConfigError(
            f"path={path!r} names '_metadata', and decryption= is given: the footers of "
            "encrypted files must be read; name the folder"
        )
    summary = read_summary(storage, paths[0])

    def below(names: Iterable[str] | None) -> list[str]:
        names = _list(storage, summary.folder, {}) if names is None else names
        return sorted(
            (n for n in names if _is_data(n) and not _hidden(n, summary.folder)),
            key=_natural,
        )

    parts = look_at_parts(storage, summary, below)
    warn_of_others(summary, parts.others, stacklevel=5)
    if not summary.parts:  # a file without row groups: a schema, and no rows
        return Found(storage, tuple(paths), base=summary.folder)
    named = tuple(sorted(summary.parts, key=_natural))
    return Found(storage, named, parts.listed, summary.folder, summary, parts)


def _refuse_chained(entries: list[str]) -> None:
    for entry in entries:
        if "::" in entry:
            raise ConfigError(
                f"path={entry!r} chains file systems with '::', whose files cannot be "
                "told apart when one changes; name the file system that holds the files, "
                "or give one that is made already as filesystem="
            )


def _entries(path: Any) -> list[str]:
    listed = path if isinstance(path, list | tuple) else [path]
    if not listed:
        raise ConfigError(f"path={path!r} is empty; name at least one file or folder")
    entries = []
    for entry in listed:
        if not isinstance(entry, str | os.PathLike):
            raise ConfigError(
                f"path={path!r} must be text, a pathlib.Path, or a list of these; got "
                f"{entry!r}"
            )
        text = os.fspath(entry)
        if not isinstance(text, str) or not text:
            raise ConfigError(f"path={path!r} holds {text!r}, which names no file")
        entries.append(text)
    return entries


def _common_folder(folders: list[str]) -> str:
    # What the first and the last in sorting have in common, all have.
    parts = sorted(folder.split("/") for folder in folders)
    same: list[str] = []
    for left, right in zip(parts[0], parts[-1], strict=False):
        if left != right:
            break
        same.append(left)
    return "/".join(same)


def _files(
    storage: Storage, entry: str, listed: dict[str, Sight], aside: set[str]
) -> tuple[str, Iterable[str]]:
    """Return the folder below which directories count, and the files."""
    file_system = storage.fsspec()
    # Local paths become absolute here: a Dask worker has a working folder of its own.
    stripped = file_system._strip_protocol(entry)
    if storage.is_local and split_protocol(entry)[0] is None:
        stripped = os.path.abspath(os.path.expanduser(entry))
    kind = storage.kind(stripped)
    if kind == "file":
        return stripped.rpartition("/")[0], [stripped]
    if kind == "directory":
        return stripped.rstrip("/"), _below(storage, stripped, listed, aside)
    wildcard = _GLOB.search(stripped)
    if wildcard:
        base = stripped[: wildcard.start()].rpartition("/")[0]
        return base, _matching(storage, stripped, listed)
    raise DataNotFoundError(
        f"there is nothing at {entry!r} (looked for {stripped!r}); check the path, and "
        "that this machine can see it",
        path=stripped,
    )


def _below(
    storage: Storage, folder: str, listed: dict[str, Sight], aside: set[str]
) -> list[str]:
    names = _list(storage, folder, listed, aside)
    found = [name for name in names if _is_data(name)]
    if not found:
        others = ", ".join(repr(n) for n in sorted(names)[:3]) or "no files at all"
        raise DataNotFoundError(
            f"the folder {folder!r} holds no Parquet: no name ends in "
            f"{' or '.join(_ENDINGS)} (it holds {others}); name the folder that does, "
            f"or the files themselves{_empty_hint(aside)}",
            path=folder,
        )
    return sorted(found, key=_natural)


def _empty_hint(aside: set[str]) -> str:
    if not aside:
        return ""
    return f" ({min(aside)!r} itself is a dataset of no rows with the folder's schema)"


def _matching(storage: Storage, pattern: str, listed: dict[str, Sight]) -> list[str]:
    # A dict: "**" matches folders and the files in them.
    found: dict[str, None] = {}
    spelled = set(pattern.split("/"))
    for name in sorted(storage.call("glob", pattern, what="list"), key=_natural):
        # What the pattern itself spells is meant, hidden or not.
        parts = [part for part in name.split("/") if part not in spelled]
        if _hidden("/".join(parts), ""):
            continue
        if storage.kind(name) == "directory":
            below = _list(storage, name, listed)
            found.update((n, None) for n in sorted(below, key=_natural) if _is_data(n))
        else:
            found[name] = None
    if not found:
        raise DataNotFoundError(
            f"nothing matches the pattern {pattern!r}, or only folders that hold no "
            "Parquet; check the pattern and the folder",
            path=pattern,
        )
    return list(found)


def _is_data(name: str) -> bool:
    return name.lower().endswith(_ENDINGS)


def _list(
    storage: Storage,
    folder: str,
    listed: dict[str, Sight],
    aside: set[str] | None = None,
) -> list[str]:
    """Return all files below a folder that are not hidden; linked folders count.

    The folder's own `_metadata` and `_common_metadata` are put aside.
    """
    named = {f"{folder.rstrip('/')}/{name}" for name in (SUMMARY, SCHEMA_ONLY)}
    aside = set() if aside is None else aside
    if not storage.is_local:
        infos = storage.call("find", folder, what="list", detail=True)
        shown = {n: info for n, info in infos.items() if not _hidden(n, folder)}
        listed.update(
            (n, sight_of(info)) for n, info in shown.items() if info.get("size")
        )
        aside.update(named & infos.keys())
        return list(shown)
    names: list[str] = []
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(real)
        names += (os.path.join(root, name) for name in files)
    aside.update(named.intersection(names))
    return [n for n in names if not _hidden(n, folder)]


def _hidden(name: str, folder: str) -> bool:
    below = name[len(folder) :].strip("/").split("/")
    # "_x=1" is a hive key that begins with an underscore, not a hidden folder.
    return any(p.startswith(".") or (p.startswith("_") and "=" not in p) for p in below)


def _natural(name: str) -> tuple[list[Any], str]:
    parts = _DIGITS.split(name)
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], name
