"""All options of a dataset together: each row once, with the values that pyarrow gives."""

from __future__ import annotations

import json
import math
import operator
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dask_loader import DaskLoaderError, ParquetDataset, Ragged

NOTHING = "__HIVE_DEFAULT_PARTITION__"
SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "n": pa.int32(),
        "f": pa.float32(),
        "t": pa.string(),
        "l": pa.list_(pa.int32()),
        "lt": pa.list_(pa.string()),
        "v": pa.list_(pa.float32(), 2),
        "s": pa.struct({"a": pa.int64(), "b": pa.string()}),
    }
)
NARROW = {"id": pa.int32(), "n": pa.int16(), "t": pa.dictionary(pa.int8(), pa.string())}
TEXTS = ["", "a", "b", "\N{SNOWMAN} long enough to tell"]
FLAT = ["id", "n", "f", "t", "l", "lt", "v", "s.a", "s.b"]
KEYS = ["day", "hour"]
IS_TEXT = {"t", "lt", "s.b", "day"}
OPS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">=": operator.ge,
    "in": lambda value, among: value in among,
}
# What may be refused, by what the text says: the first words of what to do about it.
REFUSED = (
    "choose what becomes of them with",
    "so its values are in no file; give them all in a list",
)


@dataclass
class Data:
    """Files, and their rows as pyarrow reads them."""

    folder: Path
    hive: bool
    schema: pa.Schema | None
    rows: dict[int, dict[str, Any]]
    places: dict[tuple[str, int, int], int]


def same(table: pa.Table) -> pa.Table:
    return table


def twice(table: pa.Table) -> pa.Table:
    return table.append_column("twice", pc.multiply(table["id"].cast(pa.int64()), 2))


# ---- what is drawn -------------------------------------------------------------------


@st.composite
def rows_of(draw: st.DrawFn, first: int, nulls: bool) -> list[dict[str, Any]]:
    seeds = draw(st.lists(st.integers(0, 10**6), max_size=25))
    found = []
    for offset, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        pick = partial(rng.integers, 0)

        def maybe(value: Any, rng: Any = rng) -> Any:
            return None if nulls and rng.random() < 0.2 else value

        found.append(
            {
                "id": first + offset,
                "n": maybe(int(pick(7)) - 3),
                "f": maybe(int(pick(9)) / 2),
                "t": maybe(TEXTS[pick(4)]),
                "l": maybe([maybe(int(pick(5))) for _ in range(pick(5))]),
                "lt": maybe([maybe(TEXTS[pick(4)]) for _ in range(pick(3))]),
                "v": maybe([maybe(0.5 * pick(4)), maybe(1.0)]),
                "s": maybe({"a": maybe(int(pick(4))), "b": maybe(TEXTS[pick(4)])}),
            }
        )
    return found


@st.composite
def datasets(draw: st.DrawFn, folder: Path) -> Data:
    hive, nulls = draw(st.booleans()), draw(st.booleans())
    shadowed = hive and draw(st.booleans())
    lacking = draw(st.booleans())
    data = Data(folder, hive, None, {}, {})
    if lacking or draw(st.booleans()):
        data.schema = SCHEMA
    for number in range(draw(st.integers(1, 4))):
        rows = draw(rows_of(number * 100, nulls))
        kinds = {f.name: f.type for f in SCHEMA}
        if lacking:
            for name in draw(st.sets(st.sampled_from(SCHEMA.names[1:]))):
                del kinds[name]
        for name in draw(st.sets(st.sampled_from(sorted(NARROW)))) & kinds.keys():
            kinds[name] = NARROW[name]
        table = pa.Table.from_pylist(rows, pa.schema(kinds))
        path = folder / f"{number}.parquet"
        keys: dict[str, Any] = {}
        if hive:
            day = draw(st.sampled_from(["x", "y z", NOTHING]))
            hour = draw(st.sampled_from(["1", "02"]))
            keys = {"day": None if day == NOTHING else day, "hour": int(hour)}
            path = folder / f"day={day}" / f"hour={hour}" / path.name
            if shadowed:
                ours = pa.array([int(hour)] * len(rows), pa.int32())
                table = table.append_column("hour", ours)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=draw(st.integers(1, 30)))
        _take(data, path, keys)
    return data


