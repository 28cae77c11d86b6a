"""Hosts with addresses of their own, made of network namespaces on a switch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

NET = "10.214.77"
_FIRST = 10


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


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=120)


@contextmanager
def network_of(hosts: str, *, prefix: str) -> Iterator[Network]:
    """Make them until the block ends.

    Args:
        hosts: A letter each; not s, which is the switch.
        prefix: Before their names; a few letters that no other test module has.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and ip (iproute2)")
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
            peer = ("type", "veth", "peer", "name", f"p{host}", "netns", switch)
            _ip("link", "add", "eth0", "netns", ns, *peer)
            _ip("-n", switch, "link", "set", f"p{host}", "master", "br0", "up")
            _ip("-n", ns, "addr", "add", f"{made.address(host)}/24", "dev", "eth0")
            _ip("-n", ns, "link", "set", "eth0", "up")
            _ip("-n", ns, "link", "set", "lo", "up")
        yield made
