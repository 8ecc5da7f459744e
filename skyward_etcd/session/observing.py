"""Who looks on while a session works: the one place through which all operations pass, blocking and asyncio alike.

While nobody does, an operation pays for one look at an empty tuple. While somebody does, its generator is driven
through another one here, which passes every effect on, and takes down what it sees of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from skyward_etcd.ops.effects import Await, Backoff, Effect, Operation

T = TypeVar("T")

log = logging.getLogger("skyward_etcd.session")

__all__ = ["Observer", "Seen", "add", "observed", "observers", "remove", "tell"]


@dataclass(slots=True)
class Seen:
    """What was seen of one operation."""

    duration_s: float = 0.0
    """From its beginning to its end."""
    awaited_s: float = 0.0
    """What of that it has waited for others: for an item, its turn, the last to arrive."""
    attempts: int = 1
    """How often it was tried: 1, and one for each repetition of a request that got no answer."""
    result: Any = None
    error: BaseException | None = None
    """What it has raised: an error of ours, or ``GeneratorExit``, ``CancelledError`` and the like if it was left."""


class Observer(Protocol):
    """Somebody who looks on. It is called on the operation's thread or event loop, so it must not wait.

    What it raises is logged, and goes no further: nothing is done otherwise for being looked at.
    """

    def begin(self, operation: Operation[Any]) -> Any:
        """Take note of an operation that is about to begin; what it returns is given back to it (``None``: no more)."""
        ...

    def repeated(self, begun: Any, error: BaseException) -> None:
        """Take note of a request that got no answer, and will be sent again."""
        ...

    def end(self, begun: Any, seen: Seen) -> None:
        """Take note of its end."""
        ...

    def session_lost(self) -> None:
        """Take note of a lease that has ended before its session."""
        ...

    def watch_broken(self) -> None:
        """Take note of a watch stream that broke, and is opened again."""
        ...

    def cluster_changed(self) -> None:
        """Take note of a cluster that was recovered, or replaced by another."""
        ...


observers: tuple[Observer, ...] = ()
"""Replaced as a whole, so that an operation needs no lock to read it."""
_lock = threading.Lock()


def add(observer: Observer) -> None:
    """Have somebody look on, at what begins from now on."""
    global observers  # noqa: PLW0603 - of the process, as its sessions are
    with _lock:
        observers = (*observers, observer)


def remove(observer: Observer) -> None:
    """Have somebody look on no more. What is under way, it sees to its end. May be called twice."""
    global observers  # noqa: PLW0603
    with _lock:
        observers = tuple(each for each in observers if each is not observer)


def tell(news: Callable[[Observer], None]) -> None:
    """Tell all who look on what has happened to a session."""
    for each in observers:
        _say(news, each)


def observed(operation: Operation[T]) -> Operation[T]:
    """Return an operation that does the same, and is seen by all who look on now."""
    looking = [(each, begun) for each in observers if (begun := _say(each.begin, operation)) is not None]
    return _followed(operation, looking)


def _say(hear: Callable[..., T], *what: Any) -> T | None:
    try:
        return hear(*what)
    except Exception:  # whatever it is
        log.warning("an observer failed: what was done is not affected", exc_info=True)
        return None


def _followed(operation: Operation[T], looking: list[tuple[Observer, Any]]) -> Operation[T]:
    seen = Seen()
    began = time.perf_counter()
    step: Callable[[Any], Effect] = operation.send
    given: Any = None
    try:
        while True:
            effect = step(given)
            if type(effect) is Backoff:
                seen.attempts += 1
                for observer, begun in looking:
                    _say(observer.repeated, begun, effect.error)
            asked = time.perf_counter() if type(effect) is Await else None
            try:
                given = yield effect
                step = operation.send
            except BaseException as error:  # noqa: BLE001 - the operation cleans up after whatever it is
                step, given = operation.throw, error
            if asked is not None:
                seen.awaited_s += time.perf_counter() - asked
    except StopIteration as stop:
        seen.result = stop.value
        return cast(T, stop.value)
    except BaseException as error:
        seen.error = error
        raise
    finally:
        seen.duration_s = time.perf_counter() - began
        for observer, begun in looking:
            _say(observer.end, begun, seen)
        del seen, given, step  # an error's traceback has this frame: no cycle that outlives the handling of it
