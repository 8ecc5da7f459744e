"""Whatever others have written, or send: an error that says so, never a crash, a hang, much memory or code that runs.

The values themselves are in `test_codec.py`, keys in `test_keys.py`, frames in `test_http2.py`.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import pickle
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import skyward_etcd
from skyward_etcd.collections.barrier import Barrier
from skyward_etcd.collections.counter import Counter
from skyward_etcd.collections.dict import Dict
from skyward_etcd.collections.lock import Lock
from skyward_etcd.collections.queue import Queue
from skyward_etcd.collections.set import Set
from skyward_etcd.errors import SkywardEtcdError, Unavailable
from skyward_etcd.operate import transfer, views
from skyward_etcd.operate.catalog import catalog
from skyward_etcd.operate.kinds import KINDS
from skyward_etcd.operate.reading import Who
from skyward_etcd.ops import kv
from skyward_etcd.ops.attempt import txn_repeatable
from skyward_etcd.ops.effects import Operation
from skyward_etcd.plugin import talk
from skyward_etcd.testing.simulator import Faults, Process, Simulation
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Wire
from skyward_etcd.wire.http2 import Http2, ProtocolError, header_block
from skyward_etcd.wire.methods import Method
from tests.unit.simulated import run

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "format", "n", "generation", "broken", "aborted", "node", "pid", "since", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
NOISE: st.SearchStrategy[bytes] = st.one_of(
    st.binary(max_size=30),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [b"", b"[" * 9000, b"9" * 5000, b"-1", b"\x01\x91" * 90, b"\x02" + b"m" * 32 + pickle.dumps(print)]
    ),
)


@pytest.fixture(autouse=True)
def no_pickle_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pickle that nobody has signed was loaded")

    monkeypatch.setattr(pickle, "loads", refuse)


def test_pickles_are_loaded_in_known_places_only() -> None:
    """Values that are signed, and what comes through a socket that a process was born with: nowhere else."""
    home = Path(skyward_etcd.__file__).parent
    found: set[str] = set()
    for file in home.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("loads", "load", "Unpickler"):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                if owner in ("pickle", "cloudpickle", "marshal", "shelve"):
                    found.add(str(file.relative_to(home)))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.add(f"{file.relative_to(home)}: {node.func.id}")
    assert found == {"ops/codec.py", "pool/channel.py", "pool/failure.py"}


# ---- what lies in etcd


def play(program: Callable[[Simulation, Process], Coroutine[Any, Any, None]]) -> None:
    with Simulation(1, faults=Faults()) as simulation:
        process = simulation.process("p")
        simulation.spawn(process, program(simulation, process), "program")
        run(simulation)


def written(key: bytes, value: bytes) -> Operation[Any]:
    return (yield from txn_repeatable(kv.txn(then=[kv.put(key, value)])))


async def fill(sky: Any) -> None:
    await Dict(sky, "d").set_async("k", [1])
    await Set(sky, "s").add_async("m")
    await Counter(sky, "c").increment_async()
    await Queue(sky, "q").put_many_async(range(3))
    await Queue(sky, "q", max_deliveries=None).claim_async()
    await Lock(sky, "l").acquire_async()
    with contextlib.suppress(TimeoutError, SkywardEtcdError, threading.BrokenBarrierError):
        await Barrier(sky, "b", 2).wait_async(timeout=0.1)


def uses(sky: Any) -> list[Callable[[], Coroutine[Any, Any, Any]]]:
    entries, members, total, items = Dict(sky, "d"), Set(sky, "s"), Counter(sky, "c"), Queue(sky, "q")
    return [
        entries.items_async,
        lambda: entries.get_async("k"),
        lambda: entries.pop_async("k", None),
        lambda: entries.set_async("k", 1),
        members.members_async,
        lambda: members.add_async("m"),
        total.increment_async,
        lambda: Counter(sky, "c", consistency="strong").value_async(),
        lambda: items.put_async(1),
        lambda: items.get_async(timeout=0.1),
        lambda: items.get_many_async(5, timeout=0),
        lambda: claimed(items),
        items.size_async,
        lambda: Lock(sky, "l").acquire_async(timeout=0.1),
        lambda: Lock(sky, "l2").acquire_async(timeout=0.1),
        lambda: Barrier(sky, "b", 2).wait_async(timeout=0.1),
        lambda: Barrier(sky, "b2", 1).wait_async(timeout=0.1),
    ]


async def claimed(items: Queue) -> None:
    job = await items.claim_async(timeout=0.1)
    if job is None:
        return
    with contextlib.suppress(SkywardEtcdError):
        _ = job.value
    await job.ack_async()


def looks(sky: Any) -> list[Callable[[], Operation[Any]]]:
    return [
        lambda: catalog(sky),
        lambda: transfer.exported(sky, lambda line: None),
        *(partial(views.view, sky, kind, kind[0]) for kind in KINDS),
    ]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_others_write_into_our_keys_is_an_error_and_nothing_worse(data: st.DataObject) -> None:
    async def program(simulation: Simulation, process: Process) -> None:
        ours = process.as_session()
        await fill(ours)
        there = sorted(simulation.etcd.dump(ours.layout.root))
        for _ in range(data.draw(st.integers(1, 3))):
            key = data.draw(st.sampled_from(there))
            if data.draw(st.booleans()):  # a key that is none of ours, beside one that is
                key = key[: key.rindex(b"/") + 1] + data.draw(st.binary(max_size=12))
            await process.run_async(written(key, data.draw(NOISE)))
        reader = simulation.process("reader")
        theirs = reader.as_session()
        for use in uses(theirs):
            with contextlib.suppress(SkywardEtcdError, TimeoutError, ValueError):
                await use()
        for look in looks(theirs):
            with contextlib.suppress(SkywardEtcdError):
                await reader.run_async(look())

    play(program)


@given(NOISE)
def test_who_a_key_is_of_is_read_from_anything(value: bytes) -> None:
    assert Who.read("s", value).session == "s"


# ---- lines of an export

LINES: st.SearchStrategy[list[str]] = st.lists(
    st.one_of(
        st.text(max_size=20),
        JSON.map(json.dumps),
        st.sampled_from(
            [
                '{"skyward-etcd":1,"namespace":"n"}',
                '{"kind":"dict","name":"d","settings":{}}',
                '{"kind":"queue","name":"q","settings":{}}',
                '{"kind":"counter","name":"c","settings":{}}',
                '{"kind":"counter","name":"c","total":1e999}',
                '{"kind":"counter","name":"c","total":"' + "9" * 5000 + '"}',
                '{"kind":"dict","name":"d","key":{"json":"k"},"value":{"json":NaN}}',
                '{"kind":"dict","name":"d","key":{"json":"k"},"value":{"base64":"!"}}',
                '{"kind":"dict","name":"d","key":{"json":"k"}}',
                '{"kind":"dict","name":"d","key":5,"value":[]}',
                '{"kind":"queue","name":"q","item":{"json":"\\ud800"}}',
                '{"kind":["dict"],"name":{},"settings":[[1,2]]}',
                '{"end":1}',
                "[" * 100_000,
            ]
        ),
        st.fixed_dictionaries(
            {"kind": st.sampled_from(KINDS), "name": st.text(max_size=3)},
            optional=dict.fromkeys(("settings", "key", "value", "item", "total"), JSON),
        ).map(json.dumps),
    ),
    max_size=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES, st.booleans())
def test_lines_that_are_no_export_are_told(lines: list[str], headed: bool) -> None:  # noqa: FBT001 - drawn
    with contextlib.suppress(transfer.NotAnExport):
        list(transfer.parts_of(['{"skyward-etcd":1}', *lines] if headed else lines))


def test_a_line_without_end_is_not_read_to_its_end() -> None:
    endless = io.StringIO("x" * (20 << 20))
    with pytest.raises(transfer.NotAnExport, match="line 1 has more than"):
        list(transfer.lines_of(endless))
    assert endless.tell() < 17 << 20


# ---- what comes over the wire

CALLS: list[Method[Any, Any]] = [each for each in vars(methods).values() if isinstance(each, Method)]


class Garbled:
    """A transport whose other end answers anything."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def call(self, path: str, message: bytes, *, timeout_s: float, metadata: object = ()) -> bytes:
        return self.answer

    def close(self) -> None:
        pass

    after_fork = close


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(CALLS), st.binary(max_size=40))
def test_an_answer_that_is_none_of_etcds_may_have_been_applied(method: Method[Any, Any], answer: bytes) -> None:
    wire = Wire(("127.0.0.1:1", "127.0.0.1:2"))
    wire._channels["127.0.0.1:1"] = Garbled(answer)  # type: ignore[assignment]
    with contextlib.closing(wire):
        failed: Unavailable | None = None
        try:
            wire.call(method, method.request(), timeout_s=1.0)
        except Unavailable as error:
            failed = error
        assert failed is None or failed.maybe_applied
        assert wire.endpoint == ("127.0.0.1:2" if failed else "127.0.0.1:1"), "the next member is asked"


