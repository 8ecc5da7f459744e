"""Calls to a cluster of several endpoints: one preferred member, the next one as soon as it fails.

A call here is one attempt. Sending again is the business of :mod:`skyward_etcd.ops.attempt`, which knows what a
request means.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import grpc.aio

from skyward_etcd.errors import NotConnected, SkywardEtcdError, Unavailable
from skyward_etcd.wire.methods import Method
from skyward_etcd.wire.status import translate

__all__ = ["Tls", "Wire"]

Reply = TypeVar("Reply")

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 3_000),  # also the time that a connection may take to be made
    ("grpc.max_reconnect_backoff_ms", 500),
    # A proxy of the environment is for the internet, and would see everything.
    ("grpc.enable_http_proxy", 0),
    # Finds half-open connections under a watch. etcd takes more than one ping in 5 s for an attack.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM data for a cluster that wants TLS: its client CA, and our certificate and key."""

    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)

    def credentials(self) -> grpc.ChannelCredentials:
        """Return gRPC's form of it."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


class Wire:
    """Channels to the members of one cluster, for threads and for tasks.

    All calls go to one member until a call to it fails; then to the next. Channels are opened when they are first
    used, and never shared between processes: a forked child opens its own.
    """

    def __init__(self, endpoints: Sequence[str], *, tls: Tls | None = None) -> None:
        self.endpoints = tuple(endpoints)
        self._tls = tls
        self._preferred = 0
        self._lock = threading.Lock()
        self._is_closed = False
        self._forget()
        _WIRES.add(self)

    @property
    def endpoint(self) -> str:
        """The member that calls go to now."""
        return self.endpoints[self._preferred]

    def call(self, method: Method[Any, Reply], request: Any, *, timeout_s: float) -> Reply:
        """Make one attempt and return the reply.

        Raises:
            Unavailable: no answer; the next call goes to the next endpoint.
            EtcdError: etcd refused.
        """
        endpoint = self.endpoints[self._preferred]
        stub = self._stubs.get((endpoint, method.path)) or self._stub(endpoint, method)
        try:
            return stub(request, timeout=timeout_s)  # type: ignore[no-any-return]
        except grpc.RpcError as error:
            raise self._failed(error, endpoint, method.path) from None
        except ValueError as error:  # grpc's word for a channel that was closed under the call
            raise self._closed(error, endpoint, method.path) from None

    async def call_async(self, method: Method[Any, Reply], request: Any, *, timeout_s: float) -> Reply:
        """`call`, without blocking the event loop."""
        endpoint = self.endpoints[self._preferred]
        stubs = self._loops.get(asyncio.get_running_loop()) or self._of_this_loop()
        try:
            return await stubs.of(endpoint, method)(request, timeout=timeout_s)  # type: ignore[no-any-return]
        except grpc.aio.AioRpcError as error:
            raise self._failed(error, endpoint, method.path) from None
        except asyncio.CancelledError:
            # grpc.aio cancels the callers of a channel that is closed: nobody has cancelled this task.
            task = asyncio.current_task()
            if self._is_closed and task is not None and not task.cancelling():
                raise Unavailable(f"the session was closed under a call to {endpoint}") from None
            raise
        except grpc.aio.UsageError as error:
            raise self._closed(error, endpoint, method.path) from None

    def stream(
        self,
        method: Method[Any, Any],
        requests: Iterator[Any],
        *,
        timeout_s: float | None = None,
        require_leader: bool = False,
    ) -> Stream:
        """Open a two-way stream at the preferred endpoint.

        ``timeout_s`` bounds its whole life; ``require_leader`` ends it when the member has lost its leader.
        """
        endpoint = self.endpoints[self._preferred]
        call: Any = self._channel(endpoint).stream_stream(
            method.path, request_serializer=method.encode, response_deserializer=method.decode
        )
        return Stream(
            self, endpoint, method, call(requests, timeout=timeout_s, metadata=_HAS_LEADER if require_leader else None)
        )

    def switch(self, endpoint: str) -> None:
        """Send the next calls elsewhere, if they still go to ``endpoint``."""
        with self._lock:
            if self.endpoints[self._preferred] == endpoint:
                self._preferred = (self._preferred + 1) % len(self.endpoints)

    def follow(self, endpoints: Sequence[str]) -> None:
        """Send the next calls to these members, the first of them while it answers: the cluster has changed."""
        with self._lock:
            self._preferred = 0  # before the list: a call that reads both meanwhile finds an endpoint
            self.endpoints = tuple(endpoints)

    def close(self) -> None:
        """Close the channels, for good. Those of an event loop close in `close_async`, else with their loop."""
        with self._lock:
            self._is_closed = True
            channels = list(self._channels.values())
            self._forget()
        for channel in channels:
            channel.close()

    async def close_async(self) -> None:
        """`close`, and the channels of the running event loop with it."""
        stubs = self._loops.pop(asyncio.get_running_loop(), None)
        await asyncio.to_thread(self.close)
        if stubs is not None:
            await stubs.close()

    def failed(self, error: Any, endpoint: str, path: str) -> SkywardEtcdError:
        """Return what the failure of a stream means, and leave the endpoint if it is to blame."""
        return self._failed(error, endpoint, path)

    def _failed(self, error: Any, endpoint: str, path: str) -> SkywardEtcdError:
        ours = translate(error.code(), error.details() or "", endpoint=endpoint, path=path)
        if isinstance(ours, ConnectionError):
            self.switch(endpoint)
        return ours

    def _closed(self, error: Exception, endpoint: str, path: str) -> SkywardEtcdError:
        return translate(grpc.StatusCode.UNAVAILABLE, f"Channel closed: {error}", endpoint=endpoint, path=path)

    def _channel(self, endpoint: str) -> grpc.Channel:
        with self._lock:
            self._check_open()
            channel = self._channels.get(endpoint)
            if channel is None:
                channel = self._channels[endpoint] = (
                    grpc.secure_channel(endpoint, self._tls.credentials(), options=_OPTIONS)
                    if self._tls
                    else grpc.insecure_channel(endpoint, options=_OPTIONS)
                )
            return channel

    def _stub(self, endpoint: str, method: Method[Any, Any]) -> Any:
        stub: Any = self._channel(endpoint).unary_unary(
            method.path, request_serializer=method.encode, response_deserializer=method.decode
        )
        self._stubs[endpoint, method.path] = stub
        return stub

    def _of_this_loop(self) -> _LoopStubs:
        with self._lock:
            self._check_open()
            for loop in [loop for loop in self._loops if loop.is_closed()]:
                del self._loops[loop]
            stubs = self._loops[asyncio.get_running_loop()] = _LoopStubs(self._tls)
        return stubs

    def _check_open(self) -> None:
        if self._is_closed:
            raise NotConnected("the session is closed: open another with connect() or Compute()")

    def _forget(self) -> None:
        self._channels: dict[str, grpc.Channel] = {}
        self._stubs: dict[tuple[str, str], Any] = {}
        self._loops: dict[asyncio.AbstractEventLoop, _LoopStubs] = {}

    def after_fork(self) -> None:
        """Open new channels from now on: a child that touches its parent's hangs."""
        _PARENTS.append((self._channels, self._stubs, self._loops))
        self._lock = threading.Lock()
        self._forget()


