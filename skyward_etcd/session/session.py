"""A session: a process's lease, channels and watches, behind which every collection's operations run.

It always sees its own writes and never goes back in time, whichever member answers. It may be used by threads and
tasks at once. After a fork the child is a session of its own: it holds nothing that its parent held. When its cluster
is recovered, it begins a new `Era`: what was under way ends, and what it held is free.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from skyward_etcd.config import Limits
from skyward_etcd.errors import NotConnected, SkywardEtcdError, Unavailable
from skyward_etcd.ops.codec import Codec
from skyward_etcd.ops.effects import Operation
from skyward_etcd.ops.layout import Layout
from skyward_etcd.ops.notes import Notes
from skyward_etcd.session import observing, runner
from skyward_etcd.session.era import Era
from skyward_etcd.session.identity import Identity
from skyward_etcd.session.janitor import Janitor
from skyward_etcd.session.keeper import Keeper
from skyward_etcd.session.merging import Merging
from skyward_etcd.session.signals import Signal, wait, wait_async
from skyward_etcd.session.watch import WatchHub
from skyward_etcd.wire.address import Address
from skyward_etcd.wire.client import Login, Tls, Wire

T = TypeVar("T")

__all__ = ["Login", "Session", "Tls", "check_namespace"]

_SHORTEST_TTL_S = 5.0
_DEFAULT_LIMITS = Limits()


def check_namespace(namespace: str) -> str:
    """Return the namespace if it can be one.

    Raises:
        TypeError, ValueError: it is no text, empty, or too long.
    """
    return Layout(namespace).namespace


class Session:
    """A process's place in a cluster. Construct without I/O; `open` or use it to connect; `close` when done."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        namespace: str = "default",
        secret: bytes | None = None,
        node: str = "",
        tls: Tls | None = None,
        login: Login | None = None,
        limits: Limits = _DEFAULT_LIMITS,
    ) -> None:
        """Describe a session.

        Args:
            endpoints: ``host:port`` of the members. The first is asked while it answers.
            namespace: keeps programs that share a cluster apart.
            secret: signs and checks pickled values; without it they are refused.
            node: what to call this process where operators look.
            tls: certificates, if the cluster wants TLS.
            login: user and password, if the cluster wants them.
            limits: time limits, and the lease's TTL (at least 5 s).
        """
        if isinstance(endpoints, str) or not endpoints:
            raise ValueError(f"endpoints is a list of host:port, not {endpoints!r}")
        if limits.ttl_s < _SHORTEST_TTL_S:
            raise ValueError(
                f"ttl_s={limits.ttl_s}: a lease under {_SHORTEST_TTL_S:.0f} s is lost to a slow garbage collection"
            )
        self.endpoints = tuple(Address.parse(endpoint).text for endpoint in endpoints)
        self.layout = Layout(namespace)
        self.codec = Codec(secret, limit=limits.value_bytes)
        self.limits = limits
        self._tls = tls
        self._login = login
        self.node = node or socket.gethostname()
        self._start_afresh()
        _SESSIONS.add(self)

    def _start_afresh(self) -> None:
        self.kept: dict[bytes, Any] = {}
        """What collections must not forget, under keys of theirs. Who puts something in takes it out."""
        self._seen_lock = threading.Lock()
        self._turning = threading.Lock()
        self._pid = os.getpid()
        self._closed = False
        self._exits_in = 0
        """The thread that ends the interpreter, and with it this session."""
        self._begin_era()

    def _begin_era(self) -> None:
        self.seen = 0
        """The highest revision this session has seen or written."""
        self.notes = Notes()
        """What collections remember to save a round trip: bounded, and forgotten without harm."""
        self.wire = Wire(self.endpoints, tls=self._tls, login=self._login)
        # Streams have connections of their own: a large reply must not hold up a renewal or an event.
        self._streams = self.wire.beside()

        def on_reply(cluster_id: int) -> None:  # the era's own, whichever this session has by then
            self.heard_of(era, cluster_id)

        def clean_up(operation: Operation[None]) -> None:
            runner.run(self, operation, era)

        self._keeper = Keeper(
            self._streams,
            self.layout,
            ttl_s=self.limits.ttl_s,
            call_s=self.limits.call_s,
            node=self.node,
            on_reply=on_reply,
        )
        self.hub = WatchHub(self._streams, self, on_reply=on_reply)
        self._janitor = Janitor(clean_up, self._give_up_identity)
        merging = Merging(self.wire, at_once=self.limits.calls_at_once)
        self.era = era = Era(merging, self._streams, self._keeper, self.hub, self._janitor)

    def open(self) -> Self:
        """Get a lease, so that errors of the configuration show here. Two round trips.

        Raises:
            Unavailable: no endpoint answers.
        """
        self.join()
        wait((self.joined,), self.limits.operation_s)
        self.joined_identity()
        return self

    async def open_async(self) -> Self:
        """`open`, without blocking the event loop."""
        self.join()
        await wait_async((self.joined,), self.limits.operation_s)
        self.joined_identity()
        return self

    def follow(self, endpoints: Sequence[str]) -> None:
        """Go on with these members of the cluster, which has changed. The first is asked while it answers."""
        self.endpoints = tuple(endpoints)
        self.wire.follow(self.endpoints)
        self._streams.follow(self.endpoints)

    def lose(self, reason: str) -> None:
        """End all that is under way at once, waits too, and what comes from now on, with `QuorumLost`."""
        self.era.end(reason)

    def start_over(self, endpoints: Sequence[str], reason: str) -> None:
        """Go on with another cluster, at these endpoints, as one that has just come: nothing is held or remembered.

        What is under way, and knows the cluster of before, ends with `QuorumLost`.
        """
        self._turn(self.era, endpoints, reason)

    def _turn(self, ending: Era, endpoints: Sequence[str], reason: str) -> None:
        with self._turning:
            if self.era is not ending or self._closed:
                return
            ending.condemn(reason)  # before there is anything new that it could take for its own
            self.endpoints = tuple(endpoints)
            self._begin_era()
        ending.end(reason)  # whoever hears that may try again at once
        observing.tell(lambda each: each.cluster_changed())

    def close(self) -> None:
        """Give back the lease and all that hangs on it, and end the threads. May be called twice."""
        if self._closed:
            return
        self._janitor.close()
        with self._turning:
            self._closed = True
        self.wire.close()
        self._end()

    def _end(self) -> None:
        self.hub.close()
        self._keeper.close()
        self._streams.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def close_async(self) -> None:
        """`close`, without blocking the event loop."""
        await asyncio.to_thread(self._janitor.close)
        with self._turning:
            self._closed = True
        self.wire.close()
        await asyncio.to_thread(self._end)

    @property
    def id(self) -> str:
        """The session's name in keys; empty while it has no lease."""
        return self.identity.id if self.identity else ""

    def run(self, operation: Operation[T]) -> T:
        """Drive an operation to its end, blocking this thread."""
        try:
            self.check_open()
            return runner.run(self, observing.observed(operation) if observing.observers else operation)
        except SkywardEtcdError:
            if self._is_left_behind():
                raise SystemExit from None  # which ends a thread without a word
            raise

    async def run_async(self, operation: Operation[T]) -> T:
        """`run`, without blocking the event loop."""
        try:
            self.check_open()
            return await runner.run_async(self, observing.observed(operation) if observing.observers else operation)
        except SkywardEtcdError:
            if self._is_left_behind():
                await asyncio.get_running_loop().create_future()  # its loop's thread is about to be stopped
            raise

    def check_open(self) -> None:
        """Raise `NotConnected` if the session is closed."""
        if self._closed:
            raise NotConnected("the session is closed: open another with connect() or Compute()")

    def _is_left_behind(self) -> bool:
        """Tell whether the interpreter ends under this thread: a daemon, which nobody waits for.

        Its waits cannot succeed any more, but that is no failure of the program, which ends as it was told to.
        """
        return self._exits_in not in (0, threading.get_ident())

    # What the runners need:

    @property
    def identity(self) -> Identity | None:
        """Who this process is, once it has a lease."""
        return self._keeper.identity

    @property
    def joined(self) -> Signal:
        """Set when there is an identity, or a reason why not."""
        return self._keeper.ready

    def join(self) -> None:
        """Begin to get an identity."""
        self._keeper.start()

    def joined_identity(self) -> Identity:
        """Return the identity that was waited for."""
        identity = self._keeper.identity
        if identity is not None:
            return identity
        because = self._keeper.trouble or "is the cluster up?"
        raise self._keeper.error or Unavailable(
            f"no lease from {', '.join(self.endpoints)} in time: {because}", maybe_applied=False
        )

    def renounce(self, identity: Identity) -> None:
        """Take note that an identity's lease is gone."""
        self._keeper.renounce(identity)

    def later(self, make: Callable[[], Operation[None]]) -> None:
        """Have an operation run in the background, until it gets through."""
        self._janitor.add(make)

    def _give_up_identity(self) -> None:
        identity = self.identity
        if identity is not None:
            self.renounce(identity)

    def heard_of(self, era: Era, cluster_id: int) -> None:
        """Take note of the cluster that an answer came from; begin another era if it is not that of this one."""
        if not era.is_about(cluster_id):
            where = ", ".join(self.endpoints)
            self._turn(
                era,
                self.endpoints,
                f"the cluster at {where} was recovered from a member's data: what was under way has ended, and locks "
                "and claims are free. Try again",
            )

    def saw(self, revision: int) -> None:
        """Remember the revision: no read of this session may be older."""
        if revision > self.seen:
            with self._seen_lock:
                self.seen = max(self.seen, revision)

    def after_fork(self) -> None:
        """Become a session of its own: threads and channels stay with the parent."""
        if not self._closed:
            _PARENTS.append((self._keeper, self.hub))
            reason = self.era.reason
            self._start_afresh()
            if reason:
                self.lose(reason)

    def close_at_exit(self) -> None:
        """Close without complaint: the interpreter is going."""
        if self._pid == os.getpid():
            self._exits_in = threading.get_ident()
            with contextlib.suppress(SkywardEtcdError):
                self.close()


_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()
# Never collected in a child: their streams end with the parent's threads.
_PARENTS: list[object] = []


def _after_fork_in_child() -> None:
    for session in list(_SESSIONS):
        session.after_fork()


def _at_exit() -> None:
    for session in list(_SESSIONS):
        session.close_at_exit()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
