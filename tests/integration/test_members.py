"""A pool keeps its cluster's members: what dies, node or member, is replaced, and all hear where they are now."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil
import pytest

from skyward_etcd import active
from skyward_etcd.cluster import binary
from skyward_etcd.cluster.binary import Verdict
from skyward_etcd.errors import NodeLost, QuorumLost, UnsafeEtcd
from skyward_etcd.pool.compute import Compute
from skyward_etcd.pool.function import function
from skyward_etcd.pool.spec import Options, Worker
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Wire
from tests.integration.conftest import BINARIES, any_usable, usable


@pytest.fixture(params=BINARIES)
def etcd(request: pytest.FixtureRequest) -> Path:
    """Every binary."""
    return usable(request.param)


def restarts(etcd: Path) -> bool:
    """Whether a single member of this release may restart from its disk."""
    return binary.grade(binary.inspect(etcd) or (0, 0, 0), durable=True).verdict is not Verdict.REFUSED


def until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


@function
def pid() -> int:
    return os.getpid()


@function
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@function
def look() -> tuple[tuple[str, ...], int]:
    """Use the collections, and say where this process believes the members to be."""
    total = active.counter("looks").increment()
    return active.current().endpoints, total


def voters(pool: Compute) -> int:
    """How many members the cluster has, if they are where the pool says, have a vote, and answer."""
    listed: list[set[str]] = []
    for endpoint in pool.endpoints:
        wire = Wire((endpoint,))
        try:
            wire.call(methods.RANGE, pb.RangeRequest(key=b"any"), timeout_s=3.0)
            reply: Any = wire.call(methods.MEMBER_LIST, pb.MemberListRequest(linearizable=True), timeout_s=3.0)
        finally:
            wire.close()
        assert not any(member.isLearner for member in reply.members)
        listed.append({urlsplit(str(url)).netloc for member in reply.members for url in member.clientURLs})
    assert all(urls == {each.rpartition("/")[2] for each in pool.endpoints} for urls in listed)
    return len(listed)


def node_pids(pool: Compute) -> list[int]:
    return [node.ready.result() for node in pool._dispatcher.nodes]


def etcds_of(node: int) -> list[psutil.Process]:
    """The etcd processes that a node process runs, under their supervisors."""
    return [child for child in psutil.Process(node).children(recursive=True) if child.name() == "etcd"]


def end_and_wait(pool: Compute, end: Callable[[], None]) -> float:
    """End a node or a member, and return how long it took until all nodes and members were there again."""
    nodes, endpoints = pool.current_nodes(), pool.endpoints
    end()
    began = time.monotonic()
    until(lambda: pool.current_nodes() == nodes and len(set(pool.endpoints) - set(endpoints)) == 1)
    return time.monotonic() - began


class Puts:
    """Puts numbers into a queue without end, from the driver."""

    def __init__(self, pool: Compute) -> None:
        self.acknowledged = 0
        self._queue = pool.queue("numbers")
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._put, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Return how many were acknowledged."""
        self._ends.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.acknowledged

    def _put(self) -> None:
        while not self._ends.is_set():
            self._queue.put(self.acknowledged)
            self.acknowledged += 1
            time.sleep(0.005)


@pytest.mark.parametrize(("label", "executor"), [*zip(BINARIES, ("thread", "process"), strict=False)])
def test_nodes_die_one_after_the_other_and_nothing_is_lost(label: str, executor: Literal["thread", "process"]) -> None:
    options = Options(worker=Worker(executor=executor))
    with Compute(
        nodes=4, options=options, etcd=usable(label)
    ) as pool:  # the fourth has no member, and lives through it all
        first = pool.endpoints
        client = pool.run(pid(), target=3)
        assert [total for _, total in sorted(look() @ pool, key=lambda one: one[1])] == [1, 2, 3, 4]
        puts = Puts(pool)
        for victim in (0, 1, 2):
            node = psutil.Process(node_pids(pool)[victim])
            assert end_and_wait(pool, node.kill) < 12
            assert voters(pool) == 3
        assert set(first).isdisjoint(pool.endpoints)
        count = puts.end()
        assert count > 100
        assert [pool.queue("numbers").get(timeout=0) for _ in range(count + 1)] == [*range(count), None]
        assert pool.run(pid(), target=3) == client
        looks = look() @ pool
        assert sorted(total for _, total in looks) == [5, 6, 7, 8]
        assert all(set(endpoints) == set(pool.endpoints) for endpoints, _ in looks)
        assert [endpoints[0] for endpoints, _ in looks[:3]] == list(pool.endpoints), "each asks its own member first"


def test_a_member_that_dies_alone_is_replaced_under_its_node(etcd: Path) -> None:
    with Compute(nodes=3, etcd=etcd) as pool:
        pool.dict("kept")["a"] = 1
        before = node_pids(pool)
        (member,) = etcds_of(before[1])
        end_and_wait(pool, member.kill)
        assert voters(pool) == 3
        assert node_pids(pool) == before
        assert len(etcds_of(before[1])) == 1
        assert pool.dict("kept", consistency="strong")["a"] == 1


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_node_that_is_told_to_go_hands_back_what_it_has(executor: Literal["thread", "process"]) -> None:
    @function
    def hold() -> None:
        active.lock("work").acquire()
        active.counter("held").increment()
        time.sleep(30)

    with Compute(nodes=3, options=Options(worker=Worker(executor=executor))) as pool:
        call = pool.run_async(hold(), target=1)
        until(lambda: pool.counter("held").value == 1)
        pids = node_pids(pool)
        os.kill(pids[1], signal.SIGTERM)
        with pool.lock("work", timeout=5):  # a third of what a lease takes to expire
            pass
        with pytest.raises(NodeLost, match="node 1 ended with -15"):
            call.result(10)
        until(lambda: pool.current_nodes() == 3 and len(pool.endpoints) == 3)
        assert voters(pool) == 3


