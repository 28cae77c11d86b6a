"""A cluster on hosts that are reached by ssh: TLS by default, and nothing left behind.

distributed.SSHCluster is not used: it hands the configuration, and certificates made in
memory with it, to a command line, which all users of a host can read; what it started
stays when the program is killed; and what ended is not started again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import warnings
from typing import TYPE_CHECKING

from distributed.security import Security

from cluster.errors import InsecureWarning, SpecError, StartError
from cluster.loop import LoopThread
from cluster.security import make_certificates, read_certificates
from cluster.ssh_spec import SshSpec

if TYPE_CHECKING:
    from cluster.fleet import Fleet

__all__ = ["SshLauncher", "SshSpec"]

# Agents are given up after 10 s, and their connections a second later.
_CLOSE_S = 14.0
_LOGS_S = 3.0
_TAIL_LINES = 10


class SshLauncher:
    """Starts and ends one fleet, on an event loop of its own."""

    kind = "ssh"
    revives_scheduler = True

    def __init__(self, spec: SshSpec) -> None:
        """Remember what to start, and make or read the certificates.

        Raises:
            SpecError: A package is missing, or the certificates cannot be used.
        """
        if importlib.util.find_spec("asyncssh") is None:
            raise SpecError(
                "launch('ssh') needs the package asyncssh, which is not installed; "
                "install it (pip install asyncssh)"
            )
        self._spec = spec
        self._certificates = None
        if spec.certificates is not None:
            self._certificates = read_certificates(spec.certificates)
        elif not spec.insecure:
            self._certificates = make_certificates()
        self._loop: LoopThread | None = None
        self._fleet: Fleet | None = None

    @property
    def address(self) -> str:
        """Where the scheduler listens; the same after it was started again."""
        return self._running().address

    @property
    def security(self) -> Security | None:
        """What a client needs to get in, in memory."""
        return self._running().security

    @property
    def dashboard_link(self) -> str | None:
        """Where a browser on this machine finds the dashboard, by way of ssh."""
        port = self._running().dashboard_port
        return None if port is None else f"http://127.0.0.1:{port}/status"

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is not started again."""
        return () if self._fleet is None else self._fleet.troubles

    def start(self, *, timeout_s: float) -> None:
        """Log in everywhere, bring up the scheduler and the workers.

        Raises:
            HostKeyError: A host showed another key than known_hosts has.
            StartError: No way in, or something ended early or was too slow.
        """
        self._loop = LoopThread("cluster-ssh")
        starting = self._loop.submit(self._start(timeout_s))
        try:
            starting.result()
        except BaseException:  # Ctrl-C: what has begun must end before close()
            starting.cancel()
            raise
        if self._spec.insecure and self._running().is_open_to_the_network():
            warnings.warn(
                f"the ssh cluster at {self.address} listens to the network in plain tcp, "
                "as insecure=True asks for: whoever reaches it can run code as you; "
                "leave insecure out, and TLS is made for you",
                InsecureWarning,
                stacklevel=4,
            )

    def scale(self, num_workers: int, *, timeout_s: float) -> None:
        """Ask for this many workers; what leaves hands over first.

        Raises:
            StartError: The scheduler, which has to be asked, did not answer in time.
        """
        assert self._loop is not None
        scaling = self._loop.submit(
            self._running().scale(num_workers, timeout_s=timeout_s)
        )
        try:
            scaling.result()
        except (TimeoutError, OSError) as error:
            raise StartError(
                f"the scheduler of the ssh cluster at {self.address} did not answer when "
                f"it was scaled to {num_workers} ({error!r}); see logs(), and try again",
                kind=self.kind,
                address=self.address,
                workers_asked=num_workers,
            ) from error

    def logs(self, *, num_lines: int, timeout_s: float) -> dict[str, str]:
        """Return the last lines of all processes on the hosts that answer."""
        assert self._loop is not None
        asking = self._running().logs(num_lines, timeout_s=timeout_s)
        return self._loop.submit(asking).result()

    def close(self) -> None:
        """End everything on the hosts, and the loop; safe twice."""
        if self._loop is None:
            return
        if self._fleet is not None:
            closing = self._loop.submit(self._fleet.close())
            concurrent.futures.wait([closing], timeout=_CLOSE_S)
        self._loop.stop()
        self._loop = None

    def _running(self) -> Fleet:
        assert self._fleet is not None, "start() comes first"
        return self._fleet

    async def _start(self, timeout_s: float) -> None:
        from cluster.fleet import Fleet  # asyncssh is optional

        self._fleet = fleet = Fleet(self._spec, self._certificates)
        try:
            async with asyncio.timeout(timeout_s):
                await fleet.start()
        except StartError:
            raise
        except (TimeoutError, OSError) as error:
            logs = await fleet.logs(_TAIL_LINES, timeout_s=_LOGS_S)
            wrote = "".join(f"\n{name} wrote:\n{text}" for name, text in logs.items())
            timed_out = isinstance(error, TimeoutError)
            why = f"not up after {timeout_s:g} s" if timed_out else repr(error)
            raise StartError(
                f"the ssh cluster on {', '.join(self._spec.hosts)} did not start: {why}, "
                f"{fleet.stage}; is a firewall between the hosts, or start_timeout_s too "
                f"short?{wrote}",
                kind=self.kind,
                workers_asked=self._spec.num_workers,
                waited_s=timeout_s if timed_out else None,
            ) from error
