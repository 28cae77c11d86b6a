"""Torchrun jobs of two nodes, which are network namespaces."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.security import create_certificates
from tests.cluster.network import NET, Network, network_of
from tests.examples.training import BATCH_SIZE, check_ids, make_data

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.torchrun,
]

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_MARK = f"CLUSTER_TEST_{os.getpid()}"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with network_of("abd", prefix="dcr") as made:
        yield made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("cryptography")
    return create_certificates(tmp_path_factory.mktemp("keys") / "certs")


def _environment(folder: Path) -> dict[str, str]:
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)
    return os.environ | {
        "PYTHONPATH": str(_ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "eth0",
        # Without it torch 2.13 does not come up again after a rank was killed.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TMPDIR": str(scratch),
        _MARK: "1",
    }


@contextmanager
def _job(
    network: Network, folder: Path, *script: str, ranks_per_node: int
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start torchrun on both nodes; what is left of the job is killed at the end."""
    with ExitStack() as stack:
        agents = []
        for host, is_host in (("a", 1), ("b", 0)):
            log = stack.enter_context((folder / f"{host}.log").open("wb"))
            command = (
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                *("--nproc-per-node", str(ranks_per_node), "--max-restarts", "1"),
                *(
                    "--rdzv-backend",
                    "c10d",
                    "--rdzv-endpoint",
                    f"{network.address('a')}:29400",
                ),
                # The namespaces share a host name: neither would know whose it is.
                *("--rdzv-conf", f"is_host={is_host}"),
                *("--local-addr", network.address(host), *script),
            )
            agents.append(
                subprocess.Popen(
                    network.inside(host, *command),
                    stdout=log,
                    stderr=log,
                    env=_environment(folder),
                    cwd=_ROOT,
                )
            )
        try:
            yield agents
        finally:
            for process in psutil.process_iter():
                try:
                    if process.environ().get(_MARK):
                        process.kill()
                except psutil.Error:
                    continue
            for agent in agents:
                agent.wait(180)


def test_a_job_of_two_nodes_from_its_start_over_a_restart_to_its_sudden_end(
    network: Network, certificates: Path, tmp_path: Path
) -> None:
    script = (str(_HERE / "torchrun_rank.py"), str(tmp_path), str(certificates))
    with _job(network, tmp_path, *script, ranks_per_node=2):
        story = (
            str(_HERE / "torchrun_story.py"),
            str(tmp_path),
            str(certificates),
            _MARK,
        )
        ran = subprocess.run(
            network.inside("d", sys.executable, *story),
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            timeout=280,
            check=False,
        )
        logs = [(tmp_path / f"{host}.log").read_text()[-3000:] for host in "ab"]
    assert (ran.returncode, ran.stdout) == (0, "done\n"), "\n".join([ran.stderr, *logs])


def test_the_example_trains_on_two_nodes(
    network: Network, certificates: Path, tmp_path: Path
) -> None:
    data = make_data(tmp_path / "data")
    ids = tmp_path / "ids"
    script = (
        *(str(_ROOT / "examples" / "train_torchrun.py"), str(data), "--epochs", "2"),
        *(
            "--batch-size",
            str(BATCH_SIZE),
            "--launch",
            "torchrun",
            "--dask-workers",
            "1",
        ),
        *("--certificates", str(certificates), "--ids", str(ids)),
    )
    with _job(network, tmp_path, *script, ranks_per_node=1) as agents:
        codes = [agent.wait(200) for agent in agents]
    logs = [(tmp_path / f"{host}.log").read_text() for host in "ab"]
    assert codes == [0, 0], "\n".join(logs)
    assert f"read by: Dask cluster at tls://{NET}." in "".join(logs)
    check_ids(ids, data, num_ranks=2, num_epochs=2)
    assert list((tmp_path / "tmp").glob("dask*")) == []
