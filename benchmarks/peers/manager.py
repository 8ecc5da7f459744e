"""multiprocessing.Manager: one process of one machine that keeps everything in its memory."""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from multiprocessing import managers
from multiprocessing.managers import BaseManager, DictProxy, ValueProxy
from typing import Any

from benchmarks.peers.base import Operation, Peer, Seat, filled, free_port, own_python, started

__all__ = ["MANAGER"]

_KEY = b"benchmarks"


class _Number:
    """What Manager.Value gives."""

    def __init__(self) -> None:
        self._value = 0

    def get(self) -> int:
        return self._value

    def set(self, value: int) -> None:
        self._value = value


@functools.cache
def _object(kind: str, _name: str, parties: int = 0) -> Any:
    """Return what has this name, in the server."""
    makers: dict[str, Any] = {"dict": dict, "number": _Number, "queue": queue.Queue, "lock": threading.Lock}
    return threading.Barrier(parties) if kind == "barrier" else makers[kind]()


class _Manager(BaseManager):
    """Finds everything by name, so that processes that do not know each other can share it."""


_PROXIES: dict[str, Any] = {
    "dict": DictProxy,
    "number": ValueProxy,
    "queue": None,
    "lock": vars(managers)["AcquirerProxy"],  # which their types leave out
    "barrier": vars(managers)["BarrierProxy"],
}
for _kind, _proxy in _PROXIES.items():
    _Manager.register(_kind, partial(_object, _kind), _proxy)


@contextmanager
def _running(_: int) -> Generator[int]:
    port = free_port()
    with started([own_python(), "-m", __name__, str(port)], port):
        yield port


@functools.cache
def _manager(port: int) -> Any:
    manager = _Manager(("127.0.0.1", port), _KEY)
    manager.connect()
    return manager


def _read(seat: Seat) -> Operation:
    entries = _manager(seat.where).dict(seat.name)
    entries["key"] = "x" * 100
    return partial(entries.get, "key")


def _write(seat: Seat) -> Operation:
    entries = _manager(seat.where).dict(seat.name)
    return partial(entries.__setitem__, seat.number, "x" * 100)


def _add(seat: Seat) -> Operation:
    members, numbers = _manager(seat.where).dict(seat.name), itertools.count()  # it has no set
    return lambda: members.setdefault((seat.number, next(numbers)))


def _increment(seat: Seat) -> Operation:
    manager = _manager(seat.where)
    number, lock = manager.number(seat.name), manager.lock(seat.name)

    def increment() -> None:
        with lock:
            number.value += 1

    return increment


def _put(seat: Seat) -> Operation:
    return partial(_manager(seat.where).queue(seat.name).put, "x" * 100)


def _get(seat: Seat) -> Operation:
    filled(seat, _put)
    return partial(_manager(seat.where).queue(seat.name).get)


def _lock(seat: Seat) -> Operation:
    lock = _manager(seat.where).lock(seat.name)

    def both() -> None:
        lock.acquire()
        lock.release()

    return both


def _barrier(seat: Seat) -> Operation:
    barrier = _manager(seat.where).barrier(seat.name, seat.workers)
    return partial(barrier.wait)


MANAGER = Peer(
    "manager",
    "one process of one machine, everything in its memory; a number under a lock as counter, a dict as set",
    own_python,
    _running,
    {
        "dict read": _read,
        "dict write": _write,
        "set add": _add,
        "counter": _increment,
        "queue put": _put,
        "queue get": _get,
        "lock": _lock,
        "barrier": _barrier,
    },
    is_rival=False,
)

if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _Manager(("127.0.0.1", int(sys.argv[1])), _KEY).get_server().serve_forever()
