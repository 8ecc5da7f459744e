"""Where a member listens: ``host:port``, ``unix:/path``, and the same with ``http://`` or ``https://`` before it."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import tempfile
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

__all__ = ["Address", "Tls"]


@dataclass(frozen=True)
class Tls:
    """PEM data for a cluster that wants TLS: its client CA, and our certificate and key."""

    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)

    @cached_property
    def context(self) -> ssl.SSLContext:
        """What verifies the members and shows them who we are."""
        context = ssl.create_default_context(cadata=self.ca.decode())
        context.set_alpn_protocols(["h2"])
        if self.certificate and self.key:
            with _file_of(self.certificate + b"\n" + self.key) as path:
                context.load_cert_chain(path)
        return context


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed endpoint."""

    host: str
    """A host name or IP; a path if ``port`` is 0."""
    port: int
    wants_tls: bool

    @classmethod
    def parse(cls, endpoint: object) -> Self:
        """Return the address of an endpoint.

        Raises:
            TypeError: it is no text.
            ValueError: it is no endpoint.
        """
        if not isinstance(endpoint, str):
            raise TypeError(f"an endpoint is text, as 'host:2379', not {endpoint!r}")
        scheme, _, rest = endpoint.strip().rpartition("://")
        where = rest.rstrip("/")
        is_unix = where.startswith("unix:") or scheme in ("unix", "unixs")
        if is_unix and where.removeprefix("unix:"):
            return cls(where.removeprefix("unix:"), 0, scheme == "unixs")
        host, _, port = where.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if is_unix or scheme not in ("", "http", "https") or "/" in host or not host or not _is_port(port):
            raise ValueError(f"endpoint {endpoint!r} is not host:port, as in 127.0.0.1:2379")
        return cls(host, int(port), scheme == "https")

    @property
    def text(self) -> str:
        """The endpoint in its shortest form."""
        if not self.port:
            return f"unixs://{self.host}" if self.wants_tls else f"unix:{self.host}"
        return f"https://{self.authority}" if self.wants_tls else self.authority

    @property
    def authority(self) -> str:
        """What a request's ``:authority`` says."""
        if not self.port:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def connect(self, timeout_s: float, tls: Tls | None) -> socket.socket:
        """Return a connected socket, blocking.

        Raises:
            OSError: nobody is there, or it does not show the right certificate.
        """
        if self.port:
            plain = socket.create_connection((self.host, self.port), timeout=timeout_s)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            plain = socket.socket(socket.AF_UNIX)
            plain.settimeout(timeout_s)
        try:
            if not self.port:
                plain.connect(self.host)
            return self.secured(plain, tls)
        except BaseException:
            plain.close()
            raise

    def secured(self, plain: socket.socket, tls: Tls | None) -> socket.socket:
        """Return the socket, with TLS if it is wanted; the handshake blocks if the socket does."""
        if tls is None:
            return plain
        blocks = plain.gettimeout() != 0
        return tls.context.wrap_socket(
            plain, server_hostname=self.host if self.port else "localhost", do_handshake_on_connect=blocks
        )


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 65536


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
