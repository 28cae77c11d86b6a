"""What explain() says of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader import ParquetDataset

ROWS, GROUP_ROWS = 16_000, 100  # 16 bytes a row, 1,600 a row group


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 row groups in two files, sorted by x."""
    folder = tmp_path_factory.mktemp("explained")
    for part in range(2):
        x = np.arange(ROWS // 2) + part * ROWS // 2
        table = pa.table({"x": x, "y": x / 2})
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=GROUP_ROWS)
    return folder


def explained(path: Path, **options: Any) -> str:
    given = {"client": "threads", "batch_size": 400, **options}
    with ParquetDataset(path, **given) as dataset:
        return dataset.explain()


def line(text: str, start: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(start)]
    return found


def test_it_says_how_well_batches_are_mixed_beside_a_full_shuffle(data: Path) -> None:
    text = explained(
        data,
        shuffle=True,
        shuffle_window=10 * GROUP_ROWS,
        num_splits=4,
        rank=1,
        world_size=2,
    )
    # Two windows of ten row groups each in hand; 400 rows over 160 row groups.
    assert line(text, "mixing") == (
        "mixing, if all rows of a row group were alike: a batch of 400 rows is worth "
        "19.3 row groups, a full shuffle's 115; the batches of all ranks together 38.6, "
        "a full shuffle's 135"
    )


def test_one_rank_is_not_told_of_the_others(data: Path) -> None:
    assert "all ranks" not in explained(data, shuffle=True)


def test_low_quality_comes_with_advice(data: Path) -> None:
    text = explained(data, shuffle=True, shuffle_window=10 * GROUP_ROWS, num_splits=2)
    advice = line(text, "advice")
    assert "A larger shuffle_window or more num_splits mix more" in advice
    assert "with 1 GiB, a batch can be worth about 115 row groups" in advice
    assert "write the files anew" not in advice


def test_what_memory_cannot_mix_is_to_be_written_anew(data: Path) -> None:
    text = explained(
        data, shuffle=True, shuffle_window="3200 B", num_splits=2, memory_limit="32 kB"
    )
    advice = line(text, "advice")
    assert "with 31.25 KiB, a batch can be worth about 10.0 row groups" in advice
    assert "Nothing within it mixes rows that are sorted by label" in advice
    assert "write the files anew once, in random order" in advice


@pytest.mark.parametrize("options", [{"shuffle": True}, {"shuffle": False}])
def test_what_is_mixed_well_or_not_to_be_mixed_needs_no_advice(
    data: Path, options: dict[str, Any]
) -> None:
    assert "advice" not in explained(data, **options)


def test_it_says_what_is_never_read(data: Path) -> None:
    text = explained(data, filters=[("x", "<", 250)])
    assert (
        "157 never read for their statistics or filters (15700 rows, 245.3 KiB)" in text
    )
    assert line(text, "filters") == "filters: 250 of 16000 rows are kept"
    text = explained(data)
    assert "0 never read for their statistics or filters (0 rows, 0 B)" in text
    assert "filters:" not in text


@pytest.mark.parametrize(("num_splits", "ratio"), [(1, "1.00"), (160, "1.00")])
def test_splits_between_row_groups_decode_nothing_twice(
    data: Path, num_splits: int, ratio: str
) -> None:
    text = explained(data, num_splits=num_splits, shuffle=True)
    assert line(text, "decoding").startswith(f"decoding: {ratio} times the rows")


def test_splits_that_cut_row_groups_decode_them_twice(data: Path) -> None:
    text = explained(data, num_splits=320, shuffle=True)
    assert line(text, "decoding").startswith("decoding: 2.00 times the rows")


def test_ranks_that_share_splits_are_told(data: Path) -> None:
    text = explained(data, shuffle=True, num_splits=4, rank=0, world_size=3)
    assert "advice: 3 ranks share 4 splits" in text
    assert "a num_splits that is a multiple of the ranks avoids it" in text
    for num_splits in (3, 6):
        text = explained(
            data, shuffle=True, num_splits=num_splits, rank=0, world_size=3
        )
        assert "share" not in text.replace("a full shuffle", "")


def test_a_dataset_without_rows_is_explained_too(data: Path) -> None:
    text = explained(data, shuffle=True, filters=[("x", "<", 0)], world_size=2, rank=1)
    assert "0 rows in 160 row groups" in text
    assert "160 never read" in text
    assert "mixing" not in text
    assert "advice" not in text


def test_rows_without_batches_are_explained_too(data: Path) -> None:
    text = explained(data, shuffle=True, batch_size=None)
    assert "a batch of 1024 rows is worth 140 row groups" in text
