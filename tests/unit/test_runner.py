"""The runners hold an operation to the time that its caller gave it: one request longer, and no more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from skyward_etcd.config import Limits
from skyward_etcd.errors import NotConnected, Unavailable
from skyward_etcd.ops.attempt import repeatable
from skyward_etcd.ops.effects import Call, Deadline, Identify, Operation, Watch
from skyward_etcd.session import runner
from skyward_etcd.session.era import Era
from skyward_etcd.session.merging import Merging
from skyward_etcd.session.session import Session
from skyward_etcd.session.signals import Signal
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.methods import RANGE

LIMITS = Limits(call_s=0.2, operation_s=5.0)
SLACK_S = 3.0


class Mute:
    """A session where nobody answers; `limits_given` are those of its calls."""

    def __init__(self) -> None:
        self.limits = LIMITS
        self.identity = None
        self.joined = Signal()
        self.limits_given: list[float] = []
        self.wire = SimpleNamespace(call=self._call, call_async=self._call_async, endpoints=("nowhere:1",))
        self.closed: list[bool] = []
        self.hub = SimpleNamespace(open=self._open)
        merging = Merging(cast(Any, self.wire), at_once=4)
        self.era = Era(merging, *[cast(Any, part) for part in (self.wire, None, self.hub, None)])

    def join(self) -> None: ...

    def check_open(self) -> None: ...

    def joined_identity(self) -> None:
        raise NotConnected("no lease")

    def _open(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(live=Signal(), check=lambda: None, close=lambda: self.closed.append(True))

    def _call(self, method: Any, request: Any, *, timeout_s: float) -> None:
        self.limits_given.append(timeout_s)
        time.sleep(timeout_s)
        raise Unavailable("no answer")

    async def _call_async(self, method: Any, request: Any, *, timeout_s: float) -> None:
        self.limits_given.append(timeout_s)
        await asyncio.sleep(timeout_s)
        raise Unavailable("no answer")


def blocking(session: Mute, operation: Operation[Any]) -> Any:
    return runner.run(cast(Session, session), operation)


def on_a_loop(session: Mute, operation: Operation[Any]) -> Any:
    return asyncio.run(runner.run_async(cast(Session, session), operation))


Drive = Callable[[Mute, Operation[Any]], Any]
both = pytest.mark.parametrize("drive", [blocking, on_a_loop])


def within(timeout: float | None, effect: Any) -> Operation[Any]:
    yield Deadline(timeout)
    if isinstance(effect, Call):
        return (yield from repeatable(effect.method, effect.request))
    return (yield effect)


READ = Call(RANGE, pb.RangeRequest(key=b"k"))


@both
@pytest.mark.parametrize("effect", [READ, Watch(b"k"), Identify()], ids=["call", "watch", "identity"])
def test_an_operation_ends_one_request_after_its_time(drive: Drive, effect: Any) -> None:
    session, began = Mute(), time.monotonic()
    with pytest.raises((Unavailable, NotConnected)):
        drive(session, within(0.3, effect))
    assert time.monotonic() - began < 0.3 + LIMITS.call_s + SLACK_S
    assert all(limit <= LIMITS.call_s for limit in session.limits_given)
    assert bool(session.closed) == isinstance(effect, Watch)


@both
def test_one_request_is_made_even_without_time_and_none_is_sent_in_vain(drive: Drive) -> None:
    def twice() -> Operation[None]:
        yield Deadline(0)
        with pytest.raises(Unavailable, match="no answer"):
            yield READ
        with pytest.raises(Unavailable, match="time of the operation was over") as in_vain:
            yield READ
        assert not in_vain.value.maybe_applied

    session = Mute()
    drive(session, twice())
    assert len(session.limits_given) == 1


@both
def test_an_operation_without_a_deadline_has_the_time_of_an_operation(drive: Drive) -> None:
    session = Mute()
    session.limits = Limits(call_s=0.05, operation_s=0.4)
    began = time.monotonic()
    with pytest.raises(Unavailable):
        drive(session, within(None, READ))
    assert time.monotonic() - began < 0.4 + SLACK_S
    assert set(session.limits_given) == {0.05}


@both
def test_the_deadline_is_told(drive: Drive) -> None:
    def ask() -> Operation[tuple[float | None, float | None]]:
        return (yield Deadline(10)), (yield Deadline(None))

    began = time.monotonic()
    deadline, never = drive(Mute(), ask())
    assert began + 10 <= deadline <= time.monotonic() + 10
    assert never is None
