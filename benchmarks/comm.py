"""What it costs to take a window over from another process, byte for byte.

Three ways on loopback, in turn: Dask's own comm with a parcel of out-of-band buffers (what
the package does), the same with TLS, by certificates as `cluster` makes them, and a plain
socket read into memory that is used again (what a data plane of our own would do at best).
The receiver sums nothing and the sender decodes
nothing: only the way is measured. Prints GB/s and CPU seconds per GB of both ends.

    python benchmarks/comm.py --windows 40
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
from distributed import Security
from distributed.comm.core import connect, listen
from distributed.protocol.serialize import Serialize

from cluster.security import make_certificates
from dask_loader.catalog.forms import Form
from dask_loader.transfer.parcel import Parcel
from dask_loader.transfer.window import WindowData, block_bytes, lay_out

_ROWS = 380_000
_DTYPES = ("float32", "int32", "float64", "int64", "int16")
_FORMS = [Form(f"c{i}", _DTYPES[i % 5]) for i in range(40)]
_BYTES = block_bytes(_FORMS, _ROWS)


def main() -> int:
    """Measure all ways and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=40, help="in a round")
    parser.add_argument("--rounds", type=int, default=5, help="that count")
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {}
    security = make_security()
    tls_send = partial(send_comm, security=security)
    tls_receive = partial(receive_comm, security=security)
    for number in range(args.rounds + 1):
        for name, send, receive in (
            ("Dask comm, fresh buffers", send_comm, receive_comm),
            ("Dask comm with TLS", tls_send, tls_receive),
            ("plain socket, one buffer used again", send_raw, receive_raw),
        ):
            taken = measure(send, receive, args.windows)
            if number:  # the first warms up
                found.setdefault(name, []).append(taken)
    gb = args.windows * _BYTES / 1e9
    report = {
        name: {
            "gb_s": gb / statistics.median(wall for wall, _, _ in runs),
            "receiver_cpu_s_gb": statistics.median(cpu for _, cpu, _ in runs) / gb,
            "sender_cpu_s_gb": statistics.median(cpu for _, _, cpu in runs) / gb,
        }
        for name, runs in found.items()
    }
    print(json.dumps(report, indent=2))
    return 0


def measure(
    send: Callable[[Connection, int], None],
    receive: Callable[[str, int], None],
    windows: int,
) -> tuple[float, float, float]:
    """Return wall seconds, and CPU seconds of the receiver and of the sender."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=send, args=(theirs, windows))
    process.start()
    address = ours.recv()
    began, cpu = time.perf_counter(), time.process_time()
    receive(address, windows)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    sender_cpu = ours.recv()
    process.join()
    return wall, cpu, sender_cpu


def make_window() -> WindowData:
    """Return a window like those of the tabular set, in memory that was touched."""
    block = np.ones(_BYTES, dtype=np.uint8)
    return WindowData(_ROWS, lay_out(_FORMS, _ROWS, block))


def make_security() -> Security:
    """Return what both ends need for TLS, in memory."""
    made = make_certificates()
    return Security(
        tls_ca_file=made.ca,
        tls_scheduler_cert=made.certs["scheduler"],
        tls_scheduler_key=made.keys["scheduler"],
        tls_client_cert=made.certs["client"],
        tls_client_key=made.keys["client"],
        require_encryption=True,
    )


def send_comm(pipe: Connection, windows: int, security: Security | None = None) -> None:
    """Send a parcel for each message."""
    parcel = Parcel(make_window())
    spent = 0.0

    async def serve() -> None:
        done = asyncio.Event()

        async def handle(comm) -> None:  # type: ignore[no-untyped-def]
            nonlocal spent
            before = time.process_time()
            for _ in range(windows):
                await comm.read()
                await comm.write({"window": Serialize(parcel)})
            await comm.read()
            spent = time.process_time() - before
            await comm.close()
            done.set()

        options = {} if security is None else security.get_listen_args("scheduler")
        scheme = "tcp" if security is None else "tls"
        async with listen(f"{scheme}://127.0.0.1:0", handle, **options) as listener:
            pipe.send(listener.contact_address)
            await done.wait()

    asyncio.run(serve())
    pipe.send(spent)


def receive_comm(address: str, windows: int, security: Security | None = None) -> None:
    """Open parcels."""
    options = {} if security is None else security.get_connection_args("client")

    async def ask() -> None:
        comm = await connect(address, **options)
        for _ in range(windows):
            await comm.write("next")
            message = await comm.read()
            message["window"].open()
        await comm.write("done")
        await comm.close()

    asyncio.run(ask())


def send_raw(pipe: Connection, windows: int) -> None:
    """Send the block's bytes for each byte received."""
    memory = bytearray(_BYTES)
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(f"127.0.0.1:{server.getsockname()[1]}")
        connection, _ = server.accept()
        before = time.process_time()
        with connection:
            for _ in range(windows):
                connection.recv(1)
                connection.sendall(memory)
        pipe.send(time.process_time() - before)


def receive_raw(address: str, windows: int) -> None:
    """Read into one block."""
    host, port = address.split(":")
    memory = memoryview(bytearray(_BYTES))
    with socket.create_connection((host, int(port))) as connection:
        for _ in range(windows):
            connection.sendall(b"n")
            at = 0
            while at < len(memory):
                at += connection.recv_into(memory[at:])


if __name__ == "__main__":
    sys.exit(main())
