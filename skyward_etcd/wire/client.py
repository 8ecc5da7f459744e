"""Calls to a cluster of several endpoints: one preferred member, the next one as soon as it fails.

A call here is one attempt. Sending again is the business of :mod:`skyward_etcd.ops.attempt`, which knows what a
request means.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from skyward_etcd import config
from skyward_etcd.errors import NotConnected, SkywardEtcdError, Unavailable
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.address import Address
from skyward_etcd.wire.channel import Channel, Metadata, RawStream, open_channel
from skyward_etcd.wire.methods import AUTHENTICATE, HEALTH, Method
from skyward_etcd.wire.status import CallFailed, Status, is_etcds_word, is_stale_token, translate
from skyward_etcd.wire.tls import Tls

__all__ = ["Login", "Stream", "Tls", "Wire"]

Reply = TypeVar("Reply")

_HAS_LEADER = (("hasleader", "true"),)
_OPENING_S = 3.0
_SILENT_S = 10.0
"""How long a member that has not answered is the last to be asked again."""
_PROOF_S = 1.0
"""How long the next one has to say that it is there."""
_NOTHING = (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED, Status.CANCELLED)


@dataclass(frozen=True, slots=True)
class Login:
    """A user of etcd's own, for a cluster that has authentication enabled."""

    user: str
    password: str = field(repr=False)


class _Members:
    """The endpoints, the preferred one first."""

    __slots__ = ("_silent", "lock", "order", "unproven")

    def __init__(self, order: tuple[str, ...]) -> None:
        self.order = order
        """Replaced as a whole, so that a call needs no lock to read it."""
        self.lock = threading.Lock()
        self._silent: dict[str, float] = {}
        """Who has not answered, and until when the others are preferred."""
        self.unproven: frozenset[str] = frozenset()
        """Those that have not been heard of since another one fell silent. Replaced as a whole, too."""

    def leave(self, endpoint: str, *, silent: bool) -> None:
        """Prefer another one, if this is the one that is preferred.

        While a leader is elected all others refuse, one after the other. To come back then to one that is ``silent``
        would cost the seconds once more that it has just taken to find that out.
        """
        with self.lock:
            now = time.monotonic()
            if silent:
                self._silent[endpoint] = now + _SILENT_S
                self.unproven = frozenset(self.order) - {endpoint}
            if self.order[0] == endpoint:
                self.order = tuple(
                    sorted((*self.order[1:], endpoint), key=lambda each: self._silent.get(each, 0.0) > now)
                )

    def proven(self, endpoint: str) -> None:
        """Take note that this one has been heard of."""
        with self.lock:
            self.unproven -= {endpoint}

    def follow(self, order: tuple[str, ...]) -> None:
        """Have these from now on."""
        with self.lock:
            self.order = order
            self._silent = {each: until for each, until in self._silent.items() if each in order}


