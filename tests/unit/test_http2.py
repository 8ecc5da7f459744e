"""Our half of HTTP/2 against a server half that others wrote (the package h2), and against peers that misbehave."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Iterable

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from skyward_etcd.wire.http2 import Exchange, Http2, ProtocolError, header_block
from skyward_etcd.wire.status import Status

HEADERS = header_block("/etcdserverpb.KV/Range", "127.0.0.1:2379", "http", (("token", "t" * 200),))


def message(data: bytes) -> bytes:
    return struct.pack(">BI", 0, len(data)) + data


class Server:
    """A gRPC server of sorts: answers each call, once it is complete, with what it was sent."""

    def __init__(self, *, window: int = 65_535, at_once: int = 100, frame: int = 16_384) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        first = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: at_once}
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=first)
        self.h2.initiate_connection()
        self.h2.update_settings(
            {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window, h2.settings.SettingCodes.MAX_FRAME_SIZE: frame}
        )
        self.headers: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}
        self.most_at_once = 0
        self.answers: Callable[[int], None] = self.echo

    def receive(self, data: bytes) -> bytes:
        """Take in what the client wrote, and return what goes back."""
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.headers[event.stream_id] = {str(name): str(value) for name, value in event.headers}
                self.bodies[event.stream_id] = b""
                self.most_at_once = max(self.most_at_once, self.h2.open_inbound_streams)
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.answers(event.stream_id)
        return self.h2.data_to_send()

    def echo(self, stream: int) -> None:
        """Send the body back, in frames as large as the protocol allows."""
        self.h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        body = self.bodies[stream]
        for at in range(0, len(body), self.h2.max_outbound_frame_size):
            self.h2.send_data(stream, body[at : at + self.h2.max_outbound_frame_size])
        self.h2.send_headers(stream, [("grpc-status", "0"), ("grpc-message", "")], end_stream=True)

    def refuse(self, stream: int) -> None:
        """Answer with a status and no message."""
        refusal = [(":status", "200"), ("grpc-status", "9"), ("grpc-message", "etcdserver%3A no%C3%AFf %25")]
        self.h2.send_headers(stream, refusal, end_stream=True)


def converse(client: Http2, server: Server, *, cut: random.Random | None = None) -> None:
    """Carry bytes to and fro, in pieces cut anywhere, until both are silent."""
    for _ in range(10_000):
        there = bytes(client.take())
        back = server.receive(there) if there else server.h2.data_to_send()
        if not there and not back:
            return
        for piece in pieces(back, cut):
            client.receive(piece)
    raise AssertionError("they never fall silent")


def pieces(data: bytes, cut: random.Random | None) -> Iterable[bytes]:
    while data:
        size = cut.randint(1, max(1, min(len(data), 40))) if cut and len(data) < 5_000 else len(data)
        yield data[:size]
        data = data[size:]


def answer(exchange: Exchange) -> tuple[Status, list[bytes]]:
    assert exchange.ended
    return exchange.status, list(exchange.messages)


def test_a_call_arrives_whole_and_its_answer_comes_back() -> None:
    client, server = Http2(), Server()
    exchange = client.begin(HEADERS, b"question", ends=True)
    assert not exchange.ended
    converse(client, server)
    assert answer(exchange) == (Status.OK, [b"question"])
    assert server.bodies[1] == message(b"question")
    assert server.headers[1] == {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/etcdserverpb.KV/Range",
        ":authority": "127.0.0.1:2379",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "skyward-etcd",
        "token": "t" * 200,
    }
    assert client.is_idle


@settings(max_examples=60)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 5, 16_384, 65_535, 200_000]), min_size=1, max_size=12),
    window=st.sampled_from([1, 5, 1_000, 65_535, 1 << 20]),
    at_once=st.sampled_from([1, 2, 100]),
    frame=st.sampled_from([16_384, 1 << 20]),
    seed=st.integers(0, 1 << 16),
)
def test_any_calls_get_through_any_windows_cut_anywhere(
    sizes: list[int], window: int, at_once: int, frame: int, seed: int
) -> None:
    if window < 1_000:
        sizes = [min(size, 300) for size in sizes]  # a frame for each few bytes
    client, server = Http2(), Server(window=window, at_once=at_once, frame=frame)
    chance = random.Random(seed)
    converse(client, server)  # the server's windows are known before its first call
    calls: list[tuple[int, Exchange]] = []
    for size in sizes:
        calls.append((size, client.begin(HEADERS, bytes([size % 251]) * size, ends=True)))
        if chance.random() < 0.3:
            converse(client, server, cut=chance)
    converse(client, server, cut=chance)
    for size, exchange in calls:
        assert answer(exchange) == (Status.OK, [bytes([size % 251]) * size])
    assert server.most_at_once <= at_once
    assert client.is_idle


def test_a_stream_takes_messages_one_after_the_other() -> None:
    client, server = Http2(), Server()
    received: list[int] = []
    server.answers = received.append
    exchange = client.begin(HEADERS)
    for number in range(3):
        client.send(exchange, b"%d" % number)
        converse(client, server)
    assert server.bodies[1] == b"".join(message(b"%d" % number) for number in range(3))
    assert not received
    server.h2.send_headers(1, [(":status", "200")])
    server.h2.send_data(1, message(b"a") + message(b"b") + message(b"c")[:5])
    converse(client, server)
    assert list(exchange.messages) == [b"a", b"b"]
    server.h2.send_data(1, message(b"c")[5:] + message(b""))
    converse(client, server)
    assert list(exchange.messages) == [b"a", b"b", b"c", b""]
    client.cancel(exchange)
    assert exchange.status is Status.CANCELLED
    assert any(isinstance(event, h2.events.StreamReset) for event in server.h2.receive_data(bytes(client.take())))


def test_a_refusal_comes_with_its_words() -> None:
    client, server = Http2(), Server()
    server.answers = server.refuse
    exchange = client.begin(HEADERS, b"", ends=True)
    converse(client, server)
    assert answer(exchange) == (Status.FAILED_PRECONDITION, [])
    assert exchange.details == "etcdserver: noïf %"
    assert not exchange.unprocessed


def test_a_server_that_goes_away_says_what_it_has_not_looked_at() -> None:
    client, server = Http2(), Server(at_once=2)
    server.answers = lambda stream: None
    client.receive(server.h2.data_to_send())
    first, second, third = (client.begin(HEADERS, b"x", ends=True) for _ in range(3))
    server.receive(bytes(client.take()))
    goaway = struct.pack(">IBIII", 8 << 8 | 7, 0, 0, first.id, 0)
    assert set(client.receive(goaway)) == {second, third}
    assert client.is_going
    assert not first.ended
    for lost in (second, third):
        assert (lost.status, lost.unprocessed) == (Status.UNAVAILABLE, True)
    server.echo(first.id)
    assert list(client.receive(server.h2.data_to_send())) == [first]
    assert client.is_idle


@pytest.mark.parametrize("last", [1, (1 << 31) - 1])
@pytest.mark.parametrize("at_once", [2, 100])
def test_what_is_said_to_be_unprocessed_was_not_written_for_the_server_to_process(last: int, at_once: int) -> None:
    """A server that ends well first says "all of them", and goes on with whatever arrives."""
    client = Http2()
    client.receive(frame(4, 0, 0, struct.pack(">HI", 3, at_once)) + frame(8, 0, 0, struct.pack(">I", 1 << 20)))
    calls = [client.begin(HEADERS, size * b"x", ends=True) for size in (100_000, 1, 1, 1)]  # the first has to wait
    client.take()
    ended = client.receive(frame(7, 0, 0, struct.pack(">II", last, 0)))
    assert not client.take()
    for exchange in ended:
        assert exchange.unprocessed
        assert not 0 < exchange.id <= last
    assert not calls[0].ended


def test_a_call_that_waits_for_its_window_holds_up_nobody_else() -> None:
    client, server = Http2(), Server(window=10)
    converse(client, server)
    server.h2.increment_flow_control_window(1 << 20)
    converse(client, server)
    large = client.begin(HEADERS, b"x" * 100, ends=True)
    small = client.begin(HEADERS, b"y", ends=True)
    server.receive(bytes(client.take()))
    assert server.bodies[small.id] == message(b"y")
    assert not large.sent


@pytest.mark.parametrize("code", [7, 8, 2])
def test_a_reset_leaves_a_call_in_doubt_unless_it_was_refused(code: int) -> None:
    client, server = Http2(), Server()
    server.answers = lambda stream: server.h2.reset_stream(stream, code)
    exchange = client.begin(HEADERS, b"x", ends=True)
    converse(client, server)
    assert (exchange.ended, exchange.status, exchange.unprocessed) == (True, Status.UNAVAILABLE, code == 7)


def test_what_was_not_sent_when_the_connection_is_lost_was_not_processed() -> None:
    client = Http2()
    client.receive(SETTINGS)
    sent, unsent = client.begin(HEADERS, b"x", ends=True), client.begin(HEADERS, b"y" * 100_000, ends=True)
    assert set(client.lose("cut")) == {sent, unsent}
    assert (sent.unprocessed, unsent.unprocessed) == (False, True)
    assert sent.details == "cut"


def test_calls_begun_before_the_servers_settings_keep_within_them() -> None:
    client, server = Http2(), Server(at_once=2)
    calls = [client.begin(HEADERS, b"%d" % number, ends=True) for number in range(20)]
    converse(client, server)
    assert [answer(exchange) for exchange in calls] == [(Status.OK, [b"%d" % number]) for number in range(20)]
    assert server.most_at_once <= 2


def test_a_server_that_allows_no_header_table_reads_our_headers() -> None:
    client, server = Http2(), Server()
    server.h2.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
    converse(client, server)
    calls = [client.begin(HEADERS, b"x", ends=True) for _ in range(2)]
    converse(client, server)
    assert [answer(exchange) for exchange in calls] == [(Status.OK, [b"x"])] * 2


def test_a_server_that_has_heard_enough_is_told_that_there_is_no_more() -> None:
    """As etcd does with what is too large: it would else keep the call's place for ever."""
    client, server = Http2(), Server(window=10)
    converse(client, server)
    exchange = client.begin(HEADERS, b"x" * 100, ends=True)
    server.receive(bytes(client.take()))
    server.refuse(exchange.id)
    client.receive(server.h2.data_to_send())
    assert answer(exchange) == (Status.FAILED_PRECONDITION, [])
    assert any(isinstance(event, h2.events.StreamReset) for event in server.h2.receive_data(bytes(client.take())))
    assert server.h2.open_inbound_streams == 0


