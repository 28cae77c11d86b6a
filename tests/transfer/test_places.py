"""Shared memory is private, reserved, and gone when its owner is."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dask_loader.transfer import places
from dask_loader.transfer.places import FolderPlace, MemfdPlace, remove_abandoned

MIB = 1 << 20

# Makes a place with a file in it, says so, and waits to be ended.
OWNER = """
import sys
from dask_loader.transfer.places import FolderPlace
place = FolderPlace(sys.argv[1])
_, path = place.make(4096)
print(path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start_owner(tmp_path):
    """start_owner() -> (process, its folder); ended after the test."""
    started = []

    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip()).parent

    yield start
    for process in started:
        process.kill()
        process.communicate()


def folders(parent: Path) -> set[str]:
    return {path.name for path in parent.iterdir()}


# ---- what is made -------------------------------------------------------------------


def test_a_file_has_its_bytes_reserved(place):
    fd, _ = place.make(3 * MIB)
    found = os.fstat(fd)
    os.close(fd)
    assert found.st_size == 3 * MIB
    assert found.st_blocks * 512 >= 3 * MIB


def test_only_the_user_may_open_a_file_whatever_the_umask(place):
    old = os.umask(0)
    try:
        fd, path = place.make(4096)
    finally:
        os.umask(old)
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    os.close(fd)
    assert mode == 0o600
    place.remove(path)


def test_a_file_is_not_handed_to_programs_that_are_started(place):
    fd, _ = place.make(4096)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_another_process_opens_a_file_by_its_path(place):
    fd, path = place.make(4096)
    write = "import sys; open(sys.argv[1], 'r+b').write(b'hello')"
    subprocess.run([sys.executable, "-c", write, path], check=True)
    assert os.pread(fd, 5, 0) == b"hello"
    os.close(fd)


def test_a_file_that_is_removed_stays_readable_for_who_has_it_open(place):
    fd, path = place.make(4096)
    os.pwrite(fd, b"hello", 0)
    place.remove(path)
    place.remove(path)
    assert os.pread(fd, 5, 0) == b"hello"
    os.close(fd)


def test_places_have_names_for_people(tmp_path):
    assert MemfdPlace().name == "anonymous shared memory"
    place = FolderPlace(str(tmp_path))
    assert place.name == f"files in {tmp_path}"
    place.close()


# ---- no room ------------------------------------------------------------------------


def test_memory_that_cannot_be_reserved_is_an_error_and_leaves_no_descriptor(
    place, num_files
):
    before = num_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            place.make(2 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert num_files() == before


def test_a_full_file_system_is_an_error_and_leaves_no_file(tiny_tmpfs):
    place = FolderPlace(str(tiny_tmpfs))
    (folder,) = tiny_tmpfs.iterdir()
    fd, path = place.make(6 * MIB)
    with pytest.raises(OSError, match="No space left"):
        place.make(6 * MIB)
    assert {p.name for p in folder.iterdir()} == {"owner", Path(path).name}
    os.close(fd)
    place.remove(path)
    fd, path = place.make(6 * MIB)
    os.close(fd)
    place.close()
    assert not folders(tiny_tmpfs)


# ---- whose folder -------------------------------------------------------------------


def test_the_folder_is_the_users_own(tmp_path):
    old = os.umask(0)
    try:
        place = FolderPlace(str(tmp_path))
    finally:
        os.umask(old)
    (folder,) = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "owner").stat().st_mode) == 0o600
    place.close()
    place.close()
    assert not folders(tmp_path)


def test_a_folder_or_link_that_is_there_already_is_not_used(tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    trap.mkdir()
    monkeypatch.setattr(places.secrets, "token_hex", lambda _: "known")
    (tmp_path / "dask-loader-known").symlink_to(trap)
    with pytest.raises(FileExistsError):
        FolderPlace(str(tmp_path))
    assert not folders(trap)


def test_a_file_or_link_that_is_there_already_is_not_written(tmp_path, monkeypatch):
    place = FolderPlace(str(tmp_path / "."))
    (folder,) = tmp_path.iterdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (folder / "known").symlink_to(victim)
    monkeypatch.setattr(places.secrets, "token_hex", lambda _: "known")
    with pytest.raises(FileExistsError):
        place.make(4096)
    assert victim.read_bytes() == b"precious"
    assert (folder / "known").is_symlink()
    place.close()
    assert victim.read_bytes() == b"precious"


def test_a_parent_that_cannot_be_written_to_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        FolderPlace(str(tmp_path / "not there"))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError):
        FolderPlace(str(file))
    assert folders(tmp_path) == {"file"}


