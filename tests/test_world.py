"""Who this process is: arguments, mesh, torch.distributed, environment, 0 of 1."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from dask_loader.errors import WorldError
from dask_loader.world import World, local_world_size, resolve_world


def resolve(
    rank: int | None = None,
    world_size: int | None = None,
    *,
    mesh: Any = None,
    environ: dict[str, str] | None = None,
) -> World:
    return resolve_world(
        rank=rank, world_size=world_size, mesh=mesh, environ=environ or {}
    )


@pytest.fixture
def torch_group() -> Iterator[None]:
    """This process alone as an initialised torch.distributed group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class FakeMesh:
    """A DeviceMesh of more ranks than this test has processes."""

    def __init__(self, rank: int, size: int, ndim: int = 1) -> None:
        self.ndim = ndim
        self._rank, self._size = rank, size

    def get_local_rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"FakeMesh(ndim={self.ndim})"


class FakeGroup:
    def rank(self) -> int:
        return 2

    def size(self) -> int:
        return 3


# ---- the numbers themselves


@pytest.mark.parametrize(
    ("rank", "world_size", "text"),
    [
        (0, 0, "world_size=0 (from arguments) must be at least 1"),
        (0, -2, "world_size=-2 (from arguments) must be at least 1"),
        (1.0, 2, "rank=1.0 (from arguments) is not a whole number"),
        ("1", 2, "rank='1' (from arguments) is not a whole number"),
        (True, 2, "rank=True (from arguments) is not a whole number"),
        (0, "2", "world_size='2' (from arguments) is not a whole number"),
        (
            4,
            4,
            "rank=4 (from arguments) must be at least 0 and below world_size=4; ranks "
            "are counted from 0",
        ),
        (
            -1,
            4,
            "rank=-1 (from arguments) must be at least 0 and below world_size=4; ranks "
            "are counted from 0",
        ),
    ],
)
def test_a_rank_is_a_whole_number_below_world_size(
    rank: Any, world_size: Any, text: str
) -> None:
    with pytest.raises(WorldError) as caught:
        World(rank, world_size)
    assert str(caught.value) == text


def test_a_rank_out_of_range_is_a_field_of_the_error() -> None:
    with pytest.raises(WorldError) as caught:
        World(4, 4)
    assert caught.value.rank == 4


# ---- where they come from


def test_with_nothing_said_there_is_one_rank() -> None:
    assert resolve() == World(0, 1, "default")


def test_arguments_come_before_the_environment() -> None:
    environ = {"RANK": "0", "WORLD_SIZE": "2"}
    assert resolve(2, 3, environ=environ) == World(2, 3, "arguments")


def test_the_environment_says_rank_and_world_size() -> None:
    environ = {"RANK": "1", "WORLD_SIZE": "4"}
    assert resolve(environ=environ) == World(1, 4, "RANK and WORLD_SIZE")


@pytest.mark.parametrize("environ", [{"RANK": "1"}, {"WORLD_SIZE": "4"}])
def test_half_an_environment_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(WorldError, match="in the environment go together: every rank"):
        resolve(environ=environ)


def test_without_environ_the_process_environment_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    world = resolve_world(rank=None, world_size=None, mesh=None)
    assert world == World(1, 2, "RANK and WORLD_SIZE")


