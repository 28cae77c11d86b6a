"""What happens to a job of torchrun_rank.py, seen from a host that is none of its nodes."""

import json
import os
import signal
import socket
import ssl
import sys
import time
from pathlib import Path

import psutil

import cluster
from cluster.security import make_certificates
from tests.cluster.network import NET

folder, certificates, mark = sys.argv[1:]


def until(condition, what):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def of_the_job():
    found = {}
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
        files = [Path(folder, f"{rank}.json") for rank in range(4)]
        said = [json.loads(f.read_text()) for f in files if f.exists()]
        return [rank for rank in said if rank["pid"] not in old]

    until(lambda: len(now()) == 4, "four ranks")
    return now()


def of_dask():
    return {pid for pid, words in of_the_job().items() if "cluster.nanny" in words}


def workers_of(c):
    client = c.client()
    try:
        pids = client.run(os.getpid)
    finally:
        client.close()
    return {address.split("//")[1].split(":")[0]: pid for address, pid in pids.items()}


def both_there(c):
    try:
        return set(workers_of(c)) == {f"{NET}.10", f"{NET}.11"}
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
assert address.startswith(f"tls://{NET}."), address
assert {rank["address"] for rank in first} == {address}
with cluster.connect(address, known) as c:
    assert both_there(c)
    client = c.client()
    for stranger_at in (address, *client.nthreads()):
        refused(stranger_at)
    client.close()

    # No key is where others can read it.
    keys = [f.read_text().split("\n")[1] for f in Path(certificates).glob("*key.pem")]
    assert len(keys) == 3
    for words in of_the_job().values():
        assert not any(key in " ".join(words) for key in keys)
    logs = list(Path(folder).rglob("*.log"))
    assert len(logs) == 2 + 3, logs
    assert not any(key in log.read_text() for key in keys for log in logs)

    # A nanny is killed, and the scheduler: the ranks start them again.
    (nanny,) = (
        p for p, w in of_the_job().items() if "cluster.nanny" in w and "1-0" in w
    )
    lost = workers_of(c)
    os.kill(nanny, signal.SIGKILL)
    until(lambda: both_there(c) and workers_of(c) != lost, "another worker")
    assert c.client().submit(sum, [1, 2]).result(timeout=180) == 3
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
assert {rank["address"] for rank in second} == {new_address} != {address}
until(lambda: not old & of_dask(), "the end of the first attempt's cluster")
with cluster.connect(new_address, known) as c:
    until(lambda: both_there(c), "the workers of the second attempt")

# All of a node's torchrun is killed, in one blow: nothing is left of the cluster.
agent = second[3]["agent"]
for pid in (agent, *(rank["pid"] for rank in second if rank["agent"] == agent)):
    os.kill(pid, signal.SIGKILL)
until(lambda: not of_dask(), "the end of the cluster on both nodes")
until(lambda: not list(Path(folder, "tmp").glob("dask*")), "an empty scratch folder")
sys.stdout.write("done\n")