def _take(data: Data, path: Path, keys: dict[str, Any]) -> None:
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        lacks = dict.fromkeys(SCHEMA.names)
        for number, row in enumerate(file.read_row_group(group).to_pylist()):
            row = {**lacks, **row, **keys}
            struct = row["s"] or {"a": None, "b": None}
            row |= {"s.a": struct["a"], "s.b": struct["b"]}
            data.rows[row["id"]] = row
            data.places[str(path), group, number] = row["id"]
    file.close()


@st.composite
def filters(draw: st.DrawFn, names: list[str]) -> list[list[tuple[str, str, Any]]]:
    conditions = []
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
        if name in ("t", "s.b", "day"):
            values = st.sampled_from(["a", "b", "x", "y z"])
        elif name == "id":
            values = st.integers(0, 120)
        else:
            values = st.integers(-2, 3)
        op = draw(st.sampled_from(sorted(OPS)))
        given = draw(st.lists(values, min_size=1, max_size=3)) if op == "in" else None
        conditions.append((name, op, given or draw(values)))
    cut = draw(st.integers(0, len(conditions) - 1))
    return [part for part in (conditions[:cut], conditions[cut:]) if part]


@st.composite
def options_of(draw: st.DrawFn, data: Data) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "batch_size": draw(st.integers(1, 9)),
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(0, 3)),
        "num_splits": draw(st.sampled_from([None, 1, 2, 3])),
        "shuffle_window": draw(st.integers(1, 30) | st.just("1 KiB")),
        "uneven": draw(st.sampled_from(["pad", "drop", "exact"])),
        "provenance": draw(st.booleans()),
        "output_format": draw(st.sampled_from(["torch", "torch", "numpy", "arrow"])),
        "transform": draw(st.sampled_from([None, None, same, twice])),
    }
    if data.schema is not None:
        asked["schema"] = data.schema
    keys = KEYS if data.hive else []
    arrow = asked["output_format"] == "arrow"
    names = [*(SCHEMA.names if arrow else FLAT), *keys]
    chosen = names
    if draw(st.booleans()):
        chosen = ["id", *draw(st.lists(st.sampled_from(names[1:]), unique=True))]
        asked["columns"] = chosen
    if draw(st.booleans()):
        usable = ["id", "n", "f", "t", "s.a", "s.b", *keys]
        asked["filters"] = draw(filters(usable))
    if arrow:
        return asked
    kind = draw(st.sampled_from(["mask", "mask", "fills", "fills", "nan", "error"]))
    fills = {n: "none" if n in IS_TEXT else 2 for n in chosen if n != "id"}
    asked["nulls"] = fills if kind == "fills" else kind
    coded = draw(st.sets(st.sampled_from(names))) & set(chosen) - {"v", "f"}
    asked["vocabulary"] = {
        name: draw(st.sampled_from([True, True, vocabulary_of(data, asked, name)]))
        for name in sorted(coded)
    }
    ragged = [st.sampled_from(["jagged", "nested"])]
    if "l" in chosen:
        ragged.append(st.just({"l": (3, 1, "cut")}))
    asked["ragged"] = draw(st.one_of(ragged))
    if {"n", "f"} <= set(chosen) and draw(st.booleans()):
        asked["features"] = {"x": ["n", "f"]}
    dtypes = {}
    for name in {"n", "f", "hour"} & set(chosen):
        if draw(st.booleans()) and not (name != "hour" and "features" in asked):
            dtypes[name] = draw(st.sampled_from([torch.float64, "float32"]))
    asked["dtypes"] = dtypes
    return asked


# ---- the model ------------------------------------------------------------------------


def keeps(row: dict[str, Any], wanted: Any) -> bool:
    return wanted is None or any(
        all(
            row[n] is not None and OPS[op](row[n], value) for n, op, value in conditions
        )
        for conditions in wanted
    )


