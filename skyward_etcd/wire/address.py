"""Where a member listens: ``host:port``, ``unix:///path``, and the same with ``http://`` or ``https://`` before it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from skyward_etcd.wire.tls import Tls, shaking_hands

__all__ = ["CONNECT_S", "Address", "Place", "shared_out", "unconnected"]

CONNECT_S = 1.3
"""For a connection before TLS, which a kernel answers however busy the machine is: a round trip, or two a second apart.

What has been lost with a leader has taken a call's 3 s already when its client comes to a machine that is no more.
"""

Place = tuple[int, Any]
"""A family of addresses, and one of them."""


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
        if is_unix or scheme not in ("", "http", "https") or not (_is_host(host) and _is_port(port)):
            raise ValueError(f"endpoint {endpoint!r} is not host:port, as in 127.0.0.1:2379")
        return cls(host, int(port), scheme == "https")

    @property
    def text(self) -> str:
        """The endpoint in its shortest form."""
        if not self.port:
            return f"unixs://{self.host}" if self.wants_tls else f"unix://{self.host}"
        return f"https://{self.authority}" if self.wants_tls else self.authority

    @property
    def authority(self) -> str:
        """What a request's ``:authority`` says."""
        if not self.port:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def places(self, flags: int = 0) -> list[Place]:
        """Return where it may be found. A host's name is looked up, which may take long, unless the flags forbid it.

        Raises:
            OSError: there is no such host.
        """
        if not self.port:
            return [(socket.AF_UNIX, self.host)]
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=flags)
        return [(info[0], info[4]) for info in found]

    def connect(self, timeout_s: float, tls: Tls | None, *, for_http: bool = False) -> socket.socket:
        """Return a connected socket, blocking; ``for_http``: not for gRPC.

        Raises:
            OSError: nobody is there, or it does not show the right certificate.
        """
        failure: OSError = ConnectionError(f"no address for {self.text}")
        for (family, where), share_s in shared_out(self.places(), timeout_s):
            try:
                plain = unconnected(family)
                try:
                    plain.settimeout(min(share_s, CONNECT_S))
                    plain.connect(where)
                    plain.settimeout(share_s)
                    return self.secured(plain, tls, for_http=for_http)
                except BaseException:
                    plain.close()
                    raise
            except OSError as error:
                failure = error
        raise failure

    def secured(self, plain: socket.socket, tls: Tls | None, *, for_http: bool = False) -> socket.socket:
        """Return the socket, with TLS if it is wanted; the handshake blocks if the socket does."""
        if tls is None:
            return plain
        context = tls.http_context if for_http else tls.context
        name, blocks = self.host if self.port else "localhost", plain.gettimeout() != 0
        with shaking_hands():
            plain.getpeername()  # Python's TLS takes a socket that was reset, fails, and does not give it back
            return context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=blocks)


def unconnected(family: int) -> socket.socket:
    """Return a socket for a place of this family.

    Raises:
        OSError: this machine has no such network, as IPv6.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    if family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def shared_out(places: Sequence[Place], timeout_s: float) -> Iterator[tuple[Place, float]]:
    """Yield places, each with its share of the time that is left: a dead one leaves the others theirs."""
    deadline = time.monotonic() + timeout_s
    for left, place in zip(range(len(places), 0, -1), places, strict=True):
        yield place, max(0.001, (deadline - time.monotonic()) / left)


def _is_host(text: str) -> bool:
    try:
        return "/" not in text and bool(text.encode("idna"))  # as a lookup will
    except UnicodeError:
        return False


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 65536
