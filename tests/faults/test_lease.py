"""A lease ends for both sides: who cannot know any more whether it has it does not keep it from others."""

from __future__ import annotations

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.config import Limits
from skyward_etcd.session.session import Session
from skyward_etcd.testing.proxy import Faults, Proxy

LIMITS = Limits(call_s=1.0, ttl_s=5.0)


@pytest.mark.slow  # its decision is tested in tests/unit/test_keeper.py
def test_a_session_that_hears_nothing_loses_its_lock_although_its_renewals_arrive(three_members: LocalCluster) -> None:
    endpoint = three_members.endpoints[0]
    with (
        Proxy(endpoint) as proxy,
        Session([proxy.endpoint], namespace="deaf", limits=LIMITS) as deaf,
        Session([endpoint], namespace="deaf", limits=LIMITS) as other,
    ):
        hold = Connection(deaf).lock("lock").acquire()
        proxy.break_(Faults(loses_replies=True))
        try:
            assert Connection(other).lock("lock").acquire(timeout=2 * LIMITS.ttl_s + 3.0).token > hold.token
            assert not hold.valid
        finally:
            proxy.heal()
