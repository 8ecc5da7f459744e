"""Who is calling: what makes a release by somebody else an error, and keeps a thread from waiting for its own loop."""

from __future__ import annotations

import asyncio
import threading
import weakref

__all__ = ["THREADS", "Caller", "Line", "line_of_loop", "task", "thread"]


class Caller:
    """A thread or a task, as long as it lives."""

    def __init__(self, who: threading.Thread | asyncio.Task[object]) -> None:
        self.kind = "thread" if isinstance(who, threading.Thread) else "task"
        self._who = weakref.ref(who)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Caller) and self._who() is not None and self._who() is other._who()

    def __hash__(self) -> int:
        return hash(self.kind)

    @property
    def has_ended(self) -> bool:
        """Whether it can make no more calls: as the task that ``wait_for`` makes for one call, before Python 3.12."""
        who = self._who()
        if isinstance(who, asyncio.Task):
            return who.done()
        return who is None or not who.is_alive()


def thread() -> Caller:
    """Return the running thread."""
    return Caller(threading.current_thread())


def task() -> Caller:
    """Return the running task, or the thread where no event loop runs."""
    try:
        current = asyncio.current_task()
    except RuntimeError:
        current = None
    return Caller(current) if current is not None else thread()


class Line:
    """Callers that may wait for each other: all threads, or the tasks of one loop."""


THREADS = Line()
_LOOPS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Line] = weakref.WeakKeyDictionary()


def line_of_loop() -> Line:
    """Return the line of the running event loop.

    A blocking call on a loop's thread must not wait for a task of that loop, which cannot go on meanwhile.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return THREADS
    line = _LOOPS.get(loop)
    if line is None:
        # Loops of other threads come at the same time. A lock would stay locked in a child that is forked meanwhile.
        others = [other() for other in _LOOPS.keyrefs()]
        ended = next((other for other in others if other is not None and other.is_closed()), None)
        line = _LOOPS[loop] = _LOOPS.pop(ended, Line()) if ended is not None else Line()
    return line
