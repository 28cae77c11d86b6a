"""States that an earlier dask_loader wrote go on with the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dask_loader import ParquetDataset

DATA = Path(__file__).parent / "data"
# Written after one batch, before there were keys of directories, vocabularies and masks.
STATES = json.loads((DATA / "states.json").read_text())
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "columns and filters": {
        "columns": ["id", "int_col", "string_col"],
        "filters": [("id", ">", 1)],
    },
    "features and dtypes": {
        "columns": ["id", "float_col", "double_col"],
        "features": {"x": ["float_col", "double_col"]},
        "dtypes": {"x": "float32"},
        "shuffle_window": "1 KiB",
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_old_state_goes_on_with_the_same_rows(name: str) -> None:
    old = STATES[name]
    with ParquetDataset(
        DATA / "alltypes_plain.parquet",
        shuffle=True,
        seed=7,
        batch_size=2,
        client="threads",
        footer_cache=False,
        **OPTIONS[name],
    ) as dataset:
        batches = iter(dataset)
        assert [next(batches)["id"].tolist()] == old["read"]
        now = dataset.state_dict()
        # The rest tells where the file lies and when it was written.
        here = {"place", "stamps"}
        assert {k: v for k, v in now.items() if k not in here} == {
            k: v for k, v in old["state"].items() if k not in here
        }
        dataset.load_state_dict(old["state"])
        assert [batch["id"].tolist() for batch in dataset] == old["rest"]
