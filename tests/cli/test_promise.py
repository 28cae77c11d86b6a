"""The promise's numbers, as a table that was worked out by hand."""

from __future__ import annotations

import pytest

from dask_loader.cli.promise import Promise


@pytest.mark.parametrize(
    ("num_rows", "uneven", "drop_last", "rows", "pads", "dropped"),
    [
        # world_size 3, batch_size 4: rows of each rank's batches
        (24, "pad", False, [[4, 4], [4, 4], [4, 4]], 0, 0),
        (25, "pad", False, [[4, 4, 1], [4, 4, 1], [4, 4, 1]], 2, 0),
        (26, "pad", False, [[4, 4, 1], [4, 4, 1], [4, 4, 1]], 1, 0),
        (27, "pad", False, [[4, 4, 1], [4, 4, 1], [4, 4, 1]], 0, 0),
        (1, "pad", False, [[1], [1], [1]], 2, 0),
        (0, "pad", False, [[], [], []], 0, 0),
        (25, "drop", False, [[4, 4], [4, 4], [4, 4]], 0, 1),
        (29, "drop", False, [[4, 4, 1], [4, 4, 1], [4, 4, 1]], 0, 2),
        (2, "drop", False, [[], [], []], 0, 2),
        (25, "exact", False, [[4, 4, 1], [4, 4], [4, 4]], 0, 0),
        (29, "exact", False, [[4, 4, 2], [4, 4, 2], [4, 4, 1]], 0, 0),
        (29, "pad", True, [[4, 4], [4, 4], [4, 4]], 0, 5),
        (29, "exact", True, [[4, 4], [4, 4], [4, 4]], 0, 5),
        (29, "drop", True, [[4, 4], [4, 4], [4, 4]], 0, 5),
    ],
)
def test_steps_rows_copies_and_rows_left_off(
    num_rows, uneven, drop_last, rows, pads, dropped
):
    promise = Promise(
        num_rows=num_rows,
        world_size=3,
        batch_size=4,
        uneven=uneven,
        drop_last=drop_last,
    )
    assert [promise.num_steps(rank) for rank in range(3)] == [len(r) for r in rows]
    for rank, batches in enumerate(rows):
        steps = range(len(batches) + 2)
        assert [promise.batch_rows(rank, step) for step in steps] == [*batches, 0, 0]
    assert (promise.num_pads, promise.num_dropped) == (pads, dropped)
    assert sum(map(sum, rows)) == num_rows + pads - dropped


@pytest.mark.parametrize(
    ("world_size", "rows"),
    [
        # 3 ranks with 4 rows each before, 12 rows a step after
        (1, [[4, 4, 12, 2], [4, 4], [4, 4]]),
        (2, [[4, 4, 6, 1], [4, 4, 6, 1], [4, 4]]),
        (3, [[4, 4, 4, 1], [4, 4, 4, 1], [4, 4, 4, 1]]),
        (4, [[4, 4, 3, 1], [4, 4, 3, 1], [4, 4, 3, 1], [0, 0, 3, 1]]),
    ],
)
def test_other_ranks_go_on_after_a_checkpoint(world_size, rows):
    promise = Promise(
        num_rows=38,
        world_size=world_size,
        batch_size=12 // world_size,
        first_steps=2,
        first_world_size=3,
    )
    assert promise.num_ranks == len(rows)
    for rank, batches in enumerate(rows):
        assert promise.num_steps(rank) == sum(count > 0 for count in batches)
        found = [promise.batch_rows(rank, step) for step in range(4)]
        assert found == [*batches, 0, 0][:4]
    assert sum(map(sum, rows)) == 38 + promise.num_pads
