"""Certificates that `connect` finds by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from skyward_etcd import config
from skyward_etcd.active import Tls, connect


def make(directory: Path, name: str = "client") -> Tls:
    """Write the files of a client under an authority of its own, and return what is in them."""
    authority = trustme.CA()
    issued = authority.issue_cert(name)
    made = Tls(authority.cert_pem.bytes(), issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes())
    for file, content in (("CA", made.ca), ("CERTIFICATE", made.certificate), ("KEY", made.key)):
        (directory / file).write_bytes(content or b"")
    return made


def test_certificates_are_read_from_the_files_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path)
    for name in ("CA", "CERTIFICATE", "KEY"):
        monkeypatch.setenv(f"SKYWARD_ETCD_TLS_{name}", str(tmp_path / name))
    assert connect(["https://h:1"])._session()._tls == made
    own = Tls(made.ca)
    assert connect(["https://h:1"], tls=own)._session()._tls is own


def test_a_ca_alone_is_enough_and_nothing_is_read_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYWARD_ETCD_TLS_CA", "")
    assert config.tls_files() is None
    monkeypatch.setenv("SKYWARD_ETCD_TLS_CA", str(tmp_path / "CA"))
    with pytest.raises(FileNotFoundError):
        connect(["https://h:1"])
    made = make(tmp_path)
    assert connect(["https://h:1"])._session()._tls == Tls(made.ca)


def test_what_is_no_certificate_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
        make(directory)
    with pytest.raises(ValueError, match=r"first/CERTIFICATE.*second/KEY.*certificate and key do not go together"):
        Tls.of_files(first / "CA", first / "CERTIFICATE", second / "KEY")
    with pytest.raises(ValueError, match=r"first/KEY.*not PEM certificates"):
        Tls.of_files(first / "KEY")
    with pytest.raises(ValueError, match="both files, or neither"):
        Tls.of_files(first / "CA", first / "CERTIFICATE")
    with pytest.raises(ValueError, match=r"tls=Tls\(ca=…"):
        connect(["https://h:1"], tls=Tls(b"no certificate"))


def test_a_key_with_a_password_is_refused_without_asking_for_it(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    made = make(tmp_path)
    key = load_pem_private_key(made.key or b"", password=None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    (tmp_path / "KEY").write_bytes(locked)
    with pytest.raises(ValueError, match="the key is encrypted"):
        Tls.of_files(*(tmp_path / name for name in ("CA", "CERTIFICATE", "KEY")))


def test_no_key_shows_in_what_is_printed(tmp_path: Path) -> None:
    made = make(tmp_path)
    followed = Tls.of_files(*(tmp_path / name for name in ("CA", "CERTIFICATE", "KEY")))
    assert followed == made
    for shown in (repr(made), repr(followed), repr(followed.latest())):
        assert "PRIVATE" not in shown