def frame(kind: int, flags: int, stream: int, payload: bytes, *, says: int | None = None) -> bytes:
    return struct.pack(">IBI", (len(payload) if says is None else says) << 8 | kind, flags, stream) + payload


SETTINGS = frame(4, 0, 0, b"")
HEADERS = header_block("/x", "h", "http")


@pytest.mark.parametrize(
    "sent",
    [
        frame(0, 0, 1, b"", says=16_385),
        frame(4, 0, 0, struct.pack(">HI", 5, 0)),
        frame(4, 0, 0, struct.pack(">HI", 5, 1 << 31)),
        frame(4, 0, 0, struct.pack(">HI", 4, 1 << 31)),
        frame(0, 0, 1, struct.pack(">BI", 0, 1 << 31) + b"x"),
        frame(0, 0, 1, struct.pack(">BI", 0, 1) + b"x" + struct.pack(">BI", 0, 1) + b"y"),
        frame(1, 0, 1, b"\0" * 16_384) + frame(9, 0, 1, b"\0" * 16_384) * 4,
    ],
    ids=["frame", "no frames", "larger frames", "window", "message", "two answers", "headers"],
)
def test_who_wants_us_to_keep_more_than_is_allowed_is_left(sent: bytes) -> None:
    http = Http2()
    http.begin(HEADERS, b"x", ends=True)
    with pytest.raises(ProtocolError):
        http.receive(SETTINGS + sent)


