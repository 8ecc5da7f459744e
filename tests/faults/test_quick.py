"""The faults that every change is tried with: killed, paused and cut-off members and clients, under load."""

from __future__ import annotations

import signal

import pytest

from skyward_etcd.testing.faults import FaultLab
from tests.faults.client import LIMITS
from tests.faults.scenario import ALONE, Scenario

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
def test_a_member_is_killed_and_comes_back(lab: FaultLab, leads: bool) -> None:  # noqa: FBT001
    with Scenario(lab) as scenario:
        victim = lab.leader() if leads else lab.follower()
        lab.kill(victim)
        scenario.goes_on()
        lab.bring_back(victim)
        lab.require_healthy()
        scenario.goes_on()
        scenario.check()


def test_the_leader_is_paused_beyond_the_election(lab: FaultLab) -> None:
    with Scenario(lab) as scenario:
        old = lab.leader()
        others = [name for name in lab.members if name != old]
        lab.pause(old)
        new = lab.leader(among=others)
        scenario.goes_on()
        lab.resume(old)
        assert new != old
        lab.require_healthy()
        scenario.goes_on()
        scenario.check()


def test_a_client_is_paused_beyond_its_lease_while_it_holds_a_lock(lab: FaultLab) -> None:
    with Scenario(lab) as scenario:
        holder = scenario.holder("c1", "sleeper")
        token = scenario.of("lock sleeper")[0].result
        holder.process.send_signal(signal.SIGSTOP)
        scenario.goes_on(kinds=["lock"], within_s=LIMITS.ttl_s + 20.0)
        holder.process.send_signal(signal.SIGCONT)
        holder.say("go on")
        scenario.goes_on()
        scenario.check()

        assert max(scenario.tokens()) > token, "the holders that came after it have newer tokens"
        assert [each.result for each in scenario.of("valid sleeper")] == [False], "it knows before it asks"
        assert [each.result for each in scenario.of("lock sleeper")] == [token, "HoldLost"]


@pytest.mark.parametrize(
    "leads",
    [pytest.param(True, id="leader"), pytest.param(False, id="follower", marks=pytest.mark.slow)],  # the longest of all
)
def test_a_member_is_cut_off(lab: FaultLab, leads: bool) -> None:  # noqa: FBT001
    with Scenario(lab) as scenario:
        victim = lab.leader() if leads else lab.follower()
        lab.cut_off(victim)
        scenario.goes_on()
        lab.heal()
        lab.require_healthy()
        scenario.goes_on()
        scenario.check()


def test_a_client_is_cut_off_and_the_others_go_on(lab: FaultLab) -> None:
    with Scenario(lab) as scenario:
        lab.cut_off("c1")
        scenario.goes_on(places=["c2"], kinds=ALONE, within_s=LIMITS.ttl_s + 20.0)
        lab.heal()
        scenario.goes_on()
        scenario.check()


def test_the_replies_to_a_client_are_lost(lab: FaultLab) -> None:
    with Scenario(lab) as scenario:
        lab.network.lose(lab.members, ["c1"])
        scenario.goes_on(places=["c2"], kinds=ALONE, within_s=LIMITS.ttl_s + 20.0)
        lab.heal()
        scenario.goes_on()
        scenario.check()
