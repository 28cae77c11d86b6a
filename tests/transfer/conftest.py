"""Windows made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dask_loader.catalog.forms import Form
from dask_loader.transfer.window import WindowData, block_bytes, lay_out


@pytest.fixture
def make_window() -> Callable[..., WindowData]:
    """make_window({"x": array}, {"s": pa.array}) -> WindowData with memory of its own."""

    def make(
        arrays: dict[str, Any], texts: dict[str, pa.Array] | None = None
    ) -> WindowData:
        columns = {name: np.asarray(array) for name, array in arrays.items()}
        lengths = {len(c) for c in (*columns.values(), *(texts or {}).values())}
        (num_rows,) = lengths
        forms = [Form(n, str(c.dtype), c.shape[1:]) for n, c in columns.items()]
        block = np.full(block_bytes(forms, num_rows), 0xA5, dtype=np.uint8)
        window = WindowData(
            num_rows, lay_out(forms, num_rows, block), dict(texts or {})
        )
        for name, array in window.arrays.items():
            array[...] = columns[name]
        return window

    return make
