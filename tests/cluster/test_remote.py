"""Reaching a cluster that someone else runs, and failing to."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cluster
import cluster.lifecycle
from cluster import NotOwnedError, SpecError, UnreachableError

pytestmark = pytest.mark.cluster


@contextmanager
def _listener(greeting: bytes | None) -> Iterator[str]:
    """Something that is no scheduler: it says this to all who come, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                while True:
                    caller, _ = server.accept()
                    with caller:
                        caller.sendall(greeting or b"")
            except OSError:  # closed
                return

        thread = threading.Thread(target=serve)
        if greeting is not None:
            thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            if greeting is not None:
                thread.join(timeout=180)


def _connect_in_vain(address: str, timeout_s: float, text: str) -> UnreachableError:
    threads = set(threading.enumerate())
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=text) as caught:
        cluster.connect(address, timeout_s=timeout_s)
    assert time.monotonic() - began < timeout_s + 5  # slow machines; it is no hang
    # Dask's pool for large messages is one for the life of the process.
    more = {t.name for t in set(threading.enumerate()) - threads}
    assert not {name for name in more if not name.startswith("Dask-Offload")}
    assert caught.value.address == address
    return caught.value


def test_a_dead_port_is_given_up_in_time_and_in_silence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        error = _connect_in_vain(
            address,
            2.0,
            rf"no Dask scheduler answers at {address} after \d\.\d s "
            r"\(ConnectionRefusedError: .*\); check that one runs there, .*"
            "if it is only slow, wait longer than 2 s",
        )
    assert error.waited_s == pytest.approx(2.0, abs=5.0)
    assert capfd.readouterr() == ("", "")


def test_a_port_that_never_answers_is_given_up_in_time() -> None:
    with _listener(None) as address:
        _connect_in_vain(
            address, 0.5, r"\(something listens there, but does not answer\)"
        )


def test_a_server_that_is_no_scheduler_is_told_apart() -> None:
    with _listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        _connect_in_vain(address, 2.0, "no Dask scheduler answers at")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (None, "it is not text"),
        (8786, "it is not text"),
        ("", "missing port number"),
        ("tcp://host", "missing port number"),
        ("tcp://host:port", "invalid literal"),
        ("http://host:8786", "unknown address scheme 'http'"),
        ("inproc://1/2/3", "don't know how to extract host and port"),
    ],
)
def test_what_is_no_address_is_refused(address: object, reason: str) -> None:
    with pytest.raises(
        SpecError,
        match=rf"address={address!r} is not that of a scheduler \({reason}.*\); it looks "
        "like tcp://host:8786 or tls://host:8786",
    ):
        cluster.connect(address)  # type: ignore[arg-type]


def test_tls_without_certificates_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"address='tls://h:1' needs certificates: pass"
    ):
        cluster.connect("tls://h:1")


def test_security_is_checked() -> None:
    with pytest.raises(
        SpecError, match=r"security=True must be a distributed\.Security"
    ):
        cluster.connect("tcp://127.0.0.1:1", security=True)  # type: ignore[arg-type]


def test_the_deadline_is_checked() -> None:
    with pytest.raises(SpecError, match="timeout_s=None must be a number of seconds"):
        cluster.connect("tcp://127.0.0.1:1", timeout_s=None)  # type: ignore[arg-type]


def test_an_address_may_leave_out_tcp(foreign) -> None:
    with cluster.connect(foreign.address.removeprefix("tcp://")) as c:
        c.wait_for_workers(2)
        assert c.client().submit(sum, [1, 2]).result(timeout=180) == 3


def test_it_is_not_ours_to_scale(foreign) -> None:
    with cluster.connect(foreign.address) as c:
        with pytest.raises(
            NotOwnedError,
            match=rf"the cluster at {foreign.address} was not launched by this program, "
            "so it cannot be scaled to 1 workers here; whoever runs it can",
        ):
            c.scale(1)
        c.wait_for_workers(2)


def test_closing_leaves_it_running(foreign) -> None:
    cluster.connect(foreign.address).close()
    with cluster.connect(foreign.address) as c:
        c.wait_for_workers(2)


def test_a_stopped_scheduler_is_an_error_and_not_a_hang(
    start_foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.lifecycle, "_CLIENT_S", 0.5)
    with start_foreign() as own, cluster.connect(own.address) as c:
        c.client()
        own.scheduler.send_signal(signal.SIGSTOP)
        with pytest.raises(UnreachableError, match="something listens there"):
            c.client()
        assert "workers=unknown" in repr(c)


def test_a_scheduler_that_died_is_named(
    start_foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.lifecycle, "_CLIENT_S", 0.5)
    with start_foreign() as own:
        c = cluster.connect(own.address)
        own.scheduler.kill()
        own.scheduler.wait(180)
        text = f"no Dask scheduler answers at {own.address}"
        with pytest.raises(UnreachableError, match=text):
            c.client()
        with pytest.raises(UnreachableError, match=text):
            c.wait_for_workers(1, timeout_s=0.5)
        c.close()


def test_tls_lets_in_who_has_the_certificate_and_no_one_else(
    start_foreign,
    make_certificate: Callable[[str], tuple[str, str]],
    make_security: Callable[..., object],
) -> None:
    cert, key = make_certificate("ours")
    options = ("--tls-ca-file", cert, "--tls-cert", cert, "--tls-key", key)
    with start_foreign(num_workers=1, options=("--protocol", "tls", *options)) as own:
        assert own.address.startswith("tls://")
        security = make_security(cert, key)
        with cluster.connect(own.address, security) as c:
            assert c.security is security
            c.wait_for_workers(1)
            assert c.client().submit(sum, [1, 2]).result(timeout=180) == 3
        stranger = make_security(*make_certificate("stranger"))
        with pytest.raises(UnreachableError, match="certificate"):
            cluster.connect(own.address, stranger, timeout_s=5)
        plain = own.address.replace("tls://", "tcp://")
        with pytest.raises(UnreachableError, match="both sides use TLS or neither"):
            cluster.connect(plain, timeout_s=1)
        with pytest.raises(UnreachableError, match="encryption required"):
            cluster.connect(plain, security, timeout_s=1)


def test_certificates_of_ours_serve_a_cluster_that_is_started_by_hand(
    start_foreign, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography")
    folder = cluster.create_certificates(tmp_path / "certs")
    # The worker's pair serves the scheduler too: both are servers.
    options = ("--protocol", "tls", "--tls-ca-file", str(folder / "ca.pem"))
    pair = (folder / "worker.pem", folder / "worker-key.pem")
    options += ("--tls-cert", str(pair[0]), "--tls-key", str(pair[1]))
    with (
        start_foreign(num_workers=1, options=options) as own,
        cluster.connect(own.address, cluster.load_certificates(folder)) as c,
    ):
        c.wait_for_workers(1)
        assert c.client().submit(sum, [1, 2]).result(timeout=180) == 3
