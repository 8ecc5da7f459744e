"""One attempt of a call, over each transport: what comes back, what is known when nothing does, and what is left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme

from skyward_etcd.active import connect
from skyward_etcd.cluster.binary import Etcd, inspect
from skyward_etcd.cluster.bootstrap import LocalCluster, free_ports
from skyward_etcd.cluster.member import MemberSpec, flags
from skyward_etcd.cluster.process import Supervised, launch
from skyward_etcd.errors import NotConnected, PermissionDenied, Unavailable
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods, sockets
from skyward_etcd.wire.client import Login, Tls, Wire
from tests.integration.conftest import any_usable
from tests.integration.helpers import Calls, in_threads, questions, until

RANGE = pb.RangeRequest(key=b"wire/nothing")
TRANSPORTS = ("sockets", "grpcio")

Opened = Callable[..., Wire]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def wire(transport: str) -> Iterator[Opened]:
    """Return a function that opens channels to endpoints; no socket of theirs may be left."""
    wires: list[Wire] = []

    def opened(endpoints: Sequence[str], **options: Any) -> Wire:
        wires.append(Wire(endpoints, transport=transport, **options))
        return wires[-1]

    yield opened
    for each in wires:
        each.close()


class Server:
    """An etcd of this test's own, with flags of its own."""

    def __init__(self, directory: Path, *more: str, scheme: str = "http") -> None:
        client, peer = free_ports(2)
        self.endpoint = f"127.0.0.1:{client}"
        peer_url = f"http://127.0.0.1:{peer}"
        self._directory = directory
        spec = MemberSpec("m", directory, f"{scheme}://{self.endpoint}", peer_url, {"m": peer_url}, "test_wire")
        # In its directory: a unix:// URL of etcd's has no path, so the socket is where etcd runs.
        command: list[str | Path] = [
            "env",
            f"--chdir={directory}",
            any_usable(),
            *flags(Etcd(any_usable(), inspect(any_usable()) or (0, 0, 0), "test"), spec),
            *more,
        ]
        self._command = command
        self.process = self.start()

    def start(self) -> Supervised:
        """Start it, or start it again."""
        with (self._directory / "log").open("ab") as log:
            self.process = launch(self._command, stdout=log, stderr=log, env=dict(os.environ), scratch=None)
        return self.process

    async def freeze(self) -> None:
        """Stop it, every thread."""
        self.process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self.process.pid}/task")
        await until(lambda: all(") T " in (each / "stat").read_text() for each in threads.iterdir()))

    async def ready(self, wire: Wire) -> None:
        """Wait until it answers."""

        def answers() -> bool:
            try:
                wire.call(methods.RANGE, RANGE, timeout_s=1)
            except Unavailable:
                return False
            except PermissionDenied:
                return True
            return True

        await until(answers)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def started(*more: str, **options: Any) -> Server:
        servers.append(Server(tmp_path, *more, **options))
        return servers[-1]

    yield started
    for each in servers:
        each.process.kill()


def put(value: bytes, key: bytes = b"wire/k") -> pb.PutRequest:
    return pb.PutRequest(key=key, value=value)


# ---- what arrives


@pytest.mark.parametrize("size", [0, 1, 60_000, 70_000, 1_400_000])
async def test_values_of_any_size_come_back(one_member: LocalCluster, wire: Opened, calls: Calls, size: int) -> None:
    ours = calls(wire(one_member.endpoints))
    value = os.urandom(size)
    await ours.call(methods.PUT, put(value), timeout_s=3)
    reply = await ours.call(methods.RANGE, pb.RangeRequest(key=b"wire/k"), timeout_s=3)
    assert reply.kvs[0].value == value


async def test_a_reply_larger_than_any_window_comes_whole(one_member: LocalCluster, wire: Opened, calls: Calls) -> None:
    ours = calls(wire(one_member.endpoints))
    for number in range(8):
        await ours.call(methods.PUT, put(bytes([number]) * 1_000_000, b"wire/large/%d" % number), timeout_s=3)
    everything = pb.RangeRequest(key=b"wire/large/", range_end=b"wire/large0")
    for _ in range(3):
        reply = await ours.call(methods.RANGE, everything, timeout_s=10)
        assert [found.value for found in reply.kvs] == [bytes([number]) * 1_000_000 for number in range(8)]
    await ours.call(methods.DELETE_RANGE, pb.DeleteRangeRequest(key=b"wire/", range_end=b"wire0"), timeout_s=3)