class Wire:
    """Channels to the members of one cluster, for threads and for tasks.

    All calls go to one member until a call to it fails; then to the next. Channels connect when they are first
    used, and are never shared between processes: a forked child opens its own.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: Tls | None = None,
        login: Login | None = None,
        transport: str | None = None,
    ) -> None:
        self._tls = tls
        self._login = login
        self._token: Metadata = ()
        self._transport = transport or config.transport()
        self._members = _Members(self._checked(endpoints))
        self._lock = threading.Lock()
        self._signing_on = threading.Lock()
        self._signing_on_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]
        self._signing_on_loops = weakref.WeakKeyDictionary()
        self._channels: dict[str, Channel] = {}
        self._is_closed = False
        _WIRES.add(self)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """All members that calls may go to, the one that they go to now first."""
        return self._members.order

    @property
    def endpoint(self) -> str:
        """The member that calls go to now."""
        return self._members.order[0]

    def beside(self) -> Wire:
        """Return another to the same members, with connections of its own.

        They prefer the same one: who finds a member gone, or without a leader, spares the other's calls the time.
        """
        other = Wire(self.endpoints, tls=self._tls, login=self._login, transport=self._transport)
        other._members = self._members
        return other

    def call(self, method: Method[Any, Reply], request: Any, *, timeout_s: float) -> Reply:
        """Make one attempt and return the reply.

        Raises:
            Unavailable: no answer; the next call goes to the next endpoint.
            EtcdError: etcd refused.
        """
        endpoint = self._members.order[0]
        channel = self._channels.get(endpoint) or self._open(endpoint)
        token = self._token
        try:
            if endpoint in self._members.unproven:
                self._prove(endpoint, channel, timeout_s)
            if self._login and not token:
                token = self._sign_on(channel, timeout_s)
            reply = channel.call(method.path, method.encode(request), timeout_s=timeout_s, metadata=token)
            return _decoded(method, reply)
        except CallFailed as failure:
            raise self._failed(failure, endpoint, method.path, token) from None

    async def call_async(self, method: Method[Any, Reply], request: Any, *, timeout_s: float) -> Reply:
        """`call`, without blocking the event loop."""
        endpoint = self._members.order[0]
        channel = self._channels.get(endpoint) or self._open(endpoint)
        token = self._token
        try:
            if endpoint in self._members.unproven:
                await self._prove_async(endpoint, channel, timeout_s)
            if self._login and not token:
                token = await self._sign_on_async(channel, timeout_s)
            reply = await channel.call_async(method.path, method.encode(request), timeout_s=timeout_s, metadata=token)
            return _decoded(method, reply)
        except CallFailed as failure:
            raise self._failed(failure, endpoint, method.path, token) from None

    def stream(self, method: Method[Any, Any], *, require_leader: bool = False) -> Stream:
        """Open a two-way stream at the preferred endpoint; blocking. It lasts until it is cancelled or breaks.

        ``require_leader`` ends it when the member has lost its leader. Who signs on does so anew for each stream: what
        a stream asks for is checked against the token that it began with.

        Raises:
            Unavailable: no connection; the next call goes to the next endpoint.
        """
        endpoint = self._members.order[0]
        channel = self._channels.get(endpoint) or self._open(endpoint)
        token: Metadata = ()
        try:
            if self._login:
                asked = self._login_request()
                token = self._signed_on(channel.call(AUTHENTICATE.path, asked, timeout_s=_OPENING_S))
            raw = channel.stream(
                method.path, timeout_s=_OPENING_S, metadata=(*token, *(_HAS_LEADER if require_leader else ()))
            )
        except CallFailed as failure:
            raise self._failed(failure, endpoint, method.path, token) from None

        def failed(failure: CallFailed) -> SkywardEtcdError:
            return self._failed(failure, endpoint, method.path, token)

        return Stream(raw, method, failed)

    def switch(self, endpoint: str) -> None:
        """Send the next calls elsewhere, if they still go to ``endpoint``."""
        self._members.leave(endpoint, silent=False)

    def follow(self, endpoints: Sequence[str]) -> None:
        """Send the next calls to these members, the first of them while it answers: the cluster has changed.

        Calls that are under way at a member that is no longer named fail, as when it dies.
        """
        order = self._checked(endpoints)
        self._members.follow(order)
        with self._lock:
            left = [self._channels.pop(each) for each in set(self._channels).difference(order)]
        for channel in left:
            channel.close()

    @property
    def signs_on(self) -> bool:
        """Whether calls go with a token of a user's."""
        return self._login is not None

    def close(self) -> None:
        """Close the channels, for good, those of event loops too."""
        with self._lock:
            self._is_closed = True
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    def after_fork(self) -> None:
        """Open new channels from now on: the parent's are the parent's."""
        self._lock = threading.Lock()
        self._members.lock = threading.Lock()
        self._signing_on = threading.Lock()
        self._signing_on_loops.clear()
        for channel in self._channels.values():
            channel.after_fork()

    def _checked(self, endpoints: Sequence[str]) -> tuple[str, ...]:
        addresses = [Address.parse(endpoint) for endpoint in endpoints]
        if self._tls is None and any(address.wants_tls for address in addresses):
            raise ValueError("an https:// endpoint wants TLS: pass tls=Tls.of_files(…), or set SKYWARD_ETCD_TLS_CA")
        return tuple(address.text for address in addresses)

    def _open(self, endpoint: str) -> Channel:
        with self._lock:
            if self._is_closed:
                raise NotConnected("the session is closed: open another with connect() or Compute()")
            channel = self._channels.get(endpoint)
            if channel is None:
                channel = self._channels[endpoint] = open_channel(endpoint, self._tls, transport=self._transport)
            return channel

    def _prove(self, endpoint: str, channel: Channel, timeout_s: float) -> None:
        """Ask whether a member is there, before a request is given to it. One round trip, after another fell silent.

        What was lost with a leader takes its client the time of a call, and then goes to the next member: which may be
        that leader, on a connection that nothing tells from a good one.
        """
        try:
            channel.call(HEALTH, b"", timeout_s=min(timeout_s, _PROOF_S))
        except CallFailed as failure:
            _require_there(failure)
        self._members.proven(endpoint)

    async def _prove_async(self, endpoint: str, channel: Channel, timeout_s: float) -> None:
        """`_prove`, without blocking the event loop."""
        try:
            await channel.call_async(HEALTH, b"", timeout_s=min(timeout_s, _PROOF_S))
        except CallFailed as failure:
            _require_there(failure)
        self._members.proven(endpoint)

    def _sign_on(self, channel: Channel, timeout_s: float) -> Metadata:
        """Return a token, a new one unless another thread has just got one.

        One at a time: each costs the member a tenth of a second of computing, and all threads want one when it ends.
        """
        if not self._signing_on.acquire(timeout=timeout_s):
            raise CallFailed(Status.DEADLINE_EXCEEDED, "no token in time", maybe_applied=False)
        try:
            asked = self._login_request()
            return self._token or self._signed_on(channel.call(AUTHENTICATE.path, asked, timeout_s=timeout_s))
        except CallFailed as failure:
            failure.maybe_applied = False  # what this is for has not left
            raise
        finally:
            self._signing_on.release()

    async def _sign_on_async(self, channel: Channel, timeout_s: float) -> Metadata:
        """`_sign_on`, without blocking the event loop: one at a time on each."""
        one_by_one = self._signing_on_loops.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        try:
            async with asyncio.timeout(timeout_s), one_by_one:
                asked = self._login_request()
                return self._token or self._signed_on(
                    await channel.call_async(AUTHENTICATE.path, asked, timeout_s=timeout_s)
                )
        except TimeoutError:
            raise CallFailed(Status.DEADLINE_EXCEEDED, "no token in time", maybe_applied=False) from None
        except CallFailed as failure:
            failure.maybe_applied = False
            raise

    def _login_request(self) -> bytes:
        assert self._login is not None  # noqa: S101 - asked before
        return AUTHENTICATE.encode(pb.AuthenticateRequest(name=self._login.user, password=self._login.password))

    def _signed_on(self, reply: bytes) -> Metadata:
        self._token = (("token", _decoded(AUTHENTICATE, reply).token),)
        return self._token

    def _failed(self, failure: CallFailed, endpoint: str, path: str, token: Metadata) -> SkywardEtcdError:
        if self._is_closed:
            return Unavailable(
                f"the session was closed under a call to {endpoint}", maybe_applied=failure.maybe_applied
            )
        if token and is_stale_token(failure):  # it has expired, or the member has restarted: try again with a new one
            if self._token == token:
                self._token = ()
            failure = CallFailed(Status.UNAVAILABLE, "the token was no longer good", maybe_applied=False)
            return translate(failure, endpoint=endpoint, path=path)
        ours = translate(failure, endpoint=endpoint, path=path)
        if isinstance(ours, ConnectionError):
            self._members.leave(endpoint, silent=not is_etcds_word(failure))
        return ours


