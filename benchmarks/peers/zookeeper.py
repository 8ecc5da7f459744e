"""kazoo and its recipes, on three ZooKeeper servers that write to disk but do not wait for it."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.base import Operation, Peer, Seat, environment, filled, free_port, installed, module, started

__all__ = ["KAZOO"]

_CLASSES = "/usr/share/java/zookeeper.jar:/etc/zookeeper/conf"


@contextmanager
def _running(_: int) -> Generator[tuple[str, ...]]:
    java = installed("java", "default-jre-headless")
    clients = [free_port() for _ in range(3)]
    peers = "".join(f"server.{n}=127.0.0.1:{free_port()}:{free_port()}\n" for n in (1, 2, 3))
    with tempfile.TemporaryDirectory() as place, ExitStack() as servers:
        for number, port in enumerate(clients, 1):
            data = Path(place, str(number))
            data.mkdir()
            (data / "myid").write_text(f"{number}\n")
            (data / "zoo.cfg").write_text(
                f"tickTime=500\ninitLimit=20\nsyncLimit=10\ndataDir={data}\nclientPort={port}\n"
                f"clientPortAddress=127.0.0.1\nadmin.enableServer=false\nmaxClientCnxns=0\nforceSync=no\n{peers}"
            )
            main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
            servers.enter_context(
                started(
                    [java, "-Xmx256m", "-Dzookeeper.forceSync=no", "-cp", _CLASSES, main, str(data / "zoo.cfg")], port
                )
            )
        yield tuple(f"127.0.0.1:{port}" for port in clients)


def _python() -> str:
    installed("java", "default-jre-headless")
    if not Path(_CLASSES.partition(":")[0]).exists():
        raise FileNotFoundError("no ZooKeeper: apt-get install zookeeper")
    return environment("peers")


@functools.cache
def _client(where: tuple[str, ...], number: int) -> Any:
    client = module("kazoo.client").KazooClient(where[number % len(where)], timeout=30)
    client.start(60)
    return client


def _connected(seat: Seat) -> Any:
    client = _client(seat.where, seat.number)
    client.ensure_path(f"/{seat.name}")
    return client


def _read(seat: Seat) -> Operation:
    client = _connected(seat)
    client.set(f"/{seat.name}", b"x" * 100)
    return partial(client.get, f"/{seat.name}")


def _write(seat: Seat) -> Operation:
    client, path = _connected(seat), f"/{seat.name}/{seat.number}"
    client.create(path)
    return partial(client.set, path, b"x" * 100)


def _add(seat: Seat) -> Operation:
    client, numbers = _connected(seat), itertools.count()
    return lambda: client.create(f"/{seat.name}/{seat.number}-{next(numbers)}")


def _increment(seat: Seat) -> Operation:
    counter = _connected(seat).Counter(f"/{seat.name}")
    return lambda: counter.__add__(1)


def _put(seat: Seat) -> Operation:
    return partial(_connected(seat).Queue(f"/{seat.name}").put, b"x" * 100)


def _get(seat: Seat) -> Operation:
    filled(seat, _put)
    return partial(_connected(seat).Queue(f"/{seat.name}").get)


def _lock(seat: Seat) -> Operation:
    lock = _connected(seat).Lock(f"/{seat.name}")

    def both() -> None:
        lock.acquire()
        lock.release()

    return both


def _barrier(seat: Seat) -> Operation:
    client, rounds = _connected(seat), itertools.count()
    return lambda: client.DoubleBarrier(f"/{seat.name}/{next(rounds)}", seat.workers).enter()


KAZOO = Peer(
    "kazoo",
    "three ZooKeeper servers, forceSync=no; Counter, Queue, Lock, and the first half of DoubleBarrier",
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
        "barrier": _barrier,
    },
    reads="eventual",
)
