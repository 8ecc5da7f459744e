"""Certificates for a cluster whose members and clients are on several machines: made in memory, written for etcd only.

There are two authorities. With a single one, a worker's client certificate would be accepted on the peers' port.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skyward_etcd.cluster import private
from skyward_etcd.errors import PoolError
from skyward_etcd.wire.tls import Tls

__all__ = ["LIFETIME", "Authorities", "Authority", "MemberFiles", "make", "write"]

LIFETIME = dt.timedelta(days=397)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs certificates: its own, and its key, in PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Authorities:
    """What a cluster's certificates are signed by. Who has these is one of its nodes."""

    peers: Authority
    clients: Authority

    def client(self, name: str, *, lifetime: dt.timedelta = LIFETIME) -> Tls:
        """Issue what a client of this name needs: for its own process, or for those who start it."""
        certificate, key = _issue(self.clients, name, (), lifetime)
        return Tls(self.clients.certificate, certificate, key)


@dataclass(frozen=True, slots=True)
class MemberFiles:
    """A directory with what etcd reads of a member's certificates."""

    directory: Path

    def flags(self) -> dict[str, str]:
        """Return etcd's options: nobody is let in without a certificate of the right authority."""
        options = {"client-cert-auth": "true", "peer-client-cert-auth": "true"}
        for prefix, role in (("", "client"), ("peer-", "peer")):
            for option, end in (("trusted-ca-file", "ca.crt"), ("cert-file", "crt"), ("key-file", "key")):
                options[f"{prefix}{option}"] = str(self.directory / f"{role}.{end}")
        return options


def make() -> Authorities:
    """Make two fresh authorities, in some milliseconds.

    Raises:
        PoolError: the package ``cryptography`` is not installed.
    """
    return Authorities(_authority("skyward-etcd peers"), _authority("skyward-etcd clients"))


def write(
    authorities: Authorities, directory: Path, name: str, hosts: Sequence[str], *, lifetime: dt.timedelta = LIFETIME
) -> MemberFiles:
    """Issue a member's certificates for the addresses at which it is reached, and write them where only we can read.

    A member that runs takes what it finds there at each handshake, but for the authorities: these it reads once.
    """
    private.directory(directory)
    names = (*dict.fromkeys((*hosts, *_LOOPBACK)),)
    for role, authority in (("client", authorities.clients), ("peer", authorities.peers)):
        certificate, key = _issue(authority, name, names, lifetime)
        private.write(directory / f"{role}.ca.crt", authority.certificate)
        private.write(directory / f"{role}.key", key)
        private.write(directory / f"{role}.crt", certificate)
    return MemberFiles(directory)


# --- by the package cryptography, which only who makes certificates needs


def _x509() -> Any:
    try:
        from cryptography import x509
    except ImportError as error:
        raise PoolError(
            "certificates for several machines are made with the package cryptography, which is not installed: "
            "pip install 'skyward-etcd[tls]'"
        ) from error
    return x509


def _authority(name: str) -> Authority:
    x509 = _x509()
    from cryptography.hazmat.primitives import hashes

    key, subject = _key(), _named(name)
    usage = _usage(x509, key_cert_sign=True, crl_sign=True)
    certificate = (
        _certificate(subject, subject, key.public_key(), LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(_pem(certificate), _secret(key))


def _issue(authority: Authority, name: str, hosts: Sequence[str], lifetime: dt.timedelta) -> tuple[bytes, bytes]:
    """Return a certificate and its key. It serves for both ends: etcd calls itself with its server's."""
    x509 = _x509()
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer = x509.load_pem_x509_certificate(authority.certificate)
    key = _key()
    signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    draft = (
        _certificate(_named(name), issuer.subject, key.public_key(), lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(x509, digital_signature=True), critical=True)
        .add_extension(both, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(signed_by, critical=False)
    )
    if hosts:
        draft = draft.add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
    signing: Any = load_pem_private_key(authority.key, password=None)
    return _pem(draft.sign(signing, hashes.SHA256())), _secret(key)


def _certificate(subject: Any, issuer: Any, public_key: Any, lifetime: dt.timedelta) -> Any:
    x509, now = _x509(), dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))  # the machines' clocks differ
        .not_valid_after(now + lifetime)
    )


def _usage(x509: Any, **given: bool) -> Any:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    signing = ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**dict.fromkeys((*names, *signing), False) | given)


def _named(name: str) -> Any:
    x509 = _x509()
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _alternative(host: str) -> Any:
    x509 = _x509()
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key() -> Any:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    return generate_private_key(SECP256R1())


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _secret(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