def vocabulary_of(data: Data, asked: dict[str, Any], name: str) -> list[Any] | bool:
    """All values of a column, sorted; True where there are none."""
    values: set[Any] = set()
    for row in data.rows.values():
        values |= {*row[name]} if isinstance(row[name], list) else {row[name]}
    if isinstance(asked["nulls"], dict) and name in asked["nulls"]:
        values.add(asked["nulls"][name])
    return sorted(values - {None}) or True


def wanted_value(
    row: dict[str, Any], name: str, asked: dict[str, Any], codes: dict[str, Any]
) -> Any:
    """What a row has in a column of a batch, as Python values."""
    if name == "twice":
        return 2 * row["id"]
    if name.endswith("__items_valid"):
        return _items_valid(row, name.removesuffix("__items_valid"), asked)
    if name.endswith("__valid"):
        name = name.removesuffix("__valid")
        if name == "v":
            return [value is not None for value in row["v"] or (None, None)]
        return row.get(name, 0) is not None
    if name == "x":
        return [wanted_value(row, part, asked, codes) for part in ("n", "f")]
    value = row[name]
    if asked["output_format"] == "arrow":
        return value
    fill: Any = None
    if isinstance(asked["nulls"], dict):
        fill = asked["nulls"].get(name)
    code = None
    if name in codes:
        code = codes[name].index
        fill = None if fill is None else code(fill)
    if asked["nulls"] == "mask":
        fill = "" if name in IS_TEXT and code is None else 0
    elif asked["nulls"] == "nan" and name in ("f", "v"):
        fill = math.nan

    def item(value: Any) -> Any:
        return fill if value is None else value if code is None else code(value)

    if name == "v":
        return [item(value) for value in value or (None, None)]
    if name not in ("l", "lt"):
        return item(value)
    items = [item(value) for value in value or ()]
    if name == "l" and isinstance(asked["ragged"], dict):
        return [*items, 1, 1, 1][:3]
    return items


def _items_valid(row: dict[str, Any], name: str, asked: dict[str, Any]) -> list[bool]:
    valid = [value is not None for value in row[name] or ()]
    if name == "l" and isinstance(asked["ragged"], dict):
        return [*valid, False, False, False][:3]
    return valid


def plain_rows(batch: Any) -> list[dict[str, Any]]:
    """A batch's rows as Python values."""
    if isinstance(batch, pa.Table):
        return list(batch.to_pylist())
    columns = {}
    for name, column in batch.items():
        if isinstance(column, Ragged):
            number = len(column.offsets) - 1
            rows = [column.row(i) for i in range(number)]
            columns[name] = [
                list(r) if isinstance(r, list) else r.tolist() for r in rows
            ]
        elif isinstance(column, torch.Tensor) and column.is_nested:
            columns[name] = [row.tolist() for row in column.unbind()]
        else:
            columns[name] = column if isinstance(column, list) else column.tolist()
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    both = (one, other)
    if all(isinstance(v, float) for v in both):
        return bool(one == other or (math.isnan(one) and math.isnan(other)))
    return bool(one == other)


# ---- the check ------------------------------------------------------------------------


def check_rows(
    found: list[dict[str, Any]],
    data: Data,
    asked: dict[str, Any],
    codes: dict[str, Any],
) -> None:
    for row in found:
        number = row["id"]
        if "id" in codes:
            number = codes["id"][number]
        wanted = data.rows[number]
        for name, value in row.items():
            if name.startswith("__"):
                continue
            expected = wanted_value(wanted, name, asked, codes)
            assert equal(value, expected), (name, number, value, expected)
        if asked["provenance"]:
            place = (row["__file__"], row["__row_group__"], row["__row__"])
            assert data.places[place] == number


