"""What `Wire` needs of a transport: bytes out, bytes in, at one endpoint. Sockets of our own are the default.

gRPC's own (extra ``grpcio``, ``SKYWARD_ETCD_TRANSPORT=grpcio``) is there for networks that need what it can, and to
compare with. It is slower, and unsafe under ``os.fork`` (docs/decisions/0006-own-transport.md).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Protocol

from skyward_etcd.wire.address import Address
from skyward_etcd.wire.http2 import header_block
from skyward_etcd.wire.loops import LoopChannel
from skyward_etcd.wire.methods import HEALTH
from skyward_etcd.wire.sockets import Pool
from skyward_etcd.wire.status import CallFailed, Status
from skyward_etcd.wire.tls import Tls

__all__ = ["Channel", "Metadata", "RawStream", "SocketChannel", "open_channel"]

Metadata = tuple[tuple[str, str], ...]

_HEADER_BLOCKS = 64


class RawStream(Protocol):
    """A two-way stream of encoded messages."""

    def send(self, message: bytes) -> None:
        """Send a message; in vain, and silently, when the stream has ended."""
        ...

    def cancel(self) -> None:
        """End the stream under whoever iterates. From any thread."""
        ...

    def __iter__(self) -> Iterator[bytes]:
        """Yield what comes; raise `CallFailed` when the stream is broken or refused."""
        ...


class Channel(Protocol):
    """A way to one endpoint, for threads and for tasks. Every failure is a `CallFailed`."""

    def call(self, path: str, message: bytes, *, timeout_s: float, metadata: Metadata = ()) -> bytes:
        """Make one attempt of a call."""
        ...

    async def call_async(self, path: str, message: bytes, *, timeout_s: float, metadata: Metadata = ()) -> bytes:
        """`call`, without blocking the event loop."""
        ...

    def stream(self, path: str, *, timeout_s: float, metadata: Metadata = ()) -> RawStream:
        """Open a two-way stream. ``timeout_s`` bounds the opening."""
        ...

    def close(self) -> None:
        """Fail what is under way and end the connections, of every event loop too."""
        ...

    def after_fork(self) -> None:
        """Let go, in the child, of what is the parent's."""
        ...


def open_channel(endpoint: str, tls: Tls | None, *, transport: str) -> Channel:
    """Return a channel that connects when it is used.

    Raises:
        ValueError: no such transport, or no such endpoint.
    """
    address = Address.parse(endpoint)
    if transport == "sockets":
        return SocketChannel(address, tls)
    if transport == "grpcio":
        from skyward_etcd.wire.grpcio import GrpcioChannel

        return GrpcioChannel(address, tls)
    raise ValueError(f"SKYWARD_ETCD_TRANSPORT={transport!r}: it is 'sockets' (the default) or 'grpcio'")


class SocketChannel:
    """A `Channel` on sockets of our own."""

    def __init__(self, address: Address, tls: Tls | None) -> None:
        self._address = address
        self._tls = tls
        self._scheme = "https" if tls else "http"
        self._is_closed = False
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pool = Pool(self._address, self._tls)
        self._loops: dict[asyncio.AbstractEventLoop, LoopChannel] = {}
        self._blocks: dict[tuple[str, Metadata], bytes] = {}

    def call(self, path: str, message: bytes, *, timeout_s: float, metadata: Metadata = ()) -> bytes:
        """Make one attempt of a call."""
        headers = self._blocks.get((path, metadata)) or self._block(path, metadata)
        return self._pool.call(headers, message, timeout_s=timeout_s)

    async def call_async(self, path: str, message: bytes, *, timeout_s: float, metadata: Metadata = ()) -> bytes:
        """`call`, without blocking the event loop."""
        headers = self._blocks.get((path, metadata)) or self._block(path, metadata)
        channel = self._loops.get(asyncio.get_running_loop()) or self._of_this_loop()
        return await channel.call(headers, message, timeout_s=timeout_s)

    def stream(self, path: str, *, timeout_s: float, metadata: Metadata = ()) -> RawStream:
        """Open a two-way stream on a connection of its own."""
        question = self._block(HEALTH, metadata)
        return self._pool.stream(self._block(path, metadata), question, timeout_s=timeout_s)

    def close(self) -> None:
        """Fail what is under way and end the connections, of every event loop too."""
        self._is_closed = True
        self._pool.close()
        for loop, channel in list(self._loops.items()):
            if loop.is_closed():
                channel.forget()
            elif loop.is_running() and loop is not _running_loop():
                with contextlib.suppress(RuntimeError):  # closed since
                    loop.call_soon_threadsafe(channel.close)
            else:  # this thread's, or one that stands still
                channel.close()
        self._loops.clear()

    def after_fork(self) -> None:
        """Let go of the parent's connections."""
        self._pool.after_fork()
        for channel in self._loops.values():
            channel.forget()
        self._start_afresh()

    def _block(self, path: str, metadata: Metadata) -> bytes:
        if len(self._blocks) >= _HEADER_BLOCKS:  # another token now and then, for a long time
            self._blocks.clear()
        block = header_block(path, self._address.authority, self._scheme, metadata)
        self._blocks[path, metadata] = block
        return block

    def _of_this_loop(self) -> LoopChannel:
        for loop, channel in list(self._loops.items()):  # at once: other threads add theirs
            if loop.is_closed():
                channel.forget()
                self._loops.pop(loop, None)
        loop = asyncio.get_running_loop()
        channel = self._loops[loop] = LoopChannel(self._address, self._tls, self._block(HEALTH, ()))
        if self._is_closed:  # since: whoever closed may not have seen it
            del self._loops[loop]
            raise CallFailed(Status.CANCELLED, "closed", maybe_applied=False)
        return channel


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
