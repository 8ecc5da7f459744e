"""gRPC's own channels as a transport: the extra ``grpcio``.

It cannot keep one promise of our own sockets: who *waits* at a member that falls silent goes on at another after up to
13 s, instead of 3 s. grpcio asks by pings, of which etcd takes no more. Requests are given up after 3 s here too.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from typing import Any

from skyward_etcd.errors import NotConnected
from skyward_etcd.wire.address import Address
from skyward_etcd.wire.status import CallFailed, Status
from skyward_etcd.wire.tls import Tls

try:
    import grpc
    import grpc.aio
except ImportError as error:
    raise NotConnected(
        "SKYWARD_ETCD_TRANSPORT=grpcio: grpcio is not installed (pip install 'skyward-etcd[grpcio]')"
    ) from error

__all__ = ["GrpcioChannel"]

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 3_000),  # also the time that a connection may take to be made
    ("grpc.max_reconnect_backoff_ms", 500),
    # A proxy of the environment is for the internet, and would see everything.
    ("grpc.enable_http_proxy", 0),
    # Finds half-open connections under a watch. etcd takes pings more often than each 5 s for an attack.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),  # what counts in later releases, which else wait for a minute
)

# gRPC's words for a connection that was never made (grpc/src/core, pick_first and subchannel):
_NEVER_LEFT = ("failed to connect to all addresses", "DNS resolution failed", "Cannot invoke RPC")

_Metadata = tuple[tuple[str, str], ...]

# What a child got from its parent is kept, never closed nor collected: closing it waits for threads that are not there.
_PARENTS: list[Any] = []


class GrpcioChannel:
    """A `Channel` on grpcio. Blocking calls share one connection, the calls of each event loop another."""

    def __init__(self, address: Address, tls: Tls | None) -> None:
        self._target = address.text.rpartition("://")[2] if address.port else f"unix:{address.host}"
        self._tls = tls
        self._is_closed = False
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._channel: Any = None
        self._stubs: dict[str, Any] = {}
        self._loops: dict[asyncio.AbstractEventLoop, tuple[Any, dict[str, Any]]] = {}

    def call(self, path: str, message: bytes, *, timeout_s: float, metadata: _Metadata = ()) -> bytes:
        """Make one attempt of a call."""
        stub = self._stubs.get(path)
        if stub is None:
            stub = self._stubs[path] = self._opened().unary_unary(path)
        try:
            return stub(message, timeout=timeout_s, metadata=metadata)  # type: ignore[no-any-return]
        except grpc.RpcError as error:
            raise _failed(error) from None
        except ValueError as error:  # grpc's word for a channel that was closed under the call
            raise CallFailed(Status.CANCELLED, f"closed: {error}") from None

    async def call_async(self, path: str, message: bytes, *, timeout_s: float, metadata: _Metadata = ()) -> bytes:
        """`call`, without blocking the event loop."""
        channel, stubs = self._of_this_loop()
        stub = stubs.get(path)
        if stub is None:
            stub = stubs[path] = channel.unary_unary(path)
        try:
            return await stub(message, timeout=timeout_s, metadata=metadata)  # type: ignore[no-any-return]
        except grpc.aio.AioRpcError as error:
            raise _failed(error) from None
        except grpc.aio.UsageError as error:
            raise CallFailed(Status.CANCELLED, f"closed: {error}") from None
        except asyncio.CancelledError:
            # grpc.aio cancels the callers of a channel that is closed: nobody has cancelled this task.
            task = asyncio.current_task()
            if self._is_closed and task is not None and not task.cancelling():
                raise CallFailed(Status.CANCELLED, "closed") from None
            raise

    def stream(self, path: str, *, timeout_s: float, metadata: _Metadata = ()) -> _Stream:  # noqa: ARG002 - it connects later
        """Open a two-way stream."""
        return _Stream(self._opened().stream_stream(path), metadata)

    def close(self) -> None:
        """Fail what is under way and end the connections; those of an event loop end with their loop."""
        self._is_closed = True
        channel, loops = self._channel, self._loops
        self._start_afresh()
        if channel is not None:
            channel.close()
        for loop, (other, _) in loops.items():
            if not loop.is_closed():
                asyncio.run_coroutine_threadsafe(other.close(), loop)

    def after_fork(self) -> None:
        """Open new channels from now on: a child that touches its parent's hangs."""
        _PARENTS.append((self._channel, self._stubs, self._loops))
        self._start_afresh()

    def _opened(self) -> Any:
        if self._channel is None:
            credentials = self._credentials()
            self._channel = (
                grpc.secure_channel(self._target, credentials, options=_OPTIONS)
                if credentials
                else grpc.insecure_channel(self._target, options=_OPTIONS)
            )
        return self._channel

    def _of_this_loop(self) -> tuple[Any, dict[str, Any]]:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            for ended in [each for each in self._loops if each.is_closed()]:
                del self._loops[ended]
            credentials = self._credentials()
            channel = (
                grpc.aio.secure_channel(self._target, credentials, options=_OPTIONS)
                if credentials
                else grpc.aio.insecure_channel(self._target, options=_OPTIONS)
            )
            self._loops[loop] = (channel, {})
        return self._loops[loop]

    def _credentials(self) -> grpc.ChannelCredentials | None:
        tls = self._tls and self._tls.latest()
        return grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate) if tls else None


class _Stream:
    """A two-way stream: what is sent goes through a queue that gRPC's own thread empties."""

    def __init__(self, open_stream: Any, metadata: _Metadata) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._call = open_stream(iter(self._requests.get, None), metadata=metadata)

    def send(self, message: bytes) -> None:
        """Send a message."""
        self._requests.put(message)

    def cancel(self) -> None:
        """End the stream."""
        self._call.cancel()

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise _failed(error) from None
        finally:
            self._call.cancel()
            self._requests.put(None)


def _failed(error: Any) -> CallFailed:
    details = error.details() or ""
    left = not any(words in details for words in _NEVER_LEFT)
    return CallFailed(Status(error.code().value[0]), details, maybe_applied=left)
