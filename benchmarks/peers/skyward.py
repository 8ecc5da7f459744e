"""Skyward's own collections on its default backend: each worker is a node of a casty cluster, as in a pool."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.peers.base import Operation, Peer, Seat, environment, filled, free_port, module

__all__ = ["SKYWARD_1", "SKYWARD_2"]


@contextmanager
def _running(workers: int) -> Generator[tuple[int, ...]]:
    yield tuple(free_port() for _ in range(workers))


def _on_a_loop(serve: Callable[[threading.Event], Any]) -> None:
    """Run a node on a loop of its own, as Skyward's worker does, until this process ends; return when it is up."""
    up = threading.Event()
    threading.Thread(target=lambda: asyncio.run(serve(up)), daemon=True).start()
    if not up.wait(60):
        raise RuntimeError("this node did not join the others")


@functools.cache
def _first(ports: tuple[int, ...], number: int) -> Any:
    """Be a node of generation 1, and return what ``import skyward as sky`` gives to a task."""
    serializer = module("skyward.infra.worker").skyward_serializer()
    registries: list[Any] = []

    async def serve(up: threading.Event) -> None:
        async with module("casty").ClusteredActorSystem(
            name="skyward",
            host="127.0.0.1",
            port=ports[number],
            node_id=f"node-{number}",
            seed_nodes=(("127.0.0.1", ports[0]),) if number else None,
            bind_host="127.0.0.1",
            serializer=serializer,
        ) as system:
            await system.wait_for(len(ports), timeout=60)
            loop = asyncio.get_running_loop()
            module("skyward.distributed.proxies").set_system_loop(loop)
            registries.append(module("skyward.distributed.registry").DistributedRegistry(system, loop=loop))
            up.set()
            await asyncio.Event().wait()

    _on_a_loop(serve)
    return registries[0]


@functools.cache
def _second(ports: tuple[int, ...], number: int) -> Any:
    """Be a node of generation 2, and return what ``import skyward as sky`` gives to a task."""
    casty, distributed = module("casty"), module("skyward.worker.distributed")

    async def serve(up: threading.Event) -> None:
        own, opener = (f"127.0.0.1:{ports[each]}" for each in (number, 0))
        cluster = casty.Cluster(bind=own, advertise=own, seeds=(opener,) if number else (), name="benchmarks")
        async with casty.ActorSystem(cluster=cluster, runtime=casty.Runtime(threads=2)) as system:
            distributed.bind(system, asyncio.get_running_loop())
            while len(system.members) < len(ports):  # noqa: ASYNC110 - it tells nobody when one joins
                await asyncio.sleep(0.05)
            up.set()
            await asyncio.Event().wait()

    _on_a_loop(serve)
    return distributed


Node = Callable[[tuple[int, ...], int], Any]


def _read(node: Node, seat: Seat) -> Operation:
    entries = node(seat.where, seat.number).dict(seat.name)
    entries["key"] = "x" * 100
    return partial(entries.get, "key")


def _write(node: Node, seat: Seat) -> Operation:
    entries = node(seat.where, seat.number).dict(seat.name)
    return partial(entries.__setitem__, str(seat.number), "x" * 100)


def _add(node: Node, seat: Seat) -> Operation:
    members, numbers = node(seat.where, seat.number).set(seat.name), itertools.count()
    return lambda: members.add(f"{seat.number} {next(numbers)}")


def _lock(node: Node, seat: Seat) -> Operation:
    lock = node(seat.where, seat.number).lock(seat.name)

    def both() -> None:
        with lock:
            pass

    return both


def _increment_first(seat: Seat) -> Operation:
    return partial(_first(seat.where, seat.number).counter(seat.name).increment)


def _increment_second(seat: Seat) -> Operation:
    return partial(_second(seat.where, seat.number).counter(seat.name).add)


def _put(seat: Seat) -> Operation:
    return partial(_first(seat.where, seat.number).queue(seat.name).put, "x" * 100)


def _get(seat: Seat) -> Operation:
    filled(seat, _put)
    return partial(_first(seat.where, seat.number).queue(seat.name).get, timeout=30)


def _offer(seat: Seat) -> Operation:
    return partial(_second(seat.where, seat.number).queue(seat.name).offer, "x" * 100)


def _poll(seat: Seat) -> Operation:
    filled(seat, _offer)
    items = _second(seat.where, seat.number).queue(seat.name)

    def poll() -> None:
        if items.poll() is None:
            raise RuntimeError("an item is lost")

    return poll


def _barrier(node: Node, seat: Seat) -> Operation:
    return partial(node(seat.where, seat.number).barrier(seat.name, seat.workers).wait)


def _of_both(node: Node) -> dict[str, Callable[[Seat], Operation]]:
    return {
        "dict read": partial(_read, node),
        "dict write": partial(_write, node),
        "set add": partial(_add, node),
        "lock": partial(_lock, node),
        "barrier": partial(_barrier, node),
    }


SKYWARD_1 = Peer(
    "skyward-0.10",
    "its collections on its default backend (casty), each worker a node; without its ssh and its control plane",
    partial(environment, "peers-skyward-0.10"),
    _running,
    {**_of_both(_first), "counter": _increment_first, "queue put": _put, "queue get": _get},
)

SKYWARD_2 = Peer(
    "skyward-0.12",
    "its collections on its default backend (casty), each worker a node; without its ssh and its control plane",
    partial(environment, "peers-skyward-0.12"),
    _running,
    {**_of_both(_second), "counter": _increment_second, "queue put": _offer, "queue get": _poll},
)
