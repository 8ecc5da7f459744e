"""Ray: an actor that keeps a dict, a set and a number, another with asyncio's lock and barrier, and Ray's Queue."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.peers.base import Operation, Peer, Seat, environment, filled, free_port, module, started

__all__ = ["RAY"]


_AUTH_MODE = "disabled"
"""Else a token that another program has left in the user's home is asked for on one side only."""


@contextmanager
def _running(workers: int) -> Generator[str]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray") as place:  # the path of its sockets has to be short
        command = [
            *(environment("peers", "ray"), "start", "--head", "--block", "--include-dashboard=false"),
            *(f"--port={port}", f"--num-cpus={workers + 4}", "--node-ip-address=127.0.0.1", f"--temp-dir={place}"),
            *("--object-store-memory=200000000", "--disable-usage-stats"),
        ]
        with started(command, port, RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE=_AUTH_MODE):
            yield f"127.0.0.1:{port}"


class State:
    """What users write to share state: an actor with a dict, a set and a number."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.members: set[str] = set()
        self.total = 0

    def get(self, key: str) -> str | None:
        return self.entries.get(key)

    def set(self, key: str, value: str) -> None:
        self.entries[key] = value

    def add(self, member: str) -> bool:
        before = len(self.members)
        self.members.add(member)
        return len(self.members) > before

    def increment(self) -> int:
        self.total += 1
        return self.total


class Meeting:
    """The same for a lock and a barrier: an actor with asyncio's."""

    def __init__(self, parties: int) -> None:
        self.lock = asyncio.Lock()
        self.barrier = asyncio.Barrier(parties)

    async def acquire(self) -> None:
        await self.lock.acquire()

    async def release(self) -> None:
        self.lock.release()

    async def wait(self) -> None:
        await self.barrier.wait()


@functools.cache
def _connected(where: str) -> Any:
    os.environ["RAY_AUTH_MODE"] = _AUTH_MODE
    ray = module("ray")
    ray.init(where, namespace="benchmarks", logging_level="error", log_to_driver=False)
    return ray


def _actor(seat: Seat, kind: type, *args: Any, at_once: int = 1) -> Any:
    return _connected(seat.where).remote(kind).options(**_shared(seat), max_concurrency=at_once).remote(*args)


def _shared(seat: Seat) -> dict[str, Any]:
    return {"name": seat.name, "get_if_exists": True, "lifetime": "detached", "num_cpus": 0}


def _read(seat: Seat) -> Operation:
    ray, actor = _connected(seat.where), _actor(seat, State)
    ray.get(actor.set.remote("key", "x" * 100))
    return lambda: ray.get(actor.get.remote("key"))


def _write(seat: Seat) -> Operation:
    ray, actor = _connected(seat.where), _actor(seat, State)
    return lambda: ray.get(actor.set.remote(str(seat.number), "x" * 100))


def _add(seat: Seat) -> Operation:
    ray, actor, numbers = _connected(seat.where), _actor(seat, State), itertools.count()
    return lambda: ray.get(actor.add.remote(f"{seat.number} {next(numbers)}"))


def _increment(seat: Seat) -> Operation:
    ray, actor = _connected(seat.where), _actor(seat, State)
    return lambda: ray.get(actor.increment.remote())


def _queue(seat: Seat) -> Any:
    _connected(seat.where)
    return module("ray.util.queue").Queue(actor_options=_shared(seat))


def _put(seat: Seat) -> Operation:
    return partial(_queue(seat).put, "x" * 100)


def _get(seat: Seat) -> Operation:
    filled(seat, _put)
    return partial(_queue(seat).get)


def _lock(seat: Seat) -> Operation:
    ray, actor = _connected(seat.where), _actor(seat, Meeting, seat.workers, at_once=100)

    def both() -> None:
        ray.get(actor.acquire.remote())
        ray.get(actor.release.remote())

    return both


def _barrier(seat: Seat) -> Operation:
    ray, actor = _connected(seat.where), _actor(seat, Meeting, seat.workers, at_once=100)
    return lambda: ray.get(actor.wait.remote())


RAY = Peer(
    "ray",
    "one node; an actor with a dict, a set and a number, one with asyncio's lock and barrier, and ray.util.queue",
    partial(environment, "peers"),
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
)
