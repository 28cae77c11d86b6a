"""The seeded set: what it holds, that it repeats, and that it is whole or not there."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "make_dataset.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, for what cannot be seen from outside."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("make_dataset")


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def make(out: Path, *args: object) -> pa.Table:
    done = run(out, "--rows", 2500, "--row-group-rows", 400, *args)
    assert done.returncode == 0, done.stderr
    return pq.read_table(out)


def test_rows_files_and_row_groups_are_as_asked_and_told_in_one_line(tmp_path):
    out = tmp_path / "deep" / "set"
    done = run(
        out, "--rows", 2500, "--row-group-rows", 400, "--files", 3, "--columns", 9
    )
    assert done.returncode == 0, done.stderr
    files = sorted(out.iterdir())
    assert [f.name for f in files] == [f"part-0000{i}.parquet" for i in range(3)]
    footers = [pq.read_metadata(f) for f in files]
    groups = [
        [m.row_group(g).num_rows for g in range(m.num_row_groups)] for m in footers
    ]
    assert groups == [[400, 400], [400, 400], [400, 400, 100]]
    disk_bytes = sum(f.stat().st_size for f in files)
    # id 8, label 4, then 4 + 4 + 8 + 8 + 1 + 1 for one turn of the dtypes, and 4
    assert done.stdout.startswith(
        f"{out}: 2,500 rows, 3 files, 7 row groups, {disk_bytes:,} bytes on disk, "
        f"{2500 * 42:,} bytes decoded, "
    )
    assert done.stdout.count("\n") == 1
    assert pq.read_table(out)["id"].to_pylist() == list(range(2500))


def test_columns_are_named_by_their_dtype(tmp_path):
    schema = make(tmp_path / "set", "--columns", 9).schema
    assert dict(zip(schema.names, map(str, schema.types), strict=True)) == {
        "id": "int64",
        "label": "float",
        "f000_float32": "float",
        "f001_int32": "int32",
        "f002_int64": "int64",
        "f003_float64": "double",
        "f004_int8": "int8",
        "f005_bool": "bool",
        "f006_float32": "float",
    }


def test_the_default_size_is_what_the_help_says(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--help"])
    text = capsys.readouterr().out
    row_bytes = script.row_bytes(script.schema(40))
    assert "40 columns x 42,600,000 rows in 16 files and 326 row groups" in text
    assert f"{row_bytes} bytes a row, {42_600_000 * row_bytes:,} bytes" in text
    for default in (
        "--rows ROWS (default: 42600000)",
        "--columns COLUMNS (default: 40)",
    ):
        assert default in " ".join(text.split())
    assert divmod(42_600_000, 131_072) == (325, 1_600)


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        make(tmp_path / name, "--files", 2)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_another_seed_and_another_row_group_hold_other_values(tmp_path):
    one, two = make(tmp_path / "1"), make(tmp_path / "2", "--seed", 1)
    assert one["id"] == two["id"]
    for name in one.column_names[1:]:
        assert one[name] != two[name]
        assert one[name].slice(0, 400) != one[name].slice(400, 400)


def test_content_does_not_depend_on_the_number_of_files(tmp_path):
    assert make(tmp_path / "1", "--files", 1).equals(make(tmp_path / "7", "--files", 7))


def test_features_do_not_depend_on_the_number_of_columns(tmp_path):
    wide, narrow = make(tmp_path / "w"), make(tmp_path / "n", "--columns", 12)
    assert wide.select(narrow.column_names).equals(narrow)


@pytest.mark.parametrize("columns", [3, 5, 40])
def test_a_linear_model_explains_four_fifths_of_the_label(tmp_path, columns):
    out = tmp_path / "set"
    assert run(out, "--rows", 20_000, "--columns", columns).returncode == 0
    table = pq.read_table(out)
    x = np.stack([table[n].to_numpy().astype(float) for n in table.column_names[2:]], 1)
    x = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x))])
    y = table["label"].to_numpy()
    train, test = slice(0, 10_000), slice(10_000, None)
    weights = np.linalg.lstsq(x[train], y[train], rcond=None)[0]
    error = np.mean((y[test] - x[test] @ weights) ** 2)
    assert error == pytest.approx(0.25, rel=0.1)
    assert 1 - error / y[test].var() == pytest.approx(0.8, abs=0.03)


def test_fewer_row_groups_than_default_files_make_one_file_each(tmp_path):
    assert run(tmp_path / "set", "--rows", 5).returncode == 0
    assert len(list((tmp_path / "set").iterdir())) == 1


def test_memory_holds_one_row_group_at_a_time(tmp_path, script, monkeypatch):
    # Every table is made only when the one before it is in the file.
    alive: list[int] = []
    real = script.row_group

    def watched(index: int, **kwargs: int) -> pa.Table:
        alive.append(pa.total_allocated_bytes())
        return real(index, **kwargs)

    monkeypatch.setattr(script, "row_group", watched)
    argv = [str(tmp_path / "set"), "--rows", "200000", "--row-group-rows", "10000"]
    before = pa.total_allocated_bytes()
    assert script.main(argv) == 0
    assert len(alive) == 20
    assert max(alive) - before < 3 * 10_000 * 176


@pytest.mark.parametrize("full", ["folder", "file"])
def test_a_target_that_holds_something_is_refused(tmp_path, full):
    out = tmp_path / "set"
    if full == "folder":
        out.mkdir()
        (out / "mine.txt").touch()
    else:
        out.touch()
    done = run(out, "--rows", 10)
    assert done.returncode == 2
    reason = "is not empty" if full == "folder" else "is not a folder"
    assert done.stderr == (
        f"make_dataset.py: {out} exists and {reason}; name a new folder or remove it\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_mount_point_is_refused():
    done = run("/proc", "--rows", 10)
    assert done.returncode == 2
    assert "/proc is a mount point; name a folder inside it" in done.stderr


def test_an_empty_folder_is_filled(tmp_path):
    out = tmp_path / "set"
    out.mkdir()
    assert make(out).num_rows == 2500
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rows", "0"], "argument --rows: 0 is below 1"),
        (["--rows", "many"], "argument --rows: 'many' is not a whole number"),
        (["--columns", "2"], "argument --columns: 2 is below 3"),
        (["--row-group-rows", "0"], "argument --row-group-rows: 0 is below 1"),
        (["--files", "0"], "argument --files: 0 is below 1"),
        (["--seed", "-1"], "argument --seed: -1 is below 0"),
        (["--seed", str(2**64)], f"argument --seed: {2**64} is not below 2**64"),
        (["--compression", "zip"], "argument --compression: invalid choice: 'zip'"),
    ],
)
def test_a_wrong_number_is_named(tmp_path, script, capsys, args, message):
    with pytest.raises(SystemExit) as stopped:
        script.main([str(tmp_path / "set"), *args])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_more_files_than_row_groups_are_refused(tmp_path):
    done = run(tmp_path / "set", "--rows", 100, "--row-group-rows", 50, "--files", 3)
    assert done.returncode == 2
    assert (
        "--files 3 needs as many row groups and there are 2; give fewer" in done.stderr
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_leaves_nothing(tmp_path, script, monkeypatch, error):
    def tables(**_: int) -> Iterator[pa.Table]:
        yield script.row_group(0, first=0, end=400, seed=0, columns=40)
        (folder,) = tmp_path.iterdir()
        assert folder.name.startswith("set.partial-")
        raise error("stopped in the middle")

    monkeypatch.setattr(script, "row_groups", tables)
    argv = [str(tmp_path / "set"), "--rows", "2500", "--row-group-rows", "400"]
    with pytest.raises(error, match="stopped in the middle"):
        script.main(argv)
    assert not list(tmp_path.iterdir())


def test_a_killed_run_leaves_only_a_partial_folder(tmp_path):
    # The process kills itself while the fourth row group is made.
    code = (
        "import os, signal, make_dataset as m\n"
        "real = m.row_group\n"
        "def row_group(index, **kwargs):\n"
        "    if index == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(index, **kwargs)\n"
        "m.row_group = row_group\n"
        f"m.main([{str(tmp_path / 'set')!r}, '--rows', '2500', '--row-group-rows', '400'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, timeout=120)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("set.partial-")
    # and the next run is not hindered by it
    assert make(tmp_path / "set").num_rows == 2500


def test_a_target_taken_in_the_meantime_is_not_replaced(
    tmp_path, script, monkeypatch, capsys
):
    out = tmp_path / "set"

    def tables(**_: int) -> Iterator[pa.Table]:
        out.mkdir()
        (out / "theirs.txt").touch()
        yield script.row_group(0, first=0, end=10, seed=0, columns=40)

    monkeypatch.setattr(script, "row_groups", tables)
    assert script.main([str(out), "--rows", "10"]) == 2
    assert f"{out} was taken in the meantime: " in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*")] == ["set", "theirs.txt"]
