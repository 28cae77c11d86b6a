"""Counting the rows that filters keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from dask_loader.read.count import count_rows
from dask_loader.read.task import WindowTask

Write = Callable[..., str]
Plan = Callable[..., WindowTask]


@pytest.mark.parametrize(
    "filters",
    [
        [("x", ">", 3)],
        [("x", "not in", [1, 2])],
        [[("x", "=", 1)], [("s", "=", "b")]],
        pc.field("s").is_null(),
        pc.field("n", "a") < pc.field("x"),
        pc.scalar(True),
    ],
)
def test_each_row_group_is_counted_as_pyarrow_filters_it(
    write: Write, plan: Plan, filters: Any
) -> None:
    table = pa.table(
        {
            "x": pa.array([1, 2, None, 4, 5, 6, 7], pa.int32()),
            "s": ["a", "b", None, "b", "a", None, "b"],
            "n": [{"a": i} for i in range(7)],
        }
    )
    path = write("a.parquet", table, row_group_size=3)
    task = plan([path], filters=filters, columns=("x",))
    expression = task.options.expression
    parts = [table.slice(i, 3).filter(expression).num_rows for i in (0, 3, 6)]
    assert count_rows(task.options, task.slices) == parts
    assert count_rows(task.options, task.slices[1:2]) == parts[1:2]
    assert count_rows(task.options, []) == []


def test_a_row_group_larger_than_a_piece_is_counted_whole(
    write: Write, plan: Plan
) -> None:
    numbers = np.arange(200_000)
    path = write("a.parquet", {"x": numbers}, row_group_size=200_000)
    task = plan([path], filters=[("x", ">=", 50_000)])
    assert count_rows(task.options, task.slices) == [150_000]
