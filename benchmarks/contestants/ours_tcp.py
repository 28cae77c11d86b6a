"""dask_loader over a network: the cluster on a host of its own, as far as Linux lets it.

As root the scheduler and the workers run in network, process, mount and IPC namespaces
of their own, with a /dev/shm of their own, on the other end of a virtual cable: they
cannot open the consumer's memory. Everything ends with the first process in there.
Elsewhere it is a local cluster that is told to hand over through Dask's own comm.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from distributed import Client

import cluster
from contestants.ours import epochs
from contestants.serve import Case, Epoch, serve

_PORT = 8786
_START_S = 60
# Read by dask_loader when a dataset is made.
_HAND_OVER = ("DASK_LOADER_HAND_OVER", "comm")
_NAMESPACES = ["--net", "--pid", "--mount", "--ipc", "--fork", "--kill-child"]
# Runs in there. It writes a line when the namespaces exist, and reads one when the cable
# does.
_HOST = """
set -e
echo there
exec >&2
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
read _
ip addr add {address}/30 dev eth0
ip link set eth0 up
cd {folder}
{python} -m dask scheduler --host {address} --port {port} --no-dashboard &
exec {python} -m dask worker tcp://{address}:{port} --nworkers {workers} --nthreads 1 \\
    --no-dashboard --local-directory {folder}
"""


@contextmanager
def over_tcp(case: Case) -> Iterator[Epoch]:
    """Read on a cluster that shares no memory with this process."""
    with ExitStack() as stack:
        if os.geteuid() == 0 and shutil.which("ip") and shutil.which("unshare"):
            address = stack.enter_context(_other_host())
        else:
            name, value = _HAND_OVER
            os.environ[name] = value
            workers = len(os.sched_getaffinity(0))
            launched = stack.enter_context(cluster.launch("local", workers=workers))
            address = launched.address
            print(f"no root: {name}={value} on a local cluster", file=sys.stderr)
        yield stack.enter_context(epochs(case, address))


@contextmanager
def _other_host() -> Iterator[str]:
    """Start a scheduler and workers in namespaces; return the scheduler's address."""
    workers = len(os.sched_getaffinity(0))
    number = os.getpid() % (64 * 256)  # a subnet of four addresses for each process
    here, there = (f"10.213.{number // 64}.{number % 64 * 4 + i}" for i in (1, 2))
    cable = f"bench{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        script = _HOST.format(
            address=there,
            port=_PORT,
            python=shlex.quote(sys.executable),
            workers=workers,
            folder=shlex.quote(folder),
        )
        host = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--mount-proc", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert host.stdin is not None
        assert host.stdout is not None
        try:
            if not host.stdout.readline():
                raise OSError(f"unshare {' '.join(_NAMESPACES)} failed; see above")
            _ip(f"link add {cable} type veth peer name eth0 netns {host.pid}")
            _ip(f"addr add {here}/30 dev {cable}")
            _ip(f"link set {cable} up")
            host.stdin.write(b"\n")
            host.stdin.flush()
            address = f"tcp://{there}:{_PORT}"
            with Client(address, timeout=_START_S, set_as_default=False) as client:
                client.wait_for_workers(workers, timeout=_START_S)
            yield address
        finally:
            host.kill()  # and with it, by --kill-child, all of the namespace
            host.wait()
            host.stdout.close()
            with suppress(BrokenPipeError):
                host.stdin.close()


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


if __name__ == "__main__":
    serve(over_tcp)
