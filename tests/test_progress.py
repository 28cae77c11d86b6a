"""The progress bar."""

from __future__ import annotations

import sys
from collections.abc import Generator
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from dask_loader import ConfigError, DataLoader, ParquetDataset
from dask_loader.progress import describe_speed, require_rich, show_progress


class Batches:
    """Numbers, and the stats of a dataset that handed them out."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.closed = False
        self.num_rows = 1000.0
        self._fail_at = fail_at

    def stats(self) -> dict[str, float]:
        return {"rows": self.num_rows, "wait_s": 3.0}

    def numbers(self, count: int) -> Generator[int, None, None]:
        try:
            for number in range(count):
                if number == self._fail_at:
                    raise OSError("broken")
                self.num_rows += 10
                yield number
        finally:
            self.closed = True


def console(*, terminal: bool) -> Console:
    return Console(file=StringIO(), force_terminal=terminal, width=100, no_color=True)


def drawn(where: Console) -> str:
    assert isinstance(where.file, StringIO)
    return where.file.getvalue()


def show(batches: Batches, where: Console, count: int) -> Generator[int, None, None]:
    return show_progress(
        batches.numbers(count),
        title="epoch 7",
        num_batches=count,
        stats=batches.stats,
        console=where,
    )


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("count", [0, 1, 30])
def test_all_items_pass_and_the_end_is_drawn(terminal, count):
    batches, where = Batches(), console(terminal=terminal)
    assert list(show(batches, where, count)) == list(range(count))
    assert batches.closed
    text = drawn(where)
    assert "epoch 7" in text
    assert f"{count}/{count}" in text
    assert "rows/s, waiting 0%" in text


def test_a_break_leaves_the_bar_where_it_was_and_closes_the_batches():
    batches, where = Batches(), console(terminal=True)
    items = show(batches, where, 30)
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert batches.closed
    assert "30/30" not in drawn(where)
    # The line is left, and the cursor shown again.
    assert drawn(where).endswith("\n\x1b[?25h")


def test_an_error_passes_and_the_cursor_is_shown_again():
    batches, where = Batches(fail_at=2), console(terminal=True)
    with pytest.raises(OSError, match="broken"):
        list(show(batches, where, 30))
    assert batches.closed
    assert "\x1b[?25h" in drawn(where)


def test_one_loop_within_another_draws_two_bars():
    where = console(terminal=True)
    for number in show(Batches(), where, 2):
        assert list(show(Batches(), where, 3)) == [0, 1, 2], number
    assert "2/2" in drawn(where)
    assert "3/3" in drawn(where)


@pytest.mark.parametrize(
    ("now", "seconds", "text"),
    [
        ({"rows": 1000, "wait_s": 3}, 2.0, "0 rows/s, waiting 0%"),
        ({"rows": 2_469_000, "wait_s": 3.5}, 2.0, "1,234,000 rows/s, waiting 25%"),
        ({"rows": 1001, "wait_s": 9}, 2.0, "0 rows/s, waiting 100%"),
        ({"rows": 1001, "wait_s": 9}, 0.0, ""),
    ],
)
def test_only_what_came_since_the_epoch_began_counts(now, seconds, text):
    assert describe_speed({"rows": 1000, "wait_s": 3}, now, seconds) == text


def test_without_rich_the_error_says_how_to_install_it(monkeypatch, small_data):
    # None is what Python itself takes for "cannot be imported".
    monkeypatch.setitem(sys.modules, "rich", None)
    text = r"progress=True needs the package rich.*: pip install rich, or leave"
    with pytest.raises(ConfigError, match=text):
        require_rich()
    with ParquetDataset(small_data, client="threads") as dataset:
        with pytest.raises(ConfigError, match=text):
            DataLoader(dataset, progress=True)
        loaders: list[Any] = [DataLoader(dataset), DataLoader(dataset, progress=False)]
        assert [len(loader) for loader in loaders] == [1, 1]
        del loaders
