"""Certificates that `connect` finds by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyward_etcd import config
from skyward_etcd.active import Tls, connect


def test_certificates_are_read_from_the_files_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("CA", b"ca"), ("CERTIFICATE", b"certificate"), ("KEY", b"key")):
        path = tmp_path / name
        path.write_bytes(content)
        monkeypatch.setenv(f"SKYWARD_ETCD_TLS_{name}", str(path))
    assert connect(["https://h:1"])._session()._tls == Tls(b"ca", b"certificate", b"key")
    own = Tls(b"another")
    assert connect(["https://h:1"], tls=own)._session()._tls is own


def test_a_ca_alone_is_enough_and_nothing_is_read_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYWARD_ETCD_TLS_KEY", str(tmp_path / "missing"))
    assert config.tls_files() is None
    monkeypatch.delenv("SKYWARD_ETCD_TLS_KEY")
    monkeypatch.setenv("SKYWARD_ETCD_TLS_CA", str(tmp_path / "ca"))
    with pytest.raises(FileNotFoundError):
        connect(["https://h:1"])
    (tmp_path / "ca").write_bytes(b"ca")
    assert connect(["https://h:1"])._session()._tls == Tls(b"ca")
