"""What is really loaded, in processes that begin with nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import distributed
import pytest

import cluster
from dask_loader import ParquetDataset
from dask_loader.engine import watch
from dask_loader.engine.worker import run_window

ROOT = Path(__file__).parents[2]


def loaded_by(statement: str) -> set[str]:
    """Return the top-level names in sys.modules after a statement in a new process."""
    code = (
        f"{statement}\nimport json, sys\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import dask_loader", {"torch", "pyarrow", "distributed", "dask", "numpy"}),
        ("import dask_loader.read.window", {"torch", "distributed"}),
        ("import dask_loader.engine.worker", {"torch", "distributed"}),
        ("import dask_loader.engine.threads", {"torch", "distributed"}),
        ("import dask_loader.engine.dask", {"torch"}),
        ("import dask_loader.catalog.catalog", {"torch", "distributed"}),
        ("import dask_loader.transfer.parcel", {"torch", "distributed"}),
        ("import dask_loader.world, dask_loader.options, dask_loader.run", {"torch"}),
        ("from dask_loader import ConfigError, WindowError", {"torch", "pyarrow"}),
        ("import dask_loader.dataset, dask_loader.loader", {"distributed", "cluster"}),
        # Dask's own command imports it at every call, for a worker too.
        ("import dask_loader.cli", {"torch", "pyarrow", "numpy", "distributed"}),
        ("import dask_loader.engine.dask", {"cluster"}),
        ("import cluster", {"torch", "dask_loader", "distributed", "pyarrow"}),
        ("from cluster import launch, connect", {"torch", "dask_loader", "pyarrow"}),
    ],
)
def test_an_import_loads_no_more_than_it_may(statement, absent):
    assert not loaded_by(statement) & absent


def test_the_plan_loads_nothing_but_numpy():
    files = sorted((ROOT / "dask_loader" / "plan").glob("*.py"))
    names = [f"dask_loader.plan.{file.stem}" for file in files]
    assert len(names) > 4
    loaded = loaded_by("\n".join(f"import {n}" for n in names))
    absent = {"pyarrow", "torch", "distributed", "dask", "fsspec", "cluster"}
    assert not loaded & absent
    assert "numpy" in loaded


def test_threads_read_an_epoch_without_distributed(small_data):
    loaded = loaded_by(
        "from dask_loader import DataLoader, ParquetDataset\n"
        f"with ParquetDataset({str(small_data)!r}, client='threads') as dataset:\n"
        "    assert sum(len(b['id']) for b in DataLoader(dataset)) == 1009"
    )
    assert "torch" in loaded
    assert not loaded & {"distributed", "cluster"}


@pytest.fixture
def dask_worker() -> Iterator[str]:
    """A scheduler's address, with one worker that `dask worker` started."""
    with cluster.launch("local", workers=0) as empty:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", empty.address]
        worker = subprocess.Popen(
            [*command, "--nthreads", "1", "--no-dashboard"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )
        try:
            empty.wait_for_workers(1)
            yield empty.address
        finally:
            worker.terminate()
            worker.wait(180)


@pytest.mark.cluster
def test_a_dask_worker_that_served_an_epoch_has_loaded_no_torch(
    small_data, dask_worker
):
    with ParquetDataset(
        small_data,
        client=dask_worker,
        shuffle=True,
        shuffle_window=100,
        filters=[("id", ">=", 0)],
    ) as dataset:
        assert sum(len(batch["id"]) for batch in dataset) == 1009
        with distributed.Client(dask_worker, set_as_default=False) as client:
            client.gather(client.compute(dataset.to_delayed()))
            (loaded,) = client.run(lambda: __import__("sys").modules.keys()).values()
    assert run_window.__module__ in loaded
    assert "dask_loader.read.window" in loaded
    roots = {name.split(".")[0] for name in loaded}
    assert not roots & {"torch", "cluster"}


def test_only_the_engines_dask_files_name_distributed():
    # lint-imports holds the rule for modules; this one for lazy imports in functions.
    named = sorted(
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "dask_loader").rglob("*.py")
        if "import distributed" in file.read_text()
        or "from distributed" in file.read_text()
    )
    assert named == [
        "dask_loader/engine/connection.py",
        "dask_loader/engine/unseen.py",
        "dask_loader/engine/watch.py",
    ]
    assert watch.__file__.endswith(named[-1])


def test_neither_package_names_the_other():
    for package, other in (("dask_loader", "cluster"), ("cluster", "dask_loader")):
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text()
            for line in text.splitlines():
                words = line.split()
                assert (
                    words[:1] not in (["import"], ["from"])
                    or words[1].split(".")[0] != other
                ), f"{file}: {line}"
