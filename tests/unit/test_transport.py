"""Our sockets against a server of these tests' own, which can fall silent, stop reading, or hang up as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from skyward_etcd.errors import Unavailable
from skyward_etcd.wire import address, loops, methods, sockets
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire.address import Address, Place
from skyward_etcd.wire.channel import SocketChannel, open_channel
from skyward_etcd.wire.client import Login, Wire
from skyward_etcd.wire.http2 import Http2, header_block
from skyward_etcd.wire.status import CallFailed, Status
from tests.integration.helpers import until

PATH = "/service/Echo"
HEADERS = header_block(PATH, "localhost:1", "http")


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


class Peer:
    """A gRPC server that sends each request back; ``silent`` connections are neither read nor written."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.accepted = 0
        self.silent: set[int] = set()
        self.holds_back = threading.Event()
        """While it is set, calls are not answered, but those that ask whether it is well."""
        self.complaints: list[str] = []
        """What it says to the next of those: that it is well where it is empty, and when none is left."""
        self.questions = 0
        self.arrived = threading.Semaphore(0)
        """Released for each request that has come whole."""
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._threads[0].join()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self._sockets.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection, self.accepted)))
                self.accepted += 1
                self._threads[-1].start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        server.initiate_connection()
        bodies: dict[int, bytes] = {}
        complete: list[int] = []
        connection.settimeout(0.01)
        with contextlib.suppress(OSError):
            while True:
                try:
                    data = b"" if number in self.silent else connection.recv(65_536)
                except TimeoutError:
                    data = None
                if data == b"":
                    break
                for event in server.receive_data(data or b""):
                    self._take(event, server, bodies, complete)
                while complete and not self.holds_back.is_set():
                    stream = complete.pop()
                    server.send_headers(stream, [(":status", "200")])
                    server.send_data(stream, bodies.pop(stream))
                    server.send_headers(stream, [("grpc-status", "0")], end_stream=True)
                if number not in self.silent:
                    connection.sendall(server.data_to_send())

    def _take(
        self, event: object, server: h2.connection.H2Connection, bodies: dict[int, bytes], complete: list[int]
    ) -> None:
        match event:
            case h2.events.RequestReceived() if methods.HEALTH in [str(value) for _, value in event.headers]:
                self._say_how_it_is(server, event.stream_id)
            case h2.events.RequestReceived():
                bodies[event.stream_id] = b""
            case h2.events.DataReceived():
                server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if event.stream_id in bodies:
                    bodies[event.stream_id] += event.data
            case h2.events.StreamEnded() if event.stream_id in bodies:
                complete.append(event.stream_id)
                self.arrived.release()
            case h2.events.StreamReset() if event.stream_id in complete:
                complete.remove(event.stream_id)
            case _:
                pass

    def _say_how_it_is(self, server: h2.connection.H2Connection, stream: int) -> None:
        self.questions += 1
        complaint = self.complaints.pop(0) if self.complaints else ""
        status = [("grpc-status", "14"), ("grpc-message", complaint)] if complaint else [("grpc-status", "0")]
        server.send_headers(stream, [(":status", "200"), *status], end_stream=True)


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture
def channel(peer: Peer) -> Iterator[SocketChannel]:
    channel = open_channel(f"127.0.0.1:{peer.port}", None, transport="sockets")
    assert isinstance(channel, SocketChannel)
    yield channel
    channel.close()


Ask = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest, channel: SocketChannel) -> Ask:
    async def call(message: bytes, timeout_s: float = 5.0) -> bytes:
        if request.param == "blocking":
            return await asyncio.to_thread(channel.call, PATH, message, timeout_s=timeout_s)
        return await channel.call_async(PATH, message, timeout_s=timeout_s)

    return call


# ---- calls


