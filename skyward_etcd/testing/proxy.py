"""A TCP proxy before one server that fails as it is told to: put it between a client and an etcd member.

What passes is not changed. What is lost on a line that stays open is held back and comes when the line is whole again,
however late, as TCP has it; what is lost by a cut is lost for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from skyward_etcd.wire.address import Address

__all__ = ["HALF_OPEN", "REFUSING", "SOUND", "Faults", "Proxy"]

_CHUNK = 64 * 1024
_ON_ITS_WAY = 256
"""Chunks that a slow line holds; the sender waits when there are more."""
_LAST_ANSWER_S = 5.0
"""How long the answer to a request is awaited after its client was cut off: to count those that were lost."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with a line; nothing, by default."""

    refuses: bool = False
    """New connections are closed at once."""
    loses_requests: bool = False
    """Nothing arrives at the server, and nobody is told."""
    loses_replies: bool = False
    """Nothing arrives at the client, and nobody is told."""
    cuts_after_request: float = 0.0
    """The share of requests after which the connection is cut, once all their bytes have passed: the reply is lost.
    A request is what ends a stream of HTTP/2, so that watches are cut off only by the way."""
    delay_s: float = 0.0
    """What every byte takes, each way."""
    bytes_per_s: float | None = None
    """What fits through in a second, each way."""


SOUND = Faults()
REFUSING = Faults(refuses=True)
HALF_OPEN = Faults(loses_requests=True, loses_replies=True)
"""Both ends believe in the connection, and nothing passes: what a split network looks like."""