def test_closing_is_safe_after_someone_has_removed_the_folder(tmp_path, num_files):
    place = FolderPlace(str(tmp_path))
    fd, path = place.make(4096)
    os.close(fd)
    (folder,) = tmp_path.iterdir()
    for name in os.listdir(folder):
        (folder / name).unlink()
    folder.rmdir()
    before = num_files()
    place.remove(path)
    place.close()
    place.close()
    assert num_files() == before - 1  # the owner's file


def test_a_forked_child_does_not_remove_its_parents_folder(tmp_path):
    place = FolderPlace(str(tmp_path))
    pid = os.fork()
    if pid == 0:
        place.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    fd, path = place.make(4096)
    os.close(fd)
    assert Path(path).exists()
    place.close()
    assert not folders(tmp_path)


# ---- what dead owners left -----------------------------------------------------------


def test_the_folder_of_an_owner_that_was_killed_is_removed_by_the_next_start(
    tmp_path, start_owner
):
    process, folder = start_owner()
    assert len(list(folder.iterdir())) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert folder.exists()
    place = FolderPlace(str(tmp_path))
    assert not folder.exists()
    place.close()
    assert not folders(tmp_path)


def test_the_folder_of_a_living_owner_is_left_alone(tmp_path, start_owner):
    process, folder = start_owner()
    assert remove_abandoned(str(tmp_path)) == []
    os.kill(process.pid, signal.SIGSTOP)
    place = FolderPlace(str(tmp_path))
    assert len(list(folder.iterdir())) == 2
    place.close()
    process.kill()
    process.wait()
    assert remove_abandoned(str(tmp_path)) == [folder.name]


def test_the_own_folder_is_left_alone(tmp_path):
    place = FolderPlace(str(tmp_path))
    assert remove_abandoned(str(tmp_path)) == []
    assert len(folders(tmp_path)) == 1
    place.close()


def test_a_start_in_the_middle_of_another_ones_takes_nothing_from_it(
    tmp_path, monkeypatch
):
    # The ranks of a host start at the same moment. Whenever one locks a file, the
    # other has just looked for abandoned folders.
    real, removed = places.fcntl.flock, []
    inside = False

    def flock(fd: int, how: int) -> None:
        nonlocal inside
        if not inside:
            inside = True
            removed.extend(remove_abandoned(str(tmp_path)))
            inside = False
        real(fd, how)

    monkeypatch.setattr(places.fcntl, "flock", flock)
    place = FolderPlace(str(tmp_path))
    monkeypatch.undo()
    assert removed == []
    fd, path = place.make(4096)
    os.close(fd)
    assert Path(path).exists()
    assert remove_abandoned(str(tmp_path)) == []
    place.close()


def test_what_is_no_owners_folder_is_left_alone(tmp_path):
    (tmp_path / "dask-loader-file").write_bytes(b"x")
    (tmp_path / "dask-loader-without-lock").mkdir()
    (tmp_path / "dask-loader-without-lock" / "data").write_bytes(b"x")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "owner").touch()
    (tmp_path / "dask-loader-link").symlink_to(elsewhere)
    linked_lock = tmp_path / "dask-loader-linked-lock"
    linked_lock.mkdir()
    (linked_lock / "owner").symlink_to(elsewhere / "owner")
    (tmp_path / "dask-other").mkdir()
    before = set(tmp_path.rglob("*"))
    assert remove_abandoned(str(tmp_path)) == []
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make another user's folder")
def test_another_users_folder_is_left_alone(tmp_path):
    folder = tmp_path / "dask-loader-theirs"
    folder.mkdir()
    (folder / "owner").touch()
    os.chown(folder, 65534, 65534)
    assert remove_abandoned(str(tmp_path)) == []
    assert (folder / "owner").exists()
    os.chown(folder, 0, 0)
    assert remove_abandoned(str(tmp_path)) == ["dask-loader-theirs"]
