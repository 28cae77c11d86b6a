"""Workers that lack what tasks import are named before anything is read."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from distributed.protocol.pickle import dumps

import cluster
from dask_loader import ParquetDataset
from dask_loader.engine.environment import Environments, look_by_value
from dask_loader.errors import WorkerEnvironmentError

_OWN = Environments()._own
_FORBID = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dask_loader":
            raise ModuleNotFoundError("No module named 'dask_loader'")
sys.meta_path.insert(0, Forbid())
"""


def test_what_is_sent_needs_nothing_of_ours() -> None:
    sent = dumps(look_by_value())
    assert b"dask_loader.engine" not in sent
    assert pickle.loads(sent)({"numpy": "numpy", "nothing_x": "n"}) == {
        "python": _OWN["python"],
        "numpy": _OWN["numpy"],
        "nothing_x": "missing",
    }


@pytest.mark.filterwarnings("error")
def test_each_worker_is_asked_until_it_answers_and_then_no_more() -> None:
    asked = []

    def ask(workers, function, argument):
        asked.append(workers)
        return {w: function(argument) for w in workers if w != "b" or len(asked) > 1}

    environments = Environments()
    for _ in range(3):
        environments.check({"a": 1, "b": 1}, ask)
    assert asked == [["a", "b"], ["b"]]


def test_other_versions_are_a_warning_and_a_missing_package_an_error() -> None:
    environments = Environments()
    patch = _OWN | {"numpy": ".".join(_OWN["numpy"].split(".")[:2]) + ".999"}
    environments.check({"p": 1}, lambda *_: {"p": patch})
    with pytest.warns(
        RuntimeWarning, match=r"other versions than(.|\n)*  a: numpy 0\.1"
    ):
        environments.check({"a": 1}, lambda *_: {"a": _OWN | {"numpy": "0.1"}})
    with pytest.raises(
        WorkerEnvironmentError,
        match=r"lack packages that reading needs(.|\n)*  b: pyarrow missing \(here",
    ):
        environments.check({"b": 1}, lambda *_: {"b": _OWN | {"pyarrow": "missing"}})


@pytest.mark.cluster
def test_a_worker_without_the_package_is_named(
    small_data: Path, tmp_path: Path
) -> None:
    preload = tmp_path / "forbid.py"
    preload.write_text(_FORBID)
    with cluster.launch("local", workers=0) as c:
        command = ["-m", "distributed.cli.dask_worker", c.address, "--no-nanny"]
        with (tmp_path / "log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, *command, "--no-dashboard", "--preload", str(preload)],
                stdout=log,
                stderr=log,
                cwd=tmp_path,
            )
        try:
            c.wait_for_workers(1)
            with ParquetDataset(small_data, client=c, batch_size=64) as dataset:
                with pytest.raises(
                    WorkerEnvironmentError, match=r"tcp://\S+: dask_loader missing"
                ):
                    next(iter(dataset))
        finally:
            worker.kill()
            worker.wait(180)
