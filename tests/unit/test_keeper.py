"""What keeps a lease alive stops when it cannot know any more whether it does, and goes on when it can."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from skyward_etcd.errors import Unavailable
from skyward_etcd.ops.layout import Layout
from skyward_etcd.session.keeper import Keeper
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.methods import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_TIME_TO_LIVE, TXN

TTL_S = 1
SOON_S = 10.0


class DeafWire:
    """A cluster whose answers are lost while it is told so; it writes down what arrives."""

    def __init__(self) -> None:
        self.loses_replies = False
        self.arrived: list[tuple[str, float]] = []
        self.changed = threading.Condition()
        self.ttl = TTL_S

    def call(self, method: Any, request: Any, *, timeout_s: float) -> Any:
        with self.changed:
            self.arrived.append((method.path, time.monotonic()))
            self.changed.notify_all()
            if self.loses_replies:
                raise Unavailable("lost on purpose")
            header = pb.ResponseHeader(cluster_id=1)
            if method is TXN:
                return pb.TxnResponse(header=header, responses=[pb.ResponseOp(), pb.ResponseOp()])
            granted = method in (LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_TIME_TO_LIVE)
            return SimpleNamespace(header=header, **({"ID": 7, "TTL": self.ttl} if granted else {"count": 1}))

    def until_it_gets(self, path: str, *, after: float = 0.0) -> None:
        def has_it() -> bool:
            return any(which == path and when >= after for which, when in self.arrived)

        with self.changed:
            assert self.changed.wait_for(has_it, SOON_S), self.arrived


@pytest.fixture
def wire() -> DeafWire:
    return DeafWire()


@pytest.fixture
def keeper(wire: DeafWire) -> Iterator[Keeper]:
    running = Keeper(wire, Layout("keeper"), ttl_s=TTL_S, call_s=1.0, node="here", on_reply=lambda _: None)  # type: ignore[arg-type]
    running.start()
    wire.until_it_gets(LEASE_KEEP_ALIVE.path)
    yield running
    wire.loses_replies = False
    running.close()


def test_it_only_looks_when_nobody_answered_for_as_long_as_the_lease(wire: DeafWire, keeper: Keeper) -> None:
    identity = keeper.identity
    assert identity is not None
    wire.loses_replies = True
    wire.until_it_gets(LEASE_TIME_TO_LIVE.path)
    wire.until_it_gets(LEASE_TIME_TO_LIVE.path, after=time.monotonic() + 0.2)
    assert not identity.is_valid()
    renewed = [when for which, when in wire.arrived if which == LEASE_KEEP_ALIVE.path]
    assert max(renewed) < identity.valid_until + 0.1

    wire.loses_replies = False
    wire.until_it_gets(LEASE_KEEP_ALIVE.path, after=time.monotonic())
    assert keeper.identity is identity, "it was still there: nothing is lost"


def test_it_gives_up_a_lease_that_has_ended_meanwhile(wire: DeafWire, keeper: Keeper) -> None:
    identity = keeper.identity
    assert identity is not None
    wire.loses_replies = True
    wire.until_it_gets(LEASE_TIME_TO_LIVE.path)
    with wire.changed:
        wire.ttl = -1
        wire.loses_replies = False
    wire.until_it_gets(LEASE_GRANT.path, after=time.monotonic())
    assert identity.lost.is_set()
