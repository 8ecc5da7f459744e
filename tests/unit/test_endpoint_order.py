"""Which member is asked next when one fails, and how soon where there is nobody."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from skyward_etcd.errors import Unavailable
from skyward_etcd.wire import client, methods
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.client import Wire
from skyward_etcd.wire.status import CallFailed, Status

HOST = "127.0.0.1"
A, B, C = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"
SILENT = "no answer in time"
LEADERLESS = "etcdserver: no leader"
LOST = "etcdserver: request timed out"


class Failing:
    """A transport to a member that fails in its way, and keeps what it was asked."""

    def __init__(self, details: str) -> None:
        self.details = details
        self.asked: list[str] = []

    def call(self, path: str, *_: object, **__: object) -> bytes:
        self.asked.append(path)
        if path == methods.HEALTH and self.details == LOST:
            return b""
        raise CallFailed(Status.UNAVAILABLE, self.details)

    def close(self) -> None:
        pass

    after_fork = close


def asked(wire: Wire, times: int) -> list[str]:
    """Return whom so many calls went to, all of which fail."""
    order: list[str] = []
    for _ in range(times):
        order.append(wire.endpoint)
        with pytest.raises(Unavailable):
            wire.call(methods.RANGE, pb.RangeRequest(key=b"k"), timeout_s=1.0)
    return order


def wire_to(**how: str) -> Wire:
    wire = Wire((A, B, C))
    channels: dict[str, Any] = {where: Failing(details) for where, details in zip((A, B, C), how.values(), strict=True)}
    wire._channels.update(channels)
    return wire


def test_who_was_silent_is_not_asked_again_while_the_others_wait_for_a_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with contextlib.closing(wire_to(a=SILENT, b=LEADERLESS, c=LEADERLESS)) as wire:
        assert asked(wire, 6) == [A, B, C, B, C, B]
        now[0] = 30.0
        assert asked(wire, 3) == [C, B, A], "long after, it may be well again"


def test_who_takes_over_from_a_silent_one_is_asked_first_whether_it_is_there() -> None:
    with contextlib.closing(wire_to(a=SILENT, b=SILENT, c=LOST)) as wire:
        assert asked(wire, 4) == [A, B, C, C]
        questions = [cast("Failing", wire._channels[each]).asked for each in (A, B, C)]
    assert questions == [
        [methods.RANGE.path],
        [methods.HEALTH],
        [methods.HEALTH, methods.RANGE.path, methods.RANGE.path],
    ]


def test_when_nobody_answers_all_are_asked_in_turn() -> None:
    with contextlib.closing(wire_to(a=SILENT, b=SILENT, c=SILENT)) as wire:
        assert asked(wire, 6) == [A, B, C, A, B, C]


def test_without_silence_they_take_turns() -> None:
    with contextlib.closing(wire_to(a=LEADERLESS, b=LEADERLESS, c=LEADERLESS)) as wire:
        assert asked(wire, 5) == [A, B, C, A, B]


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that leaves all who call without an answer: its queue is full, and the kernel drops what comes."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server((HOST, 0), backlog=0))
        port = server.getsockname()[1]
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((HOST, port))
        time.sleep(0.1)
        yield f"{HOST}:{port}"


@pytest.mark.parametrize("mode", ["blocking", "asyncio"])
def test_a_machine_that_is_no_more_costs_a_call_little_of_its_time(nobody: str, mode: str) -> None:
    request = pb.RangeRequest(key=b"k")
    with contextlib.closing(Wire((nobody,), transport="sockets")) as wire:
        calls: dict[str, Callable[[], Any]] = {
            "blocking": lambda: wire.call(methods.RANGE, request, timeout_s=60.0),
            "asyncio": lambda: asyncio.run(wire.call_async(methods.RANGE, request, timeout_s=60.0)),
        }
        began = time.monotonic()
        with pytest.raises(Unavailable, match="no connection") as failed:
            calls[mode]()
        assert time.monotonic() - began < 30.0
        assert not failed.value.maybe_applied
