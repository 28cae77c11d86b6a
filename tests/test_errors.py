"""The errors: a tree as documented, each with its fields, each through a pickle."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest

import dask_loader
from dask_loader import errors
from dask_loader.errors import DaskLoaderError

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, DaskLoaderError)
]
FIELDS = {"path": "/f.parquet", "row_group": 3, "column": "x", "rank": 1}
each_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def documented_tree() -> dict[str, list[str]]:
    """For each class in the module's docstring: its parent, then foreign bases."""
    tree, path = {}, []
    pattern = re.compile(r"^    ((?:[│├└─ ]{4})*)(\w+)(?: \((\w+)\))?(?:  |$)")
    for line in (errors.__doc__ or "").splitlines():
        match = pattern.match(line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        path[depth:] = [match[2]]
        parents = [path[depth - 1]] if depth else ["Exception"]
        tree[match[2]] = parents + ([match[3]] if match[3] else [])
    return tree


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    tree = documented_tree()
    assert list(tree) == [kind.__name__ for kind in CLASSES]
    for kind in CLASSES:
        named = tree[kind.__name__]
        bases = [base.__name__ for base in kind.__bases__]
        assert bases[0] == named[0], kind
        # A builtin base beside ours is named in the tree where it says what users catch.
        assert set(named[1:]) <= set(bases[1:]), kind


def test_the_table_in_the_docs_has_the_classes_of_the_tree() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
    section = page.partition("\n## Errors\n")[2].partition("\n## ")[0]
    found: dict[str, str] = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`(\w+Error)`", cells[0]) if len(cells) == 4 else ():
            if name in ("ValueError", "FileNotFoundError", "TypeError"):
                continue
            assert name not in found, f"{name} has two rows"
            found[name] = cells[2]
    leaves = [kind for kind in CLASSES if not kind.__subclasses__()]
    assert set(found) == {kind.__name__ for kind in (*leaves, errors.ConfigError)}
    assert set(found.values()) <= {"yes", "no", "perhaps"}
    # The docstring names those of which another try may help.
    again = (errors.__doc__ or "").partition("Another try")[2].partition("\n\n")[0]
    may_help = {name for name, again in found.items() if again != "no"}
    assert set(re.findall(r"\w+Error", again)) == may_help


def test_errors_can_be_caught_as_what_they_are_to_python() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.DataNotFoundError, FileNotFoundError)
    assert issubclass(errors.UnsupportedTypeError, TypeError)


def test_all_error_classes_are_public_names() -> None:
    for kind in CLASSES:
        assert kind.__name__ in dask_loader.__all__
        assert getattr(dask_loader, kind.__name__) is kind
    assert dask_loader.__all__ == sorted(dask_loader.__all__)
    assert set(dask_loader.__all__) <= set(dir(dask_loader))


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    text = "module 'dask_loader' has no attribute 'NoSuchError'"
    with pytest.raises(AttributeError, match=text):
        _ = dask_loader.NoSuchError


@each_class
def test_one_string_is_enough(kind: type[DaskLoaderError]) -> None:
    error = kind("all is said here")
    assert str(error) == "all is said here"
    assert error.args == ("all is said here",)
    assert (error.path, error.row_group, error.column, error.rank) == (None,) * 4
    # torch calls a class with message= if its errors have such an attribute.
    assert not hasattr(error, "message")


@each_class
def test_text_and_fields_survive_pickles_and_copies(
    kind: type[DaskLoaderError],
) -> None:
    error = kind("all is said here", **FIELDS)  # type: ignore[arg-type]
    twins = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(2, 6)]
    for twin in (*twins, copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert twin is not error
        assert str(twin) == "all is said here"
        assert {name: getattr(twin, name) for name in FIELDS} == FIELDS


@each_class
def test_fields_are_named_and_no_others_are_taken(kind: type[DaskLoaderError]) -> None:
    with pytest.raises(TypeError):
        kind("text", "/f.parquet")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        kind("text", file="/f.parquet")  # type: ignore[call-arg]


@each_class
def test_torch_rebuilds_a_workers_error_from_its_text(
    kind: type[DaskLoaderError],
) -> None:
    from torch._utils import ExceptionWrapper

    try:
        raise kind("all is said here", path="/f.parquet")
    except DaskLoaderError:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(kind, match="all is said here"):
        wrapper.reraise()
