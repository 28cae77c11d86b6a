"""Batches cut from a window, and joined from pieces of several."""

from __future__ import annotations

import gc
import io
import weakref
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dask_loader.batch.tensors import Join, cut_batch
from dask_loader.catalog.forms import Form
from dask_loader.transfer.window import Block, WindowData, block_bytes, lay_out

FORMS = (
    Form("b", "float32", feature="m"),
    Form("id", "int64"),
    Form("a", "float32", feature="m"),
    Form("vec", "float32", (2, 3)),
    Form("n", "int64", feature="counts"),
    Form("s", ""),
    Form("half", "float16"),
    Form("c", "float32", feature="m"),
    Form("flag", "bool"),
)
NAMES = ("m", "id", "vec", "counts", "s", "half", "flag")


def window_of(first: int, num_rows: int) -> WindowData:
    """Row i has the value first + i in every column, in its column's own way."""
    block = np.full(block_bytes(FORMS, num_rows), 0xA5, dtype=np.uint8)
    window = WindowData(num_rows, lay_out(FORMS, num_rows, block))
    rows = np.arange(first, first + num_rows)
    steps = {"b": 0.5, "a": 0.25, "c": 0.125, "n": 2}
    for name, array in window.arrays.items():
        values = rows * steps.get(name, 1)
        if name == "flag":
            values = rows % 2 == 0
        with np.errstate(over="ignore"):
            array[...] = values.reshape(-1, *[1] * (array.ndim - 1))
    window.texts["s"] = pa.array(
        [None if r % 5 == 0 else f"r{r}" for r in rows.tolist()]
    )
    return window


def check(batch: dict[str, Any], rows: list[int]) -> None:
    assert tuple(batch) == NAMES
    numbers = torch.tensor(rows, dtype=torch.int64)
    want = {
        "m": torch.stack([numbers * s for s in (0.5, 0.25, 0.125)], 1).float(),
        "id": numbers,
        "vec": numbers.float().reshape(-1, 1, 1).expand(-1, 2, 3),
        "counts": numbers.reshape(-1, 1) * 2,
        "half": numbers.half(),
        "flag": numbers % 2 == 0,
    }
    for name, column in want.items():
        assert batch[name].dtype == column.dtype, name
        assert batch[name].shape == column.shape, name
        assert torch.equal(batch[name], column), name
    assert batch["s"] == [None if r % 5 == 0 else f"r{r}" for r in rows]


# ---- cut ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "stop"), [(0, 20), (3, 9), (19, 20), (5, 5), (0, 0)])
def test_a_batch_is_cut_in_the_order_of_names_with_features_stacked(start, stop):
    check(
        cut_batch(NAMES, window_of(100, 20), start, stop),
        list(range(100 + start, 100 + stop)),
    )


def test_a_cut_batch_copies_nothing():
    window = window_of(0, 20)
    batch = cut_batch(NAMES, window, 3, 9)
    for group in window.groups:
        names = [group.feature] if group.feature else list(group.names)
        for name in names:
            assert np.shares_memory(batch[name].numpy(), group.block)


def test_a_features_columns_are_contiguous_and_come_in_its_order():
    batch = cut_batch(NAMES, window_of(0, 20), 3, 9)
    assert batch["m"].shape == (6, 3)
    assert batch["m"].T[1].is_contiguous()
    assert batch["m"].stride(0) == 1
    assert batch["m"][2].tolist() == [2.5, 1.25, 0.625]
    single = [n for n in NAMES if n not in ("m", "s")]
    assert all(batch[name].is_contiguous() for name in single)


def test_batches_of_different_rows_do_not_overlap():
    window = window_of(0, 20)
    first, second = cut_batch(NAMES, window, 0, 7), cut_batch(NAMES, window, 7, 20)
    for column in first.values():
        if isinstance(column, torch.Tensor):
            column.fill_(1)
        else:
            column.clear()
    check(second, list(range(7, 20)))


def test_each_tensor_has_a_version_counter_of_its_own():
    batch = cut_batch(NAMES, window_of(0, 20), 0, 20)
    other = cut_batch(NAMES, window_of(0, 20), 0, 20)
    batch["id"].add_(1)
    batch["m"].mul_(2)
    assert batch["id"]._version == batch["m"]._version == 1
    assert all(
        column._version == 0
        for name, column in (*batch.items(), *other.items())
        if isinstance(column, torch.Tensor)
        and column is not batch["id"]
        and column is not batch["m"]
    )
    assert not any(c._is_view() for c in batch.values() if isinstance(c, torch.Tensor))


