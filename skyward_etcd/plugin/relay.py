"""A port that every node has: it leads to a member that answers, for those who reach the nodes and not the members."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence

from skyward_etcd.plugin.server import Server
from skyward_etcd.wire.address import Address

__all__ = ["Relay"]

_CONNECT_S = 2.0
_CHUNK = 1 << 16


class Relay(Server):
    """Passes bytes between its callers and the first member that takes them, until `close`. It reads none of them."""

    def __init__(self, host: str, port: int, endpoints: Callable[[], Sequence[str]]) -> None:
        self._endpoints = endpoints
        super().__init__(host, port, self._serve, name="skyward-etcd-relay")

    def _serve(self, caller: socket.socket) -> None:
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
