"""A cluster inside a real torchrun job on one node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client
from torch.distributed import TCPStore

import cluster
from cluster import SpecError, StartError
from cluster.programs import Programs
from cluster.restarts import RestartPolicy
from dask_loader import ParquetDataset
from tests.cluster.serving import serve

_ROOT = Path(__file__).parents[2]

_SCRIPT = """
import os
import torch.distributed as dist
import cluster

if {before}:
    dist.init_process_group("gloo")
c = cluster.launch("torchrun")
client = c.client()
rank = int(os.environ["RANK"])
assert client.submit(sum, [1, rank]).result(timeout=180) == 1 + rank
with open(f"rank-{{rank}}", "w") as file:
    file.write(c.address)
if not {before}:
    dist.init_process_group("gloo")
dist.barrier()
client.close()
dist.barrier()
c.close()
dist.destroy_process_group()
"""
_TORCHRUN = (
    *("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"),
    *("--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"),
)


_EPOCH_SCRIPT = """
import json, os, signal, sys
import torch.distributed as dist
import cluster
from dask_loader import ParquetDataset

folder, options, kill_after = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo")
rank = dist.get_rank()
c = cluster.launch("torchrun", workers=1)

def scheduler():
    client = c.client()
    try:
        return client.run_on_scheduler(os.getpid)
    finally:
        client.close()

first = scheduler()
ids = []
with ParquetDataset(folder + "/data", client=c, worker_timeout="2 min", **options) as d:
    for number, batch in enumerate(d, 1):
        ids.append(batch["id"].tolist())
        if number == kill_after:
            dist.barrier()  # all ranks are in the middle of the epoch
            if rank == 0:
                os.kill(first, signal.SIGKILL)
with open(f"{folder}/rank-{rank}", "w") as file:
    json.dump({"ids": ids, "is another": scheduler() != first}, file)
