"""What is measured in one process: what it keeps near, and many callers whose calls travel together."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import grpc

import skyward_etcd as sky
from benchmarks.bare import Stub
from benchmarks.harness import Contest, Timing, interleaved, timed, timed_threads
from benchmarks.measures import NAMESPACE, VALUE, Bench, Endpoints, Operation, Task, session, stub
from skyward_etcd.config import Limits
from skyward_etcd.ops import kv
from skyward_etcd.ops.effects import Call
from skyward_etcd.session.merging import Merging
from skyward_etcd.session.session import Session
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.methods import PUT, RANGE, Method

__all__ = ["alone", "near_cache", "tasks", "threads"]

Key = str
Calls = Callable[[Key], Awaitable[Any]]


def near_cache(bench: Bench, kind: str) -> Contest:
    """Read what is kept near: a text of 100 bytes, or a member."""
    read: Operation
    if kind == "dict":
        entries = bench.session(1).dict(bench.fresh(), near_cache=True)
        entries["key"] = VALUE
        read = partial(entries.get, "key")
    else:
        members = bench.session(1).set(bench.fresh(), near_cache=True)
        members.add("key")
        read = partial(members.contains, "key")
    timed(read, 20)
    return interleaved({"ours": partial(timed, read, 2000)}, bench.repeats)


# ---- threads


def threads(bench: Bench, many: int) -> Contest:
    """Strong reads and writes in turn, each thread's of an entry of its own; ``alone``: nothing travels together."""

    def run(make: Callable[[Endpoints, str], Operation]) -> Timing:
        return bench.fleet.run(partial(_threads, make, bench.task(), many, bench.window_s), 1)[0]

    return bench.in_turn({name: partial(run, make) for name, make in _OF_THREADS.items()})


def _threads(
    make: Callable[[Endpoints, str], Operation], task: Task, many: int, seconds: float, _: int
) -> Callable[[], Timing]:
    operation = make(task.endpoints, task.name)
    timed_threads(operation, many, 0.1)  # connections, and the first use of a name
    return partial(timed_threads, operation, many, seconds)


def _ours(where: Endpoints, name: str) -> Operation:
    entries = session(where).dict(name, consistency="strong")
    return _in_turn(lambda key: entries.set(key, VALUE), entries.get)


def _alone(where: Endpoints, name: str) -> Operation:
    entries = _apart(where).dict(name, consistency="strong")
    return _in_turn(lambda key: entries.set(key, VALUE), entries.get)


def _stub(where: Endpoints, name: str) -> Operation:
    bare: Stub = stub(where[0])

    def write(key: Key) -> None:
        bare.put(pb.PutRequest(key=f"/stub/{name}/{key}".encode(), value=VALUE.encode()))

    def read(key: Key) -> str:
        return bare.range(pb.RangeRequest(key=f"/stub/{name}/{key}".encode())).kvs[0].value.decode()

    return _in_turn(write, read)


_OF_THREADS = {"ours": _ours, "alone": _alone, "stub": _stub}


def _in_turn(write: Callable[[Key], Any], read: Callable[[Key], Any]) -> Operation:
    """Return an operation that writes and reads each thread's own entry."""
    mine = threading.local()

    def operate() -> None:
        if not hasattr(mine, "turns"):
            mine.turns = itertools.cycle((write, read))
        next(mine.turns)(f"{threading.get_ident()}")

    return operate


@functools.cache
def _apart(where: Endpoints) -> sky.Connection:
    """Return a session whose calls never travel together."""
    return sky.Connection(Session(where, namespace=NAMESPACE, limits=Limits(calls_at_once=1_000_000)).open())


# ---- tasks


def tasks(bench: Bench, many: int) -> Contest:
    """So many tasks of one event loop; strong reads and writes in turn, each task's of an entry of its own."""

    def run(contestant: str) -> Timing:
        seconds = 4 * bench.window_s  # a call of one in a thousand takes a while
        return bench.fleet.run(partial(_tasks, contestant, bench.task(), many, seconds), 1)[0]

    return bench.in_turn({name: partial(run, name) for name in ("ours", "alone", "stub")})


def _tasks(contestant: str, task: Task, many: int, seconds: float, _: int) -> Callable[[], Timing]:
    return lambda: asyncio.run(_run_tasks(contestant, task, many, seconds))


async def _run_tasks(contestant: str, task: Task, many: int, seconds: float) -> Timing:
    if contestant == "stub":
        options = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))
        async with grpc.aio.insecure_channel(task.endpoints[0], options=options) as channel:
            put, read = _stub_calls(channel, PUT), _stub_calls(channel, RANGE)

            def write_key(key: Key) -> Awaitable[Any]:
                return put(pb.PutRequest(key=f"/stub/{task.name}/{key}".encode(), value=VALUE.encode()))

            def read_key(key: Key) -> Awaitable[Any]:
                return read(pb.RangeRequest(key=f"/stub/{task.name}/{key}".encode()))

            return await _timed_tasks(write_key, read_key, many, seconds)
    connection = session(task.endpoints) if contestant == "ours" else _apart(task.endpoints)
    entries = connection.dict(task.name, consistency="strong")
    return await _timed_tasks(lambda key: entries.set_async(key, VALUE), entries.get_async, many, seconds)


def _stub_calls(channel: grpc.aio.Channel, method: Method[Any, Any]) -> Callable[[Any], Awaitable[Any]]:
    make: Any = channel.unary_unary
    call: Callable[[Any], Awaitable[Any]] = make(
        method.path, request_serializer=method.encode, response_deserializer=method.decode
    )
    return call


async def _timed_tasks(write: Calls, read: Calls, many: int, seconds: float) -> Timing:
    latencies: list[float] = []
    await write("warm")

    async def one(key: Key) -> None:
        for call in itertools.cycle((write, read)):
            start = time.perf_counter()
            await call(key)
            latencies.append(time.perf_counter() - start)
            if time.monotonic() >= ends:
                return

    cpu, began = time.process_time(), time.monotonic()
    ends = began + seconds
    await asyncio.gather(*(one(f"{number}") for number in range(many)))
    return Timing(tuple(latencies), began, time.monotonic(), time.process_time() - cpu)


# ---- a lone caller


class _AtOnce:
    """A wire that answers at once: what is above it is all that is left."""

    def call(self, method: Any, request: Any, *, timeout_s: float) -> Any:  # noqa: ARG002
        return None


def alone(bench: Bench) -> Contest:
    """What it costs to ask whether others travel too, beside a whole strong read."""
    wire = cast("Any", _AtOnce())
    merging, read = Merging(wire, at_once=8), Call(RANGE, kv.read(b"/stub/key"))
    entries = bench.session(1).dict(bench.fresh(), consistency="strong")
    entries["key"] = VALUE
    return interleaved(
        {
            "ours": partial(timed, lambda: entries["key"], bench.pick(300, 100)),
            "with": partial(timed, lambda: merging.call(read, timeout_s=3.0), 2000),
            "without": partial(timed, lambda: wire.call(read.method, read.request, timeout_s=3.0), 2000),
        },
        bench.repeats,
    )
