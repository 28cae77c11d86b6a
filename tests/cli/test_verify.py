"""`dask loader verify`: proves what is right, and catches a loader that is not."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader import counting
from dask_loader.cli import reading
from dask_loader.cli.reading import DataLoader, ParquetDataset
from dask_loader.plan.share import Deal, Pieces

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
NUM_ROWS = 1009
SHUFFLED = ("--shuffle", "--shuffle-window", 150, "--batch-size", 31)


def verified(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["proved"] is True
    assert found["findings"] == []
    return found


@pytest.mark.parametrize("uneven", ["pad", "drop", "exact"])
@pytest.mark.parametrize(
    "options",
    [
        (),
        SHUFFLED,
        ("--shuffle", "--shuffle-window", "2 KB", "--num-splits", 5, "--epoch", 3),
        ("--filters", '[["id", ">", 300], ["x", "<", 100.0]]', "--columns", "id,s"),
        ("--filters", "[('day', '>=', '2026-01-04')]", "--seed", 3, *SHUFFLED),
        ("--filters", '[[["id", "<", 9]], [["s", "==", "row 1000"]]]', *SHUFFLED),
        ("--filters", '[["id", ">", 5000]]'),
        ("--drop-last", "--batch-size", 100),
        ("--resume-at", 2, *SHUFFLED),
        ("--resume-at", 0, "--batch-size", 100),
        ("--resume-at", 3, "--batch-size", 100, "--columns", '["id"]'),
    ],
    ids=str,
)
def test_every_way_to_read_is_proved(run, folder, uneven, options):
    found = verified(
        run("verify", folder, "--world-size", 3, "--uneven", uneven, "--json", *options)
    )
    assert found["rows"] == NUM_ROWS
    kept = found["rows_kept"]
    assert kept < NUM_ROWS if "--filters" in options else kept == NUM_ROWS
    came = sum(rank["rows"] - rank["pads"] for rank in found["ranks"])
    assert came == found["rows_seen"] == kept - found["rows_left_off"]


def test_the_table_says_what_each_rank_had(run, folder):
    result = run("verify", folder, "--world-size", 3, "--batch-size", 100)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "1009 rows in 8 row groups of 3 files, 1009 of them to be read"
    assert lines[1].startswith("epoch 0, world_size 3, batch_size 100, num_splits 3")
    table = [line.split() for line in lines[3:8]]
    assert table[0] == ["rank", "steps", "rows", "pads", "digest"]
    assert [row[:4] for row in table[1:]] == [
        ["0", "4", "337", "0"],
        ["1", "4", "337", "1"],
        ["2", "4", "337", "1"],
        ["all", "4", "1011", "2"],
    ]
    assert lines[-1] == (
        "PROVED: 1009 rows came exactly once, 2 of them a second time as flagged copies"
    )
    dropped = run("verify", folder, "--uneven", "drop", "--world-size", 10)
    assert dropped.stdout.splitlines()[-1] == (
        "PROVED: 1000 rows came exactly once, 9 were left off as promised"
    )


def test_the_digest_is_the_same_at_every_world_size_and_after_a_resume(run, folder):
    digests = []
    for world_size, more in (
        (1, ()),
        (2, ()),
        (3, ()),
        (6, ()),
        (2, ("--resume-at", 7)),
    ):
        options = ("--batch-size", 60 // world_size, "--world-size", world_size)
        result = run(
            "verify", folder, *SHUFFLED, "--num-splits", 6, *options, *more, "--json"
        )
        digests.append(verified(result)["digest"])
    assert len(set(digests)) == 1
    other = run("verify", folder, *SHUFFLED, "--seed", 1, "--batch-size", 60, "--json")
    assert verified(other)["digest"] != digests[0]


@pytest.mark.parametrize("uneven", ["pad", "drop", "exact"])
@pytest.mark.parametrize(("step", "other"), [(0, 4), (3, 1), (16, 5), (7, 2), (1, 60)])
def test_a_checkpoint_is_proved_to_fit_another_world_size(
    run, folder, uneven, step, other
):
    options = ("--world-size", 2, "--batch-size", 30, "--uneven", uneven, "--json")
    resume = ("--resume-at", step, "--resume-world-size", other)
    found = verified(
        run("verify", folder, "--shuffle", "--num-splits", 3, *options, *resume)
    )
    assert found["resume_world_size"] == other
    steps = [rank["steps"] for rank in found["ranks"]]
    assert len(steps) == max(2 if step else 0, other)
    assert steps[0] in (16, 17)
    assert steps[1] in ((step,) if other == 1 else (16, 17))
    if uneven != "drop":
        straight = run("verify", folder, "--shuffle", "--num-splits", 3, *options)
        assert verified(straight)["digest"] == found["digest"]


def test_the_other_world_size_is_printed(run, folder):
    options = ("--batch-size", 100, "--resume-at", 2, "--resume-world-size", 4)
    result = run("verify", folder, *options)
    line = result.stdout.splitlines()[1]
    assert line.endswith(", stopped and resumed at step 2 with world_size 4")


def test_several_paths_are_read_in_the_order_given(run, folder):
    paths = sorted(folder.glob("*.parquet"))
    found = [
        verified(run("verify", *order, "--json", "--batch-size", 10))
        for order in (paths, paths[::-1], [folder])
    ]
    assert [f["rows"] for f in found] == [NUM_ROWS] * 3
    assert found[0]["ranks"] == found[2]["ranks"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("alltypes_plain.parquet", ("--filters", '[["int_col", "==", 1]]')),
        (
            "alltypes_plain.parquet",
            ("--filters", '[["timestamp_col", ">", "2009-02-01 00:00:30"]]'),
        ),
        ("float16_nonzeros_and_nans.parquet", ()),
    ],
)
def test_files_of_others_with_nulls_and_old_types_are_proved(run, name, options):
    found = verified(run("verify", DATA / name, "--world-size", 2, "--json", *options))
    assert found["rows"] == 8
    assert found["rows_kept"] < 8 if options else found["rows_kept"] == 8


def test_nothing_at_all_is_proved_too(run, tmp_path):
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    found = verified(run("verify", tmp_path, "--world-size", 3, "--json"))
    assert found["rows"] == 0


# ---- loaders with a fault --------------------------------------------------------------


class Faulty(DataLoader):
    """Hands out what `fault` makes of each (rank, step, batch)."""

    fault: Any = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        rank = self._parquet.world.rank
        for step, batch in enumerate(super().__iter__()):
            yield from Faulty.fault(rank, step, batch)


def without_row(batch: dict[str, Any], row: int) -> dict[str, Any]:
    keep = [i for i in range(len(batch["__row__"])) if i != row]
    return {
        name: [c[i] for i in keep] if isinstance(c, list) else c[keep]
        for name, c in batch.items()
    }


FAULTS = {
    "lost": lambda r, t, b: [without_row(b, 3)] if (r, t) == (1, 2) else [b],
    "doubled": lambda r, t, b: [b, b] if (r, t) == (0, 1) else [b],
    "steps": lambda r, t, b: [b] if (r, t) != (0, 4) else [],
    "filtered": lambda r, t, b: [
        {**b, "__row__": b["__row__"] - 1} if (r, t) == (0, 0) else b
    ],
    "copy": lambda r, t, b: [{**b, "__padded__": b["__row__"] == 66}],
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_exit_code_one_and_named_with_the_first_rows(
    run, folder, monkeypatch, kind
):
    monkeypatch.setattr(reading, "DataLoader", Faulty)
    monkeypatch.setattr(Faulty, "fault", staticmethod(FAULTS[kind]))
    options = ("--filters", '[["id", ">=", 4]]', "--batch-size", 60, "--world-size", 2)
    result = run("verify", folder, *options)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert "NOT PROVED" in lines
    assert any(line.startswith(f"- {kind}: ") for line in lines)
    if kind != "steps":
        places = [line for line in lines if line.startswith("    row ")]
        assert f"of '{folder}/part-" in places[0]
    found = json.loads(run("verify", folder, *options, "--json").stdout)
    assert found["proved"] is False
    assert kind in [finding["kind"] for finding in found["findings"]]


def test_a_row_that_was_lost_is_printed_with_its_file_and_row_group(
    run, folder, monkeypatch
):
    monkeypatch.setattr(reading, "DataLoader", Faulty)
    lose = FAULTS["lost"]
    monkeypatch.setattr(
        Faulty, "fault", staticmethod(lambda r, t, b: lose(r + 1, t + 2, b))
    )
    result = run("verify", folder, "--batch-size", 20)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-4:] == [
        "NOT PROVED",
        "- batch size: 1 batch of other lengths than promised: rank 0 step 0 has 19 of 20",
        "- lost: 1 row never came",
        f"    row 3 of row group 0 of '{folder}/part-0.parquet'",
    ]


def test_a_state_that_differs_between_ranks_is_named(run, folder, monkeypatch):
    class Forgetful(ParquetDataset):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "rank": self.world.rank}

    monkeypatch.setattr("dask_loader.cli.source.ParquetDataset", Forgetful)
    options = ("--world-size", 2, "--batch-size", 100, "--resume-at", 1)
    result = run("verify", folder, *options)
    assert result.exit_code == 1
    assert "- state: after step 1 rank 1 has another state than rank 0" in result.output


def test_a_count_that_is_wrong_is_named(run, folder, monkeypatch):
    monkeypatch.setattr(ParquetDataset, "__len__", lambda self: 7)
    result = run("verify", folder, "--batch-size", 100)
    assert result.exit_code == 1
    assert "- length: rank 0: len() said 7 batches, 11 are promised" in result.output


def test_a_fault_in_the_loaders_own_plan_is_caught(run, folder, monkeypatch):
    pieces = Deal.pieces

    def shifted(deal: Deal, rank: int, start: int, stop: int) -> Pieces:
        # The second rank is one row behind: it never has its last one.
        found = pieces(deal, rank, start, stop)
        by = int(rank == 1)
        starts, stops = (np.maximum(n - by, 0) for n in (found.starts, found.stops))
        return found._replace(starts=starts, stops=stops)

    monkeypatch.setattr(Deal, "pieces", shifted)
    result = run("verify", folder, *SHUFFLED, "--world-size", 2, "--uneven", "exact")
    assert result.exit_code == 1
    assert "rank 1 step 0 has 30 of 31" in result.stdout
    assert "- lost: 1 row never came" in result.stdout


def test_a_fault_in_the_loaders_own_filters_is_caught(run, folder, monkeypatch):
    # Counts by another filter than rows are read with, as if remembered for too long.
    counts = counting.count_rows

    def count_too_few(options: Any, slices: Any) -> list[int]:
        return [max(0, count - 1) for count in counts(options, slices)]

    monkeypatch.setattr(counting, "count_rows", count_too_few)
    monkeypatch.setenv("DASK_LOADER_FOOTER_CACHE", "0")
    result = run("verify", folder, "--filters", '[["id", ">", 500]]')
    assert result.exit_code == 1
    assert "- lost: 1 row never came" in result.stdout


# ---- what cannot be done ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--filters", '[["nothing", ">", 1]]'), "filters names 'nothing'"),
        (("--filters", '[["id", "~", 1]]'), "uses the operator '~'"),
        (("--filters", '["id", ">", 1]'), "must be a tuple (column, op, value)"),
        (("--columns", "id,nothing"), "columns names 'nothing'"),
        (("--shuffle-window", "many"), "shuffle_window='many'"),
        (("--resume-at", 1), "resume_at=1 must be a step of the epoch, which has 1"),
        (
            ("--resume-at", 0, "--resume-world-size", 3),
            "resume_world_size=3 must divide the global batch of 2000 rows",
        ),
        (("--client", "nowhere"), "nowhere"),
    ],
)
def test_a_wrong_argument_is_one_line_on_stderr_and_exit_code_one(
    run, folder, options, text
):
    result = run("verify", folder, "--world-size", 1, *options, "--batch-size", 2000)
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert text in line
    assert "Traceback" not in result.output


def test_a_damaged_file_is_one_line_on_stderr_and_exit_code_one(run, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    result = run("verify", tmp_path)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "a.parquet' is not a readable Parquet file" in line


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--filters", "[("), "'[(' is no list or tuple in JSON or Python"),
        (("--filters", "3"), "'3' is no list or tuple in JSON or Python"),
        (("--columns", "[1"), "'[1' is no list in JSON or Python"),
        (("--storage-options", "{'key': 's"), "the value is no dict in JSON or Python"),
        (("--filters", "{[]: 1}"), "is no list or tuple in JSON or Python"),
        (("--world-size", "0"), "0 is not in the range x>=1"),
        (("--uneven", "perhaps"), "'perhaps' is not one of"),
        (("--resume-at", "-1"), "-1 is not in the range x>=0"),
        (("--resume-world-size", "2"), "--resume-world-size needs --resume-at"),
        (("--nothing",), "No such option"),
    ],
)
def test_what_is_not_understood_is_exit_code_two(run, folder, options, text):
    result = run("verify", folder, *options)
    assert result.exit_code == 2
    assert text in result.stderr


def test_without_a_path_the_use_is_shown(run):
    result = run("verify")
    assert result.exit_code == 2
    assert "Missing argument 'PATH...'" in result.stderr


# ---- as in a shell ---------------------------------------------------------------------


def shell(command: list[str], path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH on which the package is, with the entry points of setup.cfg."""
    folder = tmp_path_factory.mktemp("installed")
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    version = config["metadata"]["version"]
    info = folder / f"dask_loader-{version}.dist-info"
    info.mkdir()
    text = f"Metadata-Version: 2.1\nName: dask-loader\nVersion: {version}\n"
    (info / "METADATA").write_text(text)
    lines = []
    for group, entries in config["options.entry_points"].items():
        lines += [f"[{group}]", *entries.strip().splitlines()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return f"{folder}{os.pathsep}{ROOT}"


OPTIONS = [
    *("--world-size", "2", "--num-workers", "2", "--resume-at", "3"),
    *("--filters", '[["id", ">", 100], ["day", "<", "2026-01-10"]]'),
    *("--batch-size", "40", "--shuffle", "--shuffle-window", "150", "--json"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [["-m", "dask_loader"], ["-m", "dask", "loader"]],
    ids=["python -m dask_loader", "dask loader"],
)
def test_the_command_runs_in_a_shell(folder, installed, program):
    done = shell([sys.executable, *program, "verify", str(folder), *OPTIONS], installed)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    ids = np.arange(NUM_ROWS)
    assert found["rows_kept"] == int(((ids > 100) & (ids < 900)).sum())
    assert [rank["steps"] for rank in found["ranks"]] == [10, 10]
    wrong = shell(
        [sys.executable, *program, "verify", str(folder / "nothing")], installed
    )
    assert wrong.returncode == 1
    assert len(wrong.stderr.splitlines()) == 1
    assert wrong.stderr.startswith("Error: there is nothing at")
    assert shell([sys.executable, *program, "verify"], installed).returncode == 2


@pytest.mark.cluster
@pytest.mark.slow
def test_a_cluster_is_proved_through_its_address(run, folder, local_cluster):
    options = ("--client", local_cluster.address, "--world-size", 2, "--resume-at", 3)
    verified(run("verify", folder, *SHUFFLED, *options, "--json"))


def test_an_encrypted_file_is_refused_as_one(run):
    folder = DATA / "conformance" / "parquet-testing"
    for name in ("uniform_encryption", "encrypt_columns_plaintext_footer"):
        result = run("verify", folder / f"{name}.parquet.encrypted")
        assert result.exit_code != 0
        assert f"{name}.parquet.encrypted' is encrypted: give decr" in result.output
