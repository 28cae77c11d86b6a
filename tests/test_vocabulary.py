"""vocabulary=: the same codes in every window, on every rank, and after a resume."""

from __future__ import annotations

import json
import pickle
import threading
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_loader import (
    CastError,
    ColumnError,
    ConfigError,
    DataLoader,
    NullError,
    ParquetDataset,
    Ragged,
    ResumeError,
    WindowError,
)
from dask_loader.catalog import vocabulary as vocabulary_module
from dask_loader.engine.threads import ThreadsEngine

_DEADLINE_S = 180.0
ROWS = 160
CITIES = [
    "Oslo",
    "Bergen",
    "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}lesund",
    "",
    "Moss",
]


def city(i: int) -> str:
    return CITIES[i * i % 7 % 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files whose dictionaries differ: in order, in width, and in what no row has."""
    made = tmp_path_factory.mktemp("cities")
    for number in range(2):
        ids = range(number * ROWS // 2, (number + 1) * ROWS // 2)
        names = [city(i) for i in ids]
        categories = ["unused", *sorted(set(names), reverse=number == 1), "nowhere"]
        index = pa.array([categories.index(n) for n in names], pa.int8())
        lists = [[city(j) for j in range(i % 4)] for i in ids]
        table = {
            "id": ids,
            "city": pa.DictionaryArray.from_arrays(index, pa.array(categories)),
            "text": names,
            "wide": pa.array(names, pa.large_string()),
            "raw": pa.array([n.encode() for n in names], pa.binary()),
            "raw4": pa.array([n.encode()[:4].ljust(4) for n in names], pa.binary(4)),
            "small": pa.array([len(n) - 3 for n in names], pa.int8()),
            "large": pa.array([2**63 + len(n) for n in names], pa.uint64()),
            "pair": pa.array([[i % 3, i % 5] for i in ids], pa.list_(pa.int16(), 2)),
            "s": [{"a": n, "b": i} for i, n in zip(ids, names, strict=True)],
            "l": pa.array(lists, pa.list_(pa.string())),
            "ld": pa.array(lists).cast(
                pa.list_(pa.dictionary(pa.int32(), pa.string()))
            ),
            "ll": pa.array([[row] for row in lists], pa.list_(pa.list_(pa.string()))),
        }
        file = made / f"{number}.parquet"
        pq.write_table(pa.table(table), file, row_group_size=30)
    return made


CODED = "city text wide raw raw4 small large pair s.a l ld ll".split()  # noqa: SIM905


def make(path: Path, **options: Any) -> ParquetDataset:
    return ParquetDataset(path, **{"client": "threads", "batch_size": 16, **options})


def values_of(column: Any, words: tuple[Any, ...]) -> Any:
    """Return what codes stand for."""
    if isinstance(column, Ragged):
        rows = (column.row(i) for i in range(len(column.offsets) - 1))
        return [values_of(row, words) for row in rows]
    numbers = column.tolist() if isinstance(column, torch.Tensor) else column
    if isinstance(numbers, list):
        return [values_of(number, words) for number in numbers]
    return words[int(numbers)]


def read(dataset: ParquetDataset, batches: Any = None) -> dict[str, list[Any]]:
    """Return all rows by id, codes turned into values again."""
    words = dataset.vocabulary
    found: dict[str, list[Any]] = {}
    for batch in batches if batches is not None else dataset:
        for name, column in batch.items():
            rows = values_of(column, words[name]) if name in words else column.tolist()
            found.setdefault(name, []).extend(rows)
    order = sorted(range(len(found["id"])), key=found["id"].__getitem__)
    return {name: [column[i] for i in order] for name, column in found.items()}


def arrows(folder: Path) -> dict[str, list[Any]]:
    table = pq.read_table(folder)
    flat = {n: table[n].to_pylist() for n in table.column_names if n != "s"}
    return {**flat, "s.a": [row["a"] for row in table["s"].to_pylist()]}


# ---- values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle": True, "shuffle_window": 25},
        {"shuffle_window": 7, "shuffle": True, "num_splits": 1},
        {"shuffle_window": 7},
        {"filters": [("text", "in", ["Oslo", "Moss"]), ("city", "!=", "Moss")]},
        {"filters": pc.field("city") != "Oslo"},
    ],
    ids=str,
)
def test_codes_stand_for_arrows_values_in_every_window(
    folder: Path, options: Any
) -> None:
    asked = dict.fromkeys(CODED, True)
    with make(folder, columns=["id", *CODED], vocabulary=asked, **options) as dataset:
        batch = dataset.peek()
        assert batch["city"].dtype == batch["l"].values.dtype == torch.int32
        assert batch["pair"].shape == (len(batch["id"]), 2)
        words = dataset.vocabulary
        found = read(dataset)
    wanted = arrows(folder)
    for name in CODED:
        assert found[name] == [wanted[name][i] for i in found["id"]], name
        assert list(words[name]) == sorted(set(words[name]))
    # Of all rows, whatever the filters keep, and without what no row has.
    assert words["city"] == words["text"] == tuple(sorted(set(wanted["text"])))
    rows = pq.read_table(folder, filters=options.get("filters"), columns=["id"])
    assert found["id"] == sorted(rows["id"].to_pylist())
    assert len(rows) == ROWS or "filters" in options


def test_the_users_values_are_codes_in_the_users_order_and_nothing_is_scanned(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ThreadsEngine, "map", None)
    words = ["nowhere", *CITIES]
    with make(
        folder, columns=["id", "city", "l"], vocabulary={"city": words, "l": CITIES}
    ) as dataset:
        assert dataset.vocabulary == {"city": tuple(words), "l": tuple(CITIES)}
        assert dataset.peek()["city"].tolist() == [
            1 + CITIES.index(city(i)) for i in range(16)
        ]
        assert read(dataset)["l"] == arrows(folder)["l"]


@pytest.mark.parametrize("column", ["city", "text", "l", "small"])
def test_a_value_that_is_not_among_them_is_an_error_that_says_where(
    folder: Path, column: str
) -> None:
    words: list[Any] = CITIES[:1] + CITIES[2:]
    missing = "'Bergen'"
    if column == "small":
        words, missing = [-3, 1, 4], "3"
    dataset = make(folder, columns=["id", column], vocabulary={column: words})
    text = (
        rf"column '{column}' .*0.parquet', row group 0: {missing} is not among the "
        rf"{len(words)} values of its vocabulary; add it to vocabulary=\{{'{column}'"
    )
    with dataset, pytest.raises(CastError, match=text) as caught:
        list(dataset)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.column, again.row_group) == (str(caught.value), column, 0)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.none() | st.text("abc", max_size=2), min_size=1, max_size=20),
    fill=st.sampled_from(["", "a", "zz"]),
    in_lists=st.booleans(),
)
def test_the_value_for_nulls_is_one_of_the_vocabulary(
    tmp_path_factory: Any, rows: list[Any], fill: str, in_lists: bool
) -> None:
    file = tmp_path_factory.mktemp("nulls") / "a.parquet"
    column = pa.array([[row] for row in rows]) if in_lists else pa.array(rows)
    kind = pa.list_(pa.string()) if in_lists else pa.string()
    table = pa.table({"id": range(len(rows)), "x": column.cast(kind)})
    pq.write_table(table, file, row_group_size=6)
    options: dict[str, Any] = {"footer_cache": False, "nulls": {"x": fill}}
    with make(file, vocabulary={"x": True}, **options) as dataset:
        filled = [fill if row is None else row for row in rows]
        assert dataset.vocabulary == {"x": tuple(sorted({*filled, fill}))}
        found = read(dataset)["x"]
        assert found == ([[row] for row in filled] if in_lists else filled)


def test_nulls_without_a_value_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": ["a", None], "l": [["a", None], None]}), file)
    for nulls in ("error", "nan"):
        with pytest.raises(NullError, match="column 'x' has 1 nulls"):
            make(file, columns=["x"], vocabulary={"x": True}, nulls=nulls)
        with (
            make(file, columns=["l"], vocabulary={"l": True}, nulls=nulls) as dataset,
            pytest.raises(NullError, match="column 'l' has 1 nulls"),
        ):
            list(dataset)


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_pages_that_arrow_makes_no_dictionaries_of(
    tmp_path: Path, encoding: str
) -> None:
    for number, options in enumerate(
        ({"use_dictionary": False, "column_encoding": {"v": encoding}}, {})
    ):
        table = pa.table(
            {"id": range(number * 9, number * 9 + 9), "v": list("cabbacabc")}
        )
        pq.write_table(table, tmp_path / f"{number}.parquet", **options)
    with make(tmp_path, vocabulary={"v": True}, shuffle=True) as dataset:
        assert read(dataset)["v"] == list("cabbacabc") * 2


# ---- delivered ---------------------------------------------------------------------------


def test_codes_are_cast_stacked_and_padded(folder: Path) -> None:
    asked = {"text": True, "small": True, "l": True}
    with make(
        folder,
        columns=["id", "text", "small", "l"],
        vocabulary=asked,
        features={"x": ["text", "small"]},
        dtypes={"x": "int64"},
        ragged={"l": (3, -1)},
        batch_size=ROWS,
    ) as dataset:
        batch, words = dataset.peek(), dataset.vocabulary
    wanted = arrows(folder)
    assert batch["x"].dtype == torch.int64
    assert [words["text"][c] for c in batch["x"][:, 0]] == wanted["text"]
    assert [words["small"][c] for c in batch["x"][:, 1]] == wanted["small"]
    rows = [[words["l"].index(v) for v in row] for row in wanted["l"]]
    assert batch["l"].tolist() == [(row + [-1] * 3)[:3] for row in rows]
    with make(folder, vocabulary={"l": True}, ragged="nested") as dataset:
        assert dataset.peek()["l"].is_nested
    with make(folder, vocabulary={"text": True}, batch_size=None) as dataset:
        row = next(iter(dataset))
        assert dataset.vocabulary["text"][row["text"]] == city(0)


def upper(table: pa.Table) -> pa.Table:
    up = pc.utf8_upper(table["city"].cast(pa.string()))
    return pa.table({"id": table["id"], "up": up})


def test_what_a_transform_makes_has_the_codes_of_a_given_list(folder: Path) -> None:
    words = sorted({word.upper() for word in CITIES})
    options: dict[str, Any] = {"columns": ["id", "city"], "transform": upper}
    with make(folder, **options, vocabulary={"up": words}, shuffle=True) as dataset:
        found = read(dataset)["up"]
    assert found == [word.upper() for word in arrows(folder)["city"]]
    text = (
        "the column is made by transform=, so its values are in no file; give them all"
    )
    with pytest.raises(ConfigError, match=text):
        make(folder, **options, vocabulary={"up": True})


def test_to_delayed_keeps_the_values(folder: Path) -> None:
    with make(folder, columns=["city", "l"], vocabulary={"city": True, "l": True}) as d:
        tables = [part.compute(scheduler="sync") for part in d.to_delayed()]
    wanted = arrows(folder)
    found = pa.concat_tables(tables)
    assert found["city"].to_pylist() == wanted["city"]
    assert found["l"].to_pylist() == wanted["l"]


# ---- the same everywhere -----------------------------------------------------------------


def test_ranks_and_files_in_another_order_have_the_same_codes(folder: Path) -> None:
    asked = {"city": True, "l": True}
    files = [str(folder / "1.parquet"), str(folder / "0.parquet")]
    options: dict[str, Any] = {"columns": ["id", "city", "l"], "vocabulary": asked}
    rows: list[Any] = []
    with make(folder, **options) as whole, make(files, **options) as turned:
        assert turned.vocabulary == whole.vocabulary
        for rank in range(2):
            with make(folder, **options, rank=rank, world_size=2) as part:
                assert part.vocabulary == whole.vocabulary
                found = read(part)
                rows += zip(found["id"], found["city"], found["l"], strict=True)
    wanted = arrows(folder)
    pairs = zip(wanted["city"], wanted["l"], strict=True)
    assert sorted(rows) == [(i, *pair) for i, pair in enumerate(pairs)]


@pytest.mark.parametrize("num_workers", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_loaders_workers_pickles_and_resumes_have_the_same_codes(
    folder: Path, num_workers: int
) -> None:
    options = {
        "columns": ["id", "city", "ld"],
        "vocabulary": {"city": True, "ld": True},
        "shuffle": True,
        "seed": 3,
    }
    with make(folder, **options) as dataset, make(folder, **options) as again:
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.vocabulary == dataset.vocabulary == again.vocabulary
        copy.close()
        loader, batches, states = DataLoader(dataset, num_workers=num_workers), [], []
        for batch in loader:
            batches.append(batch)
            states.append(json.loads(json.dumps(loader.state_dict())))
        found = read(dataset, batches)
        assert found["city"] == arrows(folder)["city"]
        assert found["ld"] == arrows(folder)["ld"]
        other = DataLoader(again, num_workers=num_workers)
        other.load_state_dict(states[3])
        for one, two in zip(other, batches[4:], strict=True):
            assert torch.equal(one["city"], two["city"])
            assert torch.equal(one["ld"].values, two["ld"].values)


def test_a_checkpoint_of_another_vocabulary_is_refused_in_words(folder: Path) -> None:
    columns = ["id", "city"]
    with make(folder, columns=columns) as dataset:
        plain = dataset.state_dict()
        assert "vocabulary" not in plain
    with make(folder, columns=columns, vocabulary={"city": True}) as dataset:
        state = dataset.state_dict()
        dataset.load_state_dict(state)
        assert {**plain, "vocabulary": state["vocabulary"]} == state
    text = (
        "made with another vocabulary, so the same code stands for another value; give"
    )
    others: list[Any] = [None, {"city": CITIES}]
    for other in others:
        with make(folder, columns=columns, vocabulary=other) as dataset:
            with pytest.raises(ResumeError, match=text):
                dataset.load_state_dict(state)
            with pytest.warns(UserWarning, match="another vocabulary"):
                dataset.load_state_dict(state, strict=False)
    with make(folder, columns=columns, vocabulary={"city": True}) as dataset:
        with pytest.raises(ResumeError, match=text):
            dataset.load_state_dict(plain)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dataset.load_state_dict(state)


@pytest.mark.cluster
@pytest.mark.parametrize("way", ["memory", "comm"])
def test_a_cluster_finds_and_uses_the_same_vocabulary(
    folder: Path, local_cluster: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("DASK_LOADER_HAND_OVER", way)
    options: dict[str, Any] = {
        "columns": ["id", *CODED],
        "vocabulary": dict.fromkeys(CODED, True),
        "shuffle": True,
        "shuffle_window": 40,
        "footer_cache": False,
    }
    with (
        make(folder, client=local_cluster, **options) as dataset,
        make(folder, **options) as threads,
    ):
        assert dataset.vocabulary == threads.vocabulary
        assert read(dataset) == read(threads)


# ---- found once ----------------------------------------------------------------------


class Scans:
    """Notes the files that are scanned, and can stop a scan before it begins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[str] = []
        self.began, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        run = ThreadsEngine.map

        def spy(engine: ThreadsEngine, function: Any, items: Any, **names: Any) -> Any:
            self.files += [Path(s.path).stem for item in items for s in item.slices]
            self.began.set()
            assert self.go_on.wait(_DEADLINE_S)
            return run(engine, function, items, **names)

        monkeypatch.setattr(ThreadsEngine, "map", spy)
        monkeypatch.setattr("dask_loader.catalog.storage.SETTLED_NS", 0)

    def taken(self) -> list[str]:
        files, self.files = self.files, []
        return sorted(set(files))


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Scans:
    return Scans(monkeypatch)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    for name, values in (("a", ["x", "y"]), ("b", ["y", "z"]), ("c", ["w"])):
        (tmp_path / "few").mkdir(exist_ok=True)
        table = pa.table({"v": values, "w": [value * 2 for value in values]})
        pq.write_table(table, tmp_path / "few" / f"{name}.parquet")
    return tmp_path / "few"


def words(path: Path, cache: Path, *names: str) -> Any:
    asked = dict.fromkeys(names, True)
    with make(path, vocabulary=asked, footer_cache=cache) as dataset:
        return [dataset.vocabulary[name] for name in names]


def test_a_file_is_scanned_once_and_anew_where_it_changed(
    few: Path, tmp_path: Path, scans: Scans
) -> None:
    cache = tmp_path / "cache"
    assert words(few, cache, "v") == [("w", "x", "y", "z")]
    assert scans.taken() == ["a", "b", "c"]
    for _ in range(2):
        assert words(few, cache, "v") == [("w", "x", "y", "z")]
        assert scans.taken() == []
    # Another column, and then a changed, an added and a removed file.
    assert words(few, cache, "w", "v") == [
        ("ww", "xx", "yy", "zz"),
        ("w", "x", "y", "z"),
    ]
    assert scans.taken() == ["a", "b", "c"]
    pq.write_table(pa.table({"v": ["q"], "w": ["q"]}), few / "b.parquet")
    pq.write_table(pa.table({"v": ["d"], "w": ["d"]}), few / "d.parquet")
    (few / "a.parquet").unlink()
    assert words(few, cache, "v") == [("d", "q", "w")]
    assert scans.taken() == ["b", "d"]


def test_who_comes_while_another_scans_waits_and_takes_its_values(
    few: Path, tmp_path: Path, scans: Scans
) -> None:
    found: list[Any] = []
    scans.go_on.clear()
    pair = [
        threading.Thread(target=lambda: found.append(words(few, tmp_path / "c", "v")))
        for _ in range(2)
    ]
    for thread in pair:
        thread.start()
    assert scans.began.wait(_DEADLINE_S)
    scans.go_on.set()
    for thread in pair:
        thread.join(_DEADLINE_S)
    assert found == [[("w", "x", "y", "z")]] * 2
    assert sorted(scans.files) == ["a", "b", "c"]


def test_empty_files_and_row_groups_have_no_values(tmp_path: Path) -> None:
    empty = pa.table({"id": pa.array([], pa.int64()), "v": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "a.parquet")
    with make(tmp_path, vocabulary={"v": True}) as dataset:
        assert dataset.vocabulary == {"v": ()}
    pq.write_table(pa.table({"id": [1], "v": ["x"]}), tmp_path / "b.parquet")
    with make(tmp_path, vocabulary={"v": True}) as dataset:
        assert read(dataset) == {"id": [1], "v": ["x"]}


# ---- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"vocabulary": "city"}, ConfigError, "vocabulary='city' must be a dict"),
        (
            {"vocabulary": {"city": False}},
            ConfigError,
            "'city': False} must be True, or",
        ),
        ({"vocabulary": {"city": []}}, ConfigError, "at least one"),
        ({"vocabulary": {"city": ["a", 1]}}, ConfigError, "must be True, or a list of"),
        ({"vocabulary": {"city": ["a", None]}}, ConfigError, "must be True, or a list"),
        ({"vocabulary": {"city": ["a", "b", "a"]}}, ConfigError, "holds 'a' twice"),
        (
            {"vocabulary": {"town": True}},
            ColumnError,
            "vocabulary names 'town', which is",
        ),
        (
            {"vocabulary": {"f": True}},
            ConfigError,
            "values of type double; only text, b",
        ),
        (
            {"vocabulary": {"city": [1]}},
            ConfigError,
            "holds 1, which is no value of the",
        ),
        ({"vocabulary": {"n": [1, 300]}}, ConfigError, "holds 300, which is no value"),
        ({"vocabulary": {"n": [b"1"]}}, ConfigError, "holds b'1', which is no value"),
        (
            {"vocabulary": {"city": True}, "nulls": {"city": None}},
            ConfigError,
            "delivered as codes, and None has none",
        ),
        (
            {"vocabulary": {"city": True}, "nulls": {"city": 1}},
            ConfigError,
            "nulls={'city': ...} holds 1, which is no value of the column's type",
        ),
        (
            {"vocabulary": {"city": ["a"]}, "nulls": {"city": "b"}},
            ConfigError,
            "nulls={'city': 'b'} is not in vocabulary={'city': ...}; add it there",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_when_the_dataset_is_made(
    tmp_path: Path, options: Any, kind: type[Exception], text: str
) -> None:
    table = pa.table({"city": ["a"], "f": [0.5], "n": pa.array([1], pa.int8())})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(kind) as caught:
        make(tmp_path, **options)
    assert text in str(caught.value)


def test_too_many_values_are_refused_where_they_are_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_module, "MAX_BYTES", 40)
    text = "the column has more than 40 B of different values .*, row group 0, alone"
    with pytest.raises(ConfigError, match=text):
        make(folder, vocabulary={"text": True}, footer_cache=False)
    monkeypatch.setattr(vocabulary_module, "MAX_BYTES", 20)
    with pytest.raises(ConfigError, match="more than 20 B of different values;"):
        make(folder, vocabulary={"text": CITIES}, footer_cache=False)
    monkeypatch.setattr(vocabulary_module, "MAX_BYTES", 100)
    text = r"together with those of 1 others \(largest: \['city', 'text'\]\)"
    with pytest.raises(ConfigError, match=text):
        make(folder, vocabulary={"city": CITIES, "text": CITIES}, footer_cache=False)


def test_masked_nulls_have_code_0_and_a_mask_and_tables_have_no_codes(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"v": ["b", None, "a"], "l": [["b"], None, ["a"]]}), file)
    asked = {"v": True, "l": True}
    with make(file, vocabulary=asked, nulls="mask") as dataset:
        assert dataset.vocabulary["v"] == ("a", "b")
        batch = dataset.peek()
    assert batch["v"].tolist() == [1, 0, 0]
    assert batch["v__valid"].tolist() == [True, False, True]
    assert batch["l"].values.tolist() == [1, 0]
    with pytest.raises(ConfigError, match="makes tensors, and output_format="):
        make(file, vocabulary=asked, output_format="arrow")


