"""A signal that any thread may set and that threads and tasks may await alike."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence

__all__ = ["Mutex", "Signal", "wait", "wait_async"]

Mutex = threading.Lock
"""For a few lines that read and write one structure; never held while an operation asks the world."""

Waker = Callable[[], None]


class Signal:
    """Something that happens; it stays set until it is cleared."""

    __slots__ = ("_is_set", "_lock", "_wakers")

    def __init__(self) -> None:
        self._is_set = False
        self._lock = threading.Lock()
        self._wakers: list[Waker] = []

    def set(self) -> None:
        """Wake who waits, now and in future."""
        with self._lock:
            self._is_set = True
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def clear(self) -> None:
        """Let the next wait wait."""
        with self._lock:
            self._is_set = False

    def is_set(self) -> bool:
        """Tell whether a wait would return at once."""
        return self._is_set

    def arm(self, waker: Waker) -> bool:
        """Have ``waker`` called, once, when the signal is set. False, and not armed, if it is set already."""
        with self._lock:
            if self._is_set:
                return False
            self._wakers.append(waker)
            return True

    def disarm(self, waker: Waker) -> None:
        """Forget a waker that is no longer needed."""
        with self._lock:
            if waker in self._wakers:
                self._wakers.remove(waker)


def wait(signals: Sequence[Signal], timeout_s: float | None) -> bool:
    """Block this thread until one of the signals is set, or the time is over; tell which."""
    parked = threading.Lock()
    parked.acquire()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # another signal was first
            parked.release()

    try:
        if not all(signal.arm(wake) for signal in signals):
            return True
        return parked.acquire(timeout=-1 if timeout_s is None else min(max(0.0, timeout_s), threading.TIMEOUT_MAX))
    finally:
        for signal in signals:
            signal.disarm(wake)


async def wait_async(signals: Sequence[Signal], timeout_s: float | None) -> bool:
    """`wait`, without blocking the event loop."""
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: None if woken.done() else woken.set_result(None))

    try:
        if not all(signal.arm(wake) for signal in signals):
            return True
        done, _ = await asyncio.wait((woken,), timeout=None if timeout_s is None else max(0.0, timeout_s))
        return bool(done)
    finally:
        for signal in signals:
            signal.disarm(wake)