class Stream:
    """A two-way stream: iterate over what comes on one thread; `send` and `cancel` from any."""

    def __init__(
        self, raw: RawStream, method: Method[Any, Any], failed: Callable[[CallFailed], SkywardEtcdError]
    ) -> None:
        self._raw = raw
        self._method = method
        self._failed = failed

    def send(self, request: Any) -> None:
        """Send a request; in vain, and silently, when the stream has ended: who iterates hears of that."""
        self._raw.send(self._method.encode(request))

    def __iter__(self) -> Generator[Any]:
        """Yield what comes. Close what this returns when it is left before its end, which it holds a connection for."""
        try:
            for message in self._raw:
                yield _decoded(self._method, message)
        except CallFailed as failure:
            raise self._failed(failure) from None

    def cancel(self) -> None:
        """End the stream: its iterator raises `Unavailable`."""
        self._raw.cancel()


def _require_there(failure: CallFailed) -> None:
    """Raise the failure of a question whether a member is there; but a proxy that knows no such question is one."""
    if failure.status in _NOTHING:
        failure.maybe_applied = False  # what was to be asked then
        raise failure


def _decoded(method: Method[Any, Reply], data: bytes) -> Reply:
    try:
        return method.decode(data)
    except DecodeError as error:
        raise CallFailed(Status.INTERNAL, f"its answer of {len(data):,} bytes is none of etcd's: {error}") from None


_WIRES: weakref.WeakSet[Wire] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for wire in list(_WIRES):
        wire.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
