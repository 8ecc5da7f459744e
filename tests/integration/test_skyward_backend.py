"""The calls of Skyward's collections, as ``skyward.worker.distributed`` makes them, answered on a real etcd."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.config import Limits
from skyward_etcd.errors import BrokenBarrier, CorruptValue, HoldLost, WrongKind
from skyward_etcd.plugin.backend import Backend, Pickles
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from tests.integration.conftest import Opener
from tests.integration.test_round_trips import Cost, Meter

SECRET = b"a secret of 16 bytes, and some more"
STRONG = {"consistency": "strong"}
PARTIES = {"parties": 2}
LOCK = {"ttl": 30.0, "timeout": None}


@dataclass(frozen=True)
class Point:
    """Neither data, nor anything that can be a key."""

    x: int


class Node:
    """A node's session and backend."""

    def __init__(self, connection: Connection, secret: bytes = SECRET) -> None:
        self.connection = connection
        self.call = Backend(connection, Pickles(pickle.dumps, pickle.loads, secret))

    def values(self, kind: str, name: str, params: dict[str, Any] = STRONG) -> dict[Any, Any]:
        found: Any = self.call(kind, name, "items", (), params)
        return {key: pickle.loads(value) for key, value in found}


@pytest.fixture
def node(one_member: LocalCluster, opened: Opener) -> Node:
    return Node(opened(one_member.endpoints, secret=SECRET))


@pytest.fixture
def other(node: Node, opened: Opener) -> Node:
    session = node.connection._session()
    return Node(opened(list(session.endpoints), namespace=session.layout.namespace, secret=SECRET))


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def test_a_dict_gives_back_what_another_node_stored(node: Node, other: Node) -> None:
    for key, value in (("a", 1), (("run", (3, True)), Point(2)), (b"\0", None)):
        assert node.call("map", "d", "put", (key, pickle.dumps(value)), STRONG) is None
        found = other.call("map", "d", "get", (key,), STRONG)
        assert isinstance(found, bytes)
        assert pickle.loads(found) == value
    assert other.values("map", "d") == {"a": 1, ("run", (3, True)): Point(2), b"\0": None}
    assert other.call("map", "d", "size", (), STRONG) == 3


def test_an_entry_that_is_not_there_is_none_and_a_stored_none_is_not(node: Node) -> None:
    assert node.call("map", "d", "get", ("k",), STRONG) is None
    assert node.call("map", "d", "contains", ("k",), STRONG) is False
    assert node.call("map", "d", "remove", ("k",), STRONG) is False
    node.call("map", "d", "put", ("k", pickle.dumps(None)), STRONG)
    assert node.call("map", "d", "get", ("k",), STRONG) == pickle.dumps(None)
    assert node.call("map", "d", "contains", ("k",), STRONG) is True
    assert node.call("map", "d", "remove", ("k",), STRONG) is True
    node.call("map", "d", "put", ("k", pickle.dumps(1)), STRONG)
    node.call("map", "d", "clear", (), STRONG)
    assert node.values("map", "d") == {}


def test_what_skyward_stores_is_read_by_our_own_api_and_the_other_way_round(node: Node) -> None:
    node.call("map", "best", "put", ("loss", pickle.dumps({"value": 0.25})), STRONG)
    assert node.connection.dict("best")["loss"] == {"value": 0.25}
    node.connection.dict("best")["loss"] = 0.125
    assert node.values("map", "best") == {"loss": 0.125}
    node.call("queue", "work", "offer", (pickle.dumps("task"),), {})
    assert node.connection.queue("work").get(timeout=0) == "task"


def test_values_that_are_data_are_readable_in_etcd(node: Node) -> None:
    node.call("map", "d", "put", ("k", pickle.dumps({"lr": 0.5})), STRONG)
    session = node.connection._session()
    key = session.layout.collection("dict", "d") + b'"k"'
    reply: Any = session.wire.call(methods.RANGE, pb.RangeRequest(key=key), timeout_s=3.0)
    assert reply.kvs[0].value == b'{"lr":0.5}'


