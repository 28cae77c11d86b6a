"""Who may write a slab: every outcome, with real writers in processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dask_loader.transfer import writer as writer_module
from dask_loader.transfer.places import FolderPlace, MemfdPlace
from dask_loader.transfer.shared import HEADER_BYTES, SharedPool, SlabName
from dask_loader.transfer.writer import Mappings, Outcome

MIB = 1 << 20
SIZE = MIB - HEADER_BYTES


@pytest.fixture
def pool(place) -> Iterator[SharedPool]:
    made = SharedPool(place, 4 * MIB)
    yield made
    made.close()


@pytest.fixture
def files_pool(tmp_path: Path) -> Iterator[SharedPool]:
    made = SharedPool(FolderPlace(str(tmp_path)), 4 * MIB)
    yield made
    made.close()


def accepted(loan: Any) -> Any:
    found = loan.accept()
    assert found is not None
    return found[0]


def outcome_of(name: SlabName, mappings: Mappings | None = None) -> Outcome:
    with (Mappings() if mappings is None else mappings).writing(name) as writing:
        return writing.outcome


# ---- ready, done, stale ----------------------------------------------------------------


def test_a_window_is_written_and_arrives(pool, start_writer):
    writer, loan = start_writer(), pool.lend(SIZE)
    assert writer.write_all(loan.name, SIZE, 7) is Outcome.READY
    assert (accepted(loan) == 7).all()


def test_a_second_run_of_a_task_writes_nothing(pool, start_writer):
    one, two, loan = start_writer(), start_writer(), pool.lend(SIZE)
    assert one.write_all(loan.name, SIZE, 7) is Outcome.READY
    assert two.write_all(loan.name, SIZE, 8) is Outcome.DONE
    block = accepted(loan)
    assert two.write_all(loan.name, SIZE, 8) is Outcome.DONE
    assert one.write_all(loan.name, SIZE, 8) is Outcome.DONE
    assert (block == 7).all()


def test_a_writer_that_gives_up_leaves_the_slab_to_the_next(pool, start_writer):
    one, two, loan = start_writer(), start_writer(), pool.lend(SIZE)
    assert one.begin(loan.name) is Outcome.READY
    one.ask("fill", 0, SIZE // 2, 8)
    one.ask("leave")
    assert loan.accept() is None
    assert two.write_all(loan.name, SIZE, 7) is Outcome.READY
    assert (accepted(loan) == 7).all()


def test_a_slab_that_was_lent_again_before_the_writer_began_is_stale(
    pool, start_writer
):
    writer, first = start_writer(), pool.lend(SIZE)
    first.give_back()
    second = pool.lend(SIZE)
    assert second.name.nonce == first.name.nonce
    assert writer.write_all(first.name, SIZE, 8) is Outcome.STALE
    assert second.accept() is None
    assert writer.write_all(second.name, SIZE, 7) is Outcome.READY
    assert writer.write_all(first.name, SIZE, 8) is Outcome.STALE
    assert (accepted(second) == 7).all()


def test_a_slab_that_is_lent_again_between_the_writers_opening_and_its_lock_is_stale(
    pool, monkeypatch
):
    # The writer is stopped in there: meanwhile the owner gives the window up.
    first = pool.lend(SIZE)
    loans, real = [first], writer_module.fcntl.flock

    def flock(fd: int, how: int) -> None:
        monkeypatch.setattr(writer_module.fcntl, "flock", real)
        first.give_back()
        loans.append(pool.lend(SIZE))
        real(fd, how)

    monkeypatch.setattr(writer_module.fcntl, "flock", flock)
    assert outcome_of(first.name) is Outcome.STALE
    assert loans[1].name.nonce == first.name.nonce
    assert loans[1].accept() is None


# ---- busy ------------------------------------------------------------------------------


def test_a_second_writer_does_not_wait_for_the_first(pool, start_writer):
    one, two, loan = start_writer(), start_writer(), pool.lend(SIZE)
    assert one.begin(loan.name) is Outcome.READY
    assert two.begin(loan.name) is Outcome.BUSY
    one.ask("fill", 0, SIZE, 7)
    one.ask("finish", loan.name.generation)
    assert two.begin(loan.name) is Outcome.BUSY
    one.ask("leave")
    assert two.begin(loan.name) is Outcome.DONE
    assert (accepted(loan) == 7).all()


def test_two_threads_of_one_process_exclude_each_other(pool):
    mappings, loan = Mappings(), pool.lend(SIZE)
    with mappings.writing(loan.name) as writing:
        assert writing.outcome is Outcome.READY
        assert outcome_of(loan.name, mappings) is Outcome.BUSY
    assert outcome_of(loan.name, mappings) is Outcome.READY


def test_a_slab_whose_writer_is_stopped_is_dropped_and_never_lent_again(
    pool, start_writer
):
    stopped, other = start_writer(), start_writer()
    first = pool.lend(SIZE)
    assert stopped.begin(first.name) is Outcome.READY
    stopped.ask("fill", 0, SIZE // 2, 8)
    stopped.stop()
    stopped.tell("fill", 0, SIZE, 8)  # what it does when it goes on
    assert other.write_all(first.name, SIZE, 7) is Outcome.BUSY
    first.give_back()
    loans = [pool.lend(SIZE) for _ in range(4)]
    assert first.name.nonce not in {loan.name.nonce for loan in loans}
    for value, loan in enumerate(loans):
        assert other.write_all(loan.name, SIZE, value) is Outcome.READY
    blocks = [accepted(loan) for loan in loans]
    stopped.go_on()
    assert stopped.hear() is None
    stopped.ask("finish", first.name.generation)
    stopped.ask("leave")
    assert [set(block.tolist()) for block in blocks] == [{0}, {1}, {2}, {3}]
    del blocks, loans
    assert first.name.nonce not in {pool.lend(SIZE).name.nonce for _ in range(4)}


def test_a_slab_whose_writer_was_killed_is_written_by_the_next(pool, start_writer):
    killed, other, loan = start_writer(), start_writer(), pool.lend(SIZE)
    assert killed.begin(loan.name) is Outcome.READY
    killed.ask("fill", 0, SIZE // 2, 8)
    os.kill(killed.pid, signal.SIGSTOP)
    killed.kill()
    assert other.write_all(loan.name, SIZE, 7) is Outcome.READY
    assert (accepted(loan) == 7).all()


def test_a_slab_whose_writer_was_killed_is_lent_again(pool, start_writer):
    killed, first = start_writer(), pool.lend(SIZE)
    assert killed.begin(first.name) is Outcome.READY
    killed.kill()
    first.give_back()
    assert pool.lend(SIZE).name.nonce == first.name.nonce


# ---- absent ----------------------------------------------------------------------------


def memfd_pool() -> SharedPool:
    return SharedPool(MemfdPlace(), 4 * MIB)


@pytest.mark.parametrize("seen_before", [False, True])
@pytest.mark.parametrize("locked", [False, True])
def test_a_path_that_leads_to_another_slab_by_now_is_absent(seen_before, locked):
    pool, mappings, others = memfd_pool(), Mappings(), Mappings()
    first = pool.lend(SIZE)
    if seen_before:
        assert outcome_of(first.name, mappings) is Outcome.READY
    first.drop()
    second = pool.lend(SIZE)
    assert second.name.path == first.name.path  # the descriptor's number is used again
    if locked:
        with others.writing(second.name) as writing:
            assert writing.outcome is Outcome.READY
            assert outcome_of(first.name, mappings) is Outcome.ABSENT
    assert outcome_of(first.name, mappings) is Outcome.ABSENT
    assert outcome_of(second.name, mappings) is Outcome.READY
    pool.close()


def test_a_slab_that_was_removed_is_absent(pool, start_writer):
    writer, one, two = start_writer(), pool.lend(SIZE), pool.lend(SIZE)
    assert writer.write_all(one.name, SIZE, 7) is Outcome.READY
    one.drop()
    two.drop()
    assert writer.begin(one.name) is Outcome.ABSENT  # though it is still mapped there
    assert writer.begin(two.name) is Outcome.ABSENT


@pytest.mark.parametrize("num_bytes", [0, 4096, MIB - 1, MIB + 1])
def test_a_file_of_another_length_is_absent(files_pool, num_bytes):
    loan, mappings = files_pool.lend(SIZE), Mappings()
    os.truncate(loan.name.path, num_bytes)
    assert outcome_of(loan.name) is Outcome.ABSENT
    assert mappings.map_for_reading(loan.name) is None


@pytest.mark.parametrize("kind", ["link", "folder", "fifo", "nothing"])
def test_what_is_no_file_of_ours_is_absent(files_pool, tmp_path, kind):
    loan = files_pool.lend(SIZE)
    path = Path(loan.name.path)
    moved = path.rename(tmp_path / "moved")
    if kind == "link":
        path.symlink_to(moved)
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    assert outcome_of(loan.name) is Outcome.ABSENT
    assert Mappings().map_for_reading(loan.name) is None
    assert not Mappings().can_open(loan.name)
    if kind == "folder":
        path.rmdir()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to have another user's file")
def test_a_file_of_another_user_is_absent(files_pool):
    loan = files_pool.lend(SIZE)
    os.chown(loan.name.path, 65534, 65534)
    assert outcome_of(loan.name) is Outcome.ABSENT


def _launcher(*command: str) -> tuple[str, ...]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    done = subprocess.run([*command, "true"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"may not {' '.join(command)} here")
    return command


def test_in_another_pid_namespace_anonymous_memory_is_absent_and_files_are_not(
    files_pool, start_writer
):
    unshare = _launcher("unshare", "-U", "-r", "-p", "-f", "--mount-proc", "-m")
    writer, pool = start_writer(*unshare), memfd_pool()
    assert writer.begin(pool.lend(SIZE).name) is Outcome.ABSENT
    assert writer.begin(files_pool.lend(SIZE).name) is Outcome.READY
    pool.close()


def test_another_users_process_finds_both_absent(files_pool, start_writer):
    launcher = _launcher("setpriv", "--reuid=65534", "--clear-groups")
    can_run = subprocess.run(
        [*launcher, sys.executable, "-c", "import dask_loader.transfer.writer"],
        capture_output=True,
        check=False,
    )
    if can_run.returncode:
        pytest.skip("another user cannot run this Python")
    writer, pool = start_writer(*launcher), memfd_pool()
    assert writer.begin(pool.lend(SIZE).name) is Outcome.ABSENT
    assert writer.begin(files_pool.lend(SIZE).name) is Outcome.ABSENT
    pool.close()


# ---- mappings --------------------------------------------------------------------------


def test_who_can_open_a_slab_says_so_also_while_another_process_asks(
    pool, start_writer
):
    mappings, loan = Mappings(), pool.lend(0)
    assert mappings.can_open(loan.name)
    assert start_writer().begin(loan.name) is Outcome.READY
    assert mappings.can_open(loan.name)


def test_a_slab_is_mapped_once_for_all_its_loans(pool):
    mappings = Mappings()
    for _ in range(5):
        loan = pool.lend(SIZE)
        assert outcome_of(loan.name, mappings) is Outcome.READY
        memory = mappings.map_for_reading(loan.name)
        assert memory is mappings.map_for_reading(loan.name)
        loan.give_back()
    assert len(mappings) == 1


def test_mappings_are_bounded_and_what_was_let_go_is_mapped_anew(pool):
    mappings = Mappings(max_bytes=2 * MIB)
    loans = [pool.lend(SIZE) for _ in range(4)]
    for _ in range(2):
        for loan in loans:
            assert outcome_of(loan.name, mappings) is Outcome.READY
            assert 1 <= len(mappings) <= 2


def mapped_slabs() -> int:
    maps = Path("/proc/self/maps").read_text()
    return sum("memfd:dask-loader" in line for line in maps.splitlines())


OWNER = """
import sys
from dask_loader.transfer.places import MemfdPlace
from dask_loader.transfer.shared import SharedPool
name = SharedPool(MemfdPlace(), 1 << 26).lend(1 << 20).name
print(name.path, *name.nonce, name.generation, name.num_bytes, flush=True)
sys.stdin.read()
"""


def test_the_memory_of_a_dead_owner_is_let_go(start_writer):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    path, *numbers = owner.stdout.readline().split()
    one, two, generation, num_bytes = map(int, numbers)
    name = SlabName(path, (one, two), generation, num_bytes)
    before, mappings = mapped_slabs(), Mappings()
    assert outcome_of(name, mappings) is Outcome.READY
    assert mapped_slabs() == before + 1
    owner.kill()
    owner.communicate()
    assert outcome_of(name, mappings) is Outcome.ABSENT
    mappings.drop_idle(3600.0)
    assert mapped_slabs() == before + 1
    mappings.drop_idle(0.0)
    assert (mapped_slabs(), len(mappings)) == (before, 0)


def test_no_descriptor_stays_open_whatever_the_outcome(pool, num_files):
    mappings, loan, gone = Mappings(), pool.lend(SIZE), pool.lend(SIZE)
    gone.drop()
    before = num_files()
    for _ in range(2):
        assert outcome_of(loan.name, mappings) is Outcome.READY
        assert outcome_of(gone.name, mappings) is Outcome.ABSENT
        mappings.map_for_reading(loan.name)
        # Python keeps a copy of the descriptor for each mapping.
        assert num_files() == before + 1
    mappings.drop_idle(0.0)
    assert num_files() == before
