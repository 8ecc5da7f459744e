"""Two runners for one algorithm: on the caller's thread, and on the caller's event loop."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from skyward_etcd.errors import NotConnected, QuorumLost, SkywardEtcdError, Unavailable
from skyward_etcd.ops.effects import (
    Await,
    Backoff,
    Call,
    Deadline,
    Effect,
    Identify,
    Later,
    Now,
    Operation,
    Renounce,
    Watch,
)
from skyward_etcd.session.caller import THREADS, Line, line_of_loop
from skyward_etcd.session.identity import Identity
from skyward_etcd.session.signals import Signal, wait, wait_async
from skyward_etcd.session.watch import Watching
from skyward_etcd.wire.retry import pause_before

if TYPE_CHECKING:
    from skyward_etcd.session.era import Era
    from skyward_etcd.session.session import Session

T = TypeVar("T")

__all__ = ["run", "run_async"]


def run(session: Session, operation: Operation[T], era: Era | None = None) -> T:
    """Drive an operation to its end, blocking this thread.

    It has to do with one cluster only: that of the session's `Era` at its beginning, unless another is given.
    """
    era = era or session.era
    step: Callable[[Any], Effect] = operation.send
    given: Any = None
    ends = math.inf
    while True:
        try:
            effect = step(given)
            if type(effect) is Deadline:
                given, ends = _deadline(session, effect)
            else:
                given = _perform(session, era, effect, ends)
            step = operation.send
        except StopIteration as stop:
            return cast(T, stop.value)
        except BaseException as error:  # the operation cleans up after whatever it is, Ctrl-C included, and raises it
            if inspect.getgeneratorstate(operation) == inspect.GEN_CLOSED:  # it was its own
                raise
            step, given = operation.throw, error


async def run_async(session: Session, operation: Operation[T]) -> T:
    """`run`, without blocking the event loop."""
    era = session.era
    step: Callable[[Any], Effect] = operation.send
    given: Any = None
    ends = math.inf
    while True:
        try:
            effect = step(given)
            if type(effect) is Deadline:
                given, ends = _deadline(session, effect)
            else:
                given = await _perform_async(session, era, effect, ends)
            step = operation.send
        except StopIteration as stop:
            return cast(T, stop.value)
        except BaseException as error:
            if inspect.getgeneratorstate(operation) == inspect.GEN_CLOSED:  # it was its own
                raise
            step, given = operation.throw, error


def _deadline(session: Session, effect: Deadline) -> tuple[float | None, float]:
    """Return the moment at which the caller's time is over, and the one by which an answer may still come."""
    if effect.timeout is None:
        return None, math.inf
    deadline = time.monotonic() + effect.timeout
    return deadline, deadline + session.limits.call_s


def _perform(session: Session, era: Era, effect: Effect, ends: float) -> Any:
    if type(effect) is Call:
        era.check()
        try:
            reply = era.merging.call(effect, timeout_s=_for_a_call(session, ends))
        except (Unavailable, NotConnected) as error:
            raise era.explain(error) from None
        return _received(session, era, reply)
    if type(effect) is Identify:
        era.check()
        if session.identity is None:
            session.join()
            wait((session.joined,), _for_an_operation(session, ends))
        return _joined(session, era)
    if type(effect) is Watch:
        line = line_of_loop()
        watching = _watch(session, era, effect, line, blocks=line is not THREADS)
        try:
            wait((watching.live,), _for_an_operation(session, ends))
        except BaseException:
            watching.close()
            raise
        return _confirmed(session, era, watching)
    if type(effect) is Await:
        session.check_open()
        came = wait(cast(tuple[Signal, ...], effect.signals), _left(effect.deadline))
        session.check_open()
        era.check()
        return came
    if type(effect) is Backoff:
        wait((era.ended,), _pause(session, era, effect, ends))
        return _paused(era, effect)
    return _at_once(session, era, effect)


async def _perform_async(session: Session, era: Era, effect: Effect, ends: float) -> Any:
    if type(effect) is Call:
        era.check()
        try:
            reply = await era.merging.call_async(effect, timeout_s=_for_a_call(session, ends))
        except (Unavailable, NotConnected) as error:
            raise era.explain(error) from None
        return _received(session, era, reply)
    if type(effect) is Identify:
        era.check()
        if session.identity is None:
            session.join()
            await wait_async((session.joined,), _for_an_operation(session, ends))
        return _joined(session, era)
    if type(effect) is Watch:
        watching = _watch(session, era, effect, line_of_loop(), blocks=False)
        try:
            await wait_async((watching.live,), _for_an_operation(session, ends))
        except BaseException:
            watching.close()
            raise
        return _confirmed(session, era, watching)
    if type(effect) is Await:
        session.check_open()
        came = await wait_async(cast(tuple[Signal, ...], effect.signals), _left(effect.deadline))
        session.check_open()
        era.check()
        return came
    if type(effect) is Backoff:
        await wait_async((era.ended,), _pause(session, era, effect, ends))
        return _paused(era, effect)
    return _at_once(session, era, effect)


def _at_once(session: Session, era: Era, effect: Effect) -> Any:
    match effect:
        case Now():
            return time.monotonic()
        case Later(make):
            if not era.reason:  # else what it owes has gone with the cluster
                session.later(make)
        case Renounce(identity):
            session.renounce(cast(Identity, identity))
        case _:
            raise TypeError(f"no such effect: {effect!r}")
    return None


def _received(session: Session, era: Era, reply: Any) -> Any:
    header = reply.header
    if header.cluster_id != era.cluster_id:
        session.heard_of(era, header.cluster_id)
    if era.reason:  # what has answered is no more, or is another than the operation knows
        raise QuorumLost(era.reason)
    session.saw(header.revision)
    return reply


def _joined(session: Session, era: Era) -> Identity:
    era.check()
    return session.joined_identity()


def _paused(era: Era, effect: Backoff) -> None:
    if era.reason:
        raise era.explain(effect.error) if isinstance(effect.error, Unavailable) else effect.error


def _watch(session: Session, era: Era, effect: Watch, line: Line, *, blocks: bool) -> Watching:
    session.check_open()
    era.check()
    return era.hub.open(
        effect.key,
        effect.range_end,
        start=effect.start,
        hand_out=effect.hand_out,
        deletions=effect.deletions,
        line=line,
        blocks=blocks,
        tell=effect.tell,
    )


def _confirmed(session: Session, era: Era, watching: Watching) -> Watching:
    try:
        session.check_open()
        era.check()
        watching.check()
        if not watching.live.is_set():
            members = ", ".join(session.wire.endpoints)
            raise Unavailable(f"no member of {members} confirmed a watch", maybe_applied=False)
    except SkywardEtcdError:
        watching.close()
        raise
    return watching


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _for_a_call(session: Session, ends: float) -> float:
    """Return the time that one request may take; raise instead of sending one that nobody would wait for."""
    limit = session.limits.call_s
    if ends == math.inf:
        return limit
    left = ends - time.monotonic()
    if left <= 0:
        raise Unavailable("the time of the operation was over before this request", maybe_applied=False)
    return min(limit, left)


def _for_an_operation(session: Session, ends: float) -> float:
    return min(session.limits.operation_s, ends - time.monotonic())


def _pause(session: Session, era: Era, effect: Backoff, ends: float) -> float:
    _paused(era, effect)
    pause = pause_before(effect.attempt)
    if time.monotonic() + pause > min(effect.since + session.limits.operation_s, ends):
        raise effect.error
    return pause
