"""Windows of many small remote files: opened ahead, several at once, and looked at."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dask_loader import ParquetDataset
from dask_loader.errors import DataChangedError
from dask_loader.read import ahead
from tests.remote.conftest import parquet
from tests.remote.servers import RangeServer, _RangeHandler, serving

NUM_FILES, ROWS = 24, 50


class _Together(_RangeHandler):
    """Answers a request for columns only once others wait too."""

    gate: threading.Barrier | None = None

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        if self.gate is not None and asked.startswith("bytes=4-"):
            self.gate.wait(180)
        super().do_GET()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[RangeServer]:
    for number in range(NUM_FILES):
        content = parquet(number * ROWS, ROWS)
        (tmp_path / f"{number:03}.parquet").write_bytes(content)
    with serving(RangeServer(tmp_path)) as server:
        server.RequestHandlerClass = _Together
        yield server


def dataset(web: RangeServer) -> ParquetDataset:
    urls = [f"{web.url}/{number:03}.parquet" for number in range(NUM_FILES)]
    return ParquetDataset(
        urls,
        columns=["id", "b"],
        client="threads",
        footer_cache=False,
        batch_size=100,
        shuffle_window=NUM_FILES * ROWS,
        nulls={"id": 0},
        num_splits=1,
    )


def ids(data: ParquetDataset) -> list[int]:
    return [i for batch in data for i in batch["id"].tolist()]


def test_the_files_of_a_window_are_fetched_at_once_each_in_three_requests(
    web: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dataset(web) as ds:
        web.log.clear()
        # Files that were opened one after the other would wait here for ever.
        monkeypatch.setattr(_Together, "gate", threading.Barrier(ahead._AT_ONCE))
        assert ids(ds) == list(range(NUM_FILES * ROWS))
    counts = Counter((method, path) for method, path, _ in web.log)
    assert len(counts) == NUM_FILES * 2
    for (method, path), count in counts.items():
        assert count == {"GET": 2, "HEAD": 1}[method], path


def test_what_waits_is_bounded(
    web: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (web.folder / "000.parquet").stat().st_size
    monkeypatch.setattr(ahead, "AHEAD_BYTES", size * 5 // 2)
    lock, held, most = threading.Lock(), 0, 0
    opens, trims = ahead._open, ahead.trim

    def count(change: int) -> None:
        nonlocal held, most
        with lock:
            held += change
            most = max(most, held)

    def opening(*given: Any) -> Any:
        count(1)
        return opens(*given)

    def trimming(file: Any) -> None:
        trims(file)
        count(-1)

    monkeypatch.setattr(ahead, "_open", opening)
    monkeypatch.setattr(ahead, "trim", trimming)
    with dataset(web) as ds:
        assert ids(ds) == list(range(NUM_FILES * ROWS))
    assert (held, most) == (0, 2)


@pytest.mark.parametrize("number", [0, 5, NUM_FILES - 1])
@pytest.mark.parametrize("how", ["replaced", "gone"])
def test_a_file_of_many_that_changed_is_named(
    web: RangeServer, number: int, how: str
) -> None:
    with dataset(web) as ds:
        assert ids(ds) == list(range(NUM_FILES * ROWS))
        file = web.folder / f"{number:03}.parquet"
        file.unlink()
        if how == "replaced":
            file.write_bytes(parquet(9, ROWS))
        with pytest.raises(DataChangedError, match=file.name):
            ids(ds)
