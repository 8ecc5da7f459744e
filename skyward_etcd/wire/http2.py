"""HTTP/2 as far as gRPC needs it, client side and without I/O: bytes in, bytes out.

After RFC 9113 (HTTP/2), RFC 7541 (HPACK) and gRPC's ``PROTOCOL-HTTP2.md``. One `Http2` is one connection; a driver
writes what `Http2.take` gives and hands what it has read to `Http2.receive`. What a peer can make us keep is bounded:
frames of 16 KiB, headers of 64 KiB, one answer a call, messages of 2 GiB, the most that etcd sends.
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import unquote

from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

from skyward_etcd.wire.status import Status

__all__ = ["Exchange", "Http2", "ProtocolError", "header_block"]

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 1, 2, 3, 4, 5
_CANCEL, _REFUSED_STREAM = 8, 7

_FRAME = struct.Struct(">IBI")  # length and type, flags, stream
_MESSAGE = struct.Struct(">BI")  # compressed or not, length
_SETTING = struct.Struct(">HI")
_NUMBER = struct.Struct(">I")

_MOST = (1 << 31) - 1
_TOP_UP = 1 << 30
"""What has been received of a window of 2 GiB when it is opened again: long before the peer has to wait."""
_DEFAULT_WINDOW = 65_535
_NO_TABLE = b"\x20"
"""What begins a connection's first header block: we use no dynamic table either, whatever size the server allows."""
_CACHED_BLOCKS = 256
_LARGEST_FRAME = 16_384
"""Of what comes: we allow no larger ones (RFC 9113, 4.2)."""
_LARGEST_BLOCK = 1 << 16
"""Of headers, over all their frames; hpack bounds what they are unpacked to."""

_decoded: dict[bytes, dict[str, str]] = {}
"""Header blocks seen. All connections forbid the peer a dynamic table, so a block always means the same."""


class ProtocolError(Exception):
    """The peer does not speak HTTP/2, or breaks its rules: the connection is of no more use."""


def header_block(path: str, authority: str, scheme: str, metadata: Iterable[tuple[str, str]] = ()) -> bytes:
    """Return the encoded headers of a request. They do not depend on what else a connection has sent."""
    headers = (
        (":method", "POST"),
        (":scheme", scheme),
        (":path", path),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "skyward-etcd"),
        *metadata,
    )
    return bytes(Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in headers]))


class Exchange:
    """One call: what is still to be sent of it, and what has come back."""

    __slots__ = (
        "assembling",
        "details",
        "ended",
        "ends",
        "headers",
        "id",
        "messages",
        "received",
        "sent",
        "status",
        "unprocessed",
        "unsent",
        "window",
    )

    def __init__(self, headers: bytes) -> None:
        self.id = 0
        """The stream's number; 0 until its headers are sent."""
        self.messages: deque[bytes] = deque()
        """What has come and was not taken."""
        self.ended = False
        self.status = Status.UNKNOWN
        """How it ended, and in the server's words: ``details``."""
        self.details = ""
        self.sent = False
        """Whether all that there is to send has been given to the driver."""
        self.unprocessed = False
        """Whether the server says that it has not looked at the request."""
        self.headers = headers
        self.unsent = b""
        self.ends = False
        self.window = 0
        self.received = 0
        self.assembling = bytearray()

    def end(self, status: Status, details: str, *, unprocessed: bool = False) -> None:
        """Take note that no more will come, and why."""
        self.ended = True
        self.status = status
        self.details = details
        self.unprocessed = unprocessed

    def add(self, data: bytes) -> None:
        """Put the data's messages together: each is preceded by a flag and its length."""
        if not self.assembling and len(data) >= _MESSAGE.size:
            compressed, length = _MESSAGE.unpack_from(data)
            if len(data) == _MESSAGE.size + length and not compressed:  # nearly always
                self.messages.append(data[_MESSAGE.size :])
                return
        self.assembling += data
        while len(self.assembling) >= _MESSAGE.size:
            compressed, length = _MESSAGE.unpack_from(self.assembling)
            if compressed:
                raise ProtocolError("it sent a compressed message, unasked")
            if length > _MOST:
                raise ProtocolError(f"it began a message of {length:,} bytes, and etcd sends none over 2 GiB")
            stop = _MESSAGE.size + length
            if len(self.assembling) < stop:
                return
            self.messages.append(bytes(self.assembling[_MESSAGE.size : stop]))
            del self.assembling[:stop]