def test_many_threads_get_their_own_answers(one_member: LocalCluster, wire: Opened) -> None:
    ours = wire(one_member.endpoints)

    def work(number: int) -> bool:
        key = b"wire/thread/%d" % number
        for turn in range(20):
            ours.call(methods.PUT, put(b"%d" % turn, key), timeout_s=5)
            reply = ours.call(methods.RANGE, pb.RangeRequest(key=key), timeout_s=5)
            assert (reply.kvs[0].key, reply.kvs[0].value) == (key, b"%d" % turn)
        return True

    assert all(in_threads(24, work))


async def test_many_tasks_get_their_own_answers(one_member: LocalCluster, wire: Opened) -> None:
    ours = wire(one_member.endpoints)

    async def work(number: int) -> None:
        key = b"wire/task/%d" % number
        for turn in range(5):
            await ours.call_async(methods.PUT, put(b"%d" % turn, key), timeout_s=10)
            reply = await ours.call_async(methods.RANGE, pb.RangeRequest(key=key), timeout_s=10)
            assert (reply.kvs[0].key, reply.kvs[0].value) == (key, b"%d" % turn)

    await asyncio.gather(*(work(number) for number in range(200)))


def test_each_loop_has_a_connection_of_its_own(one_member: LocalCluster, wire: Opened) -> None:
    ours = wire(one_member.endpoints)

    async def ask() -> int:
        replies = [ours.call_async(methods.RANGE, RANGE, timeout_s=3) for _ in range(10)]
        return sum(reply.header.revision > 0 for reply in await asyncio.gather(*replies))

    for _ in range(3):
        assert asyncio.run(ask()) == 10
    assert in_threads(4, lambda _: asyncio.run(ask())) == [10] * 4


async def test_a_cancelled_call_leaves_the_others_alone(one_member: LocalCluster, wire: Opened) -> None:
    ours = wire(one_member.endpoints)
    for turn in range(20):
        tasks = [asyncio.create_task(ours.call_async(methods.RANGE, RANGE, timeout_s=3)) for _ in range(10)]
        await asyncio.sleep(0.0002 * turn)
        for task in tasks[::2]:
            task.cancel()
        kept = await asyncio.gather(*tasks[1::2])
        assert all(reply.header.revision for reply in kept)
        await asyncio.gather(*tasks[::2], return_exceptions=True)


# ---- what is known when nothing comes back


async def test_where_nobody_listens_nothing_was_applied(wire: Opened, calls: Calls) -> None:
    ours = wire([f"127.0.0.1:{free_ports(1)[0]}"])
    with pytest.raises(Unavailable) as caught:
        await calls(ours).call(methods.PUT, put(b"x"), timeout_s=1)
    assert not caught.value.maybe_applied


async def test_the_next_endpoint_is_asked_after_a_failure(one_member: LocalCluster, wire: Opened, calls: Calls) -> None:
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    ours = wire([dead, *one_member.endpoints])
    with pytest.raises(Unavailable, match=dead):
        await calls(ours).call(methods.RANGE, RANGE, timeout_s=1)
    assert ours.endpoint == one_member.endpoints[0]
    assert (await calls(ours).call(methods.RANGE, RANGE, timeout_s=3)).header.revision


async def test_a_frozen_member_leaves_a_write_in_doubt_and_is_well_again_when_it_goes_on(
    server: Callable[..., Server], wire: Opened, calls: Calls
) -> None:
    frozen = server()
    ours = wire([frozen.endpoint])
    await frozen.ready(ours)
    await calls(ours).call(methods.RANGE, RANGE, timeout_s=3)
    await frozen.freeze()
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await calls(ours).call(methods.PUT, put(b"x"), timeout_s=0.3)
    assert caught.value.maybe_applied
    assert time.monotonic() - began < 5
    frozen.process.send_signal(signal.SIGCONT)
    assert (await calls(ours).call(methods.RANGE, RANGE, timeout_s=5)).header.revision


