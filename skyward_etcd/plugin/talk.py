"""How the nodes of a pool ask each other: one question, one answer, both JSON, between those only who have its keys."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from skyward_etcd.config import SkywardNode
from skyward_etcd.plugin.server import Server
from skyward_etcd.wire.address import Address
from skyward_etcd.wire.tls import Tls

__all__ = ["Listener", "ask", "ask_all", "keys"]

_log = logging.getLogger("skyward_etcd.plugin")

_LENGTH = 4
_MOST_BYTES = 1 << 20
_PATIENCE_S = 5.0
"""For one who has called, to say all that there is to say."""
_AT_ONCE = 16
_CALLERS = 64
"""Who are listened to at once, before it is known who they are. More are hung up on: they ask again."""

Answer = dict[str, Any]


class Listener(Server):
    """Answers whoever asks at an address, from threads of its own, until `close`."""

    def __init__(self, host: str, port: int, tls: Tls | None, answer: Callable[[], Answer]) -> None:
        self._context = tls.accepting if tls else None
        self._answer = answer
        super().__init__(host, port, self._serve, name="skyward-etcd-talk", most=_CALLERS)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(_PATIENCE_S)
        deadline = time.monotonic() + _PATIENCE_S
        try:
            with self._context.wrap_socket(connection, server_side=True) if self._context else connection as secured:
                _receive(secured, deadline)
                _send(secured, self._answer())
        except (OSError, ValueError) as error:
            _log.debug("a caller was not answered: %s", error)


def keys(node: SkywardNode) -> Tls | None:
    """Return the certificates by which a pool's nodes know each other, if it has any. They name no address."""
    if not (node.certificate and node.key and node.authority):
        return None
    authority, certificate, key = (Path(path).read_bytes() for path in (node.authority, node.certificate, node.key))
    return Tls(authority, certificate, key, by_name=False)


def ask(host: str, port: int, tls: Tls | None, timeout_s: float) -> Answer | None:
    """Return what a node says; None if it says nothing in time, or is none of the pool's."""
    try:
        with Address(host, port, tls is not None).connect(timeout_s, tls) as connection:
            connection.settimeout(timeout_s)
            _send(connection, {})
            return _receive(connection, time.monotonic() + timeout_s)
    except (OSError, ValueError):
        return None


def ask_all(hosts: Iterable[str], port: int, tls: Tls | None, timeout_s: float) -> Mapping[str, Answer]:
    """Ask many at once; return the answers of those who gave one."""
    asked = list(dict.fromkeys(hosts))
    if not asked:
        return {}

    def one(host: str) -> Answer | None:
        return ask(host, port, tls, timeout_s)

    with ThreadPoolExecutor(min(len(asked), _AT_ONCE)) as pool:
        answers = pool.map(one, asked)
        return {host: answer for host, answer in zip(asked, answers, strict=True) if answer is not None}


def _send(connection: socket.socket, message: Answer) -> None:
    data = json.dumps(message).encode()
    connection.sendall(len(data).to_bytes(_LENGTH, "big") + data)


def _receive(connection: socket.socket, deadline: float) -> Answer:
    size = int.from_bytes(_exactly(connection, _LENGTH, deadline), "big")
    if size > _MOST_BYTES:
        raise ValueError(f"a message of {size} bytes")
    try:
        message: Any = json.loads(_exactly(connection, size, deadline))
    except RecursionError as error:
        raise ValueError("a message that is nested too deeply") from error
    if type(message) is not dict:
        raise ValueError(f"a message that is a {type(message).__name__}")
    return cast("Answer", message)


def _exactly(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        if time.monotonic() > deadline:
            raise TimeoutError("the other side takes too long")
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the other side has left")
        data += part
    return bytes(data)
