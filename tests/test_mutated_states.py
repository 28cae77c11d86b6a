"""States that were changed by somebody: refused by name, or of the same data and right."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dask_loader import ParquetDataset, ResumeError

NUM_ROWS = 60
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 59, 60, 61, 2**31, 2**63, 2**70, -(2**63), 0.5,
    float("nan"), float("inf"), "", "0", "x", "a" * 10_000, b"", [], {}, [[]], [0], [[0]],
    [[0, 1]], [[0, 0]], [[0, 2], [5, 3]], [[5, 3], [0, 2]], [[0, 2]] * 3, [[0, 10**9]],
    [["0", "2"]], [[0.0, 2.0]], [[True, 2]], [[0, 1, 2]], {"a": 1}, object,
]  # fmt: skip


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[[], ParquetDataset]:
    """Not the dataset itself: pytest would keep it past its end."""
    pq.write_table(
        pa.table({"id": np.arange(NUM_ROWS)}), tmp_path / "a.parquet", row_group_size=7
    )
    return lambda: ParquetDataset(
        tmp_path,
        client="threads",
        batch_size=4,
        shuffle=True,
        shuffle_window=10,
        num_splits=2,
    )


def mutated(state: dict[str, Any], chance: random.Random) -> Any:
    """Return a state with one to three things changed, left out or added."""
    found: Any = copy.deepcopy(state)
    for _ in range(chance.randint(1, 3)):
        kind = chance.random()
        name = chance.choice([*found, "skipped", "worker"])
        if kind < 0.1:
            found.pop(name, None)
        elif kind < 0.15:
            found[chance.choice(["__class__", "more", "items", "part"])] = (
                chance.choice(VALUES)
            )
        elif kind < 0.3 and isinstance(found.get(name), int):
            found[name] += chance.choice([-1, 1, 1000])
        elif kind < 0.4 and isinstance(found.get(name), str):
            text = found[name]
            found[name] = text[:-1] + chance.choice("0123456789abcdef")
        else:
            found[name] = chance.choice(VALUES)
    return found


def is_refused(dataset: ParquetDataset, state: Any) -> bool:
    """Load a state; what is refused is so in few words and takes no effect."""
    before = dataset.state_dict()
    try:
        dataset.load_state_dict(state)
    except ResumeError as error:
        said = str(error)
    else:
        return False
    assert len(said) < 1000
    assert dataset.state_dict() == before
    return True


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_thousand_mutated_states_are_refused_or_give_the_rows_they_name(make_dataset):
    with make_dataset() as dataset:
        assert sorted(ids_of(dataset)) == list(range(NUM_ROWS))
        batches = iter(dataset)
        for _ in range(5):
            next(batches)
        batches.close()
        state = dataset.state_dict()
        chance = random.Random(0)
        accepted = 0
        for _ in range(1000):
            wrong = mutated(state, chance)
            if is_refused(dataset, wrong):
                continue
            accepted += 1
            # What is accepted is a place in an epoch of this data: it gives what is left.
            now = dataset.state_dict()
            assert json.loads(json.dumps(now)) == now
            left = ids_of(dataset)
            assert len(set(left)) == len(left)
            assert set(left) <= set(range(NUM_ROWS))
            assert len(left) in (NUM_ROWS - wrong["rows"], NUM_ROWS)
        assert 10 < accepted < 500


def ids_of(dataset: ParquetDataset) -> list[int]:
    """Read an epoch."""
    return [i for batch in dataset for i in batch["id"].tolist()]


@pytest.mark.parametrize("state", [*VALUES, [1, 2], {"version": 2}, 3.5])
def test_what_is_no_state_is_refused(make_dataset, state):
    with make_dataset() as dataset:
        assert is_refused(dataset, state)
