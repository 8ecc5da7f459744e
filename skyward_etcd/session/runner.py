"""Two runners for one algorithm: on the caller's thread, and on the caller's event loop."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from skyward_etcd.errors import SkywardEtcdError, Unavailable
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
    from skyward_etcd.session.session import Session

T = TypeVar("T")

__all__ = ["run", "run_async"]


def run(session: Session, operation: Operation[T]) -> T:
    """Drive an operation to its end, blocking this thread."""
    step: Callable[[Any], Effect] = operation.send
    given: Any = None
    ends = math.inf
    while True:
        try:
            effect = step(given)
            if type(effect) is Deadline:
                given, ends = _deadline(session, effect)
            else:
                given = _perform(session, effect, ends)
            step = operation.send
        except StopIteration as stop:
            return cast(T, stop.value)
        except BaseException as error:  # the operation cleans up after whatever it is, Ctrl-C included, and raises it
            if inspect.getgeneratorstate(operation) == inspect.GEN_CLOSED:  # it was its own
                raise
            step, given = operation.throw, error


async def run_async(session: Session, operation: Operation[T]) -> T:
    """`run`, without blocking the event loop."""
    step: Callable[[Any], Effect] = operation.send
    given: Any = None
    ends = math.inf
    while True:
        try:
            effect = step(given)
            if type(effect) is Deadline:
                given, ends = _deadline(session, effect)
            else:
                given = await _perform_async(session, effect, ends)
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


def _perform(session: Session, effect: Effect, ends: float) -> Any:
    if type(effect) is Call:
        reply = session.wire.call(effect.method, effect.request, timeout_s=_for_a_call(session, ends))
        session.saw(reply.header.revision)
        return reply
    if type(effect) is Identify:
        if session.identity is None:
            session.join()
            wait((session.joined,), _for_an_operation(session, ends))
        return session.joined_identity()
    if type(effect) is Watch:
        line = line_of_loop()
        watching = _watch(session, effect, line, blocks=line is not THREADS)
        try:
            wait((watching.live,), _for_an_operation(session, ends))
        except BaseException:
            watching.close()
            raise
        return _confirmed(session, watching)
    if type(effect) is Await:
        session.check_open()
        came = wait(cast(tuple[Signal, ...], effect.signals), _left(effect.deadline))
        session.check_open()
        return came
    if type(effect) is Backoff:
        time.sleep(_pause(session, effect, ends))
        return None
    return _at_once(session, effect)


async def _perform_async(session: Session, effect: Effect, ends: float) -> Any:
    if type(effect) is Call:
        reply = await session.wire.call_async(effect.method, effect.request, timeout_s=_for_a_call(session, ends))
        session.saw(reply.header.revision)
        return reply
    if type(effect) is Identify:
        if session.identity is None:
            session.join()
            await wait_async((session.joined,), _for_an_operation(session, ends))
        return session.joined_identity()
    if type(effect) is Watch:
        watching = _watch(session, effect, line_of_loop(), blocks=False)
        try:
            await wait_async((watching.live,), _for_an_operation(session, ends))
        except BaseException:
            watching.close()
            raise
        return _confirmed(session, watching)
    if type(effect) is Await:
        session.check_open()
        came = await wait_async(cast(tuple[Signal, ...], effect.signals), _left(effect.deadline))
        session.check_open()
        return came
    if type(effect) is Backoff:
        await asyncio.sleep(_pause(session, effect, ends))
        return None
    return _at_once(session, effect)


def _at_once(session: Session, effect: Effect) -> Any:
    match effect:
        case Now():
            return time.monotonic()
        case Later(make):
            session.later(make)
        case Renounce(identity):
            session.renounce(cast(Identity, identity))
        case _:
            raise TypeError(f"no such effect: {effect!r}")
    return None


def _watch(session: Session, effect: Watch, line: Line, *, blocks: bool) -> Watching:
    session.check_open()
    return session.hub.open(
        effect.key, effect.range_end, start=effect.start, hand_out=effect.hand_out, line=line, blocks=blocks
    )


def _confirmed(session: Session, watching: Watching) -> Watching:
    try:
        session.check_open()
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


def _pause(session: Session, effect: Backoff, ends: float) -> float:
    pause = pause_before(effect.attempt)
    if time.monotonic() + pause > min(effect.since + session.limits.operation_s, ends):
        raise effect.error
    return pause
