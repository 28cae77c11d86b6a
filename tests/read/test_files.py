"""Files that are damaged, changed or gone, and how open files are lent."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader.catalog.storage import Storage
from dask_loader.errors import BadFileError, DataChangedError
from dask_loader.read.count import count_rows
from dask_loader.read.files import OpenFiles
from dask_loader.read.task import WindowTask
from dask_loader.read.window import read_table, read_window

Write = Callable[..., str]
Plan = Callable[..., WindowTask]
Allocate = Callable[[int], Any]

DATA = Path(__file__).parents[1] / "data"
LOCAL = Storage("file")


def flip(path: str, offset: int, num_bytes: int = 1) -> None:
    """Turn bytes of a file over, without a change of its length."""
    with open(path, "r+b") as file:
        file.seek(offset)
        old = file.read(num_bytes)
        file.seek(offset)
        file.write(bytes(255 - byte for byte in old))


@pytest.fixture
def checked(write: Write) -> tuple[str, list[int]]:
    """A file with page checksums and, for each row group, a byte inside its data page."""
    path = write(
        "checked.parquet",
        {"x": np.arange(3000)},
        row_group_size=1000,
        write_page_checksum=True,
        use_dictionary=False,
        compression="none",
    )
    with pq.ParquetFile(path) as file:
        chunks = [file.metadata.row_group(i).column(0) for i in range(3)]
    ends = [c.data_page_offset + c.total_compressed_size - 8 for c in chunks]
    return path, ends


def readers(
    files: OpenFiles, allocate: Allocate
) -> tuple[Callable[[WindowTask], Any], ...]:
    return (
        lambda task: read_window(task, files, allocate),
        lambda task: read_table(task, files, ((0, task.num_rows),)),
        lambda task: count_rows(task.options, task.slices),
    )


@pytest.mark.parametrize("filters", [None, [("x", ">=", 0)]])
def test_a_damaged_page_names_the_file_and_the_row_group(
    checked: tuple[str, list[int]],
    plan: Plan,
    files: OpenFiles,
    allocate: Allocate,
    filters: Any,
) -> None:
    path, ends = checked
    flip(path, ends[1])
    for read in readers(files, allocate)[: 3 if filters else 2]:
        with pytest.raises(
            BadFileError, match="cannot decode row group 1 of"
        ) as caught:
            read(plan([path], filters=filters))
        assert repr(path) in str(caught.value)
        assert "the file is damaged or was written by a faulty program" in str(
            caught.value
        )
        assert (caught.value.path, caught.value.row_group) == (path, 1)
        assert "CRC" in str(caught.value.__cause__)
    others = plan([path], [(0, 0, 1000), (2, 0, 1000)], filters=filters)
    assert read_window(others, files, allocate).num_rows == 2000


def test_without_the_check_the_same_damage_passes_unseen(
    checked: tuple[str, list[int]], plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    path, ends = checked
    flip(path, ends[1])
    task = plan([path], verify_checksums=False)
    window = read_window(task, files, allocate)
    assert (window.arrays["x"] != np.arange(3000)).sum() == 1


def test_a_damaged_page_is_told_in_parts_of_a_row_group_too(
    checked: tuple[str, list[int]], plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    path, ends = checked
    flip(path, ends[2])
    with pytest.raises(BadFileError, match="cannot decode row group 2 of"):
        read_window(plan([path], [(0, 0, 10), (2, 900, 950)]), files, allocate)


def test_a_file_of_somebody_elses_with_wrong_checksums_is_refused(
    plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    path = str(DATA / "rle-dict-uncompressed-corrupt-checksum.parquet")
    with pytest.raises(BadFileError, match="cannot decode row group 0 of"):
        read_window(plan([path]), files, allocate)


def test_pages_that_cannot_be_unpacked_are_a_bad_file(
    write: Write, plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    path = write("a.parquet", {"x": range(5000)}, compression="snappy")
    flip(path, 4, 200)
    with pytest.raises(BadFileError, match="cannot decode row group 0 of"):
        read_window(plan([path]), files, allocate)


def test_a_footer_that_promises_other_rows_is_a_bad_file(
    write: Write, plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    path = write("a.parquet", {"x": range(10)}, row_group_size=5)
    for ranges, text in (
        ([(1, 0, 6)], f"row group 1 of {path!r} gave 5 rows where 6 were planned"),
        ([(0, 2, 6)], f"row group 0 of {path!r} gave 5 rows where 6 were planned"),
    ):
        for filters in (None, [("x", ">=", 0)]):
            with pytest.raises(
                BadFileError, match="the footer does not tell the tr"
            ) as e:
                read_window(plan([path], ranges, filters=filters), files, allocate)
            assert text in str(e.value)
            assert e.value.path == path


def test_a_row_group_of_another_size_than_planned_is_told(
    write: Write, plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    from dataclasses import replace

    path = write("a.parquet", {"x": range(10)}, row_group_size=5)
    task = plan([path])
    for wrong, text in (
        (
            replace(task.slices[0], group_rows=6),
            "row group 0 .* should have 6 rows and has 5",
        ),
        (
            replace(task.slices[0], row_group=2),
            "row group 2 .* should have 5 rows and has None",
        ),
    ):
        for read in readers(files, allocate):
            with pytest.raises(BadFileError, match=text) as caught:
                read(replace(task, slices=(wrong,)))
            assert "the file was rewritten: make the dataset again" in str(caught.value)


@pytest.mark.parametrize("warm", [False, True])
def test_a_file_replaced_after_the_catalog_is_refused(
    write: Write, plan: Plan, files: OpenFiles, allocate: Allocate, warm: bool
) -> None:
    path = write("a.parquet", {"x": range(10)})
    task = plan([path])
    if warm:
        read_window(task, files, allocate)
    os.replace(write("b.parquet", {"x": range(1, 11)}), path)
    for read in readers(files, allocate):
        with pytest.raises(
            DataChangedError, match="changed after the dataset was made"
        ) as e:
            read(task)
        assert e.value.path == path


@pytest.mark.parametrize("warm", [False, True])
def test_a_file_removed_after_the_catalog_is_refused(
    write: Write, plan: Plan, files: OpenFiles, allocate: Allocate, warm: bool
) -> None:
    path = write("a.parquet", {"x": range(10)})
    task = plan([path])
    if warm:
        read_window(task, files, allocate)
    os.remove(path)
    for read in readers(files, allocate):
        with pytest.raises(DataChangedError, match="cannot be found now") as caught:
            read(task)
        assert caught.value.path == path


def test_a_file_that_vanishes_between_the_look_and_the_opening_is_changed(
    write: Write, files: OpenFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.parquet", {"x": [1]})

    def gone(*args: Any, **kwargs: Any) -> Any:
        raise FileNotFoundError(2, "No such file", path)

    monkeypatch.setattr("dask_loader.read.files.LocalFile", gone)
    with (
        pytest.raises(DataChangedError, match="is gone") as caught,
        files.borrow(LOCAL, path, LOCAL.stamp(path), verify_checksums=True),
    ):
        pass
    assert "was there when the dataset was made" in str(caught.value)


def test_what_is_no_parquet_is_a_bad_file(tmp_path: Path, files: OpenFiles) -> None:
    path = str(tmp_path / "a.parquet")
    Path(path).write_text("a,b\n1,2\n")
    with (
        pytest.raises(BadFileError, match="is not a readable Parquet file") as caught,
        files.borrow(LOCAL, path, LOCAL.stamp(path), verify_checksums=True),
    ):
        pass
    assert caught.value.path == path


def test_an_open_file_is_lent_again_but_to_one_borrower_at_a_time(
    write: Write, files: OpenFiles
) -> None:
    path = write("a.parquet", {"x": [1]})
    loan = (LOCAL, path, LOCAL.stamp(path))
    with files.borrow(*loan, verify_checksums=True) as first:
        with files.borrow(*loan, verify_checksums=True) as second:
            assert second is not first
        with files.borrow(*loan, verify_checksums=False) as other:
            assert other is not second
    with files.borrow(*loan, verify_checksums=True) as again:
        assert again is first or again is second


def test_a_borrower_that_fails_does_not_give_the_file_back(
    write: Write, files: OpenFiles
) -> None:
    path = write("a.parquet", {"x": [1]})
    loan = (LOCAL, path, LOCAL.stamp(path))
    with (
        pytest.raises(ZeroDivisionError),
        files.borrow(*loan, verify_checksums=True) as broken,
    ):
        _ = 1 // 0
    with files.borrow(*loan, verify_checksums=True) as file:
        assert file is not broken
        assert file.read().num_rows == 1


def test_no_more_than_32_files_stay_open(
    write: Write, files: OpenFiles, tmp_path: Path
) -> None:
    def open_now() -> int:
        held = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        many = f"{os.path.realpath(tmp_path)}/many"
        return sum(os.path.realpath(fd).startswith(many) for fd in held)

    for number in range(40):
        path = write(f"many{number}.parquet", {"x": [number]})
        with files.borrow(
            LOCAL, path, LOCAL.stamp(path), verify_checksums=True
        ) as file:
            assert file.read()["x"].to_pylist() == [number]
    assert 0 < open_now() <= 32
    files.close()
    files.close()
    assert open_now() == 0


def test_a_file_that_is_lent_while_all_are_closed_is_closed_when_it_comes_back(
    write: Write, files: OpenFiles
) -> None:
    path = write("a.parquet", {"x": [1]})
    with files.borrow(LOCAL, path, LOCAL.stamp(path), verify_checksums=True) as file:
        files.close()
        assert file.read().num_rows == 1
    # The leak check of conftest.py sees what is still open.


def test_threads_read_the_same_file_side_by_side(
    write: Write, plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    path = write("a.parquet", {"x": range(1000), "s": ["a"] * 1000}, row_group_size=100)
    wrong: list[Any] = []

    def read(start: int) -> None:
        for group in range(start, start + 5):
            window = read_window(plan([path], [(group, 10, 90)]), files, allocate)
            expected = list(range(group * 100 + 10, group * 100 + 90))
            if window.arrays["x"].tolist() != expected:
                wrong.append(group)

    threads = [threading.Thread(target=read, args=(i,)) for i in (0, 2, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_impalas_old_types_are_read(
    plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    path = str(DATA / "alltypes_plain.parquet")
    window = read_window(plan([path]), files, allocate)
    table = pq.read_table(path)
    assert window.arrays["id"].tolist() == [4, 5, 6, 7, 2, 3, 0, 1]
    assert window.arrays["bool_col"].tolist() == [True, False] * 4
    # INT96: microseconds, since nanoseconds would wrap beyond the year 2262.
    expected = table["timestamp_col"].cast(pa.timestamp("us")).cast(pa.int64())
    assert window.arrays["timestamp_col"].tolist() == expected.to_pylist()
    assert window.texts["string_col"].to_pylist() == [b"0", b"1"] * 4


def test_half_floats_of_somebody_elses_keep_nan_and_take_a_fill(
    plan: Plan, files: OpenFiles, allocate: Allocate
) -> None:
    path = str(DATA / "float16_nonzeros_and_nans.parquet")
    array = read_window(plan([path], nulls={"x": 5}), files, allocate).arrays["x"]
    assert array.dtype == np.float16
    assert array[:3].tolist() == [5.0, 1.0, -2.0]
    assert np.isnan(array).sum() == 1