def test_a_member_that_talks_without_end_does_not_fill_the_memory() -> None:
    http = Http2()
    http.begin(HEADERS, b"x", ends=True)
    http.receive(SETTINGS)
    noise = frame(6, 0, 0, b"12345678") + frame(0xEE, 0, 1, b"z" * 1000) + frame(8, 0, 0, b"\0\0\0\1")
    tracemalloc.start()
    try:
        for _ in range(5_000):
            http.receive(noise)
            http.take()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


class Peer:
    """A server of sorts on this machine, that says what it is told to whoever connects."""

    def __init__(self, says: Callable[[socket.socket], None]) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._says = says
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection, contextlib.suppress(OSError):
                    self._says(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10.0)


def drips(connection: socket.socket) -> None:
    for _ in range(2_000):
        connection.sendall(b"x")
        threading.Event().wait(0.01)


def pings(connection: socket.socket) -> None:
    for _ in range(300):
        connection.sendall(SETTINGS + frame(6, 0, 0, b"12345678") * 10)
        threading.Event().wait(0.01)


@pytest.mark.parametrize("says", [drips, pings])
def test_a_call_to_a_stranger_ends_in_its_time(says: Callable[[socket.socket], None]) -> None:
    with contextlib.closing(Peer(says)) as peer, contextlib.closing(Wire((peer.endpoint,))) as wire:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            wire.call(methods.STATUS, methods.STATUS.request(), timeout_s=1.0)
        assert time.monotonic() - began < 4.0


def test_a_page_that_drips_ends_in_its_time() -> None:
    from skyward_etcd.wire import http

    with contextlib.closing(Peer(drips)) as peer:
        began = time.monotonic()
        assert http.ask(peer.endpoint, "/metrics", timeout_s=0.5) is None
        assert time.monotonic() - began < 4.0


# ---- what a pool's nodes say to each other


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=20), NOISE.map(lambda body: len(body).to_bytes(4, "big") + body)))
def test_a_node_that_says_anything_has_said_nothing(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ValueError, OSError):
            assert type(talk._receive(ours, time.monotonic() + 5.0)) is dict


def test_a_node_listens_to_so_many_strangers_at_once_and_still_answers() -> None:
    listener = talk.Listener("127.0.0.1", 0, None, lambda: {"well": True})
    port = listener.port
    before = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", port), timeout=5.0) for _ in range(200)]
    try:
        assert threading.active_count() - before <= talk._CALLERS
        for each in silent:
            each.close()
        deadline = time.monotonic() + 10.0
        while talk.ask("127.0.0.1", port, None, 1.0) != {"well": True}:
            assert time.monotonic() < deadline
    finally:
        listener.close()