@pytest.mark.parametrize("consistency", ["strong", "eventual"])
def test_both_levels_see_their_own_writes(node: Node, consistency: str) -> None:
    params = {"consistency": consistency}
    for number in range(20):
        node.call("map", "d", "put", ("k", pickle.dumps(number)), params)
        assert node.call("map", "d", "get", ("k",), params) == pickle.dumps(number)


def test_kinds_do_not_share_their_names(node: Node, other: Node) -> None:
    node.call("map", "x", "put", ("k", pickle.dumps(1)), STRONG)
    token = node.call("lock", "x", "acquire", (), LOCK)
    with pytest.raises(TimeoutError):
        other.call("lock", "x", "acquire", (), LOCK | {"timeout": 0.0})
    other.call("counter", "x", "add", (2,), STRONG)
    assert node.call("counter", "x", "get", (), STRONG) == 2
    node.call("lock", "x", "release", (token,), {})
    assert other.values("map", "x") == {"k": 1}
    with pytest.raises(WrongKind):
        node.connection.lock("x").acquire(timeout=0)


def test_a_set_takes_values_of_any_type(node: Node, other: Node) -> None:
    members: list[Any] = ["a", 1, (1, "b"), Point(1), ["a", "list"], None]
    for member in members:
        assert node.call("set", "s", "add", (pickle.dumps(member),), STRONG) is True
        assert other.call("set", "s", "add", (pickle.dumps(member),), STRONG) is False
        assert other.call("set", "s", "contains", (pickle.dumps(member),), STRONG) is True
    found: Any = other.call("set", "s", "items", (), STRONG)
    assert sorted(map(repr, map(pickle.loads, found))) == sorted(map(repr, members))
    assert other.call("set", "s", "size", (), STRONG) == len(members)
    for member in members:
        assert other.call("set", "s", "remove", (pickle.dumps(member),), STRONG) is True
        assert node.call("set", "s", "remove", (pickle.dumps(member),), STRONG) is False
    node.call("set", "s", "add", (pickle.dumps(1),), STRONG)
    node.call("set", "s", "clear", (), STRONG)
    assert node.call("set", "s", "size", (), STRONG) == 0


def test_a_set_loads_no_pickle_that_another_has_signed(node: Node) -> None:
    foreign = Node(node.connection, secret=b"another secret of some bytes")
    foreign.call("set", "s", "add", (pickle.dumps(Point(1)),), STRONG)
    with pytest.raises(CorruptValue, match="not signed"):
        node.call("set", "s", "items", (), STRONG)


def test_a_counter_counts_for_all(node: Node, other: Node) -> None:
    for each in (node, other):
        assert each.call("counter", "c", "add", (1,), STRONG) is None
        each.call("counter", "c", "add", (4,), STRONG)
    assert node.call("counter", "c", "get", (), STRONG) == 10
    node.call("counter", "c", "reset", (), STRONG)
    assert other.call("counter", "c", "get", (), STRONG) == 0


def test_a_queue_gives_each_item_to_one_and_tells_none_from_nothing(node: Node, other: Node) -> None:
    for item in (1, None, 2):
        node.call("queue", "q", "offer", (pickle.dumps(item),), {})
    assert other.call("queue", "q", "size", (), {}) == 3
    taken = [each.call("queue", "q", "poll", (), {}) for each in (node, other, node, other)]
    assert taken == [pickle.dumps(1), pickle.dumps(None), pickle.dumps(2), None]
    node.call("queue", "q", "offer", (pickle.dumps(1),), {})
    node.call("queue", "q", "clear", (), {})
    assert other.call("queue", "q", "poll", (), {}) is None


def test_a_barrier_lets_all_pass_together_and_again(node: Node, other: Node, threads: ThreadPoolExecutor) -> None:
    for _ in range(3):
        first = threads.submit(node.call, "barrier", "b", "wait", (None,), PARTIES)
        assert other.call("barrier", "b", "wait", (30.0,), PARTIES) is None
        assert first.result(30) is None


