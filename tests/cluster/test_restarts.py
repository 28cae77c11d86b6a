"""Back-off and cap, as tables of ends and waits."""

from __future__ import annotations

from cluster.restarts import RestartPolicy, Restarts

_POLICY = RestartPolicy(first_s=1.0, longest_s=5.0, max_in_a_row=5, steady_s=60.0)


def test_waits_double_up_to_the_longest_and_then_it_is_given_up() -> None:
    restarts = Restarts(_POLICY)
    waits = []
    for i in range(6):
        restarts.began("worker 3", now_s=float(i))
        assert restarts.given_up == ()
        waits.append(restarts.ended("worker 3", now_s=i + 0.5, why=f"end {i}"))
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0, None]
    assert restarts.given_up == ("worker 3 was given up after 6 starts: end 5",)


def test_each_has_waits_of_its_own() -> None:
    restarts = Restarts(_POLICY)
    assert [restarts.ended("a", now_s=0, why="") for _ in range(3)] == [1, 2, 4]
    assert restarts.ended("b", now_s=0, why="") == 1


def test_who_has_run_for_long_begins_anew() -> None:
    restarts = Restarts(_POLICY)
    for _ in range(4):
        restarts.began("a", now_s=0)
        restarts.ended("a", now_s=59, why="")
    restarts.began("a", now_s=100)
    assert restarts.ended("a", now_s=160, why="") == 1


def test_what_is_no_longer_wanted_is_forgotten() -> None:
    restarts = Restarts(_POLICY)
    for _ in range(6):
        restarts.ended("a", now_s=0, why="")
    assert restarts.is_given_up("a")
    assert not restarts.is_given_up("b")
    restarts.forget("a")
    assert restarts.given_up == ()
    assert restarts.ended("a", now_s=0, why="") == 1
    restarts.forget("b")
