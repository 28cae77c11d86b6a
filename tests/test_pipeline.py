"""The stages put together, without the classes that users hold."""

from __future__ import annotations

from itertools import chain, islice, zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dask_loader.catalog.delivery import Delivery
from dask_loader.catalog.discover import discover
from dask_loader.engine.threads import ThreadsEngine
from dask_loader.engine.where import Where
from dask_loader.errors import NullError, WindowError
from dask_loader.metrics import Meter
from dask_loader.options import DatasetOptions
from dask_loader.pipeline import Pipeline, make_engine
from dask_loader.plan.schedule import Turn
from dask_loader.plan.stage import Stage
from dask_loader.prepare import load_catalog
from dask_loader.run import Run, auto_num_splits, make_run
from dask_loader.world import World

NUM_ROWS = 1009
OPTIONS = DatasetOptions(batch_size=50, shuffle=True, shuffle_window=40)


class Opened:
    """A pipeline with all that it was made from."""

    def __init__(
        self, path: Any, options: DatasetOptions = OPTIONS, **arguments: Any
    ) -> None:
        self.options = options
        self.meter = Meter()
        self.engine = make_engine(Where(), options)
        self.catalog, read_options = load_catalog(
            discover(path),
            options,
            self.engine,
            **{
                "columns": None,
                "filters": None,
                "nulls": "error",
                "delivery": Delivery(),
                **arguments,
            },
        )
        self.pipeline = Pipeline(
            self.catalog, options, read_options, self.engine, self.meter
        )

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exc: object) -> None:
        self.pipeline.close()
        self.pipeline.close()

    def run(self, rank: int = 0, world_size: int = 1, epoch: int = 0) -> Run:
        world = World(rank, world_size)
        splits = auto_num_splits(self.catalog, self.options, world)
        return make_run(
            self.catalog, self.options, world, epoch=epoch, stages=(Stage(0, splits),)
        )


def ids(batches: Any) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def test_without_an_address_threads_read(small_data):
    engine = make_engine(Where(), OPTIONS)
    assert isinstance(engine, ThreadsEngine)
    engine.close()


@pytest.mark.cluster
def test_with_an_address_its_cluster_reads(local_cluster):
    engine = make_engine(Where(local_cluster.address), OPTIONS)
    assert local_cluster.address in engine.name
    engine.close()


@pytest.mark.parametrize("num_workers", [1, 2, 3, 40])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 3)])
def test_windows_read_in_turn_are_cut_into_the_same_batches(
    small_data, rank, world_size, num_workers
):
    with Opened(small_data) as opened:
        run = opened.run(rank, world_size)
        want = list(opened.pipeline.batches(run, Turn()))
        turns = [
            opened.pipeline.windows(run, Turn(worker=w, num_workers=num_workers))
            for w in range(num_workers)
        ]
        # As torch's DataLoader collects them: from each worker in turn, leaving out
        # those that have come to their end.
        windows = iter(
            [w for row in zip_longest(*turns) for w in row if w is not None]
        ).__next__
        got = list(opened.pipeline.cut(run, windows))
        assert ids(got) == ids(want)
        for mine, theirs in zip(got, want, strict=True):
            assert torch.equal(mine["vec"], theirs["vec"])
            assert mine["name"] == theirs["name"]
        with pytest.raises(StopIteration):
            windows()


@pytest.mark.parametrize("num_workers", [2, 3])
def test_batches_made_in_turn_are_the_same_batches(small_data, num_workers):
    with Opened(small_data) as opened:
        run = opened.run(2, 3)
        want = ids(opened.pipeline.batches(run, Turn()))
        turns = [
            ids(opened.pipeline.batches(run, Turn(worker=w, num_workers=num_workers)))
            for w in range(num_workers)
        ]
        assert [batch for row in zip_longest(*turns) for batch in row if batch] == want