def test_a_child_that_a_function_forks_can_be_ended() -> None:
    @function
    def fork() -> int:
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with Compute(nodes=1, options=Options(cluster=False)) as pool:
        assert [fork() >> pool for _ in range(100)] == [-signal.SIGTERM] * 100
        assert pool.current_nodes() == 1


def test_when_two_of_three_die_at_once_the_pool_says_so_soon(etcd: Path) -> None:
    with Compute(nodes=3, etcd=etcd) as pool:
        pids = node_pids(pool)
        began = time.monotonic()
        for victim in pids[:2]:
            os.kill(victim, signal.SIGKILL)
        until(lambda: not pool.is_active)
        assert time.monotonic() - began < 5
        with pytest.raises(QuorumLost, match=r"node [01] ended with -9; 1 of the cluster's 3 members left"):
            _ = pid() >> pool
        began = time.monotonic()
    assert time.monotonic() - began < 5, "nobody waits for what cannot be handed back"


def test_two_of_five_die_at_once_and_are_both_replaced() -> None:
    with Compute(nodes=7, allocation="spot", etcd=any_usable()) as pool:
        pool.dict("kept")["a"] = 1
        endpoints = set(pool.endpoints)
        assert len(endpoints) == 5
        pids = node_pids(pool)
        for victim in pids[:2]:
            os.kill(victim, signal.SIGKILL)
        until(lambda: pool.current_nodes() == 7 and len(set(pool.endpoints) - endpoints) == 2, 40)
        assert voters(pool) == 5
        assert pool.dict("kept", consistency="strong")["a"] == 1


def test_an_only_member_restarts_from_its_disk_or_the_pool_says_why_not(etcd: Path) -> None:
    with Compute(nodes=1, etcd=etcd) as pool:
        pool.dict("kept")["a"] = 1
        with pytest.raises(NodeLost):
            _ = die() >> pool
        if restarts(etcd):
            assert look() >> pool == (pool.endpoints, 1)
            assert pool.dict("kept", consistency="strong")["a"] == 1
            return
        why = r"node 0 ended with -9, and etcd \S+ is not started again from its disk: it can lose acknowledged writes"
        with pytest.raises(QuorumLost, match=f"{why}.*; 0 of the cluster's 1 members left"):
            _ = pid() >> pool


def test_an_only_member_that_dies_alone_restarts_or_the_pool_says_why_not(etcd: Path) -> None:
    with Compute(nodes=1, etcd=etcd) as pool:
        pool.dict("kept")["a"] = 1
        (member,) = etcds_of(*node_pids(pool))
        member.kill()
        if restarts(etcd):
            assert pool.dict("kept", consistency="strong")["a"] == 1
            assert pool.current_nodes() == 1
            return
        until(lambda: not pool.is_active)
        with pytest.raises(QuorumLost, match=r"etcd member m1 has died, and etcd \S+ is not started"):
            _ = pid() >> pool


@pytest.mark.parametrize("nodes", [1, 3])
def test_a_durable_member_restarts_from_its_disk_with_the_next_node(etcd: Path, nodes: int, tmp_path: Path) -> None:
    if not restarts(etcd):
        with pytest.raises(UnsafeEtcd):
            Compute(nodes=nodes, durable=tmp_path / "state", etcd=etcd).open()
        return
    with Compute(nodes=nodes, durable=tmp_path / "state", etcd=etcd) as pool:
        endpoints = pool.endpoints
        pool.dict("kept")["a"] = 1
        pids = node_pids(pool)
        for victim in pids:  # all of them: a durable cluster survives that too
            os.kill(victim, signal.SIGKILL)
        until(lambda: pool.current_nodes() == nodes and set(node_pids(pool)).isdisjoint(pids))
        assert pool.endpoints == endpoints
        assert voters(pool) == nodes
        assert pool.dict("kept", consistency="strong")["a"] == 1


def test_a_pool_that_is_closed_while_a_member_is_replaced_leaves_nothing() -> None:
    before = set(psutil.Process().children())
    with Compute(nodes=3) as pool:
        os.kill(node_pids(pool)[0], signal.SIGKILL)
        until(lambda: len(pool.endpoints) == 2)
        began = time.monotonic()
    assert time.monotonic() - began < 8
    assert set(psutil.Process().children()) <= before


def test_endpoints_are_public_and_gone_with_the_pool() -> None:
    with Compute(nodes=1) as pool:
        (endpoint,) = pool.endpoints
        with active.connect(pool.endpoints) as connection:
            assert connection.endpoints == (endpoint,)
            connection.dict("d")["a"] = 1
        assert pool.dict("d", consistency="strong")["a"] == 1
    assert pool.endpoints == ()
    with Compute(nodes=1, options=Options(cluster=False)) as alone:
        assert alone.endpoints == ()