def test_an_environment_that_is_no_number_is_refused() -> None:
    text = (
        "RANK='one' and WORLD_SIZE='2' in the environment must be whole numbers; unset "
        "them or pass rank= and world_size="
    )
    with pytest.raises(WorldError, match=re.escape(text)) as caught:
        resolve(environ={"RANK": "one", "WORLD_SIZE": "2"})
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_environment_out_of_range_is_refused_and_named() -> None:
    text = "rank=2 (from RANK and WORLD_SIZE) must be at least 0 and below world_size=2"
    with pytest.raises(WorldError, match=re.escape(text)):
        resolve(environ={"RANK": "2", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("rank", "world_size", "text"),
    [
        (1, None, "rank=1 and world_size=None go together: give both or neither"),
        (None, 4, "rank=None and world_size=4 go together: give both or neither"),
    ],
)
def test_rank_and_world_size_go_together(
    rank: int | None, world_size: int | None, text: str
) -> None:
    with pytest.raises(WorldError) as caught:
        resolve(rank, world_size, environ={"RANK": "1", "WORLD_SIZE": "4"})
    assert str(caught.value) == text


# ---- torch.distributed


@pytest.mark.usefixtures("torch_group")
def test_an_initialised_group_comes_before_the_environment() -> None:
    environ = {"RANK": "1", "WORLD_SIZE": "4"}
    assert resolve(environ=environ) == World(0, 1, "torch.distributed")


@pytest.mark.usefixtures("torch_group")
def test_arguments_that_agree_with_the_group_are_taken() -> None:
    assert resolve(0, 1) == World(0, 1, "arguments")


@pytest.mark.usefixtures("torch_group")
def test_arguments_that_disagree_with_the_group_are_refused() -> None:
    text = (
        "rank=1 and world_size=2 were given, but torch.distributed says rank 0 of 1: "
        "rows would be lost or come twice; leave out rank and world_size, or pass mesh= "
        "with the data-parallel mesh or process group"
    )
    with pytest.raises(WorldError, match=re.escape(text)) as caught:
        resolve(1, 2)
    assert caught.value.rank == 1


def test_a_group_that_is_not_initialised_says_nothing() -> None:
    assert not dist.is_initialized()
    assert resolve(1, 2) == World(1, 2, "arguments")
    assert resolve().source == "default"


def test_torch_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    assert resolve(environ={"RANK": "1", "WORLD_SIZE": "4"}) == World(
        1, 4, "RANK and WORLD_SIZE"
    )


def test_a_torch_built_without_distributed_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    assert resolve().source == "default"


# ---- mesh


@pytest.mark.usefixtures("torch_group")
def test_a_process_group_says_its_rank() -> None:
    assert resolve(mesh=dist.group.WORLD) == World(0, 1, "mesh")


@pytest.mark.usefixtures("torch_group")
def test_a_device_mesh_says_its_rank() -> None:
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
    assert resolve(mesh=mesh["dp"]) == World(0, 1, "mesh")
    with pytest.raises(WorldError, match="has 2 dimensions"):
        resolve(mesh=mesh)


def test_a_mesh_comes_before_the_environment() -> None:
    environ = {"RANK": "0", "WORLD_SIZE": "8"}
    assert resolve(mesh=FakeMesh(1, 4), environ=environ) == World(1, 4, "mesh")
    assert resolve(mesh=FakeGroup(), environ=environ) == World(2, 3, "mesh")


def test_a_mesh_of_two_dimensions_is_refused() -> None:
    text = (
        "mesh=FakeMesh(ndim=2) has 2 dimensions; pass the data-parallel one, such as "
        'mesh["dp"]'
    )
    with pytest.raises(WorldError, match=re.escape(text)):
        resolve(mesh=FakeMesh(0, 4, ndim=2))


def test_a_mesh_and_a_rank_are_refused_together() -> None:
    text = (
        "mesh=FakeMesh(ndim=1) already says the rank; leave out rank=1 and world_size=4"
    )
    with pytest.raises(WorldError, match=re.escape(text)):
        resolve(1, 4, mesh=FakeMesh(1, 4))


@pytest.mark.parametrize("mesh", ["dp", 4, object])
def test_a_mesh_of_another_kind_is_refused(mesh: Any) -> None:
    text = f"mesh={mesh!r} is neither a torch DeviceMesh nor a process group"
    with pytest.raises(WorldError, match=re.escape(text)):
        resolve(mesh=mesh)


def test_a_rank_that_is_not_in_the_mesh_is_refused() -> None:
    # Torch says -1 for a process outside the group.
    with pytest.raises(
        WorldError, match=re.escape("rank=-1 (from mesh) must be at le")
    ):
        resolve(mesh=FakeMesh(-1, 4))


# ---- this host


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "8"}, 8),
        ({"LOCAL_WORLD_SIZE": "0"}, 1),
        ({"LOCAL_WORLD_SIZE": "-3"}, 1),
        ({"LOCAL_WORLD_SIZE": "many"}, 1),
        ({"LOCAL_WORLD_SIZE": ""}, 1),
    ],
)
def test_ranks_on_this_host_are_one_unless_torchrun_says(
    environ: dict[str, str], count: int
) -> None:
    assert local_world_size(environ) == count


def test_ranks_on_this_host_are_read_from_the_process_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert local_world_size() == 3
