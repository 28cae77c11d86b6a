"""https:// with a certificate that no system trusts, which storage_options lead to."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import TCPConnector
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dask_loader import DataLoader, ParquetDataset
from dask_loader.errors import StorageError
from tests.remote.conftest import parquet
from tests.remote.servers import RangeServer, serving


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of this machine's loopback with its key, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def web(tmp_path: Path, certificate: Path) -> Iterator[str]:
    folder = tmp_path / "web"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.parquet").write_bytes(parquet(number * 1200))
    server = RangeServer(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    with serving(server):
        yield server.url.replace("http:", "https:")


async def trusting(path: str, **options: Any) -> aiohttp.ClientSession:
    """Make a session; this travels to other processes, which an SSLContext cannot."""
    context = ssl.create_default_context(cafile=path)
    return aiohttp.ClientSession(connector=TCPConnector(ssl=context), **options)


def read(url: str, options: dict[str, Any] | None, num_workers: int = 0) -> list[int]:
    with ParquetDataset(
        [f"{url}/{number}.parquet" for number in range(2)],
        columns=["id"],
        client="threads",
        footer_cache=False,
        batch_size=400,
        storage_options=options,
    ) as ds:
        loader = DataLoader(ds, num_workers=num_workers)
        return [i for batch in loader for i in batch["id"].tolist()]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_server_is_read_whose_certificate_the_options_trust(
    web: str, certificate: Path, num_workers: int
) -> None:
    options = {"get_client": partial(trusting, str(certificate))}
    assert read(web, options, num_workers) == list(range(2400))


def test_a_certificate_that_nobody_trusts_is_named(web: str) -> None:
    with pytest.raises(StorageError, match="CERTIFICATE_VERIFY_FAILED"):
        read(web, None)
