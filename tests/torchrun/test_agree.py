"""Ranks that are about to read different things say so, and do not hang."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from dask_loader.agree import _verdict

pytestmark = pytest.mark.torchrun

SCRIPT = Path(__file__).with_name("agree_script.py")


def run(data: Path, out: Path, *scenarios: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "3", str(SCRIPT), str(data), str(out), *scenarios]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(3)]


@pytest.mark.slow
def test_ranks_that_agree_read_and_those_that_differ_are_named(small_data, tmp_path):
    texts = {
        "seed": "seed is 0 on ranks 0, 2, 8 on rank 1",
        "batch_size": "batch_size is 16 on rank 0, 17 on rank 1, 18 on rank 2",
        "files": "num_files is 3 on ranks 0, 1, 1 on rank 2",
        "epoch": "epoch is 3 on rank 0, 0 on ranks 1, 2",
        "position": "rows done is 0 on ranks 0, 1, 240 on rank 2",
        "vocabulary": "vocabulary is '' on ranks 0, 1, '",
    }
    ranks = run(small_data, tmp_path, *texts, "again", "same")
    for scenario, text in texts.items():
        for rank, found in enumerate(ranks):
            (only,) = found[scenario]
            assert only["error"] == "RankMismatchError"
            assert text in only["text"]
            assert f"(this is rank {rank})" in only["text"]
            assert only["rank"] == rank
    # The epoch over which they differed is still to come.
    for rank, found in enumerate(ranks):
        differed, agreed = found["again"]
        assert "epoch is 0 on ranks 0, 2, 4 on rank 1" in differed["text"], rank
        assert agreed["ids"] == found["same"][0]["ids"], rank
    for number in range(3):  # two epochs of one dataset and one of another
        batches = [found["same"][number]["ids"] for found in ranks]
        assert len({len(each) for each in batches}) == 1
        rows = list(chain.from_iterable(chain.from_iterable(batches)))
        assert set(rows) == set(range(1009))
        assert len(rows) == 1011
    assert ranks[0]["same"][0] != ranks[0]["same"][2]


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "absent"), [("absent", 2), ("absent 0", 0)])
def test_a_rank_that_does_not_come_is_named_to_the_others(
    small_data, tmp_path, scenario, absent
):
    for rank, found in enumerate(run(small_data, tmp_path, scenario)):
        if rank == absent:
            assert found[scenario] == []
            continue
        (only,) = found[scenario]
        assert only["error"] == "RanksMissingError"
        assert f"rank {rank} of 3 waited 3 s for rank {absent} to begin" in only["text"]
        assert "raise rank_timeout=" in only["text"]
        assert only["rank"] == rank


def test_a_verdict_names_each_term_with_its_values_by_rank():
    assert _verdict([{"a": 1, "b": "x"}] * 3) == "same"
    assert (
        _verdict([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"a": 1}])
        == "differ a is 1 on ranks 0, 2, 2 on rank 1; "
        "b is 'x' on rank 0, 'y' on rank 1, None on rank 2"
    )


def test_a_verdict_over_many_ranks_stays_short():
    text = _verdict([{"a": rank % 50} for rank in range(1000)])
    assert "0 on ranks 0, 50, 100, 150, 200, 250, 300, 350 and 12 more, 1 on" in text
    assert text.endswith("...")
    assert len(text) < 1000
