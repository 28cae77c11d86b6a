"""A torchrun job of two nodes with two ranks each; the nodes are network namespaces."""

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
from tests.examples.training import check_ids, make_data

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.torchrun,
]

_ROOT = Path(__file__).parents[2]
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
    network: Network, folder: Path, *script: str
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start torchrun on both nodes; what is left of the job is killed at the end."""
    with ExitStack() as stack:
        agents = []
        for host, is_host in (("a", 1), ("b", 0)):
            log = stack.enter_context((folder / f"{host}.log").open("wb"))
            command = (
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                *("--nproc-per-node", "2", "--max-restarts", "1", "--rdzv-backend"),
                *("c10d", "--rdzv-endpoint", f"{network.address('a')}:29400"),
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
                agent.wait(30)


_RANK = """
import json, os, sys, time
from pathlib import Path
import torch.distributed as dist
import cluster

folder, certificates = sys.argv[1:]
dist.init_process_group("gloo")
c = cluster.launch("torchrun", certificates=certificates)
client = c.client()
assert client.submit(sum, [1, 2]).result(timeout=60) == 3
rank = os.environ["RANK"]
said = {"address": c.address, "pid": os.getpid(), "agent": os.getppid()}
file = Path(folder, f"{rank}.json")
file.with_suffix(".new").write_text(json.dumps(said))
file.with_suffix(".new").rename(file)
while True:  # it is killed
    dist.barrier()
    time.sleep(0.1)
"""

# In a host of its own, as pytest is in none; processes are the same everywhere.
_STORY = f"""
import json, os, signal, socket, ssl, sys, time
from pathlib import Path
import psutil
import cluster
from cluster.security import make_certificates

folder, certificates, mark = sys.argv[1:]

def until(condition, what):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)

def of_the_job():
    found = {{}}
    for p in psutil.process_iter():
        try:
            if p.environ().get(mark) and p.status() != psutil.STATUS_ZOMBIE:
                found[p.pid] = p.cmdline()
        except psutil.Error:
            pass
    return found

def ranks_besides(old):
    """Wait for what the ranks of a new attempt say; their numbers may have moved."""
    def now():
        files = [Path(folder, f"{{rank}}.json") for rank in range(4)]
        said = [json.loads(f.read_text()) for f in files if f.exists()]
        return [rank for rank in said if rank["pid"] not in old]
    until(lambda: len(now()) == 4, "four ranks")
    return now()

def of_dask():
    return {{pid for pid, words in of_the_job().items() if "cluster.nanny" in words}}

def workers_of(c):
    client = c.client()
    try:
        pids = client.run(os.getpid)
    finally:
        client.close()
    return {{address.split("//")[1].split(":")[0]: pid for address, pid in pids.items()}}

def both_there(c):
    try:
        return set(workers_of(c)) == {{"{NET}.10", "{NET}.11"}}
    except (cluster.ClusterError, OSError):  # on its way down or up
        return False

def refused(address):
    host, _, port = address.removeprefix("tls://").rpartition(":")
    for where, security in (
        (address, make_certificates().client_security()),
        (address.replace("tls://", "tcp://"), None),
    ):
        try:
            cluster.connect(where, security, timeout_s=2)
        except cluster.UnreachableError:
            continue
        raise AssertionError((where, security))
    context = ssl.create_default_context(cadata=known.tls_ca_file)
    context.check_hostname = False
    try:
        with socket.create_connection((host, int(port)), 10) as raw:
            with context.wrap_socket(raw) as wire:
                if wire.recv(1):
                    raise AssertionError("let in without a certificate")
    except (ssl.SSLError, ConnectionError):
        pass

known = cluster.load_certificates(certificates)
first = ranks_besides([])
address = first[0]["address"]
assert address.startswith("tls://{NET}."), address
assert {{rank["address"] for rank in first}} == {{address}}
with cluster.connect(address, known) as c:
    assert both_there(c)
    client = c.client()
    for stranger_at in (address, *client.nthreads()):
        refused(stranger_at)
    client.close()

    # No key is where others can read it.
    keys = [f.read_text().split("\\n")[1] for f in Path(certificates).glob("*key.pem")]
    assert len(keys) == 3
    for words in of_the_job().values():
        assert not any(key in " ".join(words) for key in keys)
    logs = [f for f in Path(folder).rglob("*.log")]
    assert len(logs) == 2 + 3, logs
    assert not any(key in log.read_text() for key in keys for log in logs)

    # A nanny is killed, and the scheduler: the ranks start them again.
    (nanny,) = (p for p, w in of_the_job().items() if "cluster.nanny" in w and "1-0" in w)
    lost = workers_of(c)
    os.kill(nanny, signal.SIGKILL)
    until(lambda: both_there(c) and workers_of(c) != lost, "another worker")
    assert c.client().submit(sum, [1, 2]).result(timeout=60) == 3
with cluster.connect(address, known) as c:
    (scheduler,) = (p for p, words in of_the_job().items() if "--scheduler" in words)
    os.kill(scheduler, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(scheduler), "the scheduler's end")
    until(lambda: both_there(c), "the scheduler at its address, with its workers")

# A rank is killed: torchrun starts all of them anew, and they a cluster of their own.
old = of_dask()
os.kill(first[3]["pid"], signal.SIGKILL)  # on node b, which rank 0 is not on
second = ranks_besides([rank["pid"] for rank in first])
new_address = second[0]["address"]
assert {{rank["address"] for rank in second}} == {{new_address}} != {{address}}
until(lambda: not old & of_dask(), "the end of the first attempt's cluster")
with cluster.connect(new_address, known) as c:
    until(lambda: both_there(c), "the workers of the second attempt")

# All of a node's torchrun is killed, in one blow: nothing is left of the cluster.
agent = second[3]["agent"]
for pid in (agent, *(rank["pid"] for rank in second if rank["agent"] == agent)):
    os.kill(pid, signal.SIGKILL)
until(lambda: not of_dask(), "the end of the cluster on both nodes")
until(lambda: not os.listdir(Path(folder, "tmp")), "an empty folder for scratch")
print("done")
"""


def test_a_job_of_two_nodes_from_its_start_over_a_restart_to_its_sudden_end(
    network: Network, certificates: Path, tmp_path: Path
) -> None:
    for name, text in (("rank.py", _RANK), ("story.py", _STORY)):
        (tmp_path / name).write_text(text)
    script = (str(tmp_path / "rank.py"), str(tmp_path), str(certificates))
    with _job(network, tmp_path, *script):
        story = (str(tmp_path / "story.py"), str(tmp_path), str(certificates), _MARK)
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
    ids.mkdir()
    script = (
        *(str(_ROOT / "examples" / "train_torchrun.py"), str(data), "--epochs", "2"),
        *("--batch-size", "256", "--launch", "torchrun", "--dask-workers", "1"),
        *("--certificates", str(certificates), "--ids", str(ids)),
    )
    with _job(network, tmp_path, *script) as agents:
        codes = [agent.wait(200) for agent in agents]
    logs = [(tmp_path / f"{host}.log").read_text() for host in "ab"]
    assert codes == [0, 0], "\n".join(logs)
    assert f"read by: Dask cluster at tls://{NET}." in "".join(logs)
    check_ids(ids, data, num_ranks=4, num_epochs=2, batch_size=256)
    assert os.listdir(tmp_path / "tmp") == []
