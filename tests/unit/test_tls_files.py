"""Certificates that `connect` finds by itself."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from skyward_etcd import config
from skyward_etcd.active import Tls, connect
from skyward_etcd.errors import Unavailable
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.address import Address
from skyward_etcd.wire.client import Wire


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


@pytest.fixture(params=["resets", "closes"])
def deaf(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of one who speaks no TLS, and hangs up on whoever does."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            for _ in range(2):
                with contextlib.suppress(OSError):
                    caller, _ = server.accept()
                    with caller:
                        caller.recv(1)
                        if request.param == "resets":
                            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_who_hangs_up_in_the_handshake_may_speak_no_tls(deaf: str) -> None:
    authority = trustme.CA()
    with contextlib.closing(Wire((deaf,), tls=Tls(authority.cert_pem.bytes()), transport="sockets")) as wire:
        read = pb.RangeRequest(key=b"k")
        with pytest.raises(Unavailable, match="there is no TLS at this address"):
            wire.call(methods.RANGE, read, timeout_s=5.0)
        with pytest.raises(Unavailable, match="there is no TLS at this address"):
            asyncio.run(wire.call_async(methods.RANGE, read, timeout_s=5.0))


def test_a_connection_that_is_reset_before_the_handshake_leaves_no_socket_behind() -> None:
    authority = trustme.CA()
    address = Address.parse("https://localhost:1")
    with socket.create_server(("127.0.0.1", 0)) as server, warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always", ResourceWarning)
        with socket.create_connection(server.getsockname()) as plain:
            caller, _ = server.accept()
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            caller.close()
            with pytest.raises(OSError, match="not connected"):
                address.secured(plain, Tls(authority.cert_pem.bytes()))
        gc.collect()
    assert left == []
