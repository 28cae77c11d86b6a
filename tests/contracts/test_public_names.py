"""The public names: those listed, those exported, those documented."""

from __future__ import annotations

import configparser
import inspect
import re
from pathlib import Path

import pytest

import cluster
import dask_loader
from dask_loader import errors

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", [dask_loader, cluster])
def test_every_listed_name_loads_and_is_listed_in_order(package):
    assert package.__all__ == sorted(set(package.__all__))
    for name in package.__all__:
        value = getattr(package, name)
        assert value.__name__ == name
        assert value.__module__.split(".")[0] == package.__name__
        assert value.__doc__
    assert set(package.__all__) <= set(dir(package))


@pytest.mark.parametrize("package", [dask_loader, cluster])
def test_a_name_that_is_not_there_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_the_names_are_the_classes_a_converter_and_all_errors():
    assert set(dask_loader.__all__) == {
        "DataLoader",
        "ParquetDataset",
        "Ragged",
        "from_stateful_dataloader",
        *(
            name
            for name, value in vars(errors).items()
            if inspect.isclass(value) and issubclass(value, Exception)
        ),
    }


def test_clusters_names_are_launch_connect_their_types_and_all_errors():
    assert set(cluster.__all__) == {
        "Cluster",
        "ClusterSpec",
        "QueueSpec",
        "SshSpec",
        "TorchrunSpec",
        "connect",
        "create_certificates",
        "launch",
        "load_certificates",
        *(
            name
            for name, value in vars(cluster.errors).items()
            if inspect.isclass(value) and issubclass(value, Exception)
        ),
    }


@pytest.mark.parametrize("package", [dask_loader, cluster])
def test_the_type_checkers_list_is_the_same(package):
    # What mypy sees under TYPE_CHECKING must be what __getattr__ gives.
    text = Path(package.__file__).read_text()
    imported = re.findall(r"^ {8}(\w+),$|^    from \S+ import ([\w, ]+)$", text, re.M)
    outside = re.findall(r"^    (\w+),$", text.split("if TYPE_CHECKING")[0], re.M)
    names = set(re.findall(r"\w+", str(imported))) | set(outside)
    assert names == set(package.__all__)


def test_errors_are_drawn_in_the_tree_at_the_top_of_their_file():
    for module in (errors, cluster.errors):
        drawn = set(re.findall(r"\w+(?:Error|Warning)\b", module.__doc__))
        classes = {
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, Exception)
        }
        assert classes <= drawn


def test_every_option_of_the_dataset_is_documented_and_the_other_way_round():
    options = list(inspect.signature(dask_loader.ParquetDataset).parameters)
    text = dask_loader.ParquetDataset.__doc__.split("Args:")[1].split("Raises:")[0]
    assert re.findall(r"^ {8}(\w+): ", text, re.M) == options


def markers() -> list[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["tool:pytest"]["markers"].strip().splitlines()
    return [line.split(":")[0] for line in lines]


@pytest.mark.parametrize("marker", markers())
def test_every_marker_is_used(marker):
    uses = re.compile(rf"mark\.{marker}\b")
    files = (ROOT / "tests").rglob("test_*.py")
    assert any(uses.search(file.read_text()) for file in files)


def test_the_version_is_the_packages():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert dask_loader.__version__ == config["metadata"]["version"]
