"""The errors: one string says everything, and nothing is lost in a pickle."""

from __future__ import annotations

import pickle

import pytest

import cluster.errors
from cluster import ClusterError, SpecError

_CLASSES = [
    value
    for value in vars(cluster.errors).values()
    if isinstance(value, type) and issubclass(value, ClusterError)
]


@pytest.mark.parametrize("cls", _CLASSES)
def test_text_and_fields_survive_pickling(cls: type[ClusterError]) -> None:
    error = cls(
        "all of it",
        kind="local",
        address="tcp://h:1",
        workers_asked=3,
        workers_seen=2,
        waited_s=1.5,
    )
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == "all of it"
    assert again.args == ("all of it",)
    assert again.__dict__ == error.__dict__
    assert (again.kind, again.address, again.waited_s) == ("local", "tcp://h:1", 1.5)


@pytest.mark.parametrize("cls", _CLASSES)
def test_one_string_is_enough_as_torch_rebuilds_it(cls: type[ClusterError]) -> None:
    error = cls("all of it")
    assert error.args == ("all of it",)
    assert not hasattr(error, "message")


@pytest.mark.parametrize("cls", _CLASSES)
def test_each_is_drawn_in_the_tree_and_public(cls: type[ClusterError]) -> None:
    assert cls.__name__ in (cluster.errors.__doc__ or "")
    assert cls.__name__ in cluster.__all__


def test_a_wrong_argument_is_a_value_error() -> None:
    assert issubclass(SpecError, ValueError)
