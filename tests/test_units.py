"""Sizes and durations as users write them."""

from __future__ import annotations

from typing import Any

import pytest

from dask_loader.errors import ConfigError
from dask_loader.units import format_bytes, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("value", "num_bytes"),
    [
        (1, 1),
        (64 * 2**20, 64 * 2**20),
        ("1024", 1024),
        ("5 B", 5),
        ("5B", 5),
        ("2 kB", 2000),
        ("2 KB", 2000),
        ("3 MB", 3 * 10**6),
        ("3 GB", 3 * 10**9),
        ("3 TB", 3 * 10**12),
        ("1 KiB", 1024),
        ("64 MiB", 64 * 2**20),
        ("64mib", 64 * 2**20),
        ("  1.5 GiB ", 3 * 2**29),
        ("2 TiB", 2 * 2**40),
    ],
)
def test_a_size_is_a_number_of_bytes_or_text_with_a_unit(
    value: int | str, num_bytes: int
) -> None:
    found = parse_bytes(value, name="memory_limit")
    assert found == num_bytes
    assert type(found) is int


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        "0 B",
        "0.4",
        "",
        "MiB",
        "64 MB/s",
        "-64 MiB",
        "1e9",
        "64 MiBs",
        "6 4",
        True,
    ],
)
def test_what_is_no_size_is_refused_with_its_value(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bytes(value, name="memory_limit")
    assert str(caught.value) == (
        f"memory_limit={value!r} is not a size; give a whole number of bytes or text "
        'such as "64 MiB"'
    )


@pytest.mark.parametrize("value", [None, [1], b"64 MiB"])
def test_a_size_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_bytes(value, name="memory_limit")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (60, 60.0),
        (0.25, 0.25),
        ("60", 60.0),
        ("60 s", 60.0),
        ("1.5S", 1.5),
        ("250 ms", 0.25),
        ("2 min", 120.0),
        ("2m", 120.0),
        ("1 h", 3600.0),
    ],
)
def test_a_duration_is_seconds_or_text_with_a_unit(
    value: float | str, seconds: float
) -> None:
    found = parse_seconds(value, name="worker_timeout")
    assert found == pytest.approx(seconds)
    assert type(found) is float


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1.5,
        float("nan"),
        float("inf"),
        "0 s",
        "",
        "soon",
        "1 day",
        "-3 s",
        "1:30",
        True,
        None,
    ],
)
def test_what_is_no_duration_is_refused_with_its_value(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_seconds(value, name="worker_timeout")
    assert str(caught.value) == (
        f"worker_timeout={value!r} is not a duration; give a number of seconds or text "
        'such as "60 s"'
    )


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (64 * 2**20, "64 MiB"),
        (2**30, "1 GiB"),
        (4 * 2**30, "4 GiB"),
        (123_456_789, "117.7 MiB"),
        (3 * 2**40, "3 TiB"),
        (5 * 2**50, "5120 TiB"),
        (-2048, "-2 KiB"),
    ],
)
def test_sizes_are_written_with_a_unit_that_people_use(
    num_bytes: int, text: str
) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize("text", ["1 B", "64 MiB", "1.5 GiB", "2 TiB"])
def test_a_size_written_is_read_again(text: str) -> None:
    assert format_bytes(parse_bytes(text, name="memory_limit")) == text