def test_partitions_cover_the_ranks_rows_once_without_pads(small_data):
    rows = 0
    with Opened(small_data) as opened:
        for rank in range(8):
            for task, spans in opened.pipeline.partitions(opened.run(rank, 8)):
                assert all(0 <= a < b <= task.num_rows for a, b in spans)
                assert sorted(spans) == list(spans)
                rows += sum(b - a for a, b in spans)
    assert rows == NUM_ROWS


def test_closing_a_batch_iterator_gives_up_what_is_under_way(small_data):
    with Opened(small_data) as opened:
        batches = opened.pipeline.batches(opened.run(), Turn())
        next(batches)
        batches.close()
        assert list(batches) == []
        # The engine goes on to serve others.
        again = opened.pipeline.batches(opened.run(), Turn())
        assert sum(map(len, ids(again))) == NUM_ROWS


def test_an_error_in_mid_epoch_ends_the_iteration(tmp_path):
    for part in range(4):
        table = pa.table({"id": np.arange(part * 100, part * 100 + 100)})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    with Opened(tmp_path, DatasetOptions(batch_size=50)) as opened:
        (tmp_path / "2.parquet").write_bytes(b"nothing of the kind")
        batches = opened.pipeline.batches(opened.run(), Turn())
        with pytest.raises(Exception, match=r"2\.parquet"):
            list(batches)
        assert list(batches) == []


def test_nulls_that_footers_tell_of_are_refused_before_anything_is_decoded(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1, None], "y": [1, 2]}), path, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)  # the pages are gone, the footer is there
    path.write_bytes(content)
    with pytest.raises(NullError, match="column 'x' has 1 nulls"):
        Opened(path)


def test_row_groups_that_statistics_rule_out_are_never_read(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"id": np.arange(600)})
    pq.write_table(
        table,
        path,
        row_group_size=100,
        use_dictionary=False,
        compression="none",
        write_page_checksum=True,
    )
    footer = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in (0, 1, 4, 5):
        chunk = footer.row_group(group).column(0)
        content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    filters = [("id", ">=", 250), ("id", "<", 350)]
    with Opened(path, DatasetOptions(batch_size=30), filters=filters) as opened:
        assert opened.catalog.num_kept.tolist() == [0, 0, 50, 50, 0, 0]
        rows = chain.from_iterable(ids(opened.pipeline.batches(opened.run(), Turn())))
        assert list(rows) == list(range(250, 350))


def test_rows_are_counted_once_for_each_row_group_that_is_left(small_data):
    filters = [("u8", "<", 100), ("flag", "==", True)]
    table = pq.read_table(small_data, filters=filters)
    with Opened(small_data, filters=filters) as opened:
        assert opened.catalog.total_rows == table.num_rows
        batches = opened.pipeline.batches(opened.run(), Turn())
        assert sorted(chain.from_iterable(ids(batches))) == table["id"].to_pylist()


def test_time_and_counts_are_metered(small_data):
    with Opened(small_data) as opened:
        list(islice(opened.pipeline.batches(opened.run(), Turn()), 3))
        read = opened.meter.read()
        assert (read["batches"], read["rows"]) == (3, 150)
        assert read["windows"] >= 1
        assert read["total_s"] >= 0


def test_an_engine_that_fails_ends_the_iteration_with_its_error(small_data):
    class Failing:
        name, held_bytes = "failing", 0

        def slots(self) -> int:
            return 1

        def will_read(self, sample: Any) -> None:
            del sample

        def cost(self, task: Any) -> int:
            return int(task.num_bytes)

        def end(self, stream: int) -> None:
            del stream

        def submit(self, task: Any, *, stream: int, number: int) -> Any:
            del task, stream
            raise WindowError(f"window {number} cannot be asked for")

        def close(self) -> None:
            pass

    with Opened(small_data) as opened:
        pipeline = Pipeline(
            opened.catalog, OPTIONS, opened.pipeline._read_options, Failing(), Meter()
        )
        with pytest.raises(WindowError, match="window 0 cannot be asked for"):
            next(pipeline.batches(opened.run(), Turn()))
