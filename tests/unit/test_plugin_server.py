"""The ports of a node: callers are served apart from each other, and one that cannot be taken is not the last."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Generator

import pytest

from skyward_etcd.plugin.server import Server

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def server() -> Generator[Server]:
    def echo(caller: socket.socket) -> None:
        while data := caller.recv(100):
            if data == b"fail":
                raise ValueError("on purpose")
            caller.sendall(data)

    served = Server("127.0.0.1", 0, echo, name="echo")
    try:
        yield served
    finally:
        served.close()


def call(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10.0)


def says(caller: socket.socket, data: bytes) -> bytes:
    caller.sendall(data)
    return caller.recv(100)


def test_callers_do_not_wait_for_each_other(server: Server) -> None:
    with call(server) as first, call(server) as second:
        assert says(second, b"2") == b"2"
        assert says(first, b"1") == b"1"


def test_a_caller_whose_service_fails_is_hung_up_on_and_the_next_is_served(server: Server) -> None:
    with call(server) as unlucky, call(server) as next_one:
        assert says(unlucky, b"fail") == b""
        assert says(next_one, b"1") == b"1"


def test_one_that_cannot_be_taken_for_want_of_files_is_not_the_last(server: Server) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as caller:
        caller.settimeout(10.0)
        highest = os.dup(0)
        os.close(highest)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, before[1]))
            caller.connect(("127.0.0.1", server.port))  # by the kernel; nobody can take the call
            caller.sendall(b"1")
            caller.settimeout(0.5)
            with pytest.raises(TimeoutError):
                caller.recv(100)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        caller.settimeout(10.0)
        assert caller.recv(100) == b"1"


def test_nobody_is_served_after_its_close(server: Server) -> None:
    server.close()
    with pytest.raises(ConnectionRefusedError):
        call(server)
