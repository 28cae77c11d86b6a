"""What others wrote is data: nothing in a file or a state is run, or believed unseen."""

from __future__ import annotations

import base64
import io
import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from dask_loader import BadFileError, DataLoader, ParquetDataset, ResumeError


class Evil:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_nothing_that_a_file_says_of_its_types_is_unpickled(tmp_path):
    trap = tmp_path / "run"
    payload = pickle.dumps(Evil(trap))
    pickle.loads(payload).close()
    assert trap.exists()  # it would do what it is for
    trap.unlink()
    extensions = ("arrow.py_extension_type", "pandas.period", "no.such")
    fields = [
        pa.field(
            f"x{number}",
            pa.int64(),
            metadata={
                "ARROW:extension:name": name,
                "ARROW:extension:metadata": payload,
            },
        )
        for number, name in enumerate(extensions)
    ]
    schema = pa.schema(
        [pa.field("id", pa.int64()), *fields],
        metadata={"pandas": payload, "org.apache.spark.sql.parquet.row.metadata": b"{"},
    )
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table([range(10)] * 4, schema=schema), folder / "a.parquet")
    pq.write_metadata(schema, folder / "_common_metadata")
    written = pq.read_metadata(folder / "a.parquet").metadata
    assert payload in base64.b64decode(written[b"ARROW:schema"])
    assert written[b"pandas"] == payload
    for output in ("torch", "numpy", "arrow"):
        with ParquetDataset(folder, client="threads", output_format=output) as dataset:
            (batch,) = list(dataset)
            for name in ("id", "x0", "x1", "x2"):
                values = batch[name]
                values = values.to_pylist() if output == "arrow" else values.tolist()
                assert values == list(range(10))
    assert not trap.exists()


def test_a_type_that_cannot_be_made_of_what_a_file_says_is_a_bad_file(tmp_path):
    field = pa.field(
        "x",
        pa.int64(),
        metadata={
            "ARROW:extension:name": "arrow.opaque",
            "ARROW:extension:metadata": "\N{SNOWMAN}",
        },
    )
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([range(10)], schema=pa.schema([field])), path)
    with pytest.raises(
        BadFileError, match=r"a\.parquet' is not a readable Parquet file"
    ):
        ParquetDataset(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": range(100)}), path, row_group_size=10)
    return path


def make(data: Path) -> ParquetDataset:
    return ParquetDataset(
        data, client="threads", batch_size=10, on_error="skip-window", shuffle=True
    )


@pytest.mark.parametrize("kind", ["dataset", "loader", "stateful"])
def test_a_state_is_loaded_without_running_anything(data, kind):
    with make(data) as dataset, make(data) as other:
        if kind == "dataset":
            first, second = dataset, other
        elif kind == "loader":
            first, second = DataLoader(dataset), DataLoader(other)
        else:
            first, second = (
                StatefulDataLoader(each, batch_size=None) for each in (dataset, other)
            )
        batches = iter(first)
        head = [next(batches)["id"].tolist() for _ in range(3)]
        saved = io.BytesIO()
        torch.save({"loader": first.state_dict()}, saved)
        if kind != "stateful":  # torchdata keeps objects of its own beside ours
            text = json.dumps(first.state_dict())
            assert json.loads(text) == first.state_dict()
        saved.seek(0)
        state = torch.load(saved, weights_only=True)["loader"]
        second.load_state_dict(state)
        rest = [batch["id"].tolist() for batch in second]
        assert rest == [batch["id"].tolist() for batch in batches]
        assert sorted(itertools.chain(*head, *rest)) == list(range(100))


def test_a_checkpoint_with_code_in_it_is_refused_before_it_runs(data, tmp_path):
    trap, saved = tmp_path / "run", tmp_path / "checkpoint.pt"
    with make(data) as dataset:
        state = dataset.state_dict()
        torch.save({"loader": {**state, "epoch": Evil(trap)}}, saved)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(saved, weights_only=True)
        with pytest.raises(ResumeError):
            dataset.load_state_dict({**state, "epoch": Evil(trap)})
        assert not trap.exists()
        assert dataset.state_dict() == state