class Proxy:
    """A proxy on a port of 127.0.0.1, on a thread of its own; for ``with``. Safe for several threads.

    ``seed`` decides which requests are cut. ``name_of`` tells from a connection's port who it comes from, for `break_`
    by name; it may take some milliseconds.
    """

    def __init__(self, target: str, *, seed: int = 0, name_of: Callable[[int], str] | None = None) -> None:
        self._target = Address.parse(target)
        self._name_of = name_of
        self._random = random.Random(seed)  # noqa: S311 - faults that can be repeated, no secrets
        self._faults: dict[str | None, Faults] = {}
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._thread = threading.Thread(target=self._run, name=f"proxy before {target}", daemon=True)
        self.endpoint = f"127.0.0.1:{self._listening.getsockname()[1]}"
        """``host:port`` to connect to."""
        self.cuts = 0
        """Connections that were cut after a request."""
        self.lost_replies = 0
        """Of these, those of which the server did answer: cuts that hit."""

    def break_(self, faults: Faults, *, source: str | None = None) -> None:
        """Have these faults from now on, for old connections too; only for those of ``source`` if it is named."""
        self._do(lambda: self._set(faults, source))

    def heal(self) -> None:
        """Have no faults: what was held back passes now."""
        self._do(self._heal)

    def cut(self) -> None:
        """Cut every connection, now."""
        self._do(self._cut)

    def start(self) -> None:
        """Listen."""
        self._thread.start()

    def close(self) -> None:
        """Cut every connection, and listen no more. May be called twice, and without a start."""
        if self._thread.is_alive():
            self._do(self._end)
            self._thread.join()
        self._listening.close()
        self._loop.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- on the thread of the proxy

    def _run(self) -> None:
        self._listening.setblocking(False)
        self._loop.add_reader(self._listening, self._accept)
        self._loop.run_forever()  # until `_end` stops it
        self._loop.remove_reader(self._listening)
        self._loop.run_until_complete(self._finish())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())

    async def _finish(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # in which the connections that were cut are closed

    def _do(self, change: Callable[[], None]) -> None:
        """Do it on the proxy's thread, and wait until it is done."""
        if not self._thread.is_alive():
            change()
            return
        done = threading.Event()

        def do() -> None:
            change()
            done.set()

        self._loop.call_soon_threadsafe(do)
        done.wait()

    def _set(self, faults: Faults, source: str | None) -> None:
        self._faults[source] = faults
        self._tell()

    def _heal(self) -> None:
        self._faults.clear()
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _cut(self) -> None:
        for connection in list(self._connections):
            connection.cut()

    def _end(self) -> None:
        self._cut()
        self._loop.stop()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it has gone again
            client, (_, port, *_) = self._listening.accept()
            client.setblocking(False)
            self.spawn(self._serve(client, port))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it beside all else; a connection that breaks is no failure."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, OSError):
            self._loop.call_exception_handler({"message": "a proxy's connection failed", "exception": error})

    async def _serve(self, client: socket.socket, port: int) -> None:
        with client:
            name_of = self._name_of
            source = await asyncio.to_thread(name_of, port) if name_of else None
            if self.faults_of(source).refuses:
                return
            connection = _Connection(self, source)
            self._connections.add(connection)
            try:
                await connection.serve(client, self._target)
            finally:
                connection.cut()
                self._connections.discard(connection)

    # ---- for its connections

    def faults_of(self, source: str | None) -> Faults:
        """Return what is wrong with the line from there."""
        own = self._faults.get(source) if source is not None else None
        return own or self._faults.get(None, SOUND)

    async def changed(self) -> None:
        """Wait for other faults."""
        await self._changed.wait()

    def hits(self, share: float) -> bool:
        """Draw whether this request is cut."""
        return share > 0 and self._random.random() < share


class _Connection:
    """One connection through the proxy: two lines, each with a reader and a writer."""

    def __init__(self, proxy: Proxy, source: str | None) -> None:
        self._proxy = proxy
        self._source = source
        self._requests = _Requests()
        self._client: asyncio.StreamWriter | None = None
        self._server: asyncio.StreamWriter | None = None
        self._is_cut_off = False
        """The client is gone, and the server does not know yet."""

    @property
    def faults(self) -> Faults:
        return self._proxy.faults_of(self._source)

    async def serve(self, accepted: socket.socket, target: Address) -> None:
        from_client, self._client = await asyncio.open_connection(sock=accepted, limit=_CHUNK)
        from_server, self._server = await _opened(target)
        lines = (
            self._line(from_client, self._to_server, "loses_requests"),
            self._line(from_server, self._to_client, "loses_replies"),
        )
        tasks = [asyncio.ensure_future(line) for line in lines]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._is_cut_off and tasks[1] not in done:
                await asyncio.wait(tasks, timeout=_LAST_ANSWER_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def cut(self) -> None:
        """End both sides without a word."""
        for writer in (self._client, self._server):
            if writer is not None:
                writer.transport.abort()

    async def _line(
        self, reader: asyncio.StreamReader, pass_on: Callable[[bytes], Coroutine[Any, Any, None]], loss: str
    ) -> None:
        """Carry bytes one way until their end has arrived too."""
        on_its_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_ON_ITS_WAY)
        taking_in = asyncio.ensure_future(self._take_in(reader, on_its_way))
        now = asyncio.get_running_loop().time
        try:
            while True:
                sent, data = await on_its_way.get()
                while getattr(self.faults, loss):
                    await self._proxy.changed()
                await asyncio.sleep(sent + self.faults.delay_s - now())
                if not data:
                    return
                await pass_on(data)
                if self.faults.bytes_per_s is not None:
                    await asyncio.sleep(len(data) / self.faults.bytes_per_s)
        finally:
            taking_in.cancel()
            await asyncio.gather(taking_in, return_exceptions=True)

    async def _take_in(self, reader: asyncio.StreamReader, on_its_way: asyncio.Queue[tuple[float, bytes]]) -> None:
        now = asyncio.get_running_loop().time
        data = b"-"
        while data:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""
            await on_its_way.put((now(), data))

    async def _to_server(self, data: bytes) -> None:
        assert self._server is not None  # noqa: S101 - both are there before the lines are
        share = self.faults.cuts_after_request
        cut_at = next((end for end in self._requests.ends_in(data) if self._proxy.hits(share)), None)
        self._server.write(data[:cut_at])
        await self._server.drain()
        if cut_at is not None:
            self._proxy.cuts += 1
            self._is_cut_off = True
            if self._client is not None:
                self._client.transport.abort()
            raise ConnectionAbortedError

    async def _to_client(self, data: bytes) -> None:
        assert self._client is not None  # noqa: S101 - as above
        if self._is_cut_off:
            if _HEADERS in _frame_types(data):
                self._proxy.lost_replies += 1
                raise ConnectionAbortedError
            return
        self._client.write(data)
        await self._client.drain()


# ---- as much of HTTP/2 as tells where a request ends (RFC 9113, sections 3.4, 4.1 and 6.1)

_PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
_HEAD = 9
_DATA, _HEADERS = 0, 1
_END_STREAM = 1


async def _opened(target: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if target.port:
        return await asyncio.open_connection(target.host, target.port, limit=_CHUNK)
    return await asyncio.open_unix_connection(target.host, limit=_CHUNK)


class _Requests:
    """Finds the ends of requests in what a client sends, piece by piece."""

    def __init__(self) -> None:
        self._skip = _PREFACE
        self._head = b""
        self._ends_here = False

    def ends_in(self, data: bytes) -> list[int]:
        """Return where in ``data`` a request's last byte has passed."""
        ends: list[int] = []
        at = 0
        while True:
            if self._skip:
                step = min(self._skip, len(data) - at)
                at, self._skip = at + step, self._skip - step
                if self._skip:
                    return ends
            if self._ends_here:
                ends.append(at)
                self._ends_here = False
            missing = _HEAD - len(self._head)
            self._head, at = self._head + data[at : at + missing], at + missing
            if len(self._head) < _HEAD:
                return ends
            self._skip = int.from_bytes(self._head[:3])
            self._ends_here = self._head[3] == _DATA and bool(self._head[4] & _END_STREAM)
            self._head = b""


def _frame_types(data: bytes) -> set[int]:
    """Return the kinds of frames in what a server sent; right if ``data`` begins with a frame, as writes of etcd do."""
    types: set[int] = set()
    at = 0
    while at + _HEAD <= len(data):
        types.add(data[at + 3])
        at += _HEAD + int.from_bytes(data[at : at + 3])
    return types
