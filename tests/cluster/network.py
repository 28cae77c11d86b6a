"""Hosts with addresses of their own, made of network namespaces on a switch.

Their lines can be cut and healed, or be slow, long and lossy from the start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

NET = "10.214.77"
_FIRST = 10
_FAR_LINK = Path(__file__).with_name("far_link.py")
# Of a far host's line: each way, of all packets, and in both directions.
FAR_DELAY_MS, FAR_LOSS, FAR_RATE = 20, 0.01, "80mbit"


@dataclass(frozen=True)
class Network:
    """A switch and hosts of one letter; the first has the address NET.10."""

    prefix: str
    hosts: str

    def inside(self, host: str, *command: str) -> list[str]:
        """Write a command that runs on a host."""
        return ["ip", "netns", "exec", self.prefix + host, *command]

    def address(self, host: str) -> str:
        return f"{NET}.{_FIRST + self.hosts.index(host)}"

    def cut(self, host: str, *, silently: bool) -> None:
        """Cut a host's line: it sees no carrier, or that and nothing else is lost."""
        state = ("nomaster",) if silently else ("down",)
        _ip("-n", f"{self.prefix}s", "link", "set", f"p{host}", *state)

    def heal(self, host: str) -> None:
        """Mend a line that was cut, however it was. Safe twice."""
        _ip("-n", f"{self.prefix}s", "link", "set", f"p{host}", "master", "br0", "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=120)


@contextmanager
def network_of(hosts: str, *, prefix: str, far: str = "") -> Iterator[Network]:
    """Make them until the block ends.

    Args:
        hosts: A letter each; not s, which is the switch.
        prefix: Before their names; a few letters that no other test module has.
        far: Those whose line is long (20 ms each way), loses 1 % of the packets, and
            takes 80 Mbit/s.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and ip (iproute2)")
    if far and (shutil.which("tc") is None or not os.path.exists("/dev/net/tun")):
        pytest.skip("slow lines need tc (iproute2) and /dev/net/tun")
    made = Network(f"{prefix}{os.getpid()}", hosts)
    switch = made.prefix + "s"
    with ExitStack() as stack:
        for host in ("s", *hosts):
            try:
                _ip("netns", "add", made.prefix + host)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces cannot be made here: {error.stderr!r}")
            stack.callback(_ip, "netns", "del", made.prefix + host)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for host in hosts:
            ns = made.prefix + host
            if host in far:
                stack.enter_context(_far_line(made, host))
            else:
                peer = ("type", "veth", "peer", "name", f"p{host}", "netns", switch)
                _ip("link", "add", "eth0", "netns", ns, *peer)
            _ip("-n", switch, "link", "set", f"p{host}", "master", "br0", "up")
            _ip("-n", ns, "addr", "add", f"{made.address(host)}/24", "dev", "eth0")
            _ip("-n", ns, "link", "set", "eth0", "up")
            _ip("-n", ns, "link", "set", "lo", "up")
        yield made


@contextmanager
def _far_line(network: Network, host: str) -> Iterator[None]:
    # A program between two TAP devices delays and drops: not every kernel has netem.
    switch, ns = f"{network.prefix}s", network.prefix + host
    words = (f"f{host}", f"p{host}", str(FAR_DELAY_MS / 1000), str(FAR_LOSS))
    with subprocess.Popen(
        network.inside("s", sys.executable, str(_FAR_LINK), *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as link:
        try:
            assert link.stdout is not None
            if link.stdout.readline() != "ready\n":
                link.kill()
                pytest.skip(f"TAP devices cannot be made here: {link.communicate()[1]}")
            _ip("-n", switch, "link", "set", f"f{host}", "netns", ns, "name", "eth0")
            for place, device in ((ns, "eth0"), (switch, f"p{host}")):
                rate = ("tbf", "rate", FAR_RATE, "burst", "64k", "latency", "200ms")
                command = ("tc", "-n", place, "qdisc", "add", "dev", device, "root")
                subprocess.run([*command, *rate], check=True, timeout=30)
            yield
        finally:
            link.kill()
