"""Turn what the user wrote (file, folder, glob, list, URL) into a list of files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from dask_loader.catalog.storage import Sight, Storage, make_storage, sight_of
from dask_loader.errors import ConfigError, DataNotFoundError

# In a folder these endings are taken for data; a file named outright may be called
# anything.
_ENDINGS = (".parquet", ".parq", ".pq")
_GLOB = re.compile(r"[*?\[]")
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a dataset.

    Attributes:
        storage: Where they lie.
        paths: Absolute, in the dataset's order, each once.
        listed: What a remote file system's listing said of files, by path.
        base: The folder below which directories may be keys: the one that was given; of
            a file its own, of a glob the last one before the first wildcard, of a list
            the one that all of it has in common.
    """

    storage: Storage
    paths: tuple[str, ...]
    listed: Mapping[str, Sight] = field(default_factory=dict)
    base: str = ""


def discover(path: Any, storage_options: dict[str, Any] | None = None) -> Found:
    """Find the files.

    A folder is searched below, leaving out names that begin with "." or "_" (as Spark and
    Dask do); its files and those of a glob are sorted by name, numbers by value. A list
    keeps the user's order.

    Args:
        path: Text, os.PathLike, or a non-empty list of these.
        storage_options: For fsspec.

    Raises:
        ConfigError: It is none of these, or names two file systems, or a file twice.
        DataNotFoundError: Nothing is there, nothing matches, or nothing is Parquet.
    """
    entries = _entries(path)
    protocols = sorted({get_protocol(entry) for entry in entries})
    if len(protocols) > 1:
        raise ConfigError(
            f"path={path!r} names several file systems {protocols!r}; give paths of one"
        )
    storage = make_storage(protocols[0], storage_options)
    file_system = storage.fsspec()
    if not storage.is_local:
        file_system.invalidate_cache()  # listings may be kept from an earlier dataset
    listed: dict[str, Sight] = {}
    paths: list[str] = []
    bases: list[str] = []
    seen: set[str] = set()
    for entry in entries:
        base, below = _files(storage, entry, listed)
        bases.append(base)
        for found in below:
            if found in seen:
                raise ConfigError(
                    f"{found!r} is named twice in path={path!r}; each row is delivered "
                    "once, so name each file once"
                )
            seen.add(found)
            paths.append(found)
    return Found(storage, tuple(paths), listed, _common_folder(bases))


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
    storage: Storage, entry: str, listed: dict[str, Sight]
) -> tuple[str, Iterable[str]]:
    """Return the folder below which directories count, and the files."""
    file_system = storage.fsspec()
    # Local paths become absolute here: a Dask worker has a working folder of its own.
    stripped = file_system._strip_protocol(entry)
    if storage.is_local and split_protocol(entry)[0] is None:
        stripped = os.path.abspath(os.path.expanduser(entry))
    if file_system.isfile(stripped):
        return stripped.rpartition("/")[0], [stripped]
    if file_system.isdir(stripped):
        return stripped.rstrip("/"), _below(file_system, stripped, listed)
    wildcard = _GLOB.search(stripped)
    if wildcard:
        base = stripped[: wildcard.start()].rpartition("/")[0]
        return base, _matching(file_system, stripped, listed)
    raise DataNotFoundError(
        f"there is nothing at {entry!r} (looked for {stripped!r}); check the path, and "
        "that this machine can see it",
        path=stripped,
    )


def _below(file_system: Any, folder: str, listed: dict[str, Sight]) -> list[str]:
    names = _list(file_system, folder, listed)
    found = [name for name in names if _is_data(name)]
    if not found:
        others = ", ".join(repr(n) for n in sorted(names)[:3]) or "no files at all"
        raise DataNotFoundError(
            f"the folder {folder!r} holds no Parquet: no name ends in "
            f"{' or '.join(_ENDINGS)} (it holds {others}); name the folder that does, "
            "or the files themselves",
            path=folder,
        )
    return sorted(found, key=_natural)


def _matching(file_system: Any, pattern: str, listed: dict[str, Sight]) -> list[str]:
    # A dict: "**" matches folders and the files in them.
    found: dict[str, None] = {}
    spelled = set(pattern.split("/"))
    for name in sorted(file_system.glob(pattern), key=_natural):
        # What the pattern itself spells is meant, hidden or not.
        parts = [part for part in name.split("/") if part not in spelled]
        if _hidden("/".join(parts), ""):
            continue
        if file_system.isdir(name):
            below = _list(file_system, name, listed)
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


def _list(file_system: Any, folder: str, listed: dict[str, Sight]) -> list[str]:
    """Return all files below a folder that are not hidden; linked folders count."""
    if not isinstance(file_system, LocalFileSystem):
        infos = file_system.find(folder, detail=True)
        shown = {n: info for n, info in infos.items() if not _hidden(n, folder)}
        listed.update(
            (n, sight_of(info)) for n, info in shown.items() if info.get("size")
        )
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
    return [n for n in names if not _hidden(n, folder)]


def _hidden(name: str, folder: str) -> bool:
    below = name[len(folder) :].strip("/").split("/")
    # "_x=1" is a hive key that begins with an underscore, not a hidden folder.
    return any(p.startswith(".") or (p.startswith("_") and "=" not in p) for p in below)


def _natural(name: str) -> tuple[list[Any], str]:
    parts = _DIGITS.split(name)
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], name
