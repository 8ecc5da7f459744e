"""A pool whose size Skyward changes, and one that loses nodes: the cluster follows."""

from __future__ import annotations

import time
from typing import Any

import pytest
import skyward as sky

import skyward_etcd
from skyward_etcd.errors import NotConnected, OutcomeUnknown, QuorumLost, Unavailable
from tests.skyward.conftest import kill_node, pool_of, until
from tests.skyward.functions import session, whats_wrong
from tests.skyward.test_pool import members

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def has(pool: Any, nodes: int) -> bool:
    return bool(pool.current_nodes() == nodes)


def test_it_grows_and_shrinks_with_the_pool_and_keeps_everything() -> None:
    """Skyward takes all nodes that have been idle for long enough: these may be all that had a member."""
    with pool_of(3) as pool:
        until(lambda: len(members()) == 3)
        sky.dict("kept")["k"] = "v"
        token = skyward_etcd.lock("l").acquire().token
        pool.resize(5)
        until(lambda: has(pool, 5), 120)
        until(lambda: len(members()) == 3)
        assert len(session() @ pool) == 5
        pool.resize(1)
        until(lambda: has(pool, 1), 240)  # Skyward keeps what is too many for two minutes
        until(_goes_on, 90)
        until(lambda: len(members()) == 1, 120)
        assert sky.dict("kept")["k"] == "v"
        assert skyward_etcd.lock("l").acquire(timeout=30).token > token


def test_killed_nodes_are_replaced_and_the_replacements_have_members() -> None:
    with pool_of(3) as pool:
        until(lambda: len(members()) == 3)
        sky.counter("kept").add(5)
        before = set(members())
        gone = min(before)
        kill_node(gone)
        until(lambda: gone not in (members() or [gone]), 60)
        until(lambda: len(members()) == 3 and set(members()) != before, 180)
        assert sky.counter("kept").get() == 5
        assert len(session() @ pool) == 3


def test_a_pool_without_a_cluster_raises_as_skyward_does() -> None:
    with pool_of(1, options=sky.Options(cluster=False)) as pool:
        assert whats_wrong() >> pool == ["NotOnANodeError", "NotConnected"]
        with pytest.raises(NotConnected, match="no cluster"):
            skyward_etcd.dict("d").get("k")


def _goes_on() -> bool:
    try:
        skyward_etcd.counter("goes on").increment()
    except (QuorumLost, OutcomeUnknown, Unavailable):
        time.sleep(0.5)
        return False
    return True
