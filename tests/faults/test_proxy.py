"""The proxy does to a connection what it is told to, and counts what hit."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from skyward_etcd.testing.proxy import HALF_OPEN, REFUSING, Faults, Proxy

SOON_S = 5.0
NOT_YET_S = 0.1


class Echo:
    """A server that answers each piece with itself."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = "127.0.0.1:{1}".format(*self._listening.getsockname())
        self.received = bytearray()
        self._accepted: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._echo, args=(accepted,)))
            self._threads[-1].start()

    def _echo(self, accepted: socket.socket) -> None:
        with accepted:
            try:
                while piece := accepted.recv(1 << 16):
                    self.received += piece
                    accepted.sendall(piece)
            except OSError:
                pass


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.endpoint) as running:
        yield running


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with connected(proxy) as connection:
        connection.sendall(b"hello")
        assert receive(connection, 5) == b"hello"
        yield connection


def connected(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.endpoint.rpartition(":")
    return socket.create_connection((host, int(port)), SOON_S)


def receive(connection: socket.socket, size: int) -> bytes:
    connection.settimeout(SOON_S)
    found = b""
    while len(found) < size and (piece := connection.recv(size - len(found))):
        found += piece
    return found


def hears_nothing(connection: socket.socket) -> bool:
    connection.settimeout(NOT_YET_S)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    return False


def is_cut(connection: socket.socket) -> bool:
    connection.settimeout(SOON_S)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_a_refused_connection_ends_at_once_and_an_old_one_goes_on(proxy: Proxy, client: socket.socket) -> None:
    proxy.break_(REFUSING)
    with connected(proxy) as another:
        assert is_cut(another)
    client.sendall(b"still here")
    assert receive(client, 10) == b"still here"


def test_a_cut_ends_what_there_is_and_lets_new_ones_in(proxy: Proxy, client: socket.socket) -> None:
    proxy.cut()
    assert is_cut(client)
    with connected(proxy) as another:
        another.sendall(b"hello")
        assert receive(another, 5) == b"hello"


def test_a_half_open_line_is_silent_and_delivers_late(proxy: Proxy, echo: Echo, client: socket.socket) -> None:
    proxy.break_(HALF_OPEN)
    client.sendall(b" late")
    assert hears_nothing(client)
    assert bytes(echo.received) == b"hello"
    proxy.heal()
    assert receive(client, 5) == b" late"


def test_lost_replies_leave_the_requests_alone(proxy: Proxy, echo: Echo, client: socket.socket) -> None:
    proxy.break_(Faults(loses_replies=True))
    client.sendall(b" done")
    deadline = time.monotonic() + SOON_S
    while bytes(echo.received) != b"hello done":
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert hears_nothing(client)


def test_a_slow_line_takes_its_time_and_a_narrow_one_too(proxy: Proxy, client: socket.socket) -> None:
    proxy.break_(Faults(delay_s=0.1))
    started = time.monotonic()
    client.sendall(b"there and back")
    assert receive(client, 14) == b"there and back"
    assert time.monotonic() - started >= 0.2

    proxy.break_(Faults(bytes_per_s=100_000))
    started = time.monotonic()
    client.sendall(bytes(40_000))
    assert len(receive(client, 40_000)) == 40_000
    client.sendall(b"next")
    assert receive(client, 4) == b"next"
    assert time.monotonic() - started >= 0.4


def test_only_the_one_that_is_named_is_broken(echo: Echo) -> None:
    names: dict[int, str] = {}
    with Proxy(echo.endpoint, name_of=lambda port: names.get(port, "other")) as proxy:
        proxy.break_(REFUSING, source="bad")
        with socket.socket() as bad, connected(proxy) as good:
            bad.bind(("127.0.0.1", 0))
            names[bad.getsockname()[1]] = "bad"
            host, _, port = proxy.endpoint.rpartition(":")
            bad.connect((host, int(port)))
            assert is_cut(bad)
            good.sendall(b"hello")
            assert receive(good, 5) == b"hello"


def test_a_closed_proxy_leaves_no_connection_and_no_thread(echo: Echo) -> None:
    before = threading.active_count()
    proxy = Proxy(echo.endpoint)
    proxy.start()
    with connected(proxy) as connection:
        proxy.close()
        assert is_cut(connection)
    proxy.close()
    assert threading.active_count() <= before + 1  # the echo's own
