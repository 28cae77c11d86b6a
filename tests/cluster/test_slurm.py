"""A cluster in the jobs of a real SLURM: cancelled, killed, served, trained on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cluster
from cluster import create_certificates
from tests.cluster.serving import serve
from tests.cluster.slurm import jobs, options_for, output
from tests.examples.training import check_ids, make_data, train

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.usefixtures("slurm"),
]

_ROOT = Path(__file__).parents[2]


def test_a_cancelled_job_is_replaced_and_close_leaves_none(
    tmp_path: Path, wait_until
) -> None:
    with cluster.launch("slurm", **options_for(tmp_path)) as launched:
        assert launched.address.startswith("tls://127.0.0.1:")
        client = launched.client()
        assert client.submit(sum, [1, 2]).result(timeout=180) == 3
        first = jobs()
        assert len(first) == 2
        output("scancel", first[0])
        wait_until(
            lambda: (
                len(set(jobs()) - set(first)) == 1 and "workers=2" in repr(launched)
            ),
            "another job in place of the cancelled one",
        )
        assert client.submit(sum, [3, 4]).result(timeout=180) == 7
        assert any(first[1] in name for name in launched.logs())
    wait_until(lambda: jobs() == [], "an empty queue")
    assert os.listdir(tmp_path / "keys") == []


def test_a_killed_driver_leaves_no_job(tmp_path: Path, wait_until) -> None:
    options = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in options_for(tmp_path).items()
    }
    script = (
        "import cluster\n"
        f"c = cluster.launch('slurm', **{options!r})\n"
        "print(repr(c), flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
    ) as driver:
        try:
            assert driver.stdout is not None
            assert "workers=2" in driver.stdout.readline()
            assert len(jobs()) == 2
        finally:
            driver.send_signal(signal.SIGKILL)
        driver.wait(180)
    wait_until(lambda: jobs() == [], "an empty queue")


def test_the_example_trains_on_the_jobs_that_a_command_serves(
    tmp_path: Path, wait_until
) -> None:
    certificates = create_certificates(tmp_path / "certs")
    data, file = make_data(tmp_path / "data"), tmp_path / "scheduler.json"
    flags = (
        *("--workers", "2", "--interface", "lo", "--memory-limit", "1 GiB"),
        *("--shared-directory", str(tmp_path / "keys"), "--skip-directives", "--mem"),
        *("--log-directory", str(tmp_path / "logs"), "--scheduler-file", str(file)),
        *("--certificates", str(certificates)),
    )
    with serve("cluster", "slurm", *flags) as served:
        address = served.line
        assert address.startswith("tls://127.0.0.1:")
        assert len(jobs()) == 2
        ids = tmp_path / "ids"
        printed = train(
            data,
            *("--scheduler", address, "--certificates", str(certificates)),
            *("--epochs", "2", "--ids", str(ids)),
        )
        assert f"read by: Dask cluster at {address}" in printed
        check_ids(ids, data, num_ranks=2, num_epochs=2)
        served.ends_by(signal.SIGINT, code=0)
    assert not file.exists()
    assert os.listdir(tmp_path / "keys") == []
    wait_until(lambda: jobs() == [], "an empty queue")


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        # Nothing ever starts then.
        (
            ("--extra-directives", "--begin=now+1hour"),
            3,
            "1 of 1 slurm jobs had no work",
        ),
        (("--queue", "nowhere"), 1, "the queue refused a slurm job: "),
    ],
)
def test_a_command_that_fails_says_so_with_its_code(
    tmp_path: Path, flags: tuple[str, ...], code: int, text: str
) -> None:
    flags += ("--workers", "1", "--interface", "lo", "--memory-limit", "1 GiB")
    flags += ("--skip-directives", "--mem", "--insecure", "--start-timeout-s", "2")
    with serve("cluster", "slurm", *flags, folder=tmp_path) as served:
        said = served.ended(code)
    assert said.startswith(f"Error: {text}")
    assert "Traceback" not in said
    assert jobs() == []
