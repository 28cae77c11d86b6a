"""Certificates of a cluster's own: made here, valid nowhere else.

    folder = cluster.create_certificates("certs")      # once, for long-lived clusters
    c = cluster.connect("tls://scheduler:8786", cluster.load_certificates("certs"))

Each role gets a key of its own, signed by an authority that is thrown away: nobody can
sign another. A client's certificate cannot pass for a scheduler's. Host names are not in
them, as Dask does not look at those: who has a certificate is trusted.

distributed.Security.temporary() has one key and one certificate for all the roles, which
is its own authority: whoever may connect could also sign.
"""

from __future__ import annotations

import datetime
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distributed.security import Security

from cluster.errors import SpecError
from cluster.keys import write_private
from cluster.spec import check_count

ROLES = ("scheduler", "worker", "client")
# Clocks of hosts differ; a certificate that is not valid yet is refused.
_BACKDATED = datetime.timedelta(days=1)
# A cluster made for one program outlives no program.
_TEMPORARY_DAYS = 90


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Certificates:
    """The authority's certificate, and certificate and key of each role, as PEM text.

    The repr is without them, so that no log has a key.

    Attributes:
        ca: What all of them check the others by.
        certs: By role.
        keys: By role; whoever has one is let in.
    """

    ca: str
    certs: Mapping[str, str]
    keys: Mapping[str, str]

    def files(self, *roles: str) -> dict[str, str]:
        """Return file names and contents of what these roles need."""
        files = {"ca.pem": self.ca}
        for role in roles:
            files[f"{role}.pem"] = self.certs[role]
            files[f"{role}-key.pem"] = self.keys[role]
        return files

    def client_security(self) -> Security:
        """Return what a client needs, in memory: it pickles, and needs no files."""
        return Security(
            tls_ca_file=self.ca,
            tls_client_cert=self.certs["client"],
            tls_client_key=self.keys["client"],
            require_encryption=True,
        )


def make_certificates(*, days: int = _TEMPORARY_DAYS) -> Certificates:
    """Make new ones, in memory only.

    Raises:
        SpecError: The package cryptography is missing.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError as error:
        raise SpecError(
            "certificates are made by the package cryptography, which is not installed; "
            "install it (pip install cryptography)"
        ) from error
    now = datetime.datetime.now(datetime.UTC)
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dask cluster")])

    def sign(
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        usage: list[x509.ObjectIdentifier],
    ) -> str:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=not usage, path_length=None), True)
        )
        if usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), False)
        signed = builder.sign(authority, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM).decode()

    certs, keys = {}, {}
    for role in ROLES:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role != "client":
            usage.append(ExtendedKeyUsageOID.SERVER_AUTH)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)])
        certs[role] = sign(name, key, usage=usage)
        keys[role] = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()
    return Certificates(ca=sign(issuer, authority, usage=[]), certs=certs, keys=keys)


def create_certificates(folder: str | os.PathLike[str], *, days: int = 365) -> Path:
    """Make certificates for a long-lived cluster, in a folder that only you can read.

    Args:
        folder: Made if it is not there; must be empty.
        days: How long they are valid.

    Returns:
        The folder: ca.pem, and ROLE.pem and ROLE-key.pem of scheduler, worker, client.

    Raises:
        SpecError: It is not empty or no folder, or days is no number of days.
    """
    check_count("days", days, at_least=1)
    path = Path(folder)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = sorted(os.listdir(path))
    except OSError as error:
        raise SpecError(f"folder={str(path)!r} cannot be used: {error}") from error
    if taken:
        raise SpecError(
            f"folder={str(path)!r} is not empty ({taken[0]!r} is in it); certificates in "
            "use are never overwritten: give a new folder"
        )
    made = make_certificates(days=days)
    path.chmod(0o700)
    write_private(path, made.files(*ROLES))
    return path


def read_certificates(folder: str | os.PathLike[str]) -> Certificates:
    """Read what create_certificates() wrote.

    Raises:
        SpecError: A file is missing, or a key can be read by others.
    """
    path = Path(folder)
    return Certificates(
        ca=_read(path / "ca.pem"),
        certs={role: _read(path / f"{role}.pem") for role in ROLES},
        keys={role: _read_key(path / f"{role}-key.pem") for role in ROLES},
    )


def load_certificates(folder: str | os.PathLike[str]) -> Security:
    """Read what a client needs: ca.pem, client.pem and client-key.pem.

    Returns:
        For connect(), or any distributed.Client.

    Raises:
        SpecError: A file is missing, or the key can be read by others.
    """
    path = Path(folder)
    return Certificates(
        ca=_read(path / "ca.pem"),
        certs={"client": _read(path / "client.pem")},
        keys={"client": _read_key(path / "client-key.pem")},
    ).client_security()


def _read(path: Path) -> str:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"{str(path)!r} cannot be read ({error}); certificates are made by "
            "cluster.create_certificates()"
        ) from error
    if not re.match(r"-----BEGIN [A-Z ]+-----\n", text):
        raise SpecError(f"{str(path)!r} is not a certificate or key in PEM form")
    return text


def _read_key(path: Path) -> str:
    text = _read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise SpecError(
            f"{str(path)!r} can be read by others (mode {mode:04o}), who could then run "
            "code in the cluster; chmod 600 it, or make new certificates"
        )
    return text
