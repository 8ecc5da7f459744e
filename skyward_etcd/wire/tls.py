"""What lets a client in where the cluster wants TLS: data, or files that may be replaced while it runs."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import tempfile
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

__all__ = ["Tls", "explained", "is_about_certificates", "shaking_hands"]

_log = logging.getLogger("skyward_etcd.wire")


@dataclass(frozen=True)
class Tls:
    """PEM data for a cluster that wants TLS: its client CA (or several, one after the other), our certificate and key.

    What `of_files` returns follows its files: each new connection takes what they hold then.
    """

    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    by_name: bool = field(default=True, kw_only=True)
    """Whether a certificate has to name the address that it was found at; if not, who has signed it is enough."""
    files: _Files | None = field(default=None, kw_only=True, compare=False)
    """Where the data are kept up to date."""

    @classmethod
    def of_files(
        cls,
        ca: str | os.PathLike[str],
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Read PEM files, and take what they hold from then on whenever a connection is made.

        So certificates are renewed by replacing the files, without a restart; connections that are there stay. While
        the files do not fit together (a certificate was replaced, and its key not yet), the last ones that did are
        used, and a warning is logged once.

        Raises:
            OSError: a file cannot be read.
            ValueError: what is in them is no certificate, or no key for it; or one of the two is missing.
        """
        if (certificate is None) != (key is None):
            raise ValueError("a certificate and its key go together: give both files, or neither")
        paths = (Path(ca), *(Path(each) for each in (certificate, key) if each is not None))
        read = cls(*(path.read_bytes() for path in paths), files=_Files(paths))
        read.check()
        return read

    def check(self) -> None:
        """Make sure that the data are certificates, and that certificate and key go together.

        Raises:
            ValueError: they are not, or do not.
        """
        try:
            self._context(ssl.Purpose.SERVER_AUTH)
        except (OSError, ValueError) as error:
            names = ", ".join(map(str, self.files.paths)) if self.files else "tls=Tls(ca=…, certificate=…, key=…)"
            reason = "certificate and key do not go together" if "MISMATCH" in str(error) else _said(error)
            raise ValueError(f"{names}: not PEM certificates with their key: {reason}") from None

    def latest(self) -> Tls:
        """Return what the files hold now, if there are any and they fit together; else what there was last."""
        return self.files.latest(self) if self.files else self

    @property
    def context(self) -> ssl.SSLContext:
        """What verifies the members and shows them who we are."""
        return self.latest()._own_context

    @property
    def http_context(self) -> ssl.SSLContext:
        """The same for plain HTTP, a new one each time."""
        now = self.latest()
        context = now._context(ssl.Purpose.SERVER_AUTH)
        context.check_hostname = now.by_name
        return context

    @cached_property
    def accepting(self) -> ssl.SSLContext:
        """What shows callers who we are, and lets in those only whom the CA has signed."""
        context = self._context(ssl.Purpose.CLIENT_AUTH)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    @cached_property
    def _own_context(self) -> ssl.SSLContext:
        context = self._context(ssl.Purpose.SERVER_AUTH)
        context.check_hostname = self.by_name
        context.set_alpn_protocols(["h2"])
        return context

    def _context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        context = ssl.create_default_context(purpose, cadata=self.ca.decode())
        if not self.by_name:  # nor do such authorities take care of what Python 3.13 wants to see beside a signature
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.certificate and self.key:
            with _file_of(self.certificate + b"\n" + self.key) as path:
                context.load_cert_chain(path, password=_no_password)
        return context


_Seen = tuple[tuple[int, int, int], ...]


class _Files:
    """Files with certificates, looked at whenever a connection is made. Without a lock: to read twice is no harm."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.paths = paths
        self._good: tuple[_Seen, Tls] | None = None
        self._bad: _Seen | None = None
        """What has been complained of."""

    def __repr__(self) -> str:
        return f"files({', '.join(map(str, self.paths))})"

    def latest(self, first: Tls) -> Tls:
        """Return what they hold now, or what they held last that could be used, in the beginning ``first``."""
        last = self._good[1] if self._good else first
        try:
            seen = self._seen()
            if self._good and self._good[0] == seen:
                return last
            fresh = Tls(*(path.read_bytes() for path in self.paths), by_name=first.by_name)
            fresh.context  # noqa: B018 - made here, where it may fail
            if self._seen() != seen:  # somebody writes: they may be of two generations
                return last
        except (OSError, ValueError) as error:
            self._complain(error)
            return last
        self._good, self._bad = (seen, fresh), None
        return fresh

    def _seen(self) -> _Seen:
        stats = [path.stat() for path in self.paths]
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in stats)

    def _complain(self, error: Exception) -> None:
        with contextlib.suppress(OSError):
            seen = self._seen()
            if self._bad == seen:
                return
            self._bad = seen
        names = ", ".join(map(str, self.paths))
        _log.warning("%s: not used, the certificates of before are: %s", names, _said(error))


# What OpenSSL, and Go's TLS at the other end, say where certificates do not fit, and what to do then. The first that
# occurs counts.
_MEANINGS = (
    ("certificate has expired", "the member's certificate has expired: renew it, or set this machine's clock"),
    ("certificate is not yet valid", "the member's certificate is not valid yet: set the clocks of both machines"),
    ("hostname mismatch", "the member's certificate does not name this address: use one that it names, or add it"),
    ("ip address mismatch", "the member's certificate does not name this address: use one that it names, or add it"),
    ("certificate verify failed", "the member's certificate is not signed by the CA given: give the one that did (ca)"),
    ("certificate required", "the cluster wants a client certificate: give certificate and key"),
    ("alert certificate expired", "our client certificate has expired: renew the files of certificate and key"),
    ("alert bad certificate", "the cluster refused our client certificate: it is missing, expired, or another CA's"),
    ("unknown ca", "the cluster does not know the CA of our client certificate: have it signed by the cluster's"),
    ("wrong version number", "there is no TLS at this address: leave out the certificates, or use the right port"),
    ("unexpected eof", "there is no TLS at this address, or the member has just ended: is it the right port?"),
    ("it wants tls", "give the cluster's CA, certificate and key, with https:// endpoints"),
    ("without a word: does it want tls", "give the cluster's CA, certificate and key, or renew them"),
)


@contextlib.contextmanager
def shaking_hands() -> Generator[None]:
    """Tell a connection that is cut in the handshake from one that is cut later: so does who speaks no TLS."""
    try:
        yield
    except ConnectionError as error:
        raise ConnectionError(f"unexpected EOF in the handshake: {error}") from error


def explained(error: Exception | str) -> str:
    """Return an error's words, and where they are about certificates, what to do."""
    said = _said(error)
    low = said.lower().replace("_", " ")
    return next((f"{said} ({meaning})" for words, meaning in _MEANINGS if words in low), said)


def is_about_certificates(text: str) -> bool:
    """Tell whether a message has an explanation of `explained` in it."""
    return any(f"({meaning})" in text for _, meaning in _MEANINGS)


def _said(error: Exception | str) -> str:
    return (str(error) or type(error).__name__) if isinstance(error, Exception) else error


def _no_password() -> str:
    """Refuse an encrypted key: OpenSSL would ask for its password on the terminal."""
    raise ValueError("the key is encrypted: give one that is not, in a file that only its user can read")


@contextlib.contextmanager
def _file_of(data: bytes) -> Generator[str]:
    """Yield a path to read the data from: ``ssl`` takes keys from files only, and this one never reaches a disk."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("skyward-etcd-key"), "wb", buffering=0) as file:
            file.write(data)
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as named:  # 0600
            named.write(data)
            named.flush()
            yield named.name