def test_a_cancelled_call_makes_room_and_its_late_answer_is_ignored() -> None:
    client, server = Http2(), Server(at_once=1)
    server.answers = lambda stream: None
    client.receive(server.h2.data_to_send())
    given_up, next_one = client.begin(HEADERS, b"a", ends=True), client.begin(HEADERS, b"b", ends=True)
    server.receive(bytes(client.take()))
    server.echo(1)
    late = server.h2.data_to_send()
    client.cancel(given_up)
    client.receive(late)
    server.answers = server.echo
    converse(client, server)
    assert not given_up.messages
    assert answer(next_one) == (Status.OK, [b"b"])


def test_pings_are_answered() -> None:
    client, server = Http2(), Server()
    converse(client, server)
    server.h2.ping(b"12345678")
    client.receive(server.h2.data_to_send())
    events = server.h2.receive_data(bytes(client.take()))
    assert [event.ping_data for event in events if isinstance(event, h2.events.PingAckReceived)] == [b"12345678"]


def test_numbers_that_are_used_up_end_a_connection() -> None:
    client = Http2()
    client._next_id = (1 << 31) - 1
    assert client.begin(HEADERS, b"x", ends=True).id == (1 << 31) - 1
    assert client.is_going


# ---- other peers, frame by frame


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