async def test_a_member_that_dies_under_a_call_leaves_it_in_doubt(
    server: Callable[..., Server], wire: Opened, calls: Calls
) -> None:
    dying = server()
    ours = wire([dying.endpoint])
    await dying.ready(ours)
    await calls(ours).call(methods.RANGE, RANGE, timeout_s=3)
    await dying.freeze()
    call = asyncio.ensure_future(calls(ours).call(methods.PUT, put(b"x"), timeout_s=10))
    await asyncio.sleep(0.1)
    dying.process.kill()
    with pytest.raises(Unavailable) as caught:
        await asyncio.wait_for(call, 5)
    assert caught.value.maybe_applied


async def test_connections_that_ended_while_they_were_idle_are_noticed(
    server: Callable[..., Server], wire: Opened, calls: Calls
) -> None:
    restarting = server()
    ours = wire([restarting.endpoint])
    await restarting.ready(ours)
    await calls(ours).call(methods.RANGE, RANGE, timeout_s=3)
    restarting.process.kill()
    restarting.start()
    await restarting.ready(wire([restarting.endpoint]))
    await asyncio.sleep(0)
    reply = await calls(ours).call(methods.RANGE, RANGE, timeout_s=3)
    assert reply.header.revision


async def test_a_closed_wire_fails_what_is_under_way_and_what_comes(
    server: Callable[..., Server], wire: Opened, calls: Calls
) -> None:
    frozen = server()
    ours = wire([frozen.endpoint])
    await frozen.ready(ours)
    await calls(ours).call(methods.RANGE, RANGE, timeout_s=3)
    await frozen.freeze()
    call = asyncio.ensure_future(calls(ours).call(methods.PUT, put(b"x"), timeout_s=30))
    await asyncio.sleep(0.1)
    ours.close()
    with pytest.raises(Unavailable, match="closed") as caught:
        await asyncio.wait_for(call, 5)
    assert caught.value.maybe_applied
    with pytest.raises(NotConnected, match="closed"):
        await calls(ours).call(methods.RANGE, RANGE, timeout_s=3)


async def test_a_write_at_a_member_that_leaves_the_cluster_is_in_doubt(
    server: Callable[..., Server], one_member: LocalCluster, wire: Opened, calls: Calls
) -> None:
    leaving = server()
    ours = wire([leaving.endpoint])
    await leaving.ready(ours)
    await calls(ours).call(methods.RANGE, RANGE, timeout_s=3)
    await leaving.freeze()
    call = asyncio.ensure_future(calls(ours).call(methods.PUT, put(b"x"), timeout_s=30))
    await asyncio.sleep(0.1)
    ours.follow(one_member.endpoints)
    with pytest.raises(Unavailable) as caught:
        await asyncio.wait_for(call, 5)
    assert caught.value.maybe_applied
    assert (await calls(ours).call(methods.RANGE, RANGE, timeout_s=3)).header.revision


async def test_who_is_no_etcd_is_told_apart(calls: Calls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(100_000)

        threading.Thread(target=answer, daemon=True).start()
        ours = Wire([f"127.0.0.1:{listener.getsockname()[1]}"], transport="sockets")
        with pytest.raises(Unavailable, match="no client endpoint of an etcd"):
            await calls(ours).call(methods.RANGE, RANGE, timeout_s=3)
        ours.close()


@pytest.mark.parametrize(
    "endpoint", ["", "nowhere", "host:", "host:0", "host:70000", ":2379", "ftp://host:1", "h:x", "a..b:1"]
)
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        Wire([endpoint])


# ---- streams


async def test_a_stream_ends_under_its_reader_when_it_is_cancelled(one_member: LocalCluster, wire: Opened) -> None:
    stream = wire(one_member.endpoints).stream(methods.WATCH, require_leader=True)
    stream.send(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"wire/k")))
    seen: list[Any] = []

    def read() -> None:
        try:
            seen.extend(response.created for response in stream)
        except Unavailable as error:
            seen.append(error)

    reader = asyncio.ensure_future(asyncio.to_thread(read))
    await until(lambda: seen)
    stream.cancel()
    await asyncio.wait_for(reader, 5)
    assert isinstance(seen[-1], Unavailable)


