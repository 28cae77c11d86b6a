"""One host reached by ssh, from the launcher's side: a connection and its agent there.

Secrets and configuration go through the agent's stdin; its command line is the same for
all: Python, and a line that reads the agent's own text from stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import asyncssh

from cluster.errors import HostKeyError, StartError

_BOOT = (
    "import json,sys;h=json.loads(sys.stdin.readline());"
    "a={'__name__':'cluster_agent'};exec(h['agent'],a);a['main'](h)"
)
_KEPT_LINES = 30
# Of a lease: how often it is renewed. Three may be lost.
_BEAT_SHARE = 0.2
# The agent gives workers 4 s, and then the scheduler.
_CLOSE_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HostOptions:
    """How to get in, and what runs there.

    Attributes:
        name: As given by the user: a host name, an address or an alias of ssh's own.
        connect: Keywords for asyncssh.connect().
        python: The interpreter there.
        lease_s: The agent ends when it hears nothing for so long.
        hello: What the agent gets first.
    """

    name: str
    connect: Mapping[str, Any]
    python: str
    lease_s: float
    hello: Mapping[str, Any]


class Host:
    """A connection and its agent; used on one event loop, opened once.

    on_event gets what the agent says and, once, {"event": "lost"} when the connection
    or the agent has ended without close().
    """

    def __init__(
        self, options: HostOptions, on_event: Callable[[dict[str, Any]], None]
    ) -> None:
        """Remember where; nothing is sent yet."""
        self.name = options.name
        self.address = ""
        self._options = options
        self._on_event = on_event
        self._connection: asyncssh.SSHClientConnection | None = None
        self._process: asyncssh.SSHClientProcess[str] | None = None
        self._errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._logs: asyncio.Future[dict[str, str]] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = asyncio.Event()

    async def open(self) -> None:
        """Connect, start the agent, and return when it answers; has no deadline.

        Raises:
            HostKeyError: The host's key is not the one in known_hosts.
            StartError: No way in, or the agent did not start.
        """
        options = self._options
        try:
            self._connection = await asyncssh.connect(
                options.name,
                keepalive_interval=options.lease_s / 4,
                keepalive_count_max=3,
                **options.connect,
            )
        # A key file that is none is a ValueError of asyncssh's.
        except (OSError, ValueError, asyncssh.Error) as error:
            raise self._refused(error) from error
        try:
            self._process = await self._connection.create_process(
                f"{shlex.quote(options.python)} -u -c {shlex.quote(_BOOT)}",
                errors="replace",
            )
            self._process.stdin.write(json.dumps(dict(options.hello)) + "\n")
            self._tasks.append(asyncio.create_task(self._read_errors()))
            ready = await self._first_event()
        except (OSError, asyncssh.Error) as error:
            raise StartError(
                f"host {self.name!r}: {options.python!r} could not be started: {error}"
                f"{self.last_lines()}",
                kind="ssh",
            ) from error
        peer = self._connection.get_extra_info("peername")
        self.address = ready["address"] or peer[0]
        self._tasks.append(asyncio.create_task(self._read()))
        self._tasks.append(asyncio.create_task(self._beat()))

    def send(self, **asked: object) -> None:
        """Ask the agent for something; what is asked of a lost one is dropped."""
        if self._process is not None:
            with contextlib.suppress(OSError, asyncssh.Error):
                self._process.stdin.write(json.dumps(asked) + "\n")

    async def logs(self, num_lines: int) -> dict[str, str]:
        """Ask for the last lines of each process there, by name."""
        if self._logs is None or self._logs.done():
            self._logs = asyncio.get_running_loop().create_future()
            self.send(op="logs", num_lines=num_lines)
        return await self._logs

    async def forward(self, port: int) -> int:
        """Make a port of that host's loopback one of this machine's."""
        assert self._connection is not None
        listener = await self._connection.forward_local_port(
            "127.0.0.1", 0, "127.0.0.1", port
        )
        return int(listener.get_port())

    async def close(self, *, in_peace: bool = True) -> None:
        """End the agent and all it started, then the connection; bounded in time."""
        self._on_event = lambda _: None
        if in_peace and len(self._tasks) > 1:
            self.send(op="close")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), _CLOSE_S)
        for task in self._tasks:
            task.cancel()
        if self._connection is not None:
            self._connection.abort()  # its end kills what the agent has left
            with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
                await asyncio.wait_for(self._connection.wait_closed(), 1.0)

    def last_lines(self) -> str:
        """What Python wrote there to stderr, for the end of an error's text."""
        return f"; it wrote:\n{chr(10).join(self._errors)}" if self._errors else ""

    async def _first_event(self) -> dict[str, Any]:
        assert self._process is not None
        while line := await self._process.stdout.readline():
            with contextlib.suppress(ValueError):  # a greeting of the login shell's
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == "ready":
                    return event
        await self._process.wait_closed()
        await self._tasks[0]
        raise StartError(
            f"host {self.name!r}: {self._options.python!r} ended at once (exit code "
            f"{self._process.exit_status}); it must be a Python of at least 3.11 that "
            f"has distributed, see remote_python{self.last_lines()}",
            kind="ssh",
        )

    async def _read(self) -> None:
        assert self._process is not None
        with contextlib.suppress(OSError, asyncssh.Error):
            while line := await self._process.stdout.readline():
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if event["event"] == "logs":
                    if self._logs is not None and not self._logs.done():
                        self._logs.set_result(event["logs"])
                else:
                    self._on_event(event)
            await self._process.wait_closed()
        self._closed.set()
        self._on_event({"event": "lost"})

    async def _read_errors(self) -> None:
        assert self._process is not None
        with contextlib.suppress(OSError, asyncssh.Error):
            while line := await self._process.stderr.readline():
                self._errors.append(line.rstrip("\n")[:2000])

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._options.lease_s * _BEAT_SHARE)
            self.send(op="beat")

    def _refused(self, error: BaseException) -> StartError:
        name = self.name
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            return HostKeyError(
                f"host {name!r} showed a key that is not in known_hosts ({error.reason}); "
                f"if it is new, check its fingerprint and add it (ssh {name}); if it was "
                "known before, somebody may have taken its place. known_hosts= names "
                "another file; check_host_keys=False trusts any key",
                kind="ssh",
            )
        if isinstance(error, asyncssh.PermissionDenied):
            return StartError(
                f"host {name!r} refused the login ({error.reason}); check username= and "
                "key_file=, and that the public key is in authorized_keys there",
                kind="ssh",
            )
        if isinstance(error, ValueError):
            return StartError(
                f"host {name!r}: the key or known_hosts cannot be used "
                f"({type(error).__name__}: {error}); a key with a passphrase goes into "
                "ssh-agent",
                kind="ssh",
            )
        return StartError(
            f"host {name!r} cannot be reached by ssh ({type(error).__name__}: {error}); "
            "check its name, ssh_port= and the firewall between",
            kind="ssh",
        )