def test_keys_and_columns_that_files_lack_have_vocabularies(tmp_path: Path) -> None:
    for number, day in enumerate(["b", "a", "__HIVE_DEFAULT_PARTITION__", "empty"]):
        rows = 0 if day == "empty" else 5
        columns: dict[str, Any] = {
            "id": pa.array(range(rows), pa.int32() if number else pa.int64())
        }
        if number != 1:
            columns["city"] = pa.array(CITIES[:rows])
        if number == 0:
            columns["late"] = pa.nulls(rows)
        if number == 2:
            columns["late"] = pa.array(["z"] * rows)
        (tmp_path / f"day={day}").mkdir()
        pq.write_table(pa.table(columns), tmp_path / f"day={day}/a.parquet")
    fields = {"id": pa.int64(), "city": pa.string(), "late": pa.string()}
    asked = {"day": True, "city": True, "late": True, "id": True}
    for cache in (False, str(tmp_path / "cache"), str(tmp_path / "cache")):
        with make(
            tmp_path,
            schema=pa.schema(fields),
            vocabulary=asked,
            nulls="mask",
            footer_cache=cache,
        ) as dataset:
            assert dataset.vocabulary == {
                "day": ("a", "b"),  # no row has the key of a file without rows
                "city": tuple(sorted(CITIES)),
                "late": ("z",),
                "id": (0, 1, 2, 3, 4),
            }
            found = [
                day if valid else None
                for batch in dataset
                for day, valid in zip(batch["day"], batch["day__valid"], strict=True)
            ]
        days = [
            dataset.vocabulary["day"][day] if day is not None else None for day in found
        ]
        assert sorted(map(str, days)) == ["None"] * 5 + ["a"] * 5 + ["b"] * 5
    with make(
        tmp_path, columns=["day"], vocabulary={"day": True}, nulls={"day": "none"}
    ) as dataset:
        assert dataset.vocabulary == {"day": ("a", "b", "none")}


def test_what_breaks_in_a_scan_is_said_without_its_options() -> None:
    engine = ThreadsEngine(memory_limit=1 << 20, local_world_size=1)
    try:
        with pytest.raises(WindowError) as caught:
            engine.map(partial(int, "no number"), [10])
    finally:
        engine.close()
    assert str(caught.value).startswith("'int' failed: ValueError: invalid literal")