async def test_the_short_time_of_one_call_costs_no_other_its_answer(peer: Peer, channel: SocketChannel) -> None:
    assert await channel.call_async(PATH, b"first", timeout_s=5) == b"first"
    peer.holds_back.set()
    patient = asyncio.create_task(channel.call_async(PATH, b"patient", timeout_s=20))
    with pytest.raises(CallFailed) as caught:
        await channel.call_async(PATH, b"hasty", timeout_s=0.05)
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    peer.holds_back.clear()
    assert await patient == b"patient"
    assert peer.accepted == 1


async def test_a_shared_connection_is_kept_while_the_server_says_that_it_is_there(
    peer: Peer, channel: SocketChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "IDLE_S", 0.02)
    monkeypatch.setattr(loops, "ANSWER_S", 0.1)
    peer.holds_back.set()
    patient = asyncio.create_task(channel.call_async(PATH, b"patient", timeout_s=20))
    await until(lambda: peer.questions >= 3)
    peer.holds_back.clear()
    assert await patient == b"patient"
    assert peer.accepted == 1


async def test_a_shared_connection_that_falls_silent_under_a_call_is_left(
    peer: Peer, channel: SocketChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "IDLE_S", 0.1)
    monkeypatch.setattr(loops, "ANSWER_S", 0.2)
    assert await channel.call_async(PATH, b"first", timeout_s=5) == b"first"
    peer.silent.add(0)
    with pytest.raises(CallFailed, match="does not answer") as caught:
        await channel.call_async(PATH, b"x", timeout_s=20)
    assert caught.value.maybe_applied
    assert await channel.call_async(PATH, b"y", timeout_s=20) == b"y"
    assert peer.accepted == 2


async def test_a_shared_connection_that_falls_silent_under_calls_in_a_hurry_is_left(
    peer: Peer, channel: SocketChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "ANSWER_S", 0.2)
    assert await channel.call_async(PATH, b"first", timeout_s=5) == b"first"
    peer.holds_back.set()
    peer.silent.add(0)
    with pytest.raises(CallFailed, match="no answer in time"):
        await channel.call_async(PATH, b"x", timeout_s=0.05)
    with pytest.raises(CallFailed, match="does not answer") as caught:
        await channel.call_async(PATH, b"y", timeout_s=20)
    assert caught.value.maybe_applied
    peer.holds_back.clear()
    assert await channel.call_async(PATH, b"z", timeout_s=20) == b"z"
    assert peer.accepted == 2


