"""Calls of an event loop's tasks to one endpoint: all on one connection, any number at a time.

While calls wait, a server that is silent is asked whether it is there, and left if it does not answer: so the next call
does not wait on a connection that leads nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time

from skyward_etcd.wire.address import CONNECT_S, Address, Place, shared_out, unconnected
from skyward_etcd.wire.http2 import Exchange, Http2, ProtocolError
from skyward_etcd.wire.sockets import ANSWER_S, IDLE_S, READ, answer_of, read_now
from skyward_etcd.wire.status import CallFailed, Status
from skyward_etcd.wire.tls import Tls, explained, shaking_hands

__all__ = ["LoopChannel"]


class LoopChannel:
    """The connection of one event loop to one endpoint, made when it is needed, and made again when it is lost."""

    def __init__(self, address: Address, tls: Tls | None, question: bytes) -> None:
        self._address = address
        self._tls = tls
        self._question = question
        self._loop = asyncio.get_running_loop()
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None
        self._all: set[_Connection] = set()
        self._is_closed = False

    async def call(self, headers: bytes, message: bytes, *, timeout_s: float) -> bytes:
        """Make a call of one message, and return the answer's.

        Raises:
            CallFailed: there is no answer, or a refusal.
        """
        connection = self._connection
        if connection is None or connection.http.is_going:
            began = time.monotonic()
            connection = await self._connected(timeout_s)
            timeout_s -= time.monotonic() - began
        return answer_of(await connection.call(headers, message, timeout_s))

    def close(self) -> None:
        """End the connections; on the loop's own thread. Calls that are under way fail."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        for connection in list(self._all):
            connection.lose("closed")

    def forget(self) -> None:
        """Close this process's copies of the sockets: the loop is gone, or it is another process's."""
        self._is_closed = True
        for connection in list(self._all):
            connection.forget()

    async def _connected(self, timeout_s: float) -> _Connection:
        """Return the connection that all tasks wait for together; one that is cancelled leaves it to the rest."""
        task = self._connecting
        if task is None or task.done():
            task = self._connecting = self._loop.create_task(self._connect(max(timeout_s, ANSWER_S)))
            task.add_done_callback(_take_note)
        await asyncio.wait((task,), timeout=timeout_s)
        if not task.done():
            raise CallFailed(Status.DEADLINE_EXCEEDED, "no connection in time", maybe_applied=False)
        if task.cancelled():
            raise CallFailed(Status.CANCELLED, "closed", maybe_applied=False)
        return task.result()

    async def _connect(self, timeout_s: float) -> _Connection:
        try:
            if self._is_closed:
                raise CallFailed(Status.CANCELLED, "closed", maybe_applied=False)
            async with asyncio.timeout(timeout_s):
                sock = await _connect(self._address, self._tls, timeout_s)
        except TimeoutError:
            raise CallFailed(Status.DEADLINE_EXCEEDED, "no connection in time", maybe_applied=False) from None
        except OSError as error:
            raise CallFailed(Status.UNAVAILABLE, f"no connection: {explained(error)}", maybe_applied=False) from error
        connection = self._connection = _Connection(sock, self._loop, self._all, self._question)
        return connection