def test_whose_time_is_over_at_a_barrier_hears_so_and_the_others_that_it_is_broken(
    node: Node, other: Node, threads: ThreadPoolExecutor
) -> None:
    patient = threads.submit(node.call, "barrier", "b", "wait", (60.0,), {"parties": 3})
    until(lambda: node.connection.barrier("b", 3).waiting() == 1)
    with pytest.raises(TimeoutError):
        other.call("barrier", "b", "wait", (0.2,), {"parties": 3})
    began = time.monotonic()
    with pytest.raises(BrokenBarrier):
        patient.result(30)
    assert time.monotonic() - began < 5


def test_a_lock_is_held_by_one_with_tokens_that_grow(node: Node, other: Node, threads: ThreadPoolExecutor) -> None:
    token = node.call("lock", "l", "acquire", (), LOCK)
    assert isinstance(token, str)
    waiting = threads.submit(other.call, "lock", "l", "acquire", (), LOCK)
    assert node.call("lock", "l", "renew", (token,), {"ttl": 30.0}) is True
    assert not waiting.done()
    node.call("lock", "l", "release", (token,), {})
    following: Any = waiting.result(30)
    assert int(following) > int(token)
    assert node.call("lock", "l", "renew", (token,), {"ttl": 30.0}) is False
    assert node.call("lock", "l", "release", (token,), {}) is None  # as in Skyward: there is nothing to give back
    other.call("lock", "l", "release", (following,), {})


def test_a_lock_is_released_by_another_thread_than_its_holder(node: Node, threads: ThreadPoolExecutor) -> None:
    token: Any = threads.submit(node.call, "lock", "l", "acquire", (), LOCK).result(30)
    node.call("lock", "l", "release", (token,), {})
    node.call("lock", "l", "acquire", (), LOCK | {"timeout": 5.0})


def test_two_threads_of_a_node_exclude_each_other(node: Node, threads: ThreadPoolExecutor) -> None:
    inside = threading.Semaphore(1)

    def add() -> None:
        for _ in range(10):
            token = node.call("lock", "l", "acquire", (), LOCK)
            assert inside.acquire(blocking=False)
            inside.release()
            node.call("lock", "l", "release", (token,), {})

    for done in [threads.submit(add) for _ in range(4)]:
        done.result(60)


def test_a_lost_lock_is_not_renewed_and_its_release_says_so(one_member: LocalCluster, opened: Opener) -> None:
    holder = Node(opened(one_member.endpoints, secret=SECRET, limits=Limits(ttl_s=5.0)))
    token = holder.call("lock", "l", "acquire", (), LOCK)
    session = holder.connection._session()
    identity = session.identity
    assert identity is not None
    session.wire.call(methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=identity.lease), timeout_s=3.0)
    until(lambda: holder.call("lock", "l", "renew", (token,), {"ttl": 30.0}) is False)
    with pytest.raises(HoldLost):
        holder.call("lock", "l", "release", (token,), {})


def test_a_call_that_is_not_known_names_the_remedy(node: Node) -> None:
    with pytest.raises(NotImplementedError, match="upgrade"):
        node.call("map", "d", "merge", (), STRONG)


CALLS: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    ("map", "put", ("k", pickle.dumps(1)), STRONG),
    ("map", "get", ("k",), STRONG),
    ("set", "add", (pickle.dumps(1),), STRONG),
    ("counter", "add", (1,), STRONG),
    ("counter", "get", (), STRONG),
    ("queue", "offer", (pickle.dumps(1),), {}),
    ("queue", "poll", (), {}),
    ("lock", "acquire", (), LOCK),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]}.{call[1]}")
def test_a_call_costs_one_round_trip(
    node: Node, monkeypatch: pytest.MonkeyPatch, call: tuple[str, str, tuple[Any, ...], dict[str, Any]]
) -> None:
    """The handles are made anew for each call: what they have learned must not go with them."""
    kind, method, args, params = call
    for _ in range(4):
        node.call("queue", "q", "offer", (pickle.dumps(1),), {})
    node.call("queue", "q", "poll", (), {})
    node.call("lock", "l", "release", (node.call("lock", "l", "acquire", (), LOCK),), {})
    if kind != "lock":
        node.call(kind, kind[0], method, args, params)
    meter = Meter(node.connection._session(), monkeypatch)
    meter.start()
    node.call(kind, kind[0], method, args, params)
    assert meter.cost == Cost(requests=1, watches=0)
