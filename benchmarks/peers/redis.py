"""Redis: one server without replicas, each write on disk before it is answered."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.peers.base import Operation, Peer, Seat, environment, filled, free_port, installed, module, started

__all__ = ["REDIS"]


@contextmanager
def _running(_: int) -> Generator[int]:
    port = free_port()
    server = installed("redis-server", "redis-server")
    with tempfile.TemporaryDirectory() as place:
        always = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--dir", place]
        with started([server, "--port", str(port), "--bind", "127.0.0.1", *always], port):
            yield port


def _python() -> str:
    installed("redis-server", "redis-server")
    return environment("peers")


@functools.cache
def _client(port: int) -> Any:
    return module("redis").Redis(port=port)


def _read(seat: Seat) -> Operation:
    client, key = _client(seat.where), seat.name
    client.set(key, "x" * 100)
    return partial(client.get, key)


def _write(seat: Seat) -> Operation:
    return partial(_client(seat.where).set, f"{seat.name}:{seat.number}", "x" * 100)


def _add(seat: Seat) -> Operation:
    client, numbers = _client(seat.where), itertools.count()
    return lambda: client.sadd(seat.name, f"{seat.number}:{next(numbers)}")


def _increment(seat: Seat) -> Operation:
    return partial(_client(seat.where).incr, seat.name)


def _put(seat: Seat) -> Operation:
    return partial(_client(seat.where).rpush, seat.name, "x" * 100)


def _get(seat: Seat) -> Operation:
    filled(seat, _put)
    return partial(_client(seat.where).blpop, seat.name, 30)


def _lock(seat: Seat) -> Operation:
    lock = _client(seat.where).lock(seat.name, timeout=30)

    def both() -> None:
        lock.acquire()
        lock.release()

    return both


REDIS = Peer(
    "redis",
    "one server without replicas, appendfsync always; the client's Lock",
    _python,
    _running,
    {
        "dict read": _read,
        "dict write": _write,
        "set add": _add,
        "counter": _increment,
        "queue put": _put,
        "queue get": _get,
        "lock": _lock,
    },
    is_rival=False,
)
