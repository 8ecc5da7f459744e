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

from skyward_etcd.wire import address, loops, sockets
from skyward_etcd.wire.address import Address, Place
from skyward_etcd.wire.channel import SocketChannel, open_channel
from skyward_etcd.wire.http2 import Http2, header_block
from skyward_etcd.wire.status import CallFailed, Status

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
        """While it is set, calls are not answered, though pings are."""
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
                    if isinstance(event, h2.events.DataReceived):
                        bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                        server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded):
                        complete.append(event.stream_id)
                        self.arrived.release()
                    elif isinstance(event, h2.events.StreamReset) and event.stream_id in complete:
                        complete.remove(event.stream_id)
                while complete and not self.holds_back.is_set():
                    stream = complete.pop()
                    server.send_headers(stream, [(":status", "200")])
                    server.send_data(stream, bodies.pop(stream))
                    server.send_headers(stream, [("grpc-status", "0")], end_stream=True)
                if number not in self.silent:
                    connection.sendall(server.data_to_send())


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


async def test_a_shared_connection_that_answers_no_ping_is_left(
    peer: Peer, channel: SocketChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "PING_S", 0.2)
    assert await channel.call_async(PATH, b"first", timeout_s=5) == b"first"
    peer.holds_back.set()
    peer.silent.add(0)
    with pytest.raises(CallFailed, match="no answer in time"):
        await channel.call_async(PATH, b"x", timeout_s=0.05)
    with pytest.raises(CallFailed, match="ping") as caught:
        await channel.call_async(PATH, b"y", timeout_s=20)
    assert caught.value.maybe_applied
    peer.holds_back.clear()
    assert await channel.call_async(PATH, b"z", timeout_s=20) == b"z"
    assert peer.accepted == 2


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


# ---- streams
