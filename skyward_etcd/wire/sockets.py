"""Blocking calls to one endpoint over sockets of our own.

A call has a connection to itself, which then waits for the next one: so it costs no hand-over between threads, and
there are as many connections as threads have called at once. gRPC's own channels share one, at twice the time a call;
and their fork handlers abort children (docs/decisions/0006-own-transport.md).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from skyward_etcd.wire.address import Address
from skyward_etcd.wire.http2 import Exchange, Http2, ProtocolError
from skyward_etcd.wire.status import CallFailed, Status
from skyward_etcd.wire.tls import Tls, explained

__all__ = ["READ", "Pool", "SocketStream", "answer_of", "read_now"]

READ = 65_536
_NEARLY_S = 0.05
_MOST_IDLE = 64
"""Connections kept for the next burst of threads."""
IDLE_S = 1.0
"""A server that has been silent for so long, though somebody waits for it, is asked whether it is well."""
ANSWER_S = 2.0
"""How long it may be silent after that. It is lost then: cut off, stopped, or gone without a word."""
_AGAIN_S = 0.3
"""When a server is asked again that is not well. A member without a leader may have one in the next moment."""


class Pool:
    """The connections to one endpoint: those in use, and those that wait for a call."""

    def __init__(self, address: Address, tls: Tls | None) -> None:
        self._address = address
        self._tls = tls
        self._idle: deque[_Connection] = deque()
        self._all: set[_Connection] = set()
        self._is_closed = False

    def call(self, headers: bytes, message: bytes, *, timeout_s: float) -> bytes:
        """Make a call of one message, and return the answer's.

        Raises:
            CallFailed: there is no answer, or a refusal.
        """
        deadline = time.monotonic() + timeout_s
        connection = self._borrow(timeout_s)
        try:
            exchange = connection.call(headers, message, deadline)
        except BaseException as error:
            self._discard(connection)
            if isinstance(error, CallFailed):  # what has silenced or cut this one has done so to those beside it
                self._discard_idle()
            raise
        if connection.http.is_going or len(self._idle) >= _MOST_IDLE:
            self._discard(connection)
        else:
            self._idle.append(connection)
            if self._is_closed:  # since: whoever closed has not seen it
                self.close()
        return answer_of(exchange)

    def stream(self, headers: bytes, question: bytes, *, timeout_s: float) -> SocketStream:
        """Open a two-way stream on a connection of its own; ``timeout_s`` bounds the opening.

        ``question`` are the headers of the call that asks whether the server is well.
        """
        connection = self._open(timeout_s)
        try:
            return SocketStream(connection, headers, question, lambda: self._discard(connection))
        except BaseException as error:
            self._discard(connection)
            if isinstance(error, OSError):
                raise CallFailed(Status.UNAVAILABLE, f"no stream: {explained(error)}", maybe_applied=False) from error
            raise

    def close(self) -> None:
        """End the connections. Calls that are under way fail."""
        self._is_closed = True
        for connection in list(self._all):
            connection.shut()  # whoever uses it closes it
        self._discard_idle()

    def after_fork(self) -> None:
        """Let go of the parent's connections. They stay open for the parent, and unharmed."""
        for connection in list(self._all):
            connection.forget()

    def _borrow(self, timeout_s: float) -> _Connection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._open(timeout_s)
            if connection.is_good():
                return connection
            self._discard(connection)

    def _open(self, timeout_s: float) -> _Connection:
        try:
            connection = _Connection(self._address.connect(timeout_s, self._tls))
        except OSError as error:
            raise CallFailed(Status.UNAVAILABLE, f"no connection: {explained(error)}", maybe_applied=False) from error
        self._all.add(connection)
        if self._is_closed:
            self._discard(connection)
            raise CallFailed(Status.CANCELLED, "closed", maybe_applied=False)
        return connection

    def _discard_idle(self) -> None:
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread was quicker
                self._discard(self._idle.pop())

    def _discard(self, connection: _Connection) -> None:
        self._all.discard(connection)
        connection.close()


