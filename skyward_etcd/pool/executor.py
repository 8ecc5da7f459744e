"""Running functions on a node: each call in a thread of its own, coroutines on one event loop."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from types import AsyncGeneratorType, GeneratorType
from typing import Any, cast

from skyward_etcd.errors import PoolError
from skyward_etcd.pool.failure import capture, dumps, loads
from skyward_etcd.pool.output import redirected
from skyward_etcd.pool.printing import Lines
from skyward_etcd.pool.protocol import (
    Fed,
    Feed,
    FeedEnd,
    Follow,
    Lose,
    Raised,
    Returned,
    Run,
    StartOver,
    Stop,
    Streaming,
    Wanted,
    Yielded,
)
from skyward_etcd.pool.streams import Inbox, Incoming, Outgoing

__all__ = ["ThreadExecutor"]


class ThreadExecutor:
    """Runs what it is told by messages, and answers with messages.

    How many calls run at a time is for the driver to say: a thread whose caller has given up may still be running.
    """

    def __init__(self, send: Callable[[object], None], where: str) -> None:
        self._send = send
        self._where = where
        self._jobs: dict[int, _Job] = {}
        self._loop = _LoopThread()

    def handle(self, message: object) -> None:
        """Do what the message says, without waiting for it."""
        if isinstance(message, Run):
            job = self._jobs[message.call] = _Job(message)
            threading.Thread(target=self._run, args=(job,), name=message.name, daemon=True).start()
            return
        call: int | None = getattr(message, "call", None)
        job_or_none = self._jobs.get(call) if call is not None else None
        if job_or_none is not None:  # else it has ended while the message was on its way
            job_or_none.handle(message)

    def pass_on(self, message: Follow | Lose | StartOver) -> None:
        """Nothing to do: the threads use the node's own session."""

    def leave(self, timeout_s: float) -> None:
        """Nothing to do either: the node hands back what its threads hold."""

    def close(self) -> None:
        """Leave the threads to the end of the process."""

    def _run(self, job: _Job) -> None:
        call = job.run.call
        with ExitStack() as printing:
            for stream in ("stdout", "stderr"):
                lines = Lines(self._send, stream, call)
                printing.callback(lines.finish)
                printing.enter_context(redirected(stream, lines))
            try:
                reply: object = Returned(call, self._result(job))
            except BaseException as error:  # noqa: BLE001  whatever it is, the caller is the one to get it
                reply = Raised(call, capture(error, self._where))
        del self._jobs[call]
        with suppress(OSError):  # the driver is gone, and so are we, soon
            self._send(reply)

    def _result(self, job: _Job) -> bytes:
        fn, args, kwargs = loads(job.run.payload)
        result: Any = fn(
            *(self._given(job, one) for one in args), **{k: self._given(job, v) for k, v in kwargs.items()}
        )
        if inspect.iscoroutine(result):
            result = self._loop.run(result, job)
        if isinstance(result, AsyncGeneratorType):
            result = self._loop.iterate(cast("AsyncGenerator[Any]", result), job)
        if not isinstance(result, GeneratorType):
            return dumps(result, lambda: f"{job.run.name} returned a {type(result).__qualname__}, which")
        self._send(Streaming(job.run.call))
        for item in job.outgoing.items(cast("Iterator[Any]", result)):
            payload = dumps(item, lambda: f"{job.run.name} yielded a value that")
            self._send(Yielded(job.run.call, payload))
        return dumps(None, str)

    def _given(self, job: _Job, argument: object) -> object:
        """The argument itself, or the iterator that it stands for."""
        if not isinstance(argument, Feed):
            return argument
        call, feed = job.run.call, argument.number
        return Incoming(
            job.inbox(feed),
            wanted=lambda count: self._send(Wanted(call, count, feed)),
            stop=lambda: None,  # the end of the call ends its streams
        )


class _Job:
    """One call under way."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.outgoing = Outgoing()
        self.awaited: Future[Any] | None = None
        self._inboxes: dict[int, Inbox] = {}
        self._guard = threading.Lock()

    def inbox(self, feed: int) -> Inbox:
        """Where the items of a streamed argument arrive, perhaps before the function is unpickled."""
        with self._guard:
            return self._inboxes.setdefault(feed, Inbox())

    def handle(self, message: object) -> None:
        match message:
            case Fed(feed=feed, payload=payload):
                self.inbox(feed).deliver(payload)
            case FeedEnd(feed=feed, failure=failure):
                self.inbox(feed).finish(failure)
            case Wanted(count=count):
                self.outgoing.wanted(count)
            case Stop():
                self._stop()
            case _:
                raise TypeError(f"unexpected message {message!r}")

    def _stop(self) -> None:
        """End what can be ended: streams and coroutines. A thread in the middle of a function cannot be."""
        self.outgoing.stop()
        for inbox in self._inboxes.values():
            inbox.finish(PoolError(f"the caller of {self.run.name} waits no longer"))
        if self.awaited:
            self.awaited.cancel()


class _LoopThread:
    """The node's event loop, started by the first coroutine."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._guard = threading.Lock()

    def run(self, coroutine: Coroutine[Any, Any, Any], job: _Job) -> Any:
        """Run the coroutine in this thread's context, and wait for its result."""
        job.awaited = asyncio.run_coroutine_threadsafe(coroutine, self._started())
        return job.awaited.result()

    def iterate(self, items: AsyncGenerator[Any], job: _Job) -> Iterator[Any]:
        """Turn an asynchronous generator into a plain one."""

        async def following() -> Any:
            return await anext(items, _END)

        try:
            while (item := self.run(following(), job)) is not _END:
                yield item
        finally:
            self.run(_closed(items), job)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._guard:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="event loop", daemon=True).start()
            return self._loop


_END = object()


async def _closed(items: AsyncGenerator[Any]) -> None:
    await items.aclose()
