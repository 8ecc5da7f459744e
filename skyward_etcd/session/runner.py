"""Two runners for one algorithm: on the caller's thread, and on the caller's event loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from skyward_etcd.errors import Unavailable
from skyward_etcd.ops.effects import Await, Backoff, Call, Effect, Identify, Later, Now, Operation, Renounce, Watch
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
    while True:
        try:
            given = _perform(session, step(given))
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
    while True:
        try:
            given = await _perform_async(session, step(given))
            step = operation.send
        except StopIteration as stop:
            return cast(T, stop.value)
        except BaseException as error:
            if inspect.getgeneratorstate(operation) == inspect.GEN_CLOSED:  # it was its own
                raise
            step, given = operation.throw, error


def _perform(session: Session, effect: Effect) -> Any:
    if type(effect) is Call:
        reply = session.wire.call(effect.method, effect.request, timeout_s=session.limits.call_s)
        session.saw(reply.header.revision)
        return reply
    if type(effect) is Identify:
        if session.identity is None:
            session.join()
            wait((session.joined,), session.limits.operation_s)
        return session.joined_identity()
    if type(effect) is Watch:
        watching = _watch(session, effect)
        try:
            wait((watching.live,), session.limits.operation_s)
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
        time.sleep(_pause(session, effect))
        return None
    return _at_once(session, effect)


async def _perform_async(session: Session, effect: Effect) -> Any:
    if type(effect) is Call:
        reply = await session.wire.call_async(effect.method, effect.request, timeout_s=session.limits.call_s)
        session.saw(reply.header.revision)
        return reply
    if type(effect) is Identify:
        if session.identity is None:
            session.join()
            await wait_async((session.joined,), session.limits.operation_s)
        return session.joined_identity()
    if type(effect) is Watch:
        watching = _watch(session, effect)
        try:
            await wait_async((watching.live,), session.limits.operation_s)
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
        await asyncio.sleep(_pause(session, effect))
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


def _watch(session: Session, effect: Watch) -> Watching:
    session.check_open()
    return session.hub.open(effect.key, effect.range_end, start=effect.start, hand_out=effect.hand_out)


def _confirmed(session: Session, watching: Watching) -> Watching:
    session.check_open()
    if watching.live.is_set():
        return watching
    watching.close()
    raise Unavailable(f"no member of {', '.join(session.wire.endpoints)} confirmed a watch", maybe_applied=False)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _pause(session: Session, effect: Backoff) -> float:
    pause = pause_before(effect.attempt)
    if time.monotonic() + pause > effect.since + session.limits.operation_s:
        raise effect.error
    return pause
