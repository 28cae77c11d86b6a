"""Slabs that somebody writes to, or cuts short, while they are lent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dask_loader.catalog.forms import Form
from dask_loader.transfer.places import FolderPlace, MemfdPlace
from dask_loader.transfer.received import window_in
from dask_loader.transfer.shared import (
    DONE,
    GENERATION,
    HEADER_BYTES,
    TEXT_BYTES,
    Loan,
    SharedPool,
    header_of,
)
from dask_loader.transfer.texts import pack_texts
from dask_loader.transfer.writer import Mappings, Outcome

MIB = 1 << 20
FORMS = (Form("id", "int64"), Form("name", ""))
NUM_ROWS = 100
IDS = np.arange(NUM_ROWS)
TEXTS = pa.array([f"row {i}" for i in IDS])
# Words that somebody may write, beside each bit of the right one flipped.
_ODD = (0, 1, -1, 2**62, -(2**63), 2**63 - 1, MIB, MIB - HEADER_BYTES, MIB * 4)


@pytest.fixture
def pool(place):
    made = SharedPool(place, 4 * MIB)
    yield made
    made.close()


def write(
    loan: Loan, texts: pa.Array = TEXTS, mappings: Mappings | None = None
) -> Outcome:
    """Write the window as a Dask worker does."""
    with (mappings or Mappings()).writing(loan.name) as writing:
        if writing.outcome is not Outcome.READY:
            return writing.outcome
        packed = np.frombuffer(pack_texts({"name": texts}), np.uint8)
        length = -(-len(packed) // 64) * 64
        writing.block[: IDS.nbytes] = IDS.view(np.uint8)
        writing.block[len(writing.block) - length :][: len(packed)] = packed
        writing.finish(loan.name.generation, length)
        return writing.outcome


def taken(loan: Loan) -> bool:
    """Take a window as the engine does: it is right, or refused."""
    accepted = loan.accept()
    window = None
    if accepted is not None:
        window = window_in(FORMS, NUM_ROWS, *accepted)
    if window is None:
        loan.drop()
        return False
    np.testing.assert_array_equal(window.arrays["id"], IDS)
    assert window.texts["name"].equals(TEXTS)
    return True


def changed(loan: Loan, word: int, number: int) -> int:
    """Write a word of the header as another program of this user may; return it."""
    memory = Mappings().map_for_reading(loan.name)
    assert memory is not None
    header = header_of(memory)
    right = int(header[word])
    flipped = right ^ 1 << min(number, 63)
    value = _ODD[number - 64] if number >= 64 else flipped
    if value >= 2**63:
        value -= 2**64
    if value < -(2**63):
        value += 2**64
    if value != right:
        header[word] = value
    return value


# The owner knows its slab without them, or the writer writes them after that.
_HARMLESS = {
    *(("after", 0), ("after", 1), ("after", GENERATION)),
    *(("before", DONE), ("before", TEXT_BYTES)),
}


@pytest.mark.parametrize("word", [0, 1, GENERATION, DONE, TEXT_BYTES])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_header_that_is_written_to_gives_the_right_window_or_none(pool, word, when):
    refused = 0
    for number in range(64 + len(_ODD)):
        loan = pool.lend(MIB // 2)
        assert loan is not None  # what was refused is dropped, and makes room
        if when == "after":
            assert write(loan) is Outcome.DONE
        value = changed(loan, word, number)
        if (when, word, value) == ("before", DONE, loan.name.generation):
            continue  # says that it is written: as good as writing it
        if when == "before":
            write(loan)
        refused += not taken(loan)
    assert bool(refused) != ((when, word) in _HARMLESS)
    assert pool.owned_bytes <= 4 * MIB
    loan = pool.lend(MIB // 2)
    assert write(loan) is Outcome.DONE
    assert taken(loan)


def test_texts_that_are_written_to_are_never_a_window_of_another_shape(pool):
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        loan = pool.lend(MIB // 2)
        assert write(loan) is Outcome.DONE
        block, packed = loan.accept()
        # Head and schema of the stream; what lies after them are the texts themselves.
        packed[rng.integers(0, 320, size=4)] = rng.integers(
            0, 256, size=4, dtype=np.uint8
        )
        window = window_in(FORMS, NUM_ROWS, block, packed)
        refused += window is None
        if window is not None:
            assert list(window.texts) == ["name"]
            assert len(window.texts["name"]) == NUM_ROWS
        del block, packed, window
    assert refused > 50


@pytest.mark.parametrize(
    "texts",
    [{}, {"other": TEXTS}, {"name": TEXTS[:-1]}, {"name": TEXTS, "other": TEXTS}],
)
def test_texts_of_another_window_are_refused(texts):
    block = np.zeros(4096, np.uint8)
    packed = np.frombuffer(pack_texts(texts), np.uint8) if texts else block[:0]
    assert window_in(FORMS, NUM_ROWS, block, packed) is None
    right = np.frombuffer(pack_texts({"name": TEXTS}), np.uint8)
    assert window_in(FORMS, NUM_ROWS, block, right) is not None
    assert window_in(FORMS, NUM_ROWS, block[: IDS.nbytes - 8], right) is None


def test_memory_without_a_name_cannot_be_cut_short():
    pool = SharedPool(MemfdPlace(), 4 * MIB)
    loan = pool.lend(MIB // 2)
    for num_bytes in (0, MIB // 2, 2 * MIB):
        with pytest.raises(PermissionError):
            os.truncate(loan.name.path, num_bytes)
    assert write(loan) is Outcome.DONE
    assert taken(loan)
    pool.close()


@pytest.mark.parametrize("what", ["link", "other file", "folder away", "wide open"])
def test_what_is_put_in_a_slabs_place_is_neither_written_nor_read(
    tmp_path, what, caplog
):
    place = FolderPlace(str(tmp_path))
    pool = SharedPool(place, 4 * MIB)
    loan = pool.lend(MIB // 2)
    path, planted = Path(loan.name.path), tmp_path / "planted"
    planted.write_bytes(path.read_bytes())  # header and all
    before = planted.read_bytes()
    if what == "folder away":
        path.parent.rename(tmp_path / "away")
        path.parent.symlink_to(tmp_path / "away")
        assert write(loan) is Outcome.DONE  # it is the same file
        assert taken(loan)
    elif what == "wide open":
        path.chmod(0o666)
        path.parent.chmod(0o777)
        assert pool.lend(0).name.path != str(path)
        assert os.stat(pool.lend(0).name.path).st_mode & 0o777 == 0o600
    else:
        path.unlink()
        if what == "link":
            path.symlink_to(planted)
            assert write(loan) is Outcome.ABSENT
        else:
            planted.rename(path)
            planted = path
            assert write(loan) is Outcome.DONE  # by its words it is the slab
        assert not taken(loan)  # the owner reads its own
        if what == "link":
            assert planted.read_bytes() == before
    pool.close()
    if what == "folder away":
        assert (tmp_path / "away" / "owner").exists()
        assert "is left behind" in caplog.text


def test_a_link_in_the_folders_place_leads_to_nothing_that_is_removed(tmp_path, caplog):
    place, theirs = FolderPlace(str(tmp_path)), tmp_path / "theirs"
    fd, path = place.make(4096)
    os.close(fd)
    theirs.mkdir()
    (theirs / "thesis").write_text("all of it")
    folder = Path(path).parent
    shutil.rmtree(folder)
    folder.symlink_to(theirs)
    place.close()
    assert (theirs / "thesis").read_text() == "all of it"
    assert folder.is_symlink()
    assert "is left behind" in caplog.text