class _Connection:
    """A connection shared by the tasks of a loop."""

    def __init__(
        self, sock: socket.socket, loop: asyncio.AbstractEventLoop, all_of_them: set[_Connection], question: bytes
    ) -> None:
        self.http = Http2()
        self._socket = sock
        self._loop = loop
        self._all = all_of_them
        self._all.add(self)
        self._futures: dict[Exchange, asyncio.Future[None]] = {}
        self._unsent = bytearray()
        self._question = question
        self._asked: Exchange | None = None
        """The question whether the server is there, until anything has come after it."""
        self._asked_at = 0.0
        self._looking: asyncio.TimerHandle | None = None
        """The next look at how silent it is, while calls wait."""
        self._last_heard = 0.0
        self._is_gathering = False
        self._is_blocked = False
        self._is_lost = False
        loop.add_reader(sock, self._on_readable)

    async def call(self, headers: bytes, message: bytes, timeout_s: float) -> Exchange:
        """Send a request and wait for the end of its answer."""
        if self.http.is_going:  # since the caller looked
            raise CallFailed(Status.UNAVAILABLE, "the connection is lost", maybe_applied=False)
        exchange = self.http.begin(headers, message, ends=True)
        future = self._futures[exchange] = self._loop.create_future()
        timer = self._loop.call_later(max(0.0, timeout_s), self._expire, exchange, time.monotonic())
        self._flush_soon()
        if self._looking is None:
            self._looking = self._loop.call_later(IDLE_S, self._look)
        try:
            await future
        except BaseException:
            if not exchange.ended:
                self.http.cancel(exchange)
                self._flush_soon()
            raise
        finally:
            timer.cancel()
            del self._futures[exchange]
        return exchange

    def lose(self, why: str) -> None:
        """End the connection, and all calls on it."""
        if self._is_lost:
            return
        self._is_lost = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self.forget()
        for exchange in self.http.lose(why):
            self._tell(exchange)

    def forget(self) -> None:
        """Close this process's copy of the socket."""
        self._all.discard(self)
        if self._looking is not None:
            self._looking.cancel()
        fd = self._socket.detach()
        if fd >= 0:
            os.close(fd)

    def _expire(self, exchange: Exchange, began: float) -> None:
        future = self._futures.get(exchange)
        if future is not None and not future.done():
            future.set_exception(CallFailed(Status.DEADLINE_EXCEEDED, "no answer in time", maybe_applied=exchange.sent))
        if self._last_heard < began:
            self._ask()

    def _look(self) -> None:
        """Give the connection up if nobody is there. A call's time alone shows nothing: others may be waiting."""
        self._looking = None
        self._on_readable()  # some loops look at the clock first after a task that has kept them busy
        if self._is_lost:
            return
        if self._asked is not None:
            if self._last_heard < self._asked_at and self._asked.sent:
                self.lose("the server does not answer")
                return
            self.http.cancel(self._asked)
            self._asked = None
        if self._futures and time.monotonic() - self._last_heard >= IDLE_S:
            self._ask()
        elif self._futures:
            self._looking = self._loop.call_later(IDLE_S, self._look)

    def _ask(self) -> None:
        """Ask whether the server is there, unless it has just been asked, and look again when it had time to answer."""
        if self._asked is not None or self.http.is_going:
            return
        self._asked = self.http.begin(self._question, b"", ends=True)
        self._asked_at = time.monotonic()
        self._flush_soon()
        if self._looking is not None:
            self._looking.cancel()
        self._looking = self._loop.call_later(ANSWER_S, self._look)

    def _on_readable(self) -> None:
        try:
            while (data := read_now(self._socket)) is not None:
                self._last_heard = time.monotonic()
                for exchange in self.http.receive(data):
                    self._tell(exchange)
                if len(data) < READ and not isinstance(self._socket, ssl.SSLSocket):
                    break
        except (OSError, ProtocolError) as error:
            self.lose(explained(self.http.explain(str(error))))
            return
        self._flush()
        if self.http.is_going and self.http.is_idle:
            self.lose("it is going away")

    def _tell(self, exchange: Exchange) -> None:
        if exchange in self._futures:
            _settle(self._futures[exchange])

    def _flush_soon(self) -> None:
        """Write at once; what other tasks add in this turn of the loop is written together, at its end."""
        if not self._is_gathering:
            self._is_gathering = True
            self._loop.call_soon(self._gathered)
            self._flush()

    def _gathered(self) -> None:
        self._is_gathering = False
        self._flush()

    def _flush(self) -> None:
        if self._is_lost or not (self._unsent or self.http.has_output()):
            return
        self._unsent += self.http.take()
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            if not self._is_blocked:
                self._loop.add_writer(self._socket, self._flush)
                self._is_blocked = True
            return
        except OSError as error:
            self.lose(str(error))
            return
        if self._is_blocked:
            self._loop.remove_writer(self._socket)
            self._is_blocked = False


async def _connect(address: Address, tls: Tls | None, timeout_s: float) -> socket.socket:
    """Return a connected socket that does not block."""
    failure: OSError = ConnectionError(f"no address for {address.text}")
    for (family, where), share_s in shared_out(await _places(address), timeout_s):
        try:
            sock = unconnected(family)
            try:
                sock.setblocking(False)
                async with asyncio.timeout(share_s):
                    async with asyncio.timeout(CONNECT_S):
                        await asyncio.get_running_loop().sock_connect(sock, where)
                    sock = address.secured(sock, tls)
                    if isinstance(sock, ssl.SSLSocket):
                        await _shake_hands(sock)
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            failure = error
        else:
            return sock
    raise failure


async def _places(address: Address) -> list[Place]:
    with contextlib.suppress(OSError):  # a number needs no name server, and so no thread
        return address.places(socket.AI_NUMERICHOST)
    return await asyncio.get_running_loop().run_in_executor(None, address.places)


async def _shake_hands(sock: ssl.SSLSocket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        ready: asyncio.Future[None] = loop.create_future()
        try:
            with shaking_hands():
                sock.do_handshake()
        except ssl.SSLWantReadError:
            watch, unwatch = loop.add_reader, loop.remove_reader
        except ssl.SSLWantWriteError:
            watch, unwatch = loop.add_writer, loop.remove_writer
        else:
            return
        watch(sock, _settle, ready)
        try:
            await ready
        finally:
            unwatch(sock)


def _take_note(task: asyncio.Task[_Connection]) -> None:
    """Look at a failure that all who waited for it may have been cancelled before: asyncio would complain."""
    if not task.cancelled():
        task.exception()


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
