"""Certificates: who may be what, who may read them, what is never overwritten."""

from __future__ import annotations

import datetime
import pickle
from pathlib import Path

import pytest

import cluster
from cluster import SpecError
from cluster.security import make_certificates, read_certificates

x509 = pytest.importorskip("cryptography.x509")


def test_a_folder_of_certificates_is_for_its_owner_only(tmp_path: Path) -> None:
    folder = cluster.create_certificates(tmp_path / "new" / "certs", days=30)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        name: 0o600
        for role in ("scheduler", "worker", "client")
        for name in ("ca.pem", f"{role}.pem", f"{role}-key.pem")
    }
    made = read_certificates(folder)
    assert len(set(made.keys.values())) == 3
    assert "BEGIN" not in repr(made)
    security = pickle.loads(pickle.dumps(cluster.load_certificates(folder)))
    assert security.get_tls_config_for_role("client")["key"] == made.keys["client"]
    assert security.require_encryption
    assert "PRIVATE" not in repr(security)


def test_a_client_cannot_pass_for_a_scheduler_and_nobody_signs_another() -> None:
    made = make_certificates(days=30)
    now = datetime.datetime.now(datetime.UTC)
    authority = x509.load_pem_x509_certificate(made.ca.encode())
    for role, text in made.certs.items():
        cert = x509.load_pem_x509_certificate(text.encode())
        cert.verify_directly_issued_by(authority)
        usage = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        serves = x509.oid.ExtendedKeyUsageOID.SERVER_AUTH in usage
        assert serves == (role != "client")
        basic = cert.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert basic.ca is False
        assert cert.not_valid_before_utc < now - datetime.timedelta(hours=23)
        left = cert.not_valid_after_utc - now
        assert datetime.timedelta(days=29) < left <= datetime.timedelta(days=30)


def test_what_is_in_use_is_never_overwritten(tmp_path: Path) -> None:
    folder = cluster.create_certificates(tmp_path)
    before = read_certificates(folder)
    with pytest.raises(SpecError, match=r"is not empty \('ca\.pem' is in it\)"):
        cluster.create_certificates(tmp_path)
    assert read_certificates(folder) == before


def test_a_target_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", "/dev/null/below"):
        with pytest.raises(SpecError, match=r"folder='.*' cannot be used: .*"):
            cluster.create_certificates(wrong)
    with pytest.raises(SpecError, match="days=0 must be a whole number, at least 1"):
        cluster.create_certificates(tmp_path / "new", days=0)
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"ca\.pem' cannot be read \(.*No such file"):
        cluster.load_certificates(tmp_path)
    folder = cluster.create_certificates(tmp_path / "certs")
    (folder / "client-key.pem").chmod(0o640)
    with pytest.raises(
        SpecError, match=r"-key\.pem' can be read by others \(mode 0640"
    ):
        cluster.load_certificates(folder)
    (folder / "client.pem").write_text("hello")
    with pytest.raises(SpecError, match=r"client\.pem' is not a certificate or key in"):
        cluster.load_certificates(folder)
