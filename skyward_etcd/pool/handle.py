"""A node as the driver sees it: the calls that it runs, their streams and time limits, and its loss."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from skyward_etcd.cluster.binary import Etcd
from skyward_etcd.cluster.member import MemberSpec
from skyward_etcd.errors import NodeLost, PoolError
from skyward_etcd.pool.call import Call
from skyward_etcd.pool.failure import capture, dumps, loads, revive
from skyward_etcd.pool.link import Link
from skyward_etcd.pool.node_member import NodeMember
from skyward_etcd.pool.printing import show
from skyward_etcd.pool.protocol import (
    Fed,
    FeedEnd,
    Follow,
    Leave,
    Left,
    Lose,
    MemberLost,
    MemberReady,
    NodeConfig,
    Printed,
    Raised,
    Ready,
    RemoteFailure,
    Returned,
    StartMember,
    StartOver,
    Stop,
    Streaming,
    Unready,
    Wanted,
    Yielded,
)
from skyward_etcd.pool.streams import Inbox, Incoming, Outgoing

__all__ = ["NodeHandle"]


@dataclass(slots=True)
class _Running:
    """A call under way. Once it streams, ``call`` is let go: the iterator lives only as long as its consumer wants."""

    call: Call | None
    name: str
    context: contextvars.Context
    timer: threading.Timer | None = None
    inbox: Inbox | None = None
    feeds: list[Outgoing] = field(default_factory=list[Outgoing])

    def end(self) -> None:
        """Stop what was there for this call only."""
        if self.timer:
            self.timer.cancel()
        for feed in self.feeds:
            feed.stop()

    def finish(self, result: Callable[[], Any] | RemoteFailure | BaseException) -> None:
        """Tell the caller, or the consumer of the stream."""
        self.end()
        if self.inbox:
            self.inbox.finish(None if callable(result) else result)
        elif self.call:
            _resolve(self.call, result)


class NodeHandle:
    """Starts the node's process, sends it calls, and resolves them with what comes back.

    ``on_free`` is called when it may take another call, and ``on_lost`` with the exit code and the calls that it ran,
    when it has ended without being asked to after it was ready. ``on_member_lost`` is called with the reason when the
    node goes on without its etcd member.
    """

    def __init__(
        self,
        config: NodeConfig,
        *,
        on_free: Callable[[], None],
        on_lost: Callable[[NodeHandle, int, list[Call]], None],
        on_member_lost: Callable[[NodeHandle, str], None],
    ) -> None:
        self.info = config.info
        self.index = config.info.node
        self.name = config.name
        self.ready: Future[int] = Future()
        """The process id, once the node takes calls."""
        self._config = config
        self._on_free = on_free
        self._on_lost = on_lost
        self._on_member_lost = on_member_lost
        self._running: dict[int, _Running] = {}
        self._guard = threading.Lock()
        self._link: Link | None = None
        self._left = threading.Event()
        self._leaving = False
        self._member = NodeMember(config.member.name if config.member else "")

    def start(self, env: Mapping[str, str], scratch: Path | None) -> None:
        """Start the process, without waiting for it. ``scratch`` is removed should this process die."""
        link = Link(self.name, self._config, env=env, scratch=scratch, on_message=self._heard, on_end=self._ended)
        self._link = link
        if self._leaving:  # somebody has ended it before it was there
            link.kill()

    @property
    def alive(self) -> bool:
        """Whether it has neither ended nor been told to."""
        return not self._leaving

    @property
    def was_ready(self) -> bool:
        """Whether it has ever taken calls."""
        return self.ready.done() and self.ready.exception() is None

    @property
    def free(self) -> bool:
        """Whether it takes another call now."""
        return self.ready.done() and not self._leaving and len(self._running) < self._config.worker.concurrency

    def run(self, call: Call) -> None:
        """Send a call."""
        running = _Running(call, call.order.name, call.context)
        with self._guard:
            self._running[call.number] = running
        if call.timeout is not None:
            running.timer = threading.Timer(call.timeout, self._overdue, (call.number, call.timeout))
            running.timer.daemon = True
            running.timer.start()
        self._put(call.message)
        for number, source in enumerate(call.order.feeds):
            feed = Outgoing()
            running.feeds.append(feed)
            name = f"argument {number} of {call.order.name}"
            threading.Thread(
                target=self._feed, args=(call.number, number, source, feed), name=name, daemon=True
            ).start()

    def give_up(self, call: int, error: BaseException) -> bool:
        """Stop waiting for a call, and say whether it was running here. Its place is free at once."""
        with self._guard:
            running = self._running.pop(call, None)
        if running is None:
            return False
        self._put(Stop(call, force=True))
        running.finish(error)
        self._on_free()
        return True

    def follow(self, endpoints: tuple[str, ...]) -> None:
        """Tell the node where the cluster's members are now, the nearest first."""
        self._put(Follow(endpoints))

    def lose(self, reason: str) -> None:
        """Tell the node that the cluster is lost."""
        self._put(Lose(reason))

    def start_over(self, endpoints: tuple[str, ...], reason: str) -> None:
        """Tell the node that there is another cluster, the nearest of its members first."""
        self._put(StartOver(endpoints, reason))

    def start_member(self, etcd: Etcd, member: MemberSpec) -> None:
        """Have the node run a fresh member, and wait until it does.

        Raises:
            PoolError: it did not start, or not in time, or the node has ended.
        """
        self._member.expect(member.name)
        self._put(StartMember(etcd, member))
        if self._leaving:  # nobody will tell us any more
            self._member.lose(f"{self.name} has ended")
        self._member.wait(self._config.start_s)

    def check_member(self) -> None:
        """Raise `PoolError` if the member that was started last is lost."""
        self._member.check()

    def leave(self) -> None:
        """Ask the node to say good-bye, without waiting for it."""
        self._leaving = True
        self._member.lose("the pool is closed")
        self._put(Leave())

    def wait_left(self, timeout_s: float) -> None:
        """Wait until the node has said good-bye, or is gone."""
        if self._link:
            self._left.wait(timeout_s)

    def hang_up(self) -> None:
        """Let the node end."""
        if self._link:
            self._link.hang_up()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the process, and kill it when it takes longer."""
        if self._link:
            self._link.join(timeout_s)

    def kill(self) -> None:
        """End the process now."""
        self._leaving = True
        self._member.lose("the pool is closed")
        if self._link:
            self._link.kill()

    def _put(self, message: object) -> None:
        if self._link:
            self._link.put(message)

    def _feed(self, call: int, number: int, source: Iterator[Any], feed: Outgoing) -> None:
        failure = None
        try:
            for item in feed.items(source):
                self._put(Fed(call, number, dumps(item, lambda: f"an item of argument {number}")))
        except BaseException as error:  # noqa: BLE001  the caller's iterator failed: the function gets to see it
            failure = capture(error, "the driver")
        self._put(FeedEnd(call, number, failure))

    def _overdue(self, call: int, timeout: float) -> None:
        running = self._running.get(call)
        if running:
            self.give_up(call, TimeoutError(f"{running.name} ran for more than {timeout:g} s on {self.name}"))

    # What the link's thread does.

    def _heard(self, message: object) -> None:
        match message:
            case Ready(pid=pid):
                self.ready.set_result(pid)
                self._on_free()
            case Unready(failure=failure):
                self.ready.set_exception(revive(failure))
            case Left():
                self._left.set()
            case MemberReady(name=name):
                self._member.runs(name)
            case MemberLost(name=name, reason=reason):
                if self._member.lose(reason, name):
                    self._on_member_lost(self, reason)
            case Printed():
                self._print(message)
            case Returned(call=call, payload=payload):
                self._finish(call, partial(loads, payload))
            case Raised(call=call, failure=failure):
                self._finish(call, failure)
            case _:
                self._stream(message)

    def _stream(self, message: object) -> None:
        running = self._running.get(getattr(message, "call", 0))
        if running is None:
            return  # the caller has given up
        match message:
            case Streaming(call=number) if running.call:
                inbox = running.inbox = Inbox()
                call, running.call = running.call, None
                stop = partial(self._put, Stop(number, force=False))
                call.set_result(Incoming(inbox, wanted=lambda count: self._put(Wanted(number, count)), stop=stop))
            case Yielded(payload=payload) if running.inbox:
                running.inbox.deliver(payload)
            case Wanted(feed=int(feed), count=count):
                running.feeds[feed].wanted(count)
            case _:
                raise TypeError(f"unexpected message {message!r}")

    def _print(self, printed: Printed) -> None:
        running = self._running.get(printed.call) if printed.call is not None else None
        if running:
            running.context.run(show, self.name, printed)
        else:
            show(self.name, printed)

    def _finish(self, call: int, result: Callable[[], Any] | RemoteFailure) -> None:
        with self._guard:
            running = self._running.pop(call, None)
        if running:
            running.finish(result)
            self._on_free()

    def _ended(self, code: int) -> None:
        self._left.set()
        with self._guard:
            ran, self._running = list(self._running.values()), {}
        asked, self._leaving = self._leaving, True
        self._member.lose(f"{self.name} ended with {code}")
        if not self.ready.done():
            self.ready.set_exception(PoolError(f"{self.name} ended with {code} while it was starting"))
        started = self.was_ready
        calls: list[Call] = []
        for running in ran:
            if running.call is None or asked:
                running.finish(PoolError("the pool is closed") if asked else lost(self.name, code, running.name))
            else:
                running.end()
                calls.append(running.call)
        if started and not asked:
            self._on_lost(self, code, calls)


def lost(node: str, code: int, function: str) -> BaseException:
    """The error of a call whose node has died under it."""
    return NodeLost(f"{node} ended with {code} while it ran {function}; functions that may run twice can have retries")


def _resolve(call: Call, result: Callable[[], Any] | RemoteFailure | BaseException) -> None:
    if isinstance(result, RemoteFailure):
        result = revive(result)
    if isinstance(result, BaseException):
        call.set_exception(result)
        return
    try:
        value = result()
    except BaseException as error:  # noqa: BLE001  whatever the result's class does when it is unpickled
        call.set_exception(error)
    else:
        call.set_result(value)