async def test_a_silent_server_is_found_by_asking(
    server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-open connection sends nothing, not even its end. And etcd hangs up on who pings four times in 5 s."""
    monkeypatch.setattr(sockets, "IDLE_S", 0.02)
    frozen = server("--experimental-watch-progress-notify-interval=10m")
    ours = Wire([frozen.endpoint], transport="sockets")
    await frozen.ready(ours)
    stream = ours.stream(methods.WATCH, require_leader=True)
    stream.send(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"wire/k")))
    responses = iter(stream)
    assert next(responses).created
    waiting = asyncio.ensure_future(asyncio.to_thread(next, responses))
    await until(lambda: questions(stream) > 50)
    assert not waiting.done()
    await frozen.freeze()
    began = time.monotonic()
    with pytest.raises(Unavailable, match="does not answer"):
        await waiting
    assert time.monotonic() - began < 10
    ours.close()


@pytest.mark.slow
async def test_grpcio_finds_a_silent_server_too_within_the_time_that_it_promises(
    server: Callable[..., Server],
) -> None:
    frozen = server()
    ours = Wire([frozen.endpoint], transport="grpcio")
    await frozen.ready(ours)
    stream = ours.stream(methods.WATCH)
    stream.send(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"wire/k")))
    responses = iter(stream)
    assert next(responses).created
    waiting = asyncio.ensure_future(asyncio.to_thread(next, responses))
    await frozen.freeze()
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"ping timeout|keepalive"):
        await waiting
    assert time.monotonic() - began < 14
    ours.close()


# ---- TLS, sockets of the file system


async def test_tls_shows_who_is_who(
    server: Callable[..., Server], tmp_path: Path, wire: Opened, calls: Calls, transport: str
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    theirs, mine = authority.issue_cert("127.0.0.1"), authority.issue_cert("client")
    for name, data in (
        ("ca", authority.cert_pem),
        ("cert", theirs.cert_chain_pems[0]),
        ("key", theirs.private_key_pem),
    ):
        (tmp_path / f"{name}.pem").write_bytes(data.bytes())
    paths = [
        f"--{flag}={tmp_path}/{name}.pem"
        for flag, name in (
            ("trusted-ca-file", "ca"),
            ("cert-file", "cert"),
            ("key-file", "key"),
        )
    ]
    closed = server("--client-cert-auth", *paths, scheme="https")
    certificate, key = mine.cert_chain_pems[0].bytes(), mine.private_key_pem.bytes()
    ours = wire([closed.endpoint], tls=Tls(authority.cert_pem.bytes(), certificate, key))
    await closed.ready(ours)
    value = os.urandom(300_000)
    await calls(ours).call(methods.PUT, put(value), timeout_s=3)
    assert (await calls(ours).call(methods.RANGE, pb.RangeRequest(key=b"wire/k"), timeout_s=3)).kvs[0].value == value
    if calls.blocking:
        stream = ours.stream(methods.WATCH)
        stream.send(pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"wire/k")))
        responses = iter(stream)
        assert (await asyncio.to_thread(next, responses)).created
        await calls(ours).call(methods.PUT, put(b"seen"), timeout_s=3)
        assert (await asyncio.to_thread(next, responses)).events[0].kv.value == b"seen"
        stream.cancel()
        with pytest.raises(Unavailable):
            await asyncio.to_thread(next, responses)
    other = wire([closed.endpoint], tls=Tls(stranger.cert_pem.bytes(), certificate, key))
    with pytest.raises(Unavailable) as caught:
        await calls(other).call(methods.PUT, put(b"x"), timeout_s=1)
    assert not caught.value.maybe_applied
    without = wire([closed.endpoint], tls=Tls(authority.cert_pem.bytes()))
    plain = wire([closed.endpoint])
    for nobody in (without, plain):
        with pytest.raises(Unavailable) as caught:
            await calls(nobody).call(methods.RANGE, RANGE, timeout_s=1)
    if transport == "sockets":
        assert "TLS" in str(caught.value)


async def test_a_unix_socket_is_an_endpoint(
    server: Callable[..., Server], tmp_path: Path, wire: Opened, calls: Calls
) -> None:
    ours = wire([f"unix:{tmp_path}/etcd.sock:1"])  # etcd wants something like a port
    served = server("--listen-client-urls=unix://etcd.sock:1")
    await served.ready(ours)
    assert (await calls(ours).call(methods.RANGE, RANGE, timeout_s=3)).header.revision


# ---- users of etcd's own


def text(field: int, value: str) -> bytes:
    """Return a protobuf string field."""
    return bytes((field << 3 | 2, len(value))) + value.encode()


@pytest.fixture
async def locked(server: Callable[..., Server]) -> Server:
    """A member that wants a user: root, or reader, who may read and write under ``/skyward/`` only."""
    member = server()
    wire = Wire([member.endpoint])
    await member.ready(wire)
    channel = wire._channels[member.endpoint]
    permission = b"\x08\x02" + text(2, "/skyward/") + text(3, "/skyward0")  # READWRITE
    for call, request in (
        ("UserAdd", text(1, "root") + text(2, "secret")),
        ("UserGrantRole", text(1, "root") + text(2, "root")),
        ("RoleAdd", text(1, "worker")),
        ("RoleGrantPermission", text(1, "worker") + bytes((0x12, len(permission))) + permission),
        ("UserAdd", text(1, "worker") + text(2, "hunter2")),
        ("UserGrantRole", text(1, "worker") + text(2, "worker")),
        ("AuthEnable", b""),
    ):
        channel.call(f"/etcdserverpb.Auth/{call}", request, timeout_s=3)
    wire.close()
    return member


async def test_who_has_no_password_stays_outside(locked: Server, wire: Opened, calls: Calls) -> None:
    with pytest.raises(PermissionDenied, match="user and password"):
        await calls(wire([locked.endpoint])).call(methods.RANGE, RANGE, timeout_s=3)
    wrong = wire([locked.endpoint], login=Login("root", "guess"))
    with pytest.raises(PermissionDenied, match="check user and password"):
        await calls(wrong).call(methods.RANGE, RANGE, timeout_s=3)


async def test_a_user_comes_in_and_a_token_that_ends_is_renewed(locked: Server, wire: Opened, calls: Calls) -> None:
    ours = wire([locked.endpoint], login=Login("root", "secret"))
    assert (await calls(ours).call(methods.RANGE, RANGE, timeout_s=3)).header.revision
    ours._token = (("token", "ended.1"),)
    with pytest.raises(Unavailable) as caught:
        await calls(ours).call(methods.PUT, put(b"x"), timeout_s=3)
    assert not caught.value.maybe_applied
    assert (await calls(ours).call(methods.PUT, put(b"x"), timeout_s=3)).header.revision


async def test_all_who_want_a_token_at_the_same_time_get_one(locked: Server, calls: Calls, wire: Opened) -> None:
    """A new one costs etcd a tenth of a second of computing: for each of a hundred it would have no time for calls."""
    ours = wire([locked.endpoint], login=Login("root", "secret"))
    tokens: set[Any] = set()
    sign_on = ours._signed_on

    def signed_on(reply: bytes) -> Any:
        tokens.add(sign_on(reply))
        return ours._token

    ours._signed_on = signed_on  # type: ignore[method-assign]
    every = await asyncio.gather(*(calls(ours).call(methods.RANGE, RANGE, timeout_s=5) for _ in range(100)))
    assert all(reply.header.revision for reply in every)
    assert len(tokens) == 1


async def test_collections_work_for_a_user_with_rights_to_them_alone(locked: Server, calls: Calls) -> None:
    with connect([locked.endpoint], user="worker", password="hunter2") as sky:
        queue = calls(sky.queue("q"))
        waiting = asyncio.ensure_future(queue.get(timeout=10))
        await asyncio.sleep(0.2)
        await calls(sky.queue("q")).put("item")
        assert await waiting == "item"
        async with sky.lock("l"):
            assert await calls(sky.counter("c")).increment() == 1
        sky._session().wire._token = (("token", "ended.1"),)
        assert await calls(sky.counter("c")).increment() == 2


async def test_a_password_is_in_no_repr() -> None:
    assert "hunter2" not in repr(Login("worker", "hunter2"))
