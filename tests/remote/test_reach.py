"""Dask workers whose environment has other credentials for S3, or none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import cluster
from dask_loader.errors import WorkerEnvironmentError
from tests.remote.conftest import SECRET, Put, parquet
from tests.remote.servers import FaultProxy
from tests.remote.test_s3 import dataset

pytestmark = pytest.mark.cluster

_WRONG = "marker-of-a-wrong-secret"


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[cluster.Cluster]:
    """One with a wrong key, and one without any."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    environ |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    wrong = {"AWS_ACCESS_KEY_ID": "a-wrong-id", "AWS_SECRET_ACCESS_KEY": _WRONG}
    with ExitStack() as stack:
        launched = stack.enter_context(cluster.launch("local", workers=0))
        command = ("-m", "distributed.cli.dask_worker", launched.address)
        for keys in (wrong, {}):
            worker = subprocess.Popen(
                [sys.executable, *command, "--no-nanny", "--no-dashboard"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environ | keys,
                cwd=tmp_path,
            )
            stack.callback(worker.wait, 60)
            stack.callback(worker.kill)
        launched.wait_for_workers(2)
        yield launched


def test_workers_without_the_right_credentials_are_in_one_table(
    workers: cluster.Cluster,
    put: Put,
    s3_options: dict[str, Any],
    line: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put("bucket/reach/a.parquet", parquet(0))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    line.key = s3_options["key"]
    options = {"endpoint_url": line.url}
    with dataset("s3://bucket/reach/", options, client=workers) as data:
        with pytest.raises(WorkerEnvironmentError) as caught:
            next(iter(data))
        lines = str(caught.value).splitlines()[1:]
        assert len(lines) == 2
        assert all(
            "'bucket/reach/a.parquet': the store denies access" in x for x in lines
        )
        assert SECRET not in str(caught.value)
        assert _WRONG not in str(caught.value)
        line.log.clear()
        line.key = ""
        with pytest.raises(
            WorkerEnvironmentError, match="the store denies access"
        ) as one:
            next(iter(data))  # the worker without keys never asked the store
        assert len(str(one.value).splitlines()) == 2
    with dataset("s3://bucket/reach/", s3_options, client=workers) as data:
        assert next(iter(data))["id"].tolist() == list(range(400))