SETTINGS = frame(4, 0, 0, b"")


def block(*headers: tuple[str, str]) -> bytes:
    return bytes(Encoder().encode(list(headers)))


def test_padding_priority_continuations_and_unknown_frames_are_understood() -> None:
    client = Http2()
    exchange = client.begin(HEADERS, b"x", ends=True)
    begun = block((":status", "200"), ("content-type", "application/grpc"))
    client.receive(
        SETTINGS
        + frame(1, 0x28, 1, b"\x03" + b"\0\0\0\0\x10" + begun[:2] + b"\0\0\0")
        + frame(9, 0, 1, begun[2:5])
        + frame(9, 0x4, 1, begun[5:])
        + frame(0xEE, 0xFF, 1, b"whatever")
        + frame(0, 0x8, 1, b"\x02" + message(b"answer") + b"\0\0")
        + frame(1, 0x5, 1, block(("grpc-status", "0")))
    )
    assert answer(exchange) == (Status.OK, [b"answer"])


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP/2"),
    ],
)
def test_another_protocol_is_told_by_its_first_bytes(first: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        Http2().receive(first)


@pytest.mark.parametrize(("status", "expected"), [("503", Status.UNAVAILABLE), ("404", Status.UNKNOWN)])
@pytest.mark.parametrize("flags", [0x5, 0x4], ids=["ends", "goes on"])
def test_a_proxys_answer_is_none(status: str, expected: Status, flags: int) -> None:
    client = Http2()
    exchange = client.begin(HEADERS, b"x", ends=True)
    client.receive(SETTINGS + frame(1, flags, 1, block((":status", status), ("server", "proxy"))))
    assert (exchange.ended, exchange.status) == (True, expected)
    assert status in exchange.details


@pytest.mark.parametrize(
    "wrong",
    [
        frame(9, 0x4, 1, b""),  # a continuation of nothing
        frame(1, 0x5, 1, b"\xff\xff\xff\xff\xff\xff\xff"),  # no header block
        frame(1, 0x4, 1, b"\xbe"),  # what a dynamic table has, which we forbid
        frame(0, 0, 1, struct.pack(">BI", 1, 1) + b"z"),  # compressed
        frame(0, 0x8, 1, b""),  # padding without its length, and more of it than there is
        frame(0, 0x8, 1, b"\x09zzz"),
        frame(3, 0, 1, b""),  # and frames cut short
        frame(4, 0, 0, b"abc"),
        frame(7, 0, 0, b""),
        frame(8, 0, 0, b"x"),
    ],
)
def test_who_breaks_the_rules_is_left(wrong: bytes) -> None:
    client = Http2()
    client.begin(HEADERS, b"x", ends=True)
    with pytest.raises(ProtocolError):
        client.receive(SETTINGS + wrong)


def test_an_answer_is_not_lost_to_the_nonsense_that_follows_it() -> None:
    client = Http2()
    client.receive(SETTINGS)
    answered, open_still = (client.begin(HEADERS, b"x", ends=True) for _ in range(2))
    headers = frame(1, 0x4, answered.id, block((":status", "200")))
    trailers = frame(1, 0x5, answered.id, block(("grpc-status", "0")))
    with pytest.raises(ProtocolError):
        client.receive(headers + frame(0, 0, answered.id, message(b"answer")) + trailers + frame(7, 0, 0, b""))
    assert set(client.lose("nonsense")) == {answered, open_still}
    assert answer(answered) == (Status.OK, [b"answer"])
    assert open_still.status is Status.UNAVAILABLE


FRAMES = st.builds(frame, st.integers(0, 10), st.integers(0, 255), st.integers(0, 3), st.binary(max_size=20))


@settings(max_examples=200)
@given(st.binary(max_size=300) | st.lists(FRAMES, max_size=20).map(b"".join))
def test_noise_ends_in_no_other_error(noise: bytes) -> None:
    client = Http2()
    client.begin(HEADERS, b"x", ends=True)
    with contextlib.suppress(ProtocolError):
        client.receive(SETTINGS + noise)
