"""A rank is killed in the middle of an epoch: what goes on from the last state.

That is another job, of as many ranks as there are then, or the same one, whose ranks
torchrun has started again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torchrun, pytest.mark.slow, pytest.mark.faults]

SCRIPT = Path(__file__).with_name("killed_script.py")
NUM_ROWS, GLOBAL_BATCH = 1009, 48
NUM_STEPS = -(-NUM_ROWS // GLOBAL_BATCH)
KILLED_AT, SAVED_AT = 11, 9  # batches handed out; a state is saved after every third

Run = list[list[list[int]]]  # the ids of each rank's batches


def torchrun(
    num_ranks: int, *arguments: object, max_restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(num_ranks), "--max-restarts", str(max_restarts)]
    return subprocess.run(
        [*command, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        # Without it torch 2.13 does not come up again after a rank was killed.
        env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )


def read(out: Path, run: str, num_ranks: int) -> Run:
    logs = [(out / f"{run}-{rank}.jsonl").read_text() for rank in range(num_ranks)]
    return [[json.loads(line) for line in log.splitlines()] for log in logs]


def rows(run: Run, steps: slice = slice(None)) -> Counter[int]:
    return Counter(chain.from_iterable(chain.from_iterable(r[steps] for r in run)))


def assert_each_row_came_once(first: Run, second: Run, world_size: int) -> None:
    """Up to the saved step, and after it."""
    assert {len(mine) for mine in first} == {KILLED_AT}
    assert {len(mine) for mine in second} == {NUM_STEPS - SAVED_AT}
    before, after = rows(first, slice(SAVED_AT)), rows(second)
    assert set(before.values()) == {1}
    assert not before.keys() & after.keys()
    assert before.keys() | after.keys() == set(range(NUM_ROWS))
    # The last batch, which the ranks cannot share evenly, is padded.
    assert after.total() - len(after) == -NUM_ROWS % GLOBAL_BATCH % world_size
    # What came after the state was saved and before the kill comes again, step by step.
    for step in range(SAVED_AT, KILLED_AT):
        again = slice(step - SAVED_AT, step - SAVED_AT + 1)
        assert rows(first, slice(step, step + 1)) == rows(second, again)


@pytest.fixture(scope="module")
def killed(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job of two ranks that ended when rank 1 was killed."""
    out = tmp_path_factory.mktemp("killed")
    done = torchrun(2, small_data, out, "first", GLOBAL_BATCH, 1, KILLED_AT)
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr  # what torchrun says of the victim
    return out


@pytest.mark.parametrize("world_size", [1, 3])
def test_over_both_jobs_each_row_comes_once_up_to_the_saved_step_and_after_it(
    small_data: Path, killed: Path, tmp_path: Path, world_size: int
) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["rows"] == SAVED_AT * GLOBAL_BATCH
    done = torchrun(world_size, small_data, tmp_path, "second", GLOBAL_BATCH)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = read(tmp_path, "first.0", 2), read(tmp_path, "second.0", world_size)
    assert_each_row_came_once(first, second, world_size)


def test_ranks_that_torchrun_starts_again_go_on_from_the_saved_step(
    small_data: Path, tmp_path: Path
) -> None:
    arguments = (small_data, tmp_path, "run", GLOBAL_BATCH, 1, KILLED_AT)
    done = torchrun(2, *arguments, max_restarts=1)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = read(tmp_path, "run.0", 2), read(tmp_path, "run.1", 2)
    assert_each_row_came_once(first, second, 2)
    # As many ranks: to the row, what each was given before.
    for rank in range(2):
        assert first[rank][SAVED_AT:] == second[rank][: KILLED_AT - SAVED_AT]