def run_epoch(
    data: Data, asked: dict[str, Any], worlds: tuple[int, int], at: float
) -> None:
    """Read an epoch whole, and another in two parts; compare both with the model."""
    size, other = worlds
    kept = {n for n, row in data.rows.items() if keeps(row, asked.get("filters"))}
    whole: list[list[list[int]]] = []
    states, stop = [], 0
    codes: dict[str, Any] = {}

    def opened(rank: int, world_size: int) -> ParquetDataset:
        return ParquetDataset(
            data.folder,
            client="threads",
            footer_cache=False,
            rank=rank,
            world_size=world_size,
            **asked,
        )

    def ids_of(batch: Any) -> list[int]:
        found = plain_rows(batch)
        check_rows(found, data, asked, codes)
        numbers = [row["id"] for row in found]
        return [codes["id"][n] for n in numbers] if "id" in codes else numbers

    for rank in range(size):
        with opened(rank, size) as dataset:
            assert dataset.num_rows == len(kept)
            codes.update(dataset.vocabulary)
            for name, given in (asked.get("vocabulary") or {}).items():
                known = vocabulary_of(data, asked, name) if given is True else given
                assert list(codes[name]) == ([] if known is True else known)
            batches = list(dataset)
            assert len(batches) == len(dataset)
            for batch in batches:
                if isinstance(batch, pa.Table):
                    assert batch.schema == dataset.schema
                else:
                    check_masks(batch, data, asked)
            whole.append([ids_of(batch) for batch in batches])
    check_ids([n for rank in whole for b in rank for n in b], kept, asked, size)
    steps = min(map(len, whole))
    if not steps:
        return
    stop = int(at * steps)
    for rank in range(size):
        with opened(rank, size) as dataset:
            iterator = iter(dataset)
            part = [ids_of(next(iterator)) for _ in range(stop)]
            assert part == whole[rank][:stop]  # the same again
            states.append(json.loads(json.dumps(dataset.state_dict())))
            iterator.close()
    assert all(state == states[0] for state in states)
    rest = []
    for rank in range(other):
        with opened(rank, other) as dataset:
            dataset.load_state_dict(states[-1])
            rest.append([ids_of(batch) for batch in dataset])
    if other == size:
        assert rest == [rank[stop:] for rank in whole]
    before = [n for rank in whole for b in rank[:stop] for n in b]
    after = [n for rank in rest for b in rank for n in b]
    check_ids(before + after, kept, asked, other)


def check_ids(
    found: list[int], kept: set[int], asked: dict[str, Any], world_size: int
) -> None:
    counts = Counter(found)
    assert counts.keys() <= kept
    extra, lost = len(found) - len(counts), len(kept) - len(counts)
    if asked["uneven"] == "drop":
        assert extra == 0
        assert lost < world_size
    else:
        assert lost == 0
        assert extra < (world_size if asked["uneven"] == "pad" else 1)


def check_masks(batch: dict[str, Any], data: Data, asked: dict[str, Any]) -> None:
    masks = {n.removesuffix("__valid") for n in batch if n.endswith("__valid")}
    if asked["nulls"] != "mask":
        assert not masks
        return
    with_nulls = {
        name for row in data.rows.values() for name in row if row[name] is None
    }
    delivered = {*batch, *({"n", "f"} if "features" in asked else ())}
    assert with_nulls & delivered <= masks


def refused(error: DaskLoaderError) -> bool:
    return any(text in str(error) for text in REFUSED)


def check_one(data: st.DataObject) -> None:
    folder = Path(tempfile.mkdtemp(prefix="together"))
    try:
        made = data.draw(datasets(folder))
        asked = data.draw(options_of(made))
        sizes = st.integers(1, 3)
        worlds = (data.draw(sizes), data.draw(sizes))
        at = data.draw(st.floats(0, 1, exclude_max=True))
        try:
            run_epoch(made, asked, worlds, at)
        except DaskLoaderError as error:
            if not refused(error):
                raise
    finally:
        shutil.rmtree(folder)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_all_options_together_give_each_row_once_and_right(data: st.DataObject) -> None:
    check_one(data)


@pytest.mark.slow
@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_many_more_options_together(data: st.DataObject) -> None:
    check_one(data)