class Http2:
    """The state of one connection. Not for more than one thread at a time."""

    def __init__(self) -> None:
        self._out = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._in = b""
        self._has_begun = False
        self._next_id = 1
        self._open: dict[int, Exchange] = {}
        self._queue: deque[Exchange] = deque()
        """Calls beyond what the server takes at a time: it has not heard of them."""
        self._stalled: dict[Exchange, None] = {}
        """Calls whose data has to wait for a window, in the order in which they came."""
        self._window = _DEFAULT_WINDOW
        self._first_window = _DEFAULT_WINDOW
        self._largest_frame = 16_384
        self._at_once = 1
        """How many calls the server takes at a time. It has to say so itself: its settings come first of all."""
        self._received = 0
        self._begun_block: tuple[int, int, bytes] | None = None
        self._ended: list[Exchange] = []
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {
            _DATA: self._on_data,
            _HEADERS: self._on_headers,
            _CONTINUATION: self._on_continuation,
            _WINDOW_UPDATE: self._on_window,
            _PING: self._on_ping,
            _SETTINGS: self._on_settings,
            _RST_STREAM: self._on_reset,
            _GOAWAY: self._on_goaway,
        }
        self._decoder = Decoder()
        self._decoder.header_table_size = 0
        self._decoder.max_allowed_table_size = 0
        self.is_going = False
        """Whether the server takes no new calls on this connection, or its numbers are used up."""
        settings = ((_HEADER_TABLE_SIZE, 0), (_ENABLE_PUSH, 0), (_INITIAL_WINDOW_SIZE, _MOST))
        self._frame(_SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings))
        self._frame(_WINDOW_UPDATE, 0, 0, _NUMBER.pack(_MOST - _DEFAULT_WINDOW))

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way."""
        return not self._open and not self._queue

    def take(self) -> bytearray:
        """Return what is to be written now, and forget it."""
        out, self._out = self._out, bytearray()
        return out

    def has_output(self) -> bool:
        """Tell whether `take` would return anything."""
        return bool(self._out)

    def begin(self, headers: bytes, message: bytes | None = None, *, ends: bool = False) -> Exchange:
        """Start a call, with its first message; ``ends``: and its only one."""
        exchange = Exchange(headers)
        if message is not None:
            exchange.unsent = _MESSAGE.pack(0, len(message)) + message
        exchange.ends = ends
        if len(self._open) >= self._at_once:
            self._queue.append(exchange)
        else:
            self._start(exchange)
        return exchange

    def send(self, exchange: Exchange, message: bytes) -> None:
        """Add a message to a call that has not ended its side."""
        exchange.unsent += _MESSAGE.pack(0, len(message)) + message
        exchange.sent = False
        if exchange.id and exchange not in self._stalled:
            self._push(exchange)

    def cancel(self, exchange: Exchange) -> None:
        """Give a call up. The server stops working on it, if it has not finished."""
        if not exchange.id:
            with contextlib.suppress(ValueError):  # it has ended
                self._queue.remove(exchange)
        elif self._open.pop(exchange.id, None) is not None:
            self._stalled.pop(exchange, None)
            self._frame(_RST_STREAM, 0, exchange.id, _NUMBER.pack(_CANCEL))
        if not exchange.ended:
            exchange.end(Status.CANCELLED, "cancelled")
        self._go_on()

    def explain(self, why: str) -> str:
        """Add to the reason of a loss what it may mean."""
        return why if self._has_begun else f"{why}, without a word: does it want TLS, or other certificates?"

    def lose(self, why: str) -> list[Exchange]:
        """End all calls: the connection is gone. Return them, and those whose answers came just before."""
        self.is_going = True
        answered, self._ended = self._ended, []
        lost = [*self._open.values(), *self._queue]
        self._open.clear()
        self._queue.clear()
        self._stalled.clear()
        for exchange in lost:
            exchange.end(Status.UNAVAILABLE, why, unprocessed=not exchange.sent)
        return answered + lost

    def receive(self, data: bytes) -> Sequence[Exchange]:
        """Take in what was read, and return the calls that have ended.

        Raises:
            ProtocolError: the connection has to be given up.
        """
        if self._in:
            data = self._in + data
        if not self._has_begun:
            self._check_first(data)
        at, end = 0, len(data)
        while end - at >= _FRAME.size:
            length_and_kind, flags, stream = _FRAME.unpack_from(data, at)
            if length_and_kind >> 8 > _LARGEST_FRAME:
                raise ProtocolError(f"it sent a frame of {length_and_kind >> 8:,} bytes, which nobody has allowed")
            stop = at + _FRAME.size + (length_and_kind >> 8)
            if stop > end:
                break
            handle = self._handlers.get(length_and_kind & 0xFF)
            if handle is not None:  # RFC 9113, 5.5: what is unknown is ignored
                try:
                    handle(flags, stream & _MOST, data[at + _FRAME.size : stop])
                except (IndexError, struct.error) as error:
                    raise ProtocolError(f"it sent a frame that is too short: {error}") from error
            at = stop
        self._in = data[at:]
        ended, self._ended = self._ended, []
        return ended

    # ---- what comes

    def _check_first(self, data: bytes) -> None:
        """Tell another protocol by its first bytes: an HTTP/2 server begins with its settings."""
        if data[:5] == b"HTTP/":
            raise ProtocolError("it answers with HTTP/1: this is no client endpoint of an etcd")
        if data[:2] == b"\x15\x03":
            raise ProtocolError("it wants TLS: give certificates, or an https:// endpoint")
        if len(data) >= 4 and data[3] != _SETTINGS:
            raise ProtocolError("it does not speak HTTP/2: this is no client endpoint of an etcd")

    def _on_data(self, flags: int, stream: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received >= _TOP_UP:
            self._frame(_WINDOW_UPDATE, 0, 0, _NUMBER.pack(self._received))
            self._received = 0
        exchange = self._open.get(stream)
        if exchange is None:  # cancelled meanwhile
            return
        exchange.received += len(payload)
        if exchange.received >= _TOP_UP:
            self._frame(_WINDOW_UPDATE, 0, stream, _NUMBER.pack(exchange.received))
            exchange.received = 0
        exchange.add(_unpadded(flags, payload))
        if exchange.ends and len(exchange.messages) > 1:
            raise ProtocolError("it answered a call twice")
        if flags & _END_STREAM:
            self._answered(exchange, Status.INTERNAL, "it ended the call without a status")

    def _on_headers(self, flags: int, stream: int, payload: bytes) -> None:
        block = _unpadded(flags, payload, has_priority=bool(flags & _PRIORITY))
        if flags & _END_HEADERS:
            self._on_block(flags, stream, block)
        else:
            self._begun_block = (flags, stream, block)

    def _on_continuation(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002
        if self._begun_block is None:
            raise ProtocolError("it continued headers that it had not begun")
        first_flags, of, block = self._begun_block
        if len(block) + len(payload) > _LARGEST_BLOCK:
            raise ProtocolError(f"it sent headers of more than {_LARGEST_BLOCK:,} bytes")
        self._begun_block = (first_flags, of, block + payload)
        if flags & _END_HEADERS:
            self._begun_block = None
            self._on_block(first_flags, of, block + payload)

    def _on_block(self, flags: int, stream: int, block: bytes) -> None:
        headers = _decoded.get(block)
        if headers is None:
            headers = self._decode(block)
        exchange = self._open.get(stream)
        if exchange is None:
            return
        code = headers.get("grpc-status")
        if code == "0" and flags & _END_STREAM:
            self._answered(exchange, Status.OK, "")
        elif code is not None and flags & _END_STREAM:
            self._answered(exchange, Status.of(code), unquote(headers.get("grpc-message", "")))
        elif flags & _END_STREAM:
            self._answered(exchange, *_not_grpc(headers))
        elif headers.get(":status", "200") != "200":
            self._frame(_RST_STREAM, 0, stream, _NUMBER.pack(_CANCEL))
            self._close(exchange, *_not_grpc(headers))

    def _decode(self, block: bytes) -> dict[str, str]:
        try:
            headers = {_text(name): _text(value) for name, value in self._decoder.decode(block, raw=True)}
        except HPACKError as error:
            raise ProtocolError(f"its headers cannot be read: {error}") from error
        if len(_decoded) >= _CACHED_BLOCKS:
            _decoded.clear()
        _decoded[block] = headers
        return headers

    def _on_window(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002 - all handlers are alike
        more = _NUMBER.unpack(payload)[0] & _MOST
        if stream == 0:
            self._window += more
        elif stream in self._open:
            self._open[stream].window += more
        self._go_on()

    def _on_ping(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002
        if not flags & _ACK:
            self._frame(_PING, _ACK, 0, payload)

    def _on_settings(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002
        if flags & _ACK:
            return
        if not self._has_begun:
            self._has_begun = True
            self._at_once = _MOST
        for setting, value in _SETTING.iter_unpack(payload):
            if setting == _MAX_CONCURRENT_STREAMS:
                self._at_once = value
            elif setting == _MAX_FRAME_SIZE:
                if not _LARGEST_FRAME <= value < 1 << 24:
                    raise ProtocolError(f"it wants frames of {value:,} bytes")
                self._largest_frame = value
            elif setting == _INITIAL_WINDOW_SIZE:
                if value > _MOST:
                    raise ProtocolError(f"it opens windows of {value:,} bytes")
                for exchange in self._open.values():
                    exchange.window += value - self._first_window
                self._first_window = value
        self._frame(_SETTINGS, _ACK, 0)
        self._go_on()

    def _on_reset(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002
        code = _NUMBER.unpack(payload)[0]
        exchange = self._open.get(stream)
        if exchange is not None:
            unprocessed = code == _REFUSED_STREAM
            self._close(exchange, Status.UNAVAILABLE, f"it reset the call (code {code})", unprocessed=unprocessed)

    def _on_goaway(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002
        """Take no new calls here; those that the server has not looked at will be made elsewhere."""
        self.is_going = True
        last = _NUMBER.unpack_from(payload)[0] & _MOST
        lost = [exchange for exchange in self._open.values() if exchange.id > last]
        lost += self._queue
        self._queue.clear()  # first: whose place becomes free must not be taken by one of them
        for exchange in lost:
            self._close(exchange, Status.UNAVAILABLE, "it is going away", unprocessed=True)

    def _answered(self, exchange: Exchange, status: Status, details: str) -> None:
        """Take the server's last word. Whoever has not heard us out is told that there is no more to come."""
        if not (exchange.ends and exchange.sent):
            self._frame(_RST_STREAM, 0, exchange.id, _NUMBER.pack(_CANCEL))
        self._close(exchange, status, details)

    def _close(self, exchange: Exchange, status: Status, details: str, *, unprocessed: bool = False) -> None:
        self._open.pop(exchange.id, None)
        self._stalled.pop(exchange, None)
        exchange.end(status, details, unprocessed=unprocessed)
        self._ended.append(exchange)
        if self._queue:
            self._go_on()

    # ---- what goes

    def _start(self, exchange: Exchange) -> None:
        headers = exchange.headers if self._next_id > 1 else _NO_TABLE + exchange.headers
        exchange.id = self._next_id
        self._next_id += 2
        if self._next_id > _MOST:
            self.is_going = True
        exchange.window = self._first_window
        self._open[exchange.id] = exchange
        bare = exchange.ends and not exchange.unsent
        self._frame(_HEADERS, _END_HEADERS | (_END_STREAM if bare else 0), exchange.id, headers)
        self._push(exchange)

    def _push(self, exchange: Exchange) -> None:
        """Send what the windows allow; what is left waits for them to open."""
        unsent = exchange.unsent
        at, end = 0, len(unsent)
        while at < end:
            size = min(end - at, self._largest_frame, self._window, exchange.window)
            if size <= 0:
                self._stalled[exchange] = None
                break
            last = at + size == end
            self._frame(
                _DATA,
                _END_STREAM if last and exchange.ends else 0,
                exchange.id,
                unsent[at : at + size],
            )
            self._window -= size
            exchange.window -= size
            at += size
        exchange.unsent = unsent[at:]
        exchange.sent = at == end

    def _go_on(self) -> None:
        """Look at what waits, now that something has changed."""
        stalled, self._stalled = self._stalled, {}
        for exchange in stalled:
            self._push(exchange)
        while self._queue and len(self._open) < self._at_once:
            self._start(self._queue.popleft())

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self._out += _FRAME.pack(len(payload) << 8 | kind, flags, stream)
        self._out += payload


def _unpadded(flags: int, payload: bytes, *, has_priority: bool = False) -> bytes:
    start, stop = 0, len(payload)
    if flags & _PADDED:
        start, stop = 1, stop - payload[0]
        if stop < start:
            raise ProtocolError("it sent more padding than the frame has room for")
    return payload[start + (5 if has_priority else 0) : stop] if start or has_priority else payload


def _not_grpc(headers: dict[str, str]) -> tuple[Status, str]:
    """Say what an answer means that gRPC's server did not give: a proxy's, for instance."""
    code = headers.get(":status", "no")
    status = Status.UNAVAILABLE if code in ("429", "502", "503", "504") else Status.UNKNOWN
    return status, f"HTTP status {code} instead of an answer from etcd"


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
