"""One pool of three nodes, its functions in threads: the collections from everywhere, and a node that is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import skyward as sky

import skyward_etcd
from skyward_etcd import active
from skyward_etcd.errors import EtcdError, Unavailable
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from tests.skyward.conftest import kill_node, pool_of, until
from tests.skyward.functions import begin_writing, ours, session, use_all

pytestmark = pytest.mark.timeout(240)
NODES = 3


@pytest.fixture(scope="module")
def pool() -> Iterator[Any]:
    with pool_of(NODES) as opened:
        yield opened


def members() -> dict[str, Any]:
    """The members that have a vote, by the node that runs them; none while nobody can say."""
    ask = pb.MemberListRequest(linearizable=True)
    with suppress(Unavailable, EtcdError):
        reply: Any = active.current().wire.call(methods.MEMBER_LIST, ask, timeout_s=3.0)
        return {member.name.partition("-")[0]: member for member in reply.members if not member.isLearner}
    return {}


def check(seen: list[dict[str, Any]], workers: int) -> None:
    """Check what all have seen of all six collections."""
    everybody = {one["me"]: one["rank"] for one in seen}
    taken = [item for one in seen for item in one["taken"]]
    assert len(everybody) == workers
    assert sorted(taken) == sorted((me, number) for me in everybody for number in range(10))
    assert [one["was_new"] for one in seen].count(True) == 1
    for one in seen:
        assert one["ranks"] == everybody
        assert one["is_there"] is True
        assert (one["tally"], one["left"], one["total"]) == (10 * workers, 0, 5 * workers)


def test_all_six_collections_agree_between_the_nodes(pool: Any) -> None:
    check(use_all("six", NODES) @ pool, NODES)


def test_our_own_api_is_on_the_same_collections(pool: Any) -> None:
    said = ours("both") @ pool
    assert [is_same for _, is_same, _ in said] == [True] * NODES
    assert len({token for token, _, _ in said}) == NODES


def test_the_driver_uses_both_through_the_pools_tunnel(pool: Any) -> None:
    sky.counter("driver").add(2)
    assert skyward_etcd.counter("driver").increment() == 3
    assert sky.counter("driver").get() == 3
    sky.queue("driver-work").offer({"a": 1})
    assert skyward_etcd.queue("driver-work").get(timeout=5) == {"a": 1}


def test_three_nodes_have_a_member_and_the_name_says_which(pool: Any) -> None:
    until(lambda: len(members()) == NODES)
    nodes = {found.split("-")[0] for found in begin_writing("names", 0.0) @ pool}
    assert set(members()) == nodes
    until(lambda: {len(endpoints) for _, _, endpoints in session() @ pool} == {NODES})


def test_a_killed_leader_loses_nothing_and_nobody_waits_longer_than_five_seconds(pool: Any) -> None:
    """The last of this file: the pool is one node short from here on, until Skyward has another."""
    until(lambda: len(members()) == NODES)
    nodes = begin_writing("kept", 20.0) @ pool
    until(lambda: all(len(sky.dict(f"kept-{node}")) > 10 for node in nodes))
    before = {node: len(sky.dict(f"kept-{node}")) for node in nodes}
    leading = leader()
    kill_node(leading)
    survivors = [node for node in nodes if node != leading]
    tales: Any = skyward_etcd.dict("kept-tales", consistency="strong")
    until(lambda: set(tales.keys()) >= set(survivors))
    for node in survivors:
        tale = tales[node]
        assert tale["troubles"] == []
        assert tale["acknowledged"] > before[node] + 10
        assert tale["longest_write"] < 5.0
        assert tale["longest_read"] < 5.0
        kept = set(skyward_etcd.dict(f"kept-{node}", consistency="strong").keys())
        assert kept >= set(range(tale["acknowledged"]))
    until(lambda: leading not in (members() or [leading]))


def leader() -> str:
    """The node whose member leads."""
    status: Any = active.current().wire.call(methods.STATUS, pb.StatusRequest(), timeout_s=3.0)
    return next(node for node, member in members().items() if status.leader == member.ID)