def test_autograd_takes_a_write_into_one_column_for_a_write_into_that_one_alone():
    batch = cut_batch(NAMES, window_of(0, 20), 0, 20)
    weight = torch.ones(3, requires_grad=True)
    loss = (batch["m"] @ weight).sum()
    batch["vec"].zero_()
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == batch["m"].sum(0).tolist()


def test_a_saved_column_has_its_rows_only():
    batch = cut_batch(["id", "vec", "flag"], window_of(0, 50_000), 50, 60)
    saved = io.BytesIO()
    torch.save(batch, saved)
    assert len(saved.getvalue()) < 10_000
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    assert all(torch.equal(loaded[name], column) for name, column in batch.items())


# ---- join --------------------------------------------------------------------------------


def join(
    pieces: list[tuple[WindowData, int, int]], allocate: Any = None
) -> dict[str, Any]:
    total = sum(stop - start for _, start, stop in pieces)
    joined = Join(pieces[0][0], total, allocate)
    for window, start, stop in pieces:
        joined.add(window, start, stop)
    return joined.batch(NAMES)


def block_of(num_bytes: int) -> Block:
    return np.full(num_bytes, 0xA5, dtype=np.uint8)


@pytest.mark.parametrize("allocate", [None, block_of])
def test_pieces_are_joined_in_their_order(allocate):
    one, two, three = window_of(0, 20), window_of(100, 7), window_of(200, 64)
    batch = join([(one, 3, 9), (two, 0, 7), (three, 60, 61), (one, 0, 2)], allocate)
    check(batch, [*range(3, 9), *range(100, 107), 260, 0, 1])


@pytest.mark.parametrize("allocate", [None, block_of])
def test_a_joined_batch_has_memory_of_its_own(allocate):
    windows = [window_of(0, 20), window_of(100, 7)]
    batch = join([(windows[0], 3, 9), (windows[1], 0, 7)], allocate)
    for column in batch.values():
        if isinstance(column, torch.Tensor):
            for window in windows:
                assert not any(
                    np.shares_memory(column.numpy(), g.block) for g in window.groups
                )
            column.fill_(1)
    check(cut_batch(NAMES, windows[0], 0, 20), list(range(20)))


def test_columns_of_a_joined_batch_do_not_overlap_and_are_aligned():
    sizes = []

    def allocate(num_bytes: int) -> Block:
        sizes.append(num_bytes)
        return block_of(num_bytes)

    batch = join([(window_of(0, 20), 3, 20), (window_of(100, 7), 0, 2)], allocate)
    assert len(sizes) == 1  # one block for all
    tensors = {n: c for n, c in batch.items() if isinstance(c, torch.Tensor)}
    for name, column in tensors.items():
        assert column.data_ptr() % column.element_size() == 0
        before = {n: c.clone() for n, c in tensors.items() if n != name}
        column.fill_(1)
        assert all(torch.equal(tensors[n], c) for n, c in before.items())


def test_a_window_may_go_while_a_batch_is_joined():
    windows = [window_of(0, 20), window_of(100, 7)]
    joined = Join(windows[0], 9, None)
    joined.add(windows[0], 3, 9)
    gone = weakref.ref(windows[0].groups[0].block)
    windows[0] = None
    gc.collect()
    assert gone() is None
    joined.add(windows[1], 0, 3)
    check(joined.batch(NAMES), [*range(3, 9), 100, 101, 102])


def test_without_a_block_a_kept_column_keeps_only_its_group():
    batch = join([(window_of(0, 20), 0, 20), (window_of(100, 7), 0, 7)])
    assert not np.shares_memory(batch["half"].numpy().base, batch["id"].numpy().base)


@pytest.mark.parametrize("forms", [(Form("s", ""),), (Form("x", "int8"),)])
def test_texts_alone_and_numbers_alone_are_joined_too(forms):
    block = block_of(block_bytes(forms, 2))
    window = WindowData(2, lay_out(forms, 2, block))
    if forms[0].is_fixed:
        window.arrays["x"][:] = [1, 2]
    else:
        window.texts["s"] = pa.array(["a", "b"])
    for allocate in (None, block_of):
        joined = Join(window, 3, allocate)
        joined.add(window, 1, 2)
        joined.add(window, 0, 2)
        batch = joined.batch([forms[0].name])
        if forms[0].is_fixed:
            assert batch["x"].tolist() == [2, 1, 2]
        else:
            assert batch == {"s": ["b", "a", "b"]}
