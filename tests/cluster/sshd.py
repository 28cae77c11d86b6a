"""A real sshd of the tests' own, on loopback, with keys that nobody else knows."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

_DEADLINE_S = 180.0
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Sshd:
    """Where it listens, and what a launcher needs to get in."""

    port: int
    folder: Path
    pid: int

    def process(self) -> psutil.Process:
        return psutil.Process(self.pid)

    @property
    def options(self) -> dict[str, object]:
        return {
            "hosts": [_HOST],
            "ssh_port": self.port,
            "key_file": self.folder / "id",
            "known_hosts": self.folder / "known_hosts",
        }


@contextmanager
def serve(
    folder: Path, *, address: str = _HOST, inside: Sequence[str] = ()
) -> Iterator[Sshd]:
    """Run one until the block ends.

    Args:
        folder: For its keys and what else it needs.
        address: Where it listens; at a free port on loopback, else at 2222.
        inside: Words before its command, such as those of a network namespace.
    """
    program = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None or shutil.which("ssh-keygen") is None:
        pytest.skip("needs sshd and ssh-keygen (openssh-server)")
    pytest.importorskip("asyncssh")
    pytest.importorskip("cryptography")
    for name in ("host", "id", "other"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f"]
        subprocess.run([*command, str(folder / name)], check=True)
    port = 2222
    if address == _HOST:
        with socket.socket() as free:
            free.bind((_HOST, 0))
            port = free.getsockname()[1]
    for name, key in (("known_hosts", "host"), ("wrong_hosts", "other")):
        words = (folder / f"{key}.pub").read_text().split()
        (folder / name).write_text(f"[{address}]:{port} {words[0]} {words[1]}\n")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress {address}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/id.pub\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\n"
        "PermitRootLogin prohibit-password\nMaxStartups 100\n"
    )
    if os.geteuid() == 0:  # Debian's sshd asks for it, and makes it at boot only
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [*inside, program, "-D", "-e", "-f", str(folder / "sshd_config")],
            stderr=log,
        )
    try:
        deadline = time.monotonic() + _DEADLINE_S
        while "Server listening" not in (said := (folder / "sshd.log").read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.02)  # polling a condition, with a deadline
        yield Sshd(port, folder, process.pid)
    finally:
        process.kill()
        process.wait(_DEADLINE_S)
