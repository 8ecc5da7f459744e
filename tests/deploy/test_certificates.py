"""The script that makes certificates by hand, read back by OpenSSL and by Python."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.deploy.certified import make_certificates
from tests.deploy.manifests import overlay

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="NO OPENSSL: certificates were not made")


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates") / "pem"
    make_certificates(directory, "etcd.example.org", "192.0.2.7")
    return directory


def verified(certificate: Path, authority: Path, purpose: str) -> bool:
    command: list[str | Path] = [
        "openssl",
        "verify",
        "-x509_strict",
        "-purpose",
        purpose,
        "-CAfile",
        authority,
        certificate,
    ]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "authority", "purposes"),
    [
        ("peer", "peer-ca", {"sslserver", "sslclient"}),
        ("server", "client-ca", {"sslserver"}),
        ("upkeep", "client-ca", {"sslclient"}),
        ("client", "client-ca", {"sslclient"}),
    ],
)
def test_a_certificate_is_good_for_its_purpose_and_no_other(
    pem: Path, name: str, authority: str, purposes: set[str]
) -> None:
    good = {
        (ca, purpose)
        for ca in ("peer-ca", "client-ca")
        for purpose in ("sslserver", "sslclient")
        if verified(pem / f"{name}.crt", pem / f"{ca}.crt", purpose)
    }
    assert good == {(authority, purpose) for purpose in purposes}


@pytest.mark.parametrize(("name", "issued"), [("peer", "etcd-peer"), ("server", "etcd-server")])
def test_it_has_the_names_that_cert_manager_would_give(pem: Path, name: str, issued: str) -> None:
    command: list[str | Path] = ["openssl", "x509", "-in", pem / f"{name}.crt", "-noout", "-ext", "subjectAltName"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wanted = set(overlay("production").get("Certificate", issued)["spec"]["dnsNames"])
    assert set(re.findall(r"DNS:([^,\s]+)", said)) == wanted | ({"etcd.example.org"} if name == "server" else set())
    assert re.findall(r"IP Address:([^,\s]+)", said) == (["192.0.2.7"] if name == "server" else [])


def test_nobody_else_can_read_a_key(pem: Path) -> None:
    assert stat.S_IMODE(pem.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in pem.iterdir()}
    assert len(modes) == 12
    assert set(modes.values()) == {0o600}


def test_a_second_run_makes_what_is_missing_and_leaves_the_rest(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "client.crt").unlink()
    (tmp_path / "client.key").unlink()
    assert "client.crt" in make_certificates(tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"client.crt", "client.key"}
    assert verified(tmp_path / "client.crt", tmp_path / "client-ca.crt", "sslclient")
