"""What the integration tests share: one body for both kinds of calls, other processes, a lossy wire, a look at etcd."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import queue
import random
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from skyward_etcd.active import Connection
from skyward_etcd.errors import Unavailable
from skyward_etcd.session.session import Session
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Stream, Wire
from skyward_etcd.wire.sockets import SocketStream

REPOSITORY = Path(__file__).parents[2]


class Calls:
    """Calls ``x`` on a thread or awaits ``x_async``, whichever this run is about.

    A task of the test stands for one participant: its blocking calls all run on one thread of its own.
    """

    def __init__(self, *, blocking: bool) -> None:
        self.blocking = blocking
        self._threads: weakref.WeakKeyDictionary[Any, _Thread] = weakref.WeakKeyDictionary()
        self._all: list[_Thread] = []

    def __call__(self, target: object) -> Both:
        """Return the two faces of one object as one."""
        return Both(self, target)

    def run(self, call: Callable[[], Any]) -> Awaitable[Any]:
        """Run a blocking call on the thread of the task that awaits it."""
        task = asyncio.current_task()
        if task not in self._threads:
            self._threads[task] = _Thread()
            self._all.append(self._threads[task])
        return self._threads[task].run(call)

    def close(self) -> None:
        """Check that nothing is still waiting."""
        stuck = [thread for thread in self._all if not thread.ends(within_s=5.0)]
        assert not stuck, f"{len(stuck)} blocking calls never returned"


class _Thread:
    """A thread that makes one call after the other. A daemon, so that a call that hangs fails only its test."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[], Any]) -> Any:
        """Make the call, and await what it returns."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            if not result.done():
                result.set_exception(error) if error else result.set_result(value)

        def work() -> None:
            value, failed = None, None
            try:
                value = call()
            except BaseException as error:  # noqa: BLE001 - it is the test's
                failed = error
            with contextlib.suppress(RuntimeError):  # the test has ended, and its loop with it
                loop.call_soon_threadsafe(settle, value, failed)

        self._calls.put(work)
        return await result

    def ends(self, *, within_s: float) -> bool:
        """End the thread after the calls that were made, and tell whether it did."""
        self._calls.put(None)
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        for call in iter(self._calls.get, None):
            call()


class Both:
    """A collection whose every operation is awaited; see `Calls`."""

    def __init__(self, calls: Calls, target: object) -> None:
        self._calls = calls
        self._target = target

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if not self._calls.blocking:
            return getattr(self._target, f"{name}_async")  # type: ignore[no-any-return]
        return functools.partial(self._blocking, name)

    def _blocking(self, name: str, *args: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        def call() -> Any:
            found = getattr(self._target, name)  # a property, as Counter.value, is the call itself
            return found(*args, **options) if callable(found) else found

        return self._on_thread(call)

    async def _on_thread(self, call: Callable[[], Any]) -> Any:
        return await self._calls.run(call)  # on the thread of the task that awaits, not of the one that asked


class Scripts:
    """Other Python processes, each connected to the session's cluster and namespace as ``sky``."""

    _PRELUDE = """
        import asyncio, atexit, collections, os, signal, sys, threading, time
        import skyward_etcd.active as sky
        from skyward_etcd import errors
        from skyward_etcd.session import session
        from skyward_etcd.config import Limits
        from skyward_etcd.session.session import Session

        def limited(ttl_s):
            session = Session(
                os.environ["SKYWARD_ETCD_ENDPOINTS"].split(","),
                namespace=os.environ["SKYWARD_ETCD_NAMESPACE"],
                limits=Limits(ttl_s=ttl_s),
            )
            return sky.Connection(session)
    """

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []

    def start(self, beside: Connection, code: str, *args: object, setup: str = "") -> subprocess.Popen[str]:
        """Start a process that runs the setup and the code."""
        session = beside._session()
        environment = {
            **os.environ,
            "SKYWARD_ETCD_ENDPOINTS": ",".join(session.endpoints),
            "SKYWARD_ETCD_NAMESPACE": session.layout.namespace,
        }
        process = subprocess.Popen(
            [sys.executable, "-c", "".join(map(textwrap.dedent, (self._PRELUDE, setup, code))), *map(str, args)],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(process)
        return process

    def close(self) -> None:
        """End what still runs."""
        for process in self._running:
            process.kill()
            process.communicate()


def said(process: subprocess.Popen[str], timeout_s: float = 30.0) -> list[str]:
    """Wait for a process to end well, having complained about nothing, and return the lines it printed."""
    out, complaints = process.communicate(timeout=timeout_s)
    assert (process.returncode, complaints) == (0, ""), f"exit code {process.returncode}: {complaints}"
    return out.splitlines()


def next_line(process: subprocess.Popen[str]) -> str:
    """Wait for the next line that a process prints (the test's own time limit ends the wait)."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"it ended: {process.communicate()[1]}"
    return line.strip()


class LossyWire:
    """Loses requests on their way, and answers of requests that etcd has applied, from a seed.

    A caller loses at most ``in_a_row`` of them one after the other. More would take longer than an operation's time,
    now and then, and `OutcomeUnknown` is what it then has to raise.
    """

    def __init__(
        self, session: Session, *, requests: float = 0.1, answers: float = 0.3, seed: int = 1, in_a_row: float = 4
    ) -> None:
        self._wire = session.wire
        self._requests = requests
        self._answers = answers
        self._random = random.Random(seed)
        self._in_a_row = in_a_row
        self._row: defaultdict[object, int] = defaultdict(int)
        self._lock = threading.Lock()
        self.lost = 0
        self._call = session.wire.call
        self._call_async = session.wire.call_async
        session.wire.call = self.call  # type: ignore[method-assign]
        session.wire.call_async = self.call_async  # type: ignore[method-assign]

    def call(self, method: Any, request: Any, *, timeout_s: float) -> Any:
        """Call, perhaps in vain."""
        caller = threading.get_ident()
        self._maybe_lose(caller, self._requests, maybe_applied=False)
        reply = self._call(method, request, timeout_s=timeout_s)
        self._maybe_lose(caller, self._answers, maybe_applied=True)
        self._row[caller] = 0
        return reply

    async def call_async(self, method: Any, request: Any, *, timeout_s: float) -> Any:
        """Call, perhaps in vain."""
        caller = asyncio.current_task()
        self._maybe_lose(caller, self._requests, maybe_applied=False)
        reply = await self._call_async(method, request, timeout_s=timeout_s)
        self._maybe_lose(caller, self._answers, maybe_applied=True)
        self._row[caller] = 0
        return reply

    def _maybe_lose(self, caller: object, share: float, *, maybe_applied: bool) -> None:
        with self._lock:
            loses = self._random.random() < share and self._row[caller] < self._in_a_row
            self._row[caller] += int(loses)
            self.lost += int(loses)
        if loses:
            raise Unavailable("lost on purpose", maybe_applied=maybe_applied)


def keys_under(session: Session, under: str = "") -> list[str]:
    """Return what etcd has in the session's namespace, asked by a client of its own; also when it is closed."""
    start = session.layout.root + under.encode()
    wire = Wire(session.endpoints)
    try:
        request = pb.RangeRequest(key=start, range_end=start[:-1] + bytes((start[-1] + 1,)), keys_only=True)
        reply = wire.call(methods.RANGE, request, timeout_s=3.0)
    finally:
        wire.close()
    return [found.key.removeprefix(session.layout.root).decode() for found in reply.kvs]


def stored(connection: Connection, under: str = "") -> list[str]:
    """Return the keys of collections in the namespace: all but what tells who is there."""
    return [
        key for key in keys_under(connection._session(), under) if not key.startswith(("sessions/", "slots/", "meta/"))
    ]


def sent_by(connection: Connection) -> list[str]:
    """Return a list that grows by the name of each request that the session sends from now on."""
    wire = connection._session().wire
    call, call_async = wire.call, wire.call_async
    sent: list[str] = []

    def count(method: Any, request: Any, *, timeout_s: float) -> Any:
        sent.append(method.path.rpartition("/")[2])
        return call(method, request, timeout_s=timeout_s)

    async def count_async(method: Any, request: Any, *, timeout_s: float) -> Any:
        sent.append(method.path.rpartition("/")[2])
        return await call_async(method, request, timeout_s=timeout_s)

    wire.call = count  # type: ignore[method-assign]
    wire.call_async = count_async  # type: ignore[method-assign]
    return sent


def watchers(connection: Connection) -> int:
    """Return how many threads and tasks of the session watch anything.

    Who waits for an item watches the sessions' ends besides: that counts only where nothing else is watched any more.
    """
    session = connection._session()
    watches = list(session.hub._watches._watches.values())
    ends = sum(len(watch.watchers) for watch in watches if watch.key == session.layout.sessions)
    return sum(len(watch.watchers) for watch in watches) - ends or ends


def questions(stream: Stream) -> int:
    """Return how often the stream has asked whether its server is well: each takes a number, of those that are odd."""
    raw = stream._raw
    assert isinstance(raw, SocketStream)
    return raw._http._next_id // 2 - 1


@contextlib.contextmanager
def without_a_stream(connection: Connection) -> Generator[None]:
    """Break the session's watch stream, and let it open no other before the end of the block."""
    hub, may_go_on = connection._session().hub, threading.Event()
    stream = hub._wire.stream

    def held_up(method: Any, *args: Any, **options: Any) -> Any:
        if method is methods.WATCH:
            may_go_on.wait()
        return stream(method, *args, **options)

    hub._wire.stream = held_up  # type: ignore[method-assign]
    try:
        assert hub._stream is not None
        hub._stream.cancel()
        yield
    finally:
        may_go_on.set()


def are_live(connection: Connection) -> bool:
    """Tell whether etcd has confirmed all watches: a watcher is counted before its stream is even opened."""
    return all(watch.live.is_set() for watch in list(connection._session().hub._watches._watches.values()))


def revoke_lease(connection: Connection) -> str:
    """Take the session's lease away, as etcd does when it has expired; return the name that the session had."""
    session = connection._session()
    assert session.identity is not None
    name = session.id
    wire = Wire(session.endpoints)
    try:
        wire.call(methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=session.identity.lease), timeout_s=3.0)
    finally:
        wire.close()
    return name


async def until(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Wait for a condition that looks at etcd or at a process."""
    deadline = time.monotonic() + within_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"did not happen within {within_s} s"
        await asyncio.sleep(0.005)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work(0)`` … on threads of their own, begun together, and return what they return."""
    start = threading.Barrier(count)

    def one(number: int) -> Any:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))


def flat(lists: Iterable[Iterable[Any]]) -> list[Any]:
    """Return the items of all lists."""
    return [item for items in lists for item in items]
