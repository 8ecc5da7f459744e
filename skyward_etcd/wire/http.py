"""The few things that a member tells over plain HTTP only: its metrics, and the time."""

from __future__ import annotations

import contextlib
import email.utils
import time
from dataclasses import dataclass

from skyward_etcd.wire.address import Address
from skyward_etcd.wire.tls import Tls

__all__ = ["Page", "ask"]

_MOST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Page:
    """What was answered."""

    body: bytes
    clock_s: float | None
    """How far the server's clock is ahead of ours, to half a second; ``None`` if it does not say."""


def ask(endpoint: str, path: str, *, tls: Tls | None = None, timeout_s: float = 2.0) -> Page | None:
    """Return what a member answers to GET, or ``None``: it may answer HTTP elsewhere, or not at all."""
    address = Address.parse(endpoint)
    request = f"GET {path} HTTP/1.0\r\nHost: {address.authority}\r\n\r\n".encode()
    sent, deadline = time.time(), time.monotonic() + timeout_s
    answer = b""
    try:
        with contextlib.closing(address.connect(timeout_s, tls, for_http=True)) as connection:
            connection.sendall(request)
            while len(answer) < _MOST_BYTES and (left_s := deadline - time.monotonic()) > 0:
                connection.settimeout(left_s)
                more = connection.recv(1 << 16)
                if not more:
                    break
                answer += more
    except OSError:
        return None
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator or b" 200 " not in head.split(b"\r\n", 1)[0] + b" ":
        return None
    return Page(body, _clock(head, (sent + time.time()) / 2))


def _clock(head: bytes, here: float) -> float | None:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"date":
            with contextlib.suppress(ValueError, TypeError, OverflowError, IndexError):  # it is no date
                there = email.utils.parsedate_to_datetime(value.strip().decode()).timestamp()
                return there + 0.5 - here  # it says whole seconds
    return None
