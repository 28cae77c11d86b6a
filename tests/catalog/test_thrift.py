"""The walk finds what a footer says of statistics, and fails in words over all else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_loader.catalog.thrift import ThriftError, skip, varint, walk, write_varint
from tests.catalog.compact import meta_data, pack, split
from tests.conformance.fuzzing import KINDS, damage, make

CONFORMANCE = Path(__file__).parent.parent / "data/conformance"
BOUNDS = (1, 2, 5, 6)


def footer_bytes(content: bytes) -> bytes:
    return content[-8 - int.from_bytes(content[-8:-4], "little") : -8]


def test_the_lengths_of_all_bounds_are_found_in_files_of_all_writers() -> None:
    num_bounds = num_files = 0
    for path in sorted(p for p in CONFORMANCE.rglob("*.parquet") if p.is_file()):
        content = path.read_bytes()
        try:
            pq.ParquetFile(path).close()
        except (pa.ArrowException, OSError):
            continue  # damaged in earnest
        if content[-4:] == b"PARE":
            continue
        _, footer = split(content)
        groups = footer[4][1][1]
        found = walk(footer_bytes(content))
        assert len(found.groups) == len(groups)
        num_files += 1
        for index, chunks in enumerate(found.groups):
            for leaf, chunk in enumerate(chunks):
                if chunk is None:
                    assert 3 not in groups[index][1][1][1][leaf]
                    continue
                said = meta_data(footer, index, leaf)
                told = said[12][1] if 12 in said else {}
                expected = {n: len(told[n][1]) for n in BOUNDS if n in told}
                assert chunk.lengths == expected
                assert chunk.physical == said[1][1] >> 1
                assert chunk.path == pack(9, said[3][1])
                num_bounds += len(expected)
        assert len(found.orders) == (len(footer[7][1][1]) if 7 in footer else 0)
    assert num_files > 40
    assert num_bounds > 500


@given(st.binary(max_size=300))
def test_any_bytes_are_walked_or_refused(data: bytes) -> None:
    with suppress(ThriftError):
        walk(data)


@pytest.mark.parametrize("kind", ["plain", "v2 checked"])
def test_damaged_footers_are_walked_or_refused(kind: str, tmp_path: Path) -> None:
    content = make(kind, tmp_path / "a.parquet")
    refused = 0
    for number in range(300):
        data = footer_bytes(damage(content, "footer", number))
        try:
            walk(data)
        except ThriftError:
            refused += 1
    assert 0 < refused < 300
    assert kind in KINDS


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "it ends within a field"),
        (b"\x15\x02", "it ends within a field"),
        (b"\x18\x7f" + b"a" * 9, "a text has 127 bytes"),
        (b"\x19\xf5\xff\xff\xff\x07", "a list has 16777215 items"),
        (b"\x1b\xff\xff\xff\x07\x55", "a map has 16777215 items"),
        (b"\x15" + b"\xff" * 11, "a number is too long"),
        (b"\x1e", "there is no kind 14"),
        (b"\x1c" * 100, "structs lie too deep in each other"),
        (b"\x19" * 100, "structs lie too deep in each other"),
    ],
)
def test_what_is_no_footer_is_told_in_words(data: bytes, text: str) -> None:
    with pytest.raises(ThriftError, match=text):
        walk(data)


def test_a_field_of_any_kind_is_passed_over() -> None:
    values = {
        1: b"",
        3: b"\x07",
        5: b"\xac\x02",
        7: b"12345678",
        8: b"\x02ab",
        9: b"\x21\x01\x02",
        10: b"\x35\x01\x02\x03",
        11: b"\x01\x58\x07\x01z",
        12: b"\x15\x04\x00",
        13: b"0123456789abcdef",
    }
    for kind, value in values.items():
        assert skip(value + b"\xff", 0, kind) == len(value)
    assert skip(b"\x00", 0, 11) == 1  # an empty map tells no kinds
    # All in one footer, the last by its number: it may go back.
    fields = b"".join(bytes([0x10 | kind]) + value for kind, value in values.items())
    assert walk(fields + b"\x05\x03\x01\x00").groups == []


@given(st.integers(0, 2**63))
def test_a_number_is_what_was_packed(number: int) -> None:
    assert varint(write_varint(number), 0) == (number, len(write_varint(number)))


def test_the_later_of_two_fields_wins_as_in_arrow(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"i": [1, 2]}), path)
    data = footer_bytes(path.read_bytes())
    twice = data[:-1] + b"\x09\x08\x0c\x00"  # field 4 again: an empty list
    assert len(walk(data).groups) == 1
    assert walk(twice).groups == []
