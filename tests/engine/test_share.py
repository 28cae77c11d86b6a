"""Which workers share memory, how large a slab a window gets, and what is said if none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dask_loader.catalog.forms import Form
from dask_loader.catalog.storage import Storage
from dask_loader.engine.share import Sharing
from dask_loader.errors import ConfigError
from dask_loader.read.nulls import NullPolicy
from dask_loader.read.task import ReadOptions, WindowTask
from dask_loader.transfer.shared import SharedPool, SlabName

MIB = 1 << 20
NUMBERS = (Form("x", "float64"),)
TEXTS = (*NUMBERS, Form("s", ""))


def task_of(num_rows: int, *, forms=NUMBERS, text_bytes: int = 0) -> WindowTask:
    options = ReadOptions(storage=Storage("file"), forms=forms, nulls=NullPolicy())
    return WindowTask(
        options=options,
        slices=(),
        num_rows=num_rows,
        key=None,
        num_bytes=num_rows * 8 + text_bytes,
    )


class Workers:
    """Answers for workers: those at "near" addresses open slabs of the ways given."""

    def __init__(self, *ways: str) -> None:
        self.ways = ways
        self.asked: list[tuple[str, list[str]]] = []
        self.silent: set[str] = set()

    def ask(self, slab: SlabName, workers: list[str]) -> Mapping[str, bool]:
        way = "memory" if slab.path.startswith("/proc/") else "files"
        self.asked.append((way, workers))
        can = way in self.ways
        answers = {w: can and w.startswith("near") for w in workers}
        return {w: answer for w, answer in answers.items() if w not in self.silent}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    """make(way, memory_limit=) -> Sharing, closed at the end."""
    folder = tmp_path / "shared"
    folder.mkdir()
    made: list[Sharing] = []

    def make_one(way: str | None = None, *, memory_limit: int = 16 * MIB, **more: str):
        environ = {"DASK_LOADER_SHARED_FOLDER": str(folder), **more}
        if way is not None:
            environ["DASK_LOADER_HAND_OVER"] = way
        made.append(Sharing(memory_limit=memory_limit, environ=environ))
        return made[-1]

    yield make_one
    for sharing in made:
        sharing.close()
        sharing.close()
    assert list(folder.iterdir()) == []


# ---- which way -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "ways", "asked", "place"),
    [
        (None, ("memory", "files"), ["memory"], "anonymous shared memory"),
        ("", ("memory", "files"), ["memory"], "anonymous shared memory"),
        ("auto", ("files",), ["memory", "files"], "files in "),
        ("auto", (), ["memory", "files"], None),
        ("memory", ("memory", "files"), ["memory"], "anonymous shared memory"),
        ("memory", ("files",), ["memory"], None),
        ("files", ("memory", "files"), ["files"], "files in "),
        ("files", ("memory",), ["files"], None),
        ("comm", ("memory", "files"), [], None),
    ],
)
def test_the_first_way_that_serves_is_taken(make, tmp_path, way, ways, asked, place):
    sharing, workers = make(way), Workers(*ways)
    sharing.learn(["near 1"], workers.ask)
    assert [way for way, _ in workers.asked] == asked
    if place is None:
        assert sharing.place is None
        assert sharing.lend(task_of(100)) is None
    else:
        assert sharing.place.startswith(place)
        assert sharing.lend(task_of(100)) is not None
    if place != "files in ":
        assert list((tmp_path / "shared").iterdir()) == []


def test_before_any_worker_is_known_nothing_is_lent(make):
    sharing = make()
    assert sharing.place is None
    assert sharing.used_bytes == 0
    assert sharing.lend(task_of(100)) is None


def test_each_worker_is_asked_once(make):
    sharing, workers = make(), Workers("memory")
    sharing.learn(["near 1", "far 1"], workers.ask)
    sharing.learn(["near 1", "far 1"], workers.ask)
    sharing.learn(["near 1", "far 1", "near 2"], workers.ask)
    assert workers.asked == [
        ("memory", ["near 1", "far 1"]),
        ("memory", ["near 2"]),
    ]


def test_one_near_worker_among_far_ones_is_enough(make):
    sharing, workers = make(), Workers("memory")
    sharing.learn(["far 1"], workers.ask)
    assert sharing.place is None
    sharing.learn(["far 1", "near 1"], workers.ask)
    assert sharing.place == "anonymous shared memory"
    assert sharing.lend(task_of(100)) is not None


def test_a_worker_that_does_not_answer_is_taken_for_one_that_shares_nothing(make):
    sharing, workers = make(), Workers("memory")
    workers.silent.add("near 1")
    sharing.learn(["near 1"], workers.ask)
    assert sharing.place is None


def test_what_a_probe_took_is_given_back(make):
    sharing, workers = make(), Workers("memory")
    sharing.learn(["near 1"], workers.ask)
    assert sharing.used_bytes == 0

    def fail(slab: SlabName, asked: list[str]) -> Mapping[str, bool]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sharing.learn(["near 2"], fail)
    assert sharing.used_bytes == 0


def test_where_all_slabs_are_in_use_new_workers_are_asked_the_next_time(make):
    sharing, workers = make(memory_limit=2 * MIB), Workers("memory")
    sharing.learn(["near 1"], workers.ask)
    loans = [sharing.lend(task_of(MIB // 8 - 512)) for _ in range(2)]
    assert all(loans)
    sharing.learn(["near 1", "near 2"], workers.ask)
    assert len(workers.asked) == 1
    loans[0].give_back()
    sharing.learn(["near 1", "near 2"], workers.ask)
    assert workers.asked[1:] == [("memory", ["near 2"])]


# ---- wrong settings --------------------------------------------------------------------


def test_a_wrong_way_is_refused_with_those_that_are_right(make):
    with pytest.raises(ConfigError) as caught:
        make("shm")
    assert str(caught.value) == (
        "DASK_LOADER_HAND_OVER='shm' must be one of ('auto', 'memory', 'files', 'comm')"
    )


def test_a_folder_that_cannot_be_used_is_refused_where_files_are_asked_for(make):
    missing = {"DASK_LOADER_SHARED_FOLDER": "/not/there"}
    sharing = make("files", **missing)
    with pytest.raises(ConfigError) as caught:
        sharing.learn(["near 1"], Workers("files").ask)
    text = str(caught.value)
    assert "DASK_LOADER_SHARED_FOLDER='/not/there' cannot be used for shared" in text
    assert "No such file or directory" in text
    assert "name a folder that this process can write" in text
    workers = Workers("files")
    auto = make("auto", **missing)
    auto.learn(["near 1"], workers.ask)
    assert workers.asked == [("memory", ["near 1"])]
    assert auto.place is None


# ---- room ------------------------------------------------------------------------


def test_a_window_gets_a_slab_with_room_for_its_numbers(make):
    sharing = make()
    sharing.learn(["near 1"], Workers("memory").ask)
    loan = sharing.lend(task_of(MIB // 8))
    assert MIB <= loan.name.num_bytes <= 2 * MIB
    assert sharing.used_bytes == loan.name.num_bytes
    assert sharing.lend(task_of(100 * MIB)) is None


def test_texts_get_what_was_reckoned_and_some_to_spare(make):
    sharing = make()
    sharing.learn(["near 1"], Workers("memory").ask)
    plain = sharing.lend(task_of(1000, forms=TEXTS, text_bytes=0))
    long = sharing.lend(task_of(1000, forms=TEXTS, text_bytes=4 * MIB))
    assert plain.name.num_bytes <= 2 * MIB
    assert 4.4 * MIB <= long.name.num_bytes <= 6 * MIB


def test_texts_that_were_longer_than_reckoned_get_more_room_from_then_on(make):
    sharing = make()
    sharing.learn(["near 1"], Workers("memory").ask)
    task = task_of(1000, forms=TEXTS, text_bytes=MIB)
    before = sharing.lend(task)
    assert before.name.num_bytes <= 3 * MIB
    sharing.texts_were(5 * MIB, task)
    assert 5 * MIB <= sharing.lend(task).name.num_bytes <= 7 * MIB
    sharing.texts_were(2 * MIB, task)
    assert 5 * MIB <= sharing.lend(task).name.num_bytes <= 7 * MIB


def test_texts_of_which_the_footers_said_nothing_do_not_make_others_huge(make):
    # A dictionary of one long text: a few bytes are reckoned for a window of megabytes.
    sharing = make(memory_limit=32 * MIB)
    sharing.learn(["near 1"], Workers("memory").ask)
    sharing.texts_were(MIB, task_of(1000, forms=TEXTS, text_bytes=3))
    for text_bytes in (0, 3, MIB):
        loan = sharing.lend(task_of(1000, forms=TEXTS, text_bytes=text_bytes))
        assert loan is not None
        assert MIB <= loan.name.num_bytes <= 3 * MIB
        loan.give_back()


# ---- no room -----------------------------------------------------------------------


def test_where_there_is_no_room_it_is_said_once(make, tiny_tmpfs):
    sharing = make("files", DASK_LOADER_SHARED_FOLDER=str(tiny_tmpfs))
    sharing.learn(["near 1"], Workers("files").ask)
    assert sharing.lend(task_of(4 * MIB // 8)) is not None
    expected = (
        r"no room for 4194304 bytes of shared memory in files in .*tiny .*"
        r"\(\[Errno 28\] No space left on device.*\); windows come over the network "
        r"instead, at about half the speed"
    )
    with pytest.warns(RuntimeWarning, match=expected):
        assert sharing.lend(task_of(4 * MIB // 8)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sharing.lend(task_of(4 * MIB // 8)) is None
        assert sharing.lend(task_of(MIB // 8)) is not None
    sharing.close()


def test_where_not_even_a_probe_finds_room_nothing_is_shared(make, monkeypatch):
    def fail(pool: SharedPool, num_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SharedPool, "lend", fail)
    sharing, workers = make(), Workers("memory", "files")
    sharing.learn(["near 1"], workers.ask)
    assert workers.asked == []
    assert sharing.place is None
