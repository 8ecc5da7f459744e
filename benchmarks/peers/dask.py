"""Dask's Variable, Queue and Lock, on a scheduler of its own."""

from __future__ import annotations

import functools
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.peers.base import Operation, Peer, Seat, environment, filled, free_port, module, started

__all__ = ["DASK"]


@contextmanager
def _running(_: int) -> Generator[str]:
    port = free_port()
    scheduler = environment("peers", "dask")
    command = [scheduler, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show"]
    with started(command, port):
        yield f"tcp://127.0.0.1:{port}"


@functools.cache
def _client(where: str) -> Any:
    return module("distributed").Client(where)


def _variable(seat: Seat, name: str) -> Any:
    variable = module("distributed").Variable(name, _client(seat.where))
    variable.set("x" * 100)
    return variable


def _read(seat: Seat) -> Operation:
    return partial(_variable(seat, seat.name).get)


def _write(seat: Seat) -> Operation:
    return partial(_variable(seat, f"{seat.name} {seat.number}").set, "x" * 100)


def _queue(seat: Seat) -> Any:
    return module("distributed").Queue(seat.name, _client(seat.where))


def _put(seat: Seat) -> Operation:
    return partial(_queue(seat).put, "x" * 100)


def _get(seat: Seat) -> Operation:
    filled(seat, _put)
    return partial(_queue(seat).get)


def _lock(seat: Seat) -> Operation:
    _client(seat.where)
    lock = module("distributed").Lock(seat.name)

    def both() -> None:
        lock.acquire()
        lock.release()

    return both


DASK = Peer(
    "dask",
    "one scheduler, which keeps everything in its memory; Variable, Queue, Lock",
    partial(environment, "peers"),
    _running,
    {"dict read": _read, "dict write": _write, "queue put": _put, "queue get": _get, "lock": _lock},
)