def test_one_silent_connection_speaks_for_those_that_wait_beside_it(peer: Peer, channel: SocketChannel) -> None:
    """As after a network has dropped what it knew of idle connections: each would cost a call its time."""
    peer.holds_back.set()
    threads = [threading.Thread(target=channel.call, args=(PATH, b"x"), kwargs={"timeout_s": 20}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert peer.arrived.acquire(timeout=20)
    peer.holds_back.clear()
    for thread in threads:
        thread.join()
    peer.silent.update(range(4))
    with pytest.raises(CallFailed):
        channel.call(PATH, b"y", timeout_s=0.2)
    assert channel.call(PATH, b"z", timeout_s=20) == b"z"


@contextlib.contextmanager
def dead_place() -> Generator[Place]:
    """Yield an address where connections are neither made nor refused: a listener whose queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as guests:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            guest = guests.enter_context(socket.socket())
            guest.setblocking(False)
            guest.connect_ex(listener.getsockname())
        yield socket.AF_INET, listener.getsockname()


async def test_a_name_with_dead_addresses_before_a_live_one_is_reached(
    peer: Peer, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dead_place() as dead:
        no_such_network = (9999, dead[1])

        def places(*_: object) -> list[Place]:
            return [no_such_network, dead, (socket.AF_INET, ("127.0.0.1", peer.port))]

        monkeypatch.setattr(Address, "places", places)
        assert await ask(b"x", timeout_s=3) == b"x"


async def test_a_closed_channel_connects_no_more(peer: Peer, ask: Ask, channel: SocketChannel) -> None:
    channel.close()
    with pytest.raises(CallFailed, match="closed") as caught:
        await ask(b"x")
    assert not caught.value.maybe_applied


async def test_tasks_that_begin_at_once_may_fail_to_connect_at_once(
    peer: Peer, channel: SocketChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Python 3.12's eager tasks a connection may have failed before it is known that it is being made."""
    asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory", None))

    def fail(family: int) -> socket.socket:
        raise OSError("too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(loops, "unconnected", fail)
        with pytest.raises(CallFailed, match="too many open files"):
            await channel.call_async(PATH, b"x", timeout_s=5)
    assert await channel.call_async(PATH, b"y", timeout_s=5) == b"y"


def test_a_request_that_left_whole_is_in_doubt_whatever_was_to_follow_it() -> None:
    """Its last bytes leave together with the answers to a flood of pings, which the server does not read."""
    message = bytes(65_540)  # a little more than the first window
    begun = Http2()
    begun.begin(HEADERS, message, ends=True)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        left = len(begun.take())
        while left:
            left -= len(theirs.recv(left))
        more = struct.pack(">I", 1000)
        theirs.sendall(
            frame(4, 0, 0, b"") + frame(8, 0, 0, more) + frame(8, 0, 1, more) + frame(6, 0, 0, bytes(8)) * 3000
        )

    with theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.settimeout(5)
        server = threading.Thread(target=serve)
        server.start()
        connection = sockets._Connection(ours)
        with pytest.raises(CallFailed, match="no answer in time") as caught:
            connection.call(HEADERS, message, time.monotonic() + 1)
        server.join()
        assert caught.value.maybe_applied
        connection.close()


def test_what_a_server_asks_of_an_idle_connection_is_answered_without_waiting() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.settimeout(0.04)  # as a call in a hurry leaves it
        connection = sockets._Connection(ours)
        theirs.sendall(frame(4, 0, 0, b"") + frame(6, 0, 0, b"12345678"))
        assert connection.is_good()
        assert b"12345678" in theirs.recv(1000)
        connection.close()


@pytest.mark.parametrize("way", ["blocking", "asyncio"])
async def test_a_write_whose_user_could_not_sign_on_was_not_applied(peer: Peer, way: str) -> None:
    peer.holds_back.set()
    wire = Wire([f"127.0.0.1:{peer.port}"], login=Login("user", "secret"), transport="sockets")
    request = pb.PutRequest(key=b"k", value=b"x")

    async def put() -> Any:
        if way == "blocking":
            return await asyncio.to_thread(wire.call, methods.PUT, request, timeout_s=0.3)
        return await wire.call_async(methods.PUT, request, timeout_s=0.3)

    for failure in await asyncio.gather(put(), put(), return_exceptions=True):
        assert isinstance(failure, Unavailable)
        assert not failure.maybe_applied
    wire.close()


def test_what_is_learnt_of_a_member_goes_for_the_connections_beside_it_too() -> None:
    wire = Wire(["a:1", "b:1"])
    beside = wire.beside()
    beside.switch("a:1")
    assert wire.endpoint == "b:1"
    wire.follow(["c:1", "d:1"])
    wire.switch("c:1")
    assert beside.endpoints == ("d:1", "c:1")


# ---- streams


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask servers after milliseconds of silence."""
    monkeypatch.setattr(sockets, "IDLE_S", 0.02)
    monkeypatch.setattr(sockets, "_AGAIN_S", 0.02)
    monkeypatch.setattr(sockets, "ANSWER_S", 1.0)


@pytest.mark.parametrize("complaints", [[], ["no leader"], ["no leader", "", "no leader"]])
async def test_a_stream_lasts_while_the_server_says_that_it_is_well(
    peer: Peer, channel: SocketChannel, quick: None, complaints: list[str]
) -> None:
    """One complaint is none: in an election, every member is without a leader for a moment."""
    peer.complaints += complaints
    stream = channel.stream(PATH, timeout_s=5)
    reading = asyncio.create_task(asyncio.to_thread(list, stream))
    await until(lambda: peer.questions > len(complaints) + 2)
    assert not reading.done()
    stream.cancel()
    with pytest.raises(CallFailed):
        await reading
    assert peer.accepted == 1


def test_a_stream_ends_when_the_server_says_twice_that_it_is_not_well(
    peer: Peer, channel: SocketChannel, quick: None
) -> None:
    peer.complaints += ["etcdserver: no leader"] * 2
    with pytest.raises(CallFailed, match="no leader"):
        list(channel.stream(PATH, timeout_s=5))
    assert peer.questions == 2


def test_a_stream_ends_when_the_server_falls_silent(
    peer: Peer, channel: SocketChannel, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "ANSWER_S", 0.2)
    peer.silent.add(0)
    with pytest.raises(CallFailed, match="does not answer"):
        list(channel.stream(PATH, timeout_s=5))


def test_a_stream_of_a_server_that_is_going_away_ends_with_what_it_had_to_say(quick: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        channel = open_channel(f"127.0.0.1:{listener.getsockname()[1]}", None, transport="sockets")
        messages = iter(channel.stream(PATH, timeout_s=5))
        theirs, _ = listener.accept()
        with theirs:
            said = frame(1, 0x4, 1, b"\x88") + frame(0, 0, 1, struct.pack(">BI", 0, 1) + b"x")
            theirs.sendall(frame(4, 0, 0, b"") + said + frame(7, 0, 0, struct.pack(">II", (1 << 31) - 1, 0)))
            assert next(messages) == b"x"
            with pytest.raises(CallFailed, match="going away"):
                next(messages)
        channel.close()


def test_a_stream_is_refused_like_a_call_when_the_connection_breaks_at_once(
    peer: Peer, channel: SocketChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = Address.connect

    def connect_and_break(self: Address, timeout_s: float, tls: Any) -> socket.socket:
        sock = connect(self, timeout_s, tls)
        sock.shutdown(socket.SHUT_WR)
        return sock

    monkeypatch.setattr(address.Address, "connect", connect_and_break)
    with pytest.raises(CallFailed) as caught:
        channel.stream(PATH, timeout_s=5)
    assert caught.value.status is Status.UNAVAILABLE
    assert not channel._pool._all


def test_nothing_follows_half_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "ANSWER_S", 0.2)
    monkeypatch.setattr(sockets, "IDLE_S", 600)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        channel = open_channel(f"127.0.0.1:{listener.getsockname()[1]}", None, transport="sockets")
        stream = channel.stream(PATH, timeout_s=5)
        theirs, _ = listener.accept()
        with theirs:
            wide = struct.pack(">I", (1 << 31) - 1 - 65_535)
            theirs.sendall(frame(4, 0, 0, b"") + frame(8, 0, 0, wide) + frame(8, 0, 1, wide))
            theirs.sendall(frame(1, 0x4, 1, b"\x88") + frame(0, 0, 1, struct.pack(">BI", 0, 1) + b"x"))
            messages = iter(stream)
            assert next(messages) == b"x"
            stream.send(bytes(50_000_000))  # more than any buffer holds, and nobody reads
            with pytest.raises(CallFailed):
                next(messages)
        channel.close()


def test_a_stream_that_was_cancelled_before_it_is_read_ends_at_once(
    peer: Peer, channel: SocketChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "IDLE_S", 600)
    stream = channel.stream(PATH, timeout_s=5)
    stream.cancel()
    with contextlib.ExitStack() as others:  # sockets that get the number that has become free
        for _ in range(8):
            for each in socket.socketpair():
                others.enter_context(each)
        stream.send(b"in vain")
        with pytest.raises(CallFailed):
            next(iter(stream))
