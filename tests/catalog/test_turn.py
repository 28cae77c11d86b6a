"""Taking turns at work that several processes need the result of."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dask_loader.catalog.cache import FooterCache
from dask_loader.catalog.turn import Turn, take_turn

_DEADLINE_S = 180.0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    """Descriptor of the test's folder."""
    opened = os.open(tmp_path, os.O_RDONLY)
    yield opened
    os.close(opened)


def until(condition: Callable[[], bool]) -> bool:
    """Poll a condition that has no event to wait for."""
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def times_open(ending: str) -> int:
    """Count this process's descriptors of a file."""
    targets = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            targets.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # the listing's own
            continue
    return sum(target.endswith(ending) for target in targets)


def test_the_first_has_the_turn_and_leaves_no_file(folder: int, tmp_path: Path) -> None:
    for _ in range(2):
        with take_turn("a.lock", folder, wait_s=0) as turn:
            assert turn is Turn.MINE
            assert (tmp_path / "a.lock").read_text() == str(os.getpid())
        assert list(tmp_path.iterdir()) == []


def test_all_who_waited_for_the_work_are_told_that_it_is_done(
    folder: int, tmp_path: Path
) -> None:
    def wait() -> Turn:
        with take_turn("a.lock", folder, wait_s=_DEADLINE_S) as turn:
            return turn

    with ThreadPoolExecutor(3) as threads:
        with take_turn("a.lock", folder, wait_s=0):
            waiting = [threads.submit(wait) for _ in range(3)]
            assert until(lambda: times_open("/a.lock") == 4)
        assert [waited.result() for waited in waiting] == [Turn.DONE] * 3
    assert list(tmp_path.iterdir()) == []


def test_the_turn_ends_with_an_error_too(folder: int, tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        take_turn("a.lock", folder, wait_s=0),
    ):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_a_dead_process_left_is_taken_over(
    folder: int, tmp_path: Path
) -> None:
    (tmp_path / "a.lock").write_text("1234567")
    with take_turn("a.lock", folder, wait_s=0) as turn:
        assert turn is Turn.MINE
        assert (tmp_path / "a.lock").read_text() == str(os.getpid())


def test_a_process_forked_meanwhile_does_not_keep_the_turn(folder: int) -> None:
    stay, leave = os.pipe()
    with take_turn("a.lock", folder, wait_s=0):
        child = os.fork()
        if child == 0:
            os.close(leave)
            os.read(stay, 1)  # ends when the parent closes its end
            os._exit(0)
        os.link("a.lock", "b.lock", src_dir_fd=folder, dst_dir_fd=folder)
    try:
        # The very file that the child has open.
        with take_turn("b.lock", folder, wait_s=0) as turn:
            assert turn is Turn.MINE
    finally:
        os.close(leave)
        os.waitpid(child, 0)
        os.close(stay)


def test_without_a_usable_folder_there_are_no_turns(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writable = tmp_path / "writable"
    writable.mkdir(mode=0o777)
    writable.chmod(0o777)
    for folder in (tmp_path / "file" / "in", tmp_path / "file", writable):
        with FooterCache(str(folder)).turn("counts", "key", wait_s=0) as turn:
            assert turn is Turn.NONE


def test_errors_of_the_work_are_not_taken_for_errors_of_the_folder(
    tmp_path: Path,
) -> None:
    cache = FooterCache(str(tmp_path))
    with (
        pytest.raises(PermissionError),
        cache.turn("counts", "key", wait_s=0) as turn,
    ):
        assert turn is Turn.MINE
        raise PermissionError
