"""Which member is asked next when one fails."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from skyward_etcd.errors import Unavailable
from skyward_etcd.wire import client, methods
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.client import Wire
from skyward_etcd.wire.status import CallFailed, Status

A, B, C = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"
SILENT = "no answer in time"
LEADERLESS = "etcdserver: no leader"


class Failing:
    """A transport to a member that fails in its way."""

    def __init__(self, details: str) -> None:
        self.details = details

    def call(self, *_: object, **__: object) -> bytes:
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


def test_when_nobody_answers_all_are_asked_in_turn() -> None:
    with contextlib.closing(wire_to(a=SILENT, b=SILENT, c=SILENT)) as wire:
        assert asked(wire, 6) == [A, B, C, A, B, C]


def test_without_silence_they_take_turns() -> None:
    with contextlib.closing(wire_to(a=LEADERLESS, b=LEADERLESS, c=LEADERLESS)) as wire:
        assert asked(wire, 5) == [A, B, C, A, B]