class Stream:
    """A two-way stream: iterate over what comes, `cancel` from any thread."""

    def __init__(self, wire: Wire, endpoint: str, method: Method[Any, Any], call: Any) -> None:
        self._wire = wire
        self._method = method
        self._call = call
        self.endpoint = endpoint

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise self._wire.failed(error, self.endpoint, self._method.path) from None

    def cancel(self) -> None:
        """End the stream: its iterator raises `Unavailable`."""
        self._call.cancel()


class _LoopStubs:
    """The channels of one event loop: grpc.aio binds a channel to the loop that made it."""

    def __init__(self, tls: Tls | None) -> None:
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[tuple[str, str], Any] = {}

    def of(self, endpoint: str, method: Method[Any, Any]) -> Any:
        stub = self._stubs.get((endpoint, method.path))
        if stub is None:
            channel = self._channels.get(endpoint)
            if channel is None:
                channel = self._channels[endpoint] = (
                    grpc.aio.secure_channel(endpoint, self._tls.credentials(), options=_OPTIONS)
                    if self._tls
                    else grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
                )
            stub = self._stubs[endpoint, method.path] = channel.unary_unary(
                method.path, request_serializer=method.encode, response_deserializer=method.decode
            )
        return stub

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


_HAS_LEADER = (("hasleader", "true"),)
_WIRES: weakref.WeakSet[Wire] = weakref.WeakSet()
# What a child got from its parent is kept, never closed nor collected: closing it waits for threads that are not there.
_PARENTS: list[Any] = []


def _after_fork_in_child() -> None:
    for wire in list(_WIRES):
        wire.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