dist.barrier()
c.close()
dist.destroy_process_group()
"""


def _left_of(address: str) -> list[int]:
    found = psutil.process_iter(["cmdline"])
    return [p.pid for p in found if address in (p.info["cmdline"] or [])]


@pytest.mark.cluster
@pytest.mark.torchrun
@pytest.mark.slow
@pytest.mark.parametrize("before", [False, True])
def test_all_ranks_share_one_cluster_that_ends_with_the_job(
    run_script, wait_until, tmp_path: Path, *, before: bool
) -> None:
    ran = run_script(_SCRIPT.format(before=before), *_TORCHRUN)
    assert ran.code == 0, ran.err
    address = (tmp_path / "rank-0").read_text()
    assert (tmp_path / "rank-1").read_text() == address
    wait_until(lambda: not _left_of(address), "the workers' end")


@pytest.mark.cluster
@pytest.mark.torchrun
@pytest.mark.slow
@pytest.mark.faults
def test_an_epoch_goes_on_over_the_death_of_its_scheduler(tmp_path: Path) -> None:
    num_ranks, num_rows, kill_after = 2, 20_000, 11
    (tmp_path / "data").mkdir()
    table = pa.table({"id": range(num_rows)})
    pq.write_table(table, tmp_path / "data" / "0.parquet", row_group_size=250)
    options: dict[str, Any] = {
        "batch_size": 125,
        "shuffle": True,
        "shuffle_window": 250,
        "num_splits": num_ranks,
        "memory_limit": "64 MiB",
    }
    script = tmp_path / "script.py"
    script.write_text(_EPOCH_SCRIPT)
    arguments = (str(script), str(tmp_path), json.dumps(options), str(kill_after))
    ran = subprocess.run(
        [sys.executable, *_TORCHRUN, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for rank in range(num_ranks):
        with ParquetDataset(
            tmp_path / "data",
            client="threads",
            rank=rank,
            world_size=num_ranks,
            **options,
        ) as dataset:
            wanted = [batch["id"].tolist() for batch in dataset]
        assert len(wanted) > 5 * kill_after
        said = json.loads((tmp_path / f"rank-{rank}").read_text())
        assert said == {"ids": wanted, "is another": True}


@pytest.mark.cluster
@pytest.mark.torchrun
@pytest.mark.slow
def test_a_command_serves_a_job_until_the_job_is_ended(
    wait_until, tmp_path: Path
) -> None:
    file = tmp_path / "scheduler.json"
    command = ("-m", "cluster", "torchrun", "--workers", "1", "--json")
    with serve(*_TORCHRUN[1:], *command, "--scheduler-file", str(file)) as served:
        address = json.loads(served.line)["address"]
        with Client(scheduler_file=str(file), set_as_default=False) as client:
            assert client.submit(sum, [1, 2]).result(timeout=180) == 3
            assert len(client.nthreads()) == 1
        ranks = psutil.Process(served.process.pid).children()
        assert len(ranks) == 2
        served.process.send_signal(signal.SIGTERM)
        out, _ = served.process.communicate(timeout=240)
        assert out == ""  # one line, for both ranks
    wait_until(lambda: not _left_of(address), "the workers' end")
    assert not file.exists()


@pytest.mark.cluster
@pytest.mark.torchrun
@pytest.mark.slow
def test_what_cannot_be_started_again_is_given_up_and_told(
    tmp_path: Path, wait_until
) -> None:
    policy = RestartPolicy(first_s=0.01, max_in_a_row=2)
    programs = Programs(tmp_path, os.environ | {"PYTHONPATH": str(_ROOT)}, policy)
    try:
        programs.start("x", ["--scheduler", "--no-such-option"])
        wait_until(
            lambda: any(
                "x was given up after 3 starts" in t for t in programs.troubles
            ),
            "giving up",
        )
        assert programs.logs(50)["x"].count("No such option") == 3
        assert not programs.is_up("x")
    finally:
        programs.close()
        programs.close()


def test_outside_a_job_it_says_how_to_start_one(monkeypatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SpecError, match="works inside a torchrun job, and RANK is not"):
        cluster.launch("torchrun")


def _in_a_job(monkeypatch: pytest.MonkeyPatch, *, num_nodes: int) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": str(num_nodes),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_WORLD_SIZE": str(num_nodes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }.items():
        monkeypatch.setenv(name, value)


def test_several_nodes_need_certificates(monkeypatch) -> None:
    _in_a_job(monkeypatch, num_nodes=2)
    with pytest.raises(SpecError, match="certificates=None on 2 nodes: make some once"):
        cluster.launch("torchrun")


def test_without_a_store_of_the_agent_the_group_comes_first(monkeypatch) -> None:
    _in_a_job(monkeypatch, num_nodes=1)
    with pytest.raises(SpecError, match=r"call torch\.distributed\.init_process_group"):
        cluster.launch("torchrun")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (
            None,
            r"rank 1 had no address from rank 0 after 0\.5 s; every rank must call "
            r"launch\('torchrun'\), in the same order; a job of several nodes .* needs "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        ),
        ("failed: there is no room", "rank 0: there is no room"),
    ],
)
def test_a_rank_without_an_address_says_why(
    monkeypatch: pytest.MonkeyPatch, said: str | None, text: str
) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _in_a_job(monkeypatch, num_nodes=2)
    for name, value in {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }.items():
        monkeypatch.setenv(name, value)
    # What an attempt before this one has left there is not taken.
    store.set("dask-cluster/none/7/address/1", "tcp://127.0.0.1:1")
    if said is not None:
        store.set("dask-cluster/none/0/address/1", said)
    with pytest.raises(StartError, match=text) as caught:
        cluster.launch("torchrun", insecure=True, start_timeout_s=0.5)
    assert caught.value.waited_s == (0.5 if said is None else None)


@pytest.mark.parametrize(
    ("environment", "code", "text"),
    [
        ({}, 2, "works inside a torchrun job, and RANK is not set here"),
        (
            {"TORCHELASTIC_USE_AGENT_STORE": "True"},
            3,
            "Error: rank 0 cannot reach torchrun's store at 127.0.0.1:1 (",
        ),
    ],
)
def test_a_command_that_fails_says_so_with_its_code(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], code: int, text: str
) -> None:
    if environment:
        _in_a_job(monkeypatch, num_nodes=1)
    else:
        monkeypatch.delenv("RANK", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with serve("cluster", "torchrun", "--start-timeout-s", "1") as served:
        said = served.ended(code)
    assert text in said
    assert "Traceback" not in said


@pytest.mark.cluster
def test_a_scheduler_that_does_not_come_up_is_told_with_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _in_a_job(monkeypatch, num_nodes=1)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(StartError, match=r"(?s)did not come up; it wrote:\n.*assign"):
        cluster.launch("torchrun", host="192.0.2.1")  # an address of nobody's
    assert store.get("dask-cluster/none/0/address/1").startswith(b"failed: the sched")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"insecure": 0}, "insecure=0 must be True or False"),
        ({"dashboard": True}, "dashboard=True: a torchrun cluster has none"),
        (
            {"insecure": True, "certificates": "c"},
            "insecure=True with certificates='c'",
        ),
    ],
)
def test_what_is_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        cluster.launch("torchrun", **options)


@pytest.mark.slow
def test_a_job_on_several_nodes_warns_of_plain_tcp_and_cannot_be_scaled(
    run_script, tmp_path: Path
) -> None:
    # A second node that has not come yet: rank 0 of two starts the cluster alone.
    ran = run_script(
        "import os, warnings\n"
        "import torch.distributed as dist\n"
        "import cluster\n"
        "from cluster.torchrun import TorchrunLauncher, TorchrunSpec\n"
        "store = dist.TCPStore('127.0.0.1', 0, is_master=True)\n"
        "os.environ |= {name: '0' for name in ('RANK', 'LOCAL_RANK', 'GROUP_RANK')}\n"
        "os.environ |= {'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '1'}\n"
        "os.environ |= {'GROUP_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1'}\n"
        "os.environ |= {'MASTER_PORT': str(store.port)}\n"
        "os.environ |= {'TORCHELASTIC_RESTART_COUNT': '0'}\n"
        "os.environ |= {'TORCHELASTIC_RUN_ID': 'none'}\n"
        "os.environ |= {'TORCHELASTIC_USE_AGENT_STORE': 'True'}\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    c = cluster.launch('torchrun', workers=0, insecure=True)\n"
        "with c:\n"
        "    print(*(w.category.__name__ + ': ' + str(w.message) for w in caught))\n"
        "    try:\n"
        "        c.scale(3)\n"
        "    except cluster.NotOwnedError as error:\n"
        "        print(error)\n"
    )
    assert ran.code == 0, ran.err
    warned, refused = ran.out.splitlines()
    assert warned.startswith(
        "InsecureWarning: the torchrun cluster at tcp://127.0.0.1:"
    )
    assert "plain tcp, as insecure=True asks for" in warned
    assert "cannot be scaled to 3 workers: each node has workers=" in refused
