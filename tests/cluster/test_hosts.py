"""Hosts with addresses of their own, made of network namespaces: one is cut off."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.sshd import serve

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.faults]

_ROOT = Path(__file__).parents[2]
_NET = "10.214.77"


@dataclass(frozen=True)
class Network:
    """A switch and the hosts a, b (with sshd) and d (the driver's)."""

    prefix: str
    folder: Path

    def inside(self, host: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.prefix + host, *command]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and ip (iproute2)")
    made = Network(f"dct{os.getpid()}", tmp_path_factory.mktemp("hosts"))
    with ExitStack() as stack:
        for host in ("s", "a", "b", "d"):
            try:
                _ip("netns", "add", made.prefix + host)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces cannot be made here: {error.stderr!r}")
            stack.callback(_ip, "netns", "del", made.prefix + host)
        switch = made.prefix + "s"
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for number, host in enumerate(("a", "b", "d"), 10):
            ns = made.prefix + host
            peer = ("type", "veth", "peer", "name", f"p{host}", "netns", switch)
            _ip("link", "add", "eth0", "netns", ns, *peer)
            _ip("-n", switch, "link", "set", f"p{host}", "master", "br0", "up")
            _ip("-n", ns, "addr", "add", f"{_NET}.{number}/24", "dev", "eth0")
            _ip("-n", ns, "link", "set", "eth0", "up")
            _ip("-n", ns, "link", "set", "lo", "up")
        known = []
        for number, host in enumerate(("a", "b"), 10):
            folder = made.folder / host
            folder.mkdir()
            place = {"address": f"{_NET}.{number}", "inside": made.inside(host)}
            stack.enter_context(serve(folder, **place))
            known.append((folder / "known_hosts").read_text())
        (made.folder / "known_hosts").write_text("".join(known))
        keys = (made.folder / host / "id.pub" for host in ("a", "b"))
        (made.folder / "b" / "id.pub").write_text("".join(k.read_text() for k in keys))
        yield made


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
    "ssh", hosts=["{_NET}.10", "{_NET}.11"], workers=2, lease_s=5, username="root",
    known_hosts=folder + "/known_hosts", key_file=folder + "/a/id",
    ssh_port=2222, start_timeout_s=120,
) as c:
    client = c.client()
    assert c.address.startswith("tls://{_NET}.10:"), c.address
    pids = {{a.split("//")[1].split(":")[0]: p for a, p in client.run(os.getpid).items()}}
    lost = psutil.Process(pids["{_NET}.11"])
    link("down")
    # The host ends what runs there; the scheduler is told and goes on with the other.
    until(lambda: has_ended(lost), "the end of the cut worker")
    until(lambda: "workers=1" in repr(c), "a scheduler that knows of the loss")
    assert client.submit(sum, [1, 2]).result(timeout=60) == 3
    link("up")
    until(lambda: "workers=2" in repr(c), "the host's part after it was healed")
    hosts = {{a.split("//")[1].split(":")[0] for a in client.nthreads()}}
    assert hosts == set(pids), hosts
    assert sum(client.run(lambda: 1).values()) == 2
print("done")
"""


def test_a_host_that_was_cut_off_is_ended_missed_and_taken_back(
    network: Network, tmp_path: Path
) -> None:
    script = tmp_path / "driver.py"
    script.write_text(_DRIVER)
    command = [sys.executable, str(script), network.prefix, str(network.folder)]
    ran = subprocess.run(
        network.inside("d", *command),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        timeout=200,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr
