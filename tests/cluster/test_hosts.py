"""Hosts with addresses of their own, made of network namespaces: one is cut off."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.network import NET, Network, network_of
from tests.cluster.sshd import serve

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.faults]

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """The hosts a, b (with sshd) and d (the driver's), and the keys to them."""

    network: Network
    folder: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("hosts")
    with ExitStack() as stack:
        network = stack.enter_context(network_of("abd", prefix="dct"))
        known = []
        for host in "ab":
            own = folder / host
            own.mkdir()
            stack.enter_context(
                serve(own, address=network.address(host), inside=network.inside(host))
            )
            known.append((own / "known_hosts").read_text())
        (folder / "known_hosts").write_text("".join(known))
        keys = (folder / host / "id.pub" for host in "ab")
        (folder / "b" / "id.pub").write_text("".join(k.read_text() for k in keys))
        yield Place(network, folder)


_DRIVER = f"""
import os, psutil, subprocess, sys, time
import cluster

prefix, folder = sys.argv[1:]

def link(state):
    switch = "--net=/run/netns/" + prefix + "s"
    subprocess.run(["nsenter", switch, "ip", "link", "set", "pb", state], check=True)

def has_ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True

def until(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)

with cluster.launch(
    "ssh", hosts=["{NET}.10", "{NET}.11"], workers=2, lease_s=5, username="root",
    known_hosts=folder + "/known_hosts", key_file=folder + "/a/id",
    ssh_port=2222, start_timeout_s=120,
) as c:
    client = c.client()
    assert c.address.startswith("tls://{NET}.10:"), c.address
    pids = {{a.split("//")[1].split(":")[0]: p for a, p in client.run(os.getpid).items()}}
    lost = psutil.Process(pids["{NET}.11"])
    link("down")
    # The host ends what runs there; the scheduler is told and goes on with the other.
    until(lambda: has_ended(lost), "the end of the cut worker")
    until(lambda: "workers=1" in repr(c), "a scheduler that knows of the loss")
    assert client.submit(sum, [1, 2]).result(timeout=180) == 3
    link("up")
    until(lambda: "workers=2" in repr(c), "the host's part after it was healed")
    hosts = {{a.split("//")[1].split(":")[0] for a in client.nthreads()}}
    assert hosts == set(pids), hosts
    assert sum(client.run(lambda: 1).values()) == 2
print("done")
"""


def test_a_host_that_was_cut_off_is_ended_missed_and_taken_back(
    place: Place, tmp_path: Path
) -> None:
    script = tmp_path / "driver.py"
    script.write_text(_DRIVER)
    command = [sys.executable, str(script), place.network.prefix, str(place.folder)]
    ran = subprocess.run(
        place.network.inside("d", *command),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        timeout=200,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr
