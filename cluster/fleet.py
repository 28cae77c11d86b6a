"""The processes of an ssh cluster: started, watched, and started again. One event loop.

What ends is started again after a while, longer each time, until it is given up:
- a worker, on its host;
- the scheduler, on its address. It forgets everything when it ends, so the workers are
  ended too and join the new one;
- a host that was lost (cut off, rebooted): all that ran there, once it answers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from cluster.asking import Asking
from cluster.errors import StartError
from cluster.host import Host, HostOptions
from cluster.restarts import RestartPolicy, Restarts
from cluster.security import Certificates
from cluster.ssh_commands import (
    SCHEDULER,
    connect_keywords,
    hello,
    scheduler_arguments,
    worker_arguments,
)
from cluster.ssh_spec import SshSpec

_POLL_S = 0.1
_PROCESSES = RestartPolicy()
# A host that reboots is away for minutes; one that is back should not wait for long.
_HOSTS = RestartPolicy(first_s=1.0, longest_s=8.0, max_in_a_row=60)
_REOPEN_S = 20.0
# A worker that runs but has not joined, or joined and was dropped, is stuck.
_STUCK_S = 60.0
_WATCH_S = 5.0


class Fleet:
    """Hosts, one scheduler and workers, kept as they are wanted."""

    def __init__(self, spec: SshSpec, certificates: Certificates | None) -> None:
        """Remember what to start; nothing is started yet."""
        self.dashboard_port: int | None = None
        self.stage = "nothing was tried yet"
        self.security = certificates.client_security() if certificates else None
        self._asking = Asking(self.security)
        self._spec = spec
        self._certificates = certificates
        self._scheduler_host = spec.scheduler_host or spec.hosts[0]
        self._hosts: dict[str, Host] = {}
        self._slots: dict[int, int] = {}  # worker -> index in spec.hosts
        self._next = 0
        self._running: dict[str, str] = {}  # process -> host
        self._seen_s: dict[str, float] = {}
        self._tails: dict[str, str] = {}
        self._processes = Restarts(_PROCESSES)
        self._reopens = Restarts(_HOSTS)
        self._stuck_s = max(_STUCK_S, spec.start_timeout_s)
        self._up = asyncio.Event()
        self._started = False
        self._closing = False
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """The scheduler's; "" until it is known."""
        return self._asking.address

    @property
    def troubles(self) -> tuple[str, ...]:
        """What was given up, in words."""
        return self._processes.given_up + self._reopens.given_up

    async def start(self) -> None:
        """Bring everything up; has no deadline, but ends at the first failure.

        Raises:
            StartError: A host, the scheduler or a worker did not come up.
        """
        await self._until_failure(self._open_all())
        self._check_reach()
        self.stage = f"waiting for the scheduler on {self._scheduler_host}"
        self._start_scheduler()
        await self._until_failure(self._up.wait())
        self._add(self._spec.num_workers)
        await self._until_failure(self._all_joined())
        self._started = True
        self._spawn(self._watch())

    def is_open_to_the_network(self) -> bool:
        """Tell whether anything listens beyond loopback."""
        return not all(_is_loopback(host.address) for host in self._hosts.values())

    async def scale(self, num_workers: int, *, timeout_s: float) -> None:
        """Start more, or end some after what they hold has moved.

        Raises:
            OSError: The scheduler is not there.
            TimeoutError: It, or moving, took longer.
        """
        self._revive()
        surplus = len(self._slots) - num_workers
        if surplus <= 0:
            self._add(-surplus)
            return
        leaving = await self._asking.retire(self._slots, surplus, timeout_s=timeout_s)
        for name in leaving:
            del self._slots[name]
            self._processes.forget(f"worker {name}")
            self._stop(str(name), in_peace=True)

    def _revive(self) -> None:
        """Give what was given up another chance: its user may have mended it."""
        for name in {self._scheduler_host, *self._spec.hosts}:
            if self._reopens.is_given_up(f"host {name}"):
                self._reopens.forget(f"host {name}")
                self._spawn(self._reopen(name, 0.0))
        if self._processes.is_given_up(SCHEDULER):
            self._processes.forget(SCHEDULER)
            self._start_scheduler()
        for worker in self._slots:
            if self._processes.is_given_up(f"worker {worker}"):
                self._processes.forget(f"worker {worker}")
                self._start_worker(worker)

    async def logs(self, num_lines: int, *, timeout_s: float) -> dict[str, str]:
        """Return the last lines of all that answer in time, and of those that ended."""
        asking = [host.logs(num_lines) for host in self._hosts.values()]
        answers = await asyncio.gather(
            *(asyncio.wait_for(a, timeout_s) for a in asking), return_exceptions=True
        )
        found = dict(self._tails)
        for answer in answers:
            if isinstance(answer, dict):
                found.update(answer)
        wanted = {SCHEDULER, *map(str, self._slots)}
        return {name: text for name, text in found.items() if name in wanted}

    async def close(self) -> None:
        """End everything on all hosts; bounded in time."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*(host.close() for host in self._hosts.values()))

    # Hosts

    async def _open_all(self) -> None:
        names = list(dict.fromkeys([self._scheduler_host, *self._spec.hosts]))

        async def open_one(name: str) -> None:
            await self._open(name)
            missing = [name for name in names if name not in self._hosts]
            self.stage = f"connecting to {', '.join(missing)}"

        self.stage = f"connecting to {', '.join(names)}"
        failed: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(open_one(name))
        except BaseExceptionGroup as errors:
            failed = errors.exceptions[0]
        if failed is not None:
            raise failed

    async def _open(self, name: str) -> None:
        spec = self._spec
        host = Host(
            HostOptions(
                name=name,
                connect=connect_keywords(spec),
                python=spec.remote_python or sys.executable,
                lease_s=float(spec.lease_s),
                hello=hello(
                    spec, self._certificates, serves=name == self._scheduler_host
                ),
            ),
            lambda event: self._on_event(name, event),
        )
        try:
            await host.open()
        except BaseException:
            await host.close(in_peace=False)
            raise
        self._hosts[name] = host

    def _check_reach(self) -> None:
        own = self._hosts[self._scheduler_host]
        for host in self._hosts.values():
            if _is_loopback(own.address) != _is_loopback(host.address):
                raise StartError(
                    f"the scheduler's host {own.name!r} is {own.address} and host "
                    f"{host.name!r} is {host.address}: one is this machine's loopback, "
                    "which the other cannot reach; name both by their network addresses",
                    kind="ssh",
                )

    async def _reopen(self, name: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        try:
            async with asyncio.timeout(_REOPEN_S):
                await self._open(name)
        except (StartError, TimeoutError) as error:
            self._host_lost(name, str(error) or "no answer")
            return
        self._reopens.began(f"host {name}", now_s=time.monotonic())
        if name == self._scheduler_host:
            self._start_scheduler()
        self._start_workers()

    def _host_lost(self, name: str, why: str) -> None:
        host = self._hosts.pop(name, None)
        if host is not None:
            self._spawn(host.close(in_peace=False))
        lost = [p for p, where in self._running.items() if where == name]
        for process in lost:
            del self._running[process]
        if name == self._scheduler_host:
            self._scheduler_down()
        elif lost and self._up.is_set():
            self._spawn(self._drop({int(process) for process in lost}))
        delay_s = self._reopens.ended(f"host {name}", now_s=time.monotonic(), why=why)
        if delay_s is not None:
            self._spawn(self._reopen(name, delay_s))

    # Processes

    def _on_event(self, host: str, event: dict[str, Any]) -> None:
        if self._closing:
            return
        match event["event"]:
            case "address":
                self._asking.address = event["address"]
                self._up.set()
                if self._spec.dashboard:
                    self._spawn(self._forward_dashboard())
                self._start_workers()
            case "ended":
                self._on_end(host, event)
            case "lost":
                why = "the connection, or Python there, ended"
                if not self._started:
                    lines = (
                        self._hosts[host].last_lines() if host in self._hosts else ""
                    )
                    self._fail(StartError(f"host {host!r}: {why}{lines}", kind="ssh"))
                    return
                self._host_lost(host, why)

    def _on_end(self, host: str, event: dict[str, Any]) -> None:
        name, code, tail = event["name"], event["code"], event["tail"]
        self._running.pop(name, None)
        self._tails[name] = tail
        is_scheduler = name == SCHEDULER
        what = SCHEDULER if is_scheduler else f"worker {name}"
        why = f"it ended on host {host!r} with exit code {code}"
        if not self._started:
            text = f"{what}: {why}; its last lines:\n{tail}"
            self._fail(StartError(text, kind="ssh"))
            return
        if is_scheduler:
            self._scheduler_down()
        elif int(name) not in self._slots or not self._up.is_set():
            return  # not wanted, or started once the scheduler is there again
        delay_s = self._processes.ended(what, now_s=time.monotonic(), why=why)
        if delay_s is not None:
            start = self._start_scheduler
            self._spawn(
                _later(
                    delay_s,
                    start if is_scheduler else lambda: self._start_worker(int(name)),
                )
            )

    def _scheduler_down(self) -> None:
        self._up.clear()
        for name in list(self._running):
            if name != SCHEDULER:
                self._stop(name, in_peace=False)

    def _start_scheduler(self) -> None:
        host = self._hosts.get(self._scheduler_host)
        if host is None or SCHEDULER in self._running:
            return
        spec = self._spec
        port = self.address.rpartition(":")[2] or str(spec.scheduler_port)
        self._running[SCHEDULER] = host.name
        self._processes.began(SCHEDULER, now_s=time.monotonic())
        host.send(
            op="start",
            name=SCHEDULER,
            address_file="scheduler.json",
            arguments=scheduler_arguments(spec, host.address, port),
        )

    def _start_workers(self) -> None:
        for name in self._slots:
            self._start_worker(name)

    def _start_worker(self, name: int) -> None:
        text = str(name)
        if name not in self._slots or text in self._running or not self._up.is_set():
            return
        if self._processes.is_given_up(f"worker {name}"):
            return
        host = self._hosts.get(self._spec.hosts[self._slots[name]])
        if host is None:
            return
        now_s = time.monotonic()
        self._running[text] = host.name
        self._seen_s[text] = now_s
        self._processes.began(f"worker {name}", now_s=now_s)
        arguments = worker_arguments(self._spec, self.address, host.address, text)
        host.send(op="start", name=text, arguments=arguments)

    def _add(self, num_workers: int) -> None:
        for _ in range(num_workers):
            taken = list(self._slots.values())
            slots = range(len(self._spec.hosts))
            self._slots[self._next] = min(slots, key=taken.count)
            self._next += 1
        self._start_workers()

    def _stop(self, name: str, *, in_peace: bool) -> None:
        host = self._hosts.get(self._running.get(name, ""))
        if host is not None:
            host.send(op="stop", name=name, in_peace=in_peace)

    # Watching

    async def _all_joined(self) -> None:
        while True:
            missing = set(self._slots) - await self._asking.worker_names()
            if not missing:
                return
            where = sorted({self._spec.hosts[self._slots[name]] for name in missing})
            self.stage = f"waiting for {len(missing)} workers on {', '.join(where)}"
            await asyncio.sleep(_POLL_S)  # polling a condition; start() has a deadline

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            with contextlib.suppress(OSError, TimeoutError):
                there = await self._asking.worker_names()
                now_s = time.monotonic()
                for name in list(self._running):
                    if name == SCHEDULER or int(name) in there:
                        self._seen_s[name] = now_s
                    elif now_s - self._seen_s[name] > self._stuck_s:
                        self._stop(name, in_peace=False)

    async def _drop(self, names: set[int]) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            await self._asking.drop(names)

    async def _forward_dashboard(self) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            port = await self._asking.dashboard_port()
            self.dashboard_port = await self._hosts[self._scheduler_host].forward(port)

    async def _until_failure(self, work: Awaitable[object]) -> None:
        task = asyncio.ensure_future(work)
        try:
            waiting: set[asyncio.Future[Any]] = {task, self._failure}
            await asyncio.wait(waiting, return_when="FIRST_COMPLETED")
            if self._failure.done():
                self._failure.result()
            task.result()
        finally:
            task.cancel()

    def _fail(self, error: Exception) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)
            self._failure.exception()  # seen: later ones need not wait for it

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _later(delay_s: float, do: Callable[[], None]) -> None:
    await asyncio.sleep(delay_s)
    do()


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
