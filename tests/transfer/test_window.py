"""How columns lie in a block."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from dask_loader.catalog.forms import Form
from dask_loader.transfer.window import WindowData, block_bytes, lay_out

FORMS = (
    Form("a", "int8"),
    Form("f", "float32"),
    Form("text", ""),
    Form("b", "int8"),
    Form("l", "float16", (3, 2)),
    Form("flag", "bool"),
    Form("g", "float32"),
    Form("t", "int64"),
)
FIXED = [form for form in FORMS if form.is_fixed]


@pytest.mark.parametrize("num_rows", [0, 1, 7, 64, 1001])
def test_each_column_has_rows_of_its_own_on_a_cache_line(num_rows: int) -> None:
    length = block_bytes(FORMS, num_rows)
    spare = np.zeros(length + 128, dtype=np.uint8)
    block = spare[-spare.ctypes.data % 64 :][:length]
    arrays = WindowData(num_rows, lay_out(FORMS, num_rows, block)).arrays
    assert set(arrays) == {form.name for form in FIXED}
    for form in FIXED:
        array = arrays[form.name]
        assert array.dtype == form.dtype
        assert array.shape == (num_rows, *form.shape)
        assert array.flags.writeable
        assert array.flags.c_contiguous
        if num_rows:
            assert array.ctypes.data % 64 == 0
    for number, array in enumerate(arrays.values()):
        array[...] = number % 2 if array.dtype == bool else number
    for number, array in enumerate(arrays.values()):
        assert (array == (number % 2 if array.dtype == bool else number)).all()


def test_a_window_of_texts_alone_takes_no_block() -> None:
    assert block_bytes([Form("s", "")], 10) == 0
    window = WindowData(10, lay_out([Form("s", "")], 10, np.empty(0, dtype=np.uint8)))
    assert window.arrays == {}
    assert window.num_bytes == 0


def test_a_window_tells_the_bytes_it_holds(
    make_window: Callable[..., WindowData],
) -> None:
    texts = {"s": pa.array(["abc"] * 1000)}
    window = make_window({"x": np.zeros(1000), "l": np.zeros((1000, 3), "f4")}, texts)
    assert window.num_bytes == 8000 + 12000 + texts["s"].nbytes
    assert window.num_bytes <= sys.getsizeof(window) <= window.num_bytes + 1000
