"""Iterators that go on in another process: what they yield is sent at once, a window ahead of its consumer at most."""

from __future__ import annotations

import inspect
import queue
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from types import GeneratorType, TracebackType
from typing import Any, TypeVar, get_origin

from skyward_etcd.pool.failure import loads, revive
from skyward_etcd.pool.protocol import WINDOW, RemoteFailure

__all__ = ["Inbox", "Incoming", "Outgoing", "streamed_arguments"]

T = TypeVar("T")


class Outgoing:
    """The producer's side: pulls the next item only when there is room for it."""

    def __init__(self) -> None:
        self._room = threading.Semaphore(WINDOW)
        self._stopped = False

    def wanted(self, count: int) -> None:
        """The consumer has taken items."""
        self._room.release(count)

    def stop(self) -> None:
        """Nobody wants more: the source is closed where it stands."""
        self._stopped = True
        self._room.release()

    def items(self, source: Iterator[T]) -> Iterator[T]:
        """Yield the source's items, waiting before each until there is room. Closes a generator when it ends."""
        try:
            while True:
                self._room.acquire()
                if self._stopped:
                    return
                try:
                    item = next(source)
                except StopIteration:
                    return
                yield item
        finally:
            if isinstance(source, GeneratorType):
                source.close()


class Inbox:
    """Where items arrive. Apart from `Incoming`, so that whoever delivers does not keep the consumer's end alive."""

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[bytes | RemoteFailure | BaseException | None] = queue.SimpleQueue()

    def deliver(self, payload: bytes) -> None:
        """Add an item."""
        self._arrived.put(payload)

    def finish(self, failure: RemoteFailure | BaseException | None = None) -> None:
        """End, after the items delivered so far, with the failure if there is one."""
        self._arrived.put(failure)

    def take(self) -> bytes | RemoteFailure | BaseException | None:
        """Wait for the next."""
        return self._arrived.get()


class Incoming(Generator[Any, None, None]):
    """The consumer's side: an iterator over what arrives. Closing or dropping it stops the producer."""

    def __init__(self, inbox: Inbox, *, wanted: Callable[[int], None], stop: Callable[[], None]) -> None:
        self._inbox = inbox
        self._wanted = wanted
        self._stop = stop
        self._taken = 0
        self._over = False

    def send(self, value: None, /) -> Any:
        """Return the next item; a value cannot be sent to the other process."""
        if value is not None:
            raise TypeError("a generator in another process takes no values: it can only be iterated")
        if self._over:
            raise StopIteration
        arrived = self._inbox.take()
        if isinstance(arrived, bytes | bytearray):
            self._count()
            return loads(arrived)
        self._over = True
        if arrived is None:
            raise StopIteration
        raise revive(arrived) if isinstance(arrived, RemoteFailure) else arrived

    def throw(self, kind: Any, value: Any = None, trace: TracebackType | None = None, /) -> Any:
        """End the stream here and there, and raise."""
        if not self._over:
            self._over = True
            self._stop()
        error = value if value is not None else kind() if isinstance(kind, type) else kind
        raise error.with_traceback(trace)

    def __del__(self) -> None:
        self.close()

    def _count(self) -> None:
        """Ask for more once half of the window is used up, not for every item."""
        self._taken += 1
        if self._taken == WINDOW // 2:
            self._wanted(self._taken)
            self._taken = 0


def streamed_arguments(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int | str]:
    """Name the arguments to stream, by position or keyword.

    They are the iterators given to parameters annotated ``Iterator``, ``Iterable`` or ``Generator``, and generators
    given to any parameter: those cannot be sent in another way.
    """
    given: dict[int | str, Any] = {}
    given.update(enumerate(args))
    given.update(kwargs)
    iterators = {place for place, value in given.items() if isinstance(value, Iterator)}
    if not iterators:
        return iterators
    annotated = _annotated_places(fn, len(args))
    return {place for place in iterators if place in annotated or isinstance(given[place], GeneratorType)}


def _annotated_places(fn: Callable[..., Any], positions: int) -> set[int | str]:
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return set()
    names: set[int | str] = {one.name for one in parameters if _says_iterator(one.annotation)}
    return names | {place for place, one in enumerate(parameters[:positions]) if one.name in names}


def _says_iterator(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return re.match(r"(\w+\.)*(Iterator|Iterable|Generator)\b", annotation) is not None
    return (get_origin(annotation) or annotation) in (Iterator, Iterable, Generator)
