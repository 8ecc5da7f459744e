"""A port that every node has: it leads to a member that answers, for those who reach the nodes and not the members."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence

from skyward_etcd.wire.address import Address

__all__ = ["Relay"]

_CONNECT_S = 2.0
_CHUNK = 1 << 16


class Relay:
    """Passes bytes between its callers and the first member that takes them, until `close`. It reads none of them."""

    def __init__(self, host: str, port: int, endpoints: Callable[[], Sequence[str]]) -> None:
        self._server = socket.create_server((host, port), backlog=64)
        self._endpoints = endpoints
        threading.Thread(target=self._accept, name="skyward-etcd-relay", daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.getsockname()[1])

    def close(self) -> None:
        """Take no more callers."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._server.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(caller,), name="skyward-etcd-relay", daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        with caller:
            member = self._member()
            if member is None:
                return
            with member:
                caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                back = threading.Thread(target=_pass_on, args=(member, caller), name="skyward-etcd-relay", daemon=True)
                back.start()
                _pass_on(caller, member)
                back.join()

    def _member(self) -> socket.socket | None:
        for endpoint in self._endpoints():
            with contextlib.suppress(OSError):
                member = Address.parse(endpoint).connect(_CONNECT_S, None)
                member.settimeout(None)
                return member
        return None


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until there is no more, and then say so to both: half a connection is of no use here."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    for side in (source, target):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
