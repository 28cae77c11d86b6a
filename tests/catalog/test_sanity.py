"""A footer that lies is refused before anything is built on it; each text is told."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader import BadFileError, ParquetDataset, PlanError
from dask_loader.catalog.sanity import (
    ChunkError,
    Look,
    check_codecs,
    check_row_bytes,
    check_sizes,
)

FUZZ = Path(__file__).parent.parent / "data/conformance/arrow-testing/fuzzing"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "*5694968720261120",
            "it says it has -?\\d+ rows|Unsupported compression codec",
        ),
        ("*4656328221196288", "it says it has 16 rows, and column .* 270313 values"),
        ("*5104438567239680", "is UNKNOWN there, and FLOAT in the schema"),
        ("*5638988460785664", "is DOUBLE there, and INT64 in the schema"),
        ("*5138681717587968", "Invalid column metadata"),
    ],
)
def test_what_a_footer_cannot_say_is_refused_by_name(name: str, text: str) -> None:
    [path] = FUZZ.glob(name)
    with pytest.raises(BadFileError, match=text) as caught:
        ParquetDataset(path, client="threads", footer_cache=False)
    assert str(path) in str(caught.value)
    assert caught.value.row_group is not None


@pytest.mark.parametrize("most_bytes", [1 << 20, 1 << 60])
def test_a_chunk_beyond_the_file_is_found_with_and_without_pages(
    tmp_path: Path, most_bytes: int
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": range(1000), "y": range(1000)}), path)
    metadata = pq.read_metadata(path)
    look = Look(most_bytes)  # no address space has 2 ** 60 bytes
    look.check(metadata, [0, 1], path.stat().st_size)
    check_codecs(metadata, [0, 1], path.stat().st_size)
    cut = metadata.row_group(0).column(1).data_page_offset
    with pytest.raises(ChunkError, match="Invalid column metadata") as caught:
        look.check(metadata, [0, 1], cut)
    assert (caught.value.leaf, caught.value.row_group) == (1, 0)


def test_sizes_that_cannot_be_are_refused() -> None:
    check_sizes("a", [0, 7])
    with pytest.raises(BadFileError, match="row group 1 it says it has -1 decoded"):
        check_sizes("a", [0, -1])


def test_rows_larger_than_memory_limit_are_refused() -> None:
    rows, sizes = np.array([10, 2]), np.array([100, 300])

    def place(group: int) -> tuple[str, int]:
        return "a.parquet", group

    check_row_bytes(rows, sizes, 150, place)
    text = "rows of row group 1 of 'a.parquet' take .* memory_limit is"
    with pytest.raises(PlanError, match=text):
        check_row_bytes(rows, sizes, 149, place)


def test_a_text_that_is_not_utf8_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bad = pa.array([b"ok", b"\xff\xfe"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, bad.buffers())
    lists = pa.ListArray.from_arrays([0, 1, 2], text)
    for name, column in (("t", text), ("l", lists)):
        pq.write_table(pa.table({name: column}), path, write_statistics=False)
        message = re.escape(
            f"column {name!r} in row group 0 of {str(path)!r} holds text"
        )
        with (
            ParquetDataset(path, client="threads") as dataset,
            pytest.raises(BadFileError, match=message),
        ):
            list(dataset)