class _Connection:
    """One connection, for one call at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._timeout = sock.gettimeout() or 0.0
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._ending = threading.Lock()
        self.http = Http2()

    def is_good(self) -> bool:
        """Tell whether the server still wants calls here; answer what it has asked meanwhile."""
        if not self._readable.poll(0):
            return not self.http.is_going
        try:
            self._timeout = 0.0
            self._socket.settimeout(0.0)
            while (data := read_now(self._socket)) is not None:
                self.http.receive(data)
            self._set_timeout(ANSWER_S)
            self._socket.sendall(self.http.take())
        except (OSError, ProtocolError):
            return False
        return not self.http.is_going

    def call(self, headers: bytes, message: bytes, deadline: float) -> Exchange:
        """Send a request and wait for the end of its answer."""
        exchange = self.http.begin(headers, message, ends=True)
        has_left = False
        try:
            while not exchange.ended:
                if self.http.has_output():
                    self._set_timeout(deadline - time.monotonic())
                    has_left = exchange.sent  # even if this fails: what is left over may be an answer to a ping
                    self._socket.sendall(self.http.take())
                self._set_timeout(deadline - time.monotonic())
                self.http.receive(_some(self._socket.recv(READ)))
        except TimeoutError:
            raise CallFailed(Status.DEADLINE_EXCEEDED, "no answer in time", maybe_applied=has_left) from None
        except (OSError, ProtocolError) as error:
            details = explained(self.http.explain(str(error)))
            raise CallFailed(Status.UNAVAILABLE, details, maybe_applied=has_left) from error
        return exchange

    def _set_timeout(self, timeout_s: float) -> None:
        if timeout_s < 0:
            raise TimeoutError
        # Each change is a system call, and it need not be exact: most calls take a thousandth of it.
        if not 0 <= self._timeout - timeout_s < _NEARLY_S:
            self._timeout = timeout_s
            self._socket.settimeout(timeout_s)

    def shut(self) -> None:
        """End it under whoever waits on it, from any thread."""
        # Not while another thread closes it: the number may be another socket's by then.
        with self._ending, contextlib.suppress(OSError):  # it has ended
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # TLS's own would first forget its keys

    def close(self) -> None:
        """Give the socket back."""
        with self._ending:
            self._socket.close()

    def forget(self) -> None:
        """Close this process's copy of the socket: the connection is its parent's, and goes on."""
        fd = self._socket.detach()
        if fd >= 0:
            os.close(fd)

    def streaming(self) -> socket.socket:
        """Return the socket for a stream: it does not block."""
        self._socket.settimeout(0.0)
        return self._socket


class SocketStream:
    """A two-way stream: iterate over the messages that come on one thread; `send` and `cancel` from any.

    A server that is cut off, stopped, or says twice in a row that it is not well, ends it within `IDLE_S` + `ANSWER_S`.
    It is asked by a small call beside the stream, after each second of silence. Why not by a ping of HTTP/2's, or by
    TCP's probes? docs/decisions/0009-asking-whether-it-is-well.md.
    """

    def __init__(self, connection: _Connection, headers: bytes, question: bytes, discard: Callable[[], None]) -> None:
        self._connection = connection
        self._question = question
        self._asked: Exchange | None = None
        """The question that has not been answered."""
        self._is_in_doubt = False
        """Whether the last answer was that the server is not well."""
        self._discard = discard
        self._http = connection.http
        self._socket = connection.streaming()
        self._writable = select.poll()
        self._writable.register(self._socket, select.POLLOUT)
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)
        # TLS is not for two threads at once, so each reads and writes under it, and waits without it.
        self._lock = threading.Lock()
        self._is_read = False
        self._exchange = self._http.begin(headers)
        self._write()

    def send(self, message: bytes) -> None:
        """Send a message, unless the stream has ended: then whoever iterates hears of it."""
        with self._lock:
            if not self._exchange.ended:
                self._http.send(self._exchange, message)
                try:
                    self._write()
                except OSError:  # half of it may have left: nothing may follow
                    self._connection.shut()

    def cancel(self) -> None:
        """End the stream under whoever iterates."""
        self._connection.shut()
        with self._lock:  # nobody sends on a socket that is being closed
            if not self._is_read:
                self._discard()

    def __iter__(self) -> Iterator[bytes]:
        with self._lock:
            self._is_read = True
            if self._socket.fileno() < 0:
                raise CallFailed(Status.CANCELLED, "cancelled")
        messages = self._exchange.messages
        try:
            while not self._exchange.ended:
                self._read()
                while messages:
                    yield messages.popleft()
                self._check()
        except (OSError, ProtocolError) as error:
            raise CallFailed(Status.UNAVAILABLE, explained(error)) from error
        finally:
            self._discard()
        if self._exchange.status is not Status.OK:
            raise CallFailed(self._exchange.status, self._exchange.details)

    def _read(self) -> None:
        """Wait for something to come, and ask after a silence whether the server is well."""
        silence_s = ANSWER_S if self._asked else _AGAIN_S if self._is_in_doubt else IDLE_S
        if not self._readable.poll(silence_s * 1000):
            if self._asked:
                raise TimeoutError("the server does not answer")
            with self._lock:
                self._asked = self._http.begin(self._question, b"", ends=True)
                self._write()
        with self._lock:
            while (data := read_now(self._socket)) is not None:
                self._http.receive(data)
            self._write()

    def _check(self) -> None:
        """Look at the answer, if there is one; any answer will do but the same complaint twice."""
        if self._http.is_going and not self._exchange.ended:
            raise ConnectionError("it is going away")  # and takes no more questions
        if self._asked and self._asked.ended:
            was_in_doubt, self._is_in_doubt = self._is_in_doubt, self._asked.status is Status.UNAVAILABLE
            if was_in_doubt and self._is_in_doubt:
                raise ConnectionError(self._asked.details)
            self._asked = None

    def _write(self) -> None:
        out = memoryview(self._http.take())
        while out:
            try:
                out = out[self._socket.send(out) :]
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                if not self._writable.poll(ANSWER_S * 1000):
                    raise TimeoutError("the server does not read") from None


def answer_of(exchange: Exchange) -> bytes:
    """Return the one message of an answer.

    Raises:
        CallFailed: it ended otherwise.
    """
    if exchange.status is Status.OK and exchange.messages:
        return exchange.messages[0]
    if exchange.status is Status.OK:
        raise CallFailed(Status.INTERNAL, "an answer without a message")
    raise CallFailed(exchange.status, exchange.details, maybe_applied=not exchange.unprocessed)


def read_now(sock: socket.socket) -> bytes | None:
    """Return what has come on a socket that does not block, or ``None``."""
    try:
        return _some(sock.recv(READ))
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return None


def _some(data: bytes) -> bytes:
    if not data:
        raise ConnectionError("the server has closed the connection")
    return data
