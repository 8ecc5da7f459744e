"""Changes of a cluster's members, on a model of etcd that loses requests and answers, and whose members die."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyward_etcd.cluster import membership
from skyward_etcd.cluster.member import MemberSpec
from skyward_etcd.cluster.membership import Add, Await, Listed, Membership, Promote, Remove, Start, next_step
from skyward_etcd.errors import EtcdError, PoolError, QuorumLost, Unavailable


def spec(name: str) -> MemberSpec:
    return MemberSpec(name, Path(name), f"http://{name}:1", f"http://{name}:2", {}, "token")


def voter(name: str) -> Listed:
    return Listed(crc32(name.encode()), name, f"http://{name}:2", learner=False)


def learner(name: str, *, ran: bool = True) -> Listed:
    return Listed(crc32(name.encode()), name if ran else "", f"http://{name}:2", learner=True)


def step(*listed: Listed, dead: Sequence[str] = ("m3",), size: int = 3, started: bool = False) -> object:
    return next_step(listed, spec("m4"), dead=dead, size=size, started=started)


M1, M2, M3, M4 = map(voter, ("m1", "m2", "m3", "m4"))

# --- one step


def test_the_steps_of_a_replacement_that_meets_with_no_trouble() -> None:
    assert step(M1, M2, M3) == Remove(M3)
    assert step(M1, M2) == Add()
    peers = {"m1": "http://m1:2", "m2": "http://m2:2", "m4": "http://m4:2"}
    assert step(M1, M2, learner("m4", ran=False)) == Start(peers)
    assert step(M1, M2, learner("m4"), started=True) == Promote(learner("m4"))
    assert step(M1, M2, M4, started=True) == Await()


def test_what_an_earlier_attempt_has_left_is_cleared_first() -> None:
    for left in (learner("x", ran=False), learner("x")):
        assert step(M1, M2, left) == Remove(left)
        assert step(M1, M2, M3, left) in (Remove(M3), Remove(left))
    assert step(M1, M2, voter("x"), dead=("m3", "x")) == Remove(voter("x")), "its vote was given, the answer lost"


def test_two_dead_of_five_are_both_removed_before_one_comes() -> None:
    m5, m6 = voter("m5"), voter("m6")
    assert step(M1, M2, m5, M3, m6, dead=("m3", "m6"), size=5) == Remove(M3)
    assert step(M1, M2, m5, m6, dead=("m3", "m6"), size=5) == Remove(m6)
    assert step(M1, M2, m5, dead=("m3", "m6"), size=5) == Add()


@pytest.mark.parametrize("dead", [("m2", "m3"), ("m1", "m2", "m3")])
def test_without_a_majority_nothing_is_touched(dead: Sequence[str]) -> None:
    with pytest.raises(QuorumLost, match=r"\d of the cluster's 3 members left"):
        step(M1, M2, M3, dead=dead)


def test_a_cluster_does_not_grow() -> None:
    with pytest.raises(PoolError, match="has its 3 members: m1, m2, m3"):
        step(M1, M2, M3, dead=())


def test_a_predecessor_at_the_same_address_is_not_taken_for_the_fresh_member() -> None:
    predecessor = Listed(3, "m3", "http://m4:2", learner=False)
    assert step(M1, M2, predecessor) == Remove(predecessor)


# --- whole replacements on a model


@dataclass
class Etcd:
    """The members' list as etcd keeps it, with its refusals; members that run, and those that are dead."""

    chance: random.Random
    trouble: float
    """How often a request, or an answer, is lost."""
    listed: list[Listed] = field(default_factory=lambda: [M1, M2, M3])
    running: set[str] = field(default_factory=lambda: {"m1", "m2", "m3"})
    refusals: int = 0
    """How often the next change is refused as unhealthy: etcd wants 5 s of quiet before a member is added."""
    changes: list[str] = field(default_factory=list[str])

    def call(self, method: Any, request: Any, endpoint: str) -> Any:
        self.lose(maybe_applied=False)
        name = method.path.rpartition("/")[2]
        reply = getattr(self, name)(request, endpoint)
        if name in ("MemberAdd", "MemberRemove", "MemberPromote"):
            self.check()
        self.lose(maybe_applied=True)
        return reply

    def lose(self, *, maybe_applied: bool) -> None:
        if self.chance.random() < self.trouble:
            raise Unavailable("lost", maybe_applied=maybe_applied)

    def check(self) -> None:
        """What must hold after every change, whatever has gone wrong before."""
        voters = [member.name for member in self.listed if not member.learner]
        assert sum(member.learner for member in self.listed) <= 1
        assert len(voters) <= 3
        assert self.has_quorum(), "the quorum was lost by a change"

    def has_quorum(self) -> bool:
        voters = [member.name for member in self.listed if not member.learner]
        return sum(name in self.running for name in voters) > len(voters) // 2

    def Range(self, request: Any, endpoint: str) -> Any:  # noqa: N802  etcd's names
        self.require_quorum()
        return SimpleNamespace(header=SimpleNamespace(member_id=1))

    def MemberList(self, request: Any, endpoint: str) -> Any:  # noqa: N802
        if endpoint.partition(":")[0] not in self.running:
            raise Unavailable("refused", maybe_applied=False)
        members = [
            SimpleNamespace(ID=one.id, name=one.name, peerURLs=[one.peer_url], isLearner=one.learner)
            for one in self.listed
        ]
        return SimpleNamespace(header=SimpleNamespace(member_id=1), members=members)

    def MemberRemove(self, request: Any, endpoint: str) -> None:  # noqa: N802
        self.require_quorum()
        self.changes.append(f"-{self.member(request.ID).peer_url[7:9]}")
        self.listed.remove(self.member(request.ID))

    def MemberAdd(self, request: Any, endpoint: str) -> None:  # noqa: N802
        self.require_quorum()
        (url,) = request.peerURLs
        if self.refusals or any(not member.learner and member.name not in self.running for member in self.listed):
            self.refusals -= bool(self.refusals)
            raise Unavailable("etcdserver: unhealthy cluster")
        if any(member.peer_url == url for member in self.listed):
            raise EtcdError("etcdserver: Peer URLs already exists")
        if any(member.learner for member in self.listed):
            raise EtcdError("etcdserver: too many learner members in cluster")
        self.changes.append(f"+{url[7:9]}")
        self.listed.append(Listed(crc32(url.encode()), "", url, learner=True))

    def MemberPromote(self, request: Any, endpoint: str) -> None:  # noqa: N802
        self.require_quorum()
        member = self.member(request.ID)
        if member.name not in self.running or self.chance.random() < 0.3:
            raise EtcdError("etcdserver: can only promote a learner member which is in sync with leader")
        if not member.learner:
            raise EtcdError("etcdserver: can only promote a learner member")
        self.changes.append(f"^{member.name}")
        self.put(replace(member, learner=False))

    def Status(self, request: Any, endpoint: str) -> Any:  # noqa: N802
        return SimpleNamespace(isLearner=self.chance.random() < 0.3)

    def start(self, fresh: MemberSpec) -> None:
        """Start a member as etcd does: it exits unless it is told exactly the members that the cluster knows."""
        assert fresh.state == "existing"
        assert set(fresh.initial_cluster.values()) == {member.peer_url for member in self.listed}
        (member,) = (member for member in self.listed if member.peer_url == fresh.peer_url)
        self.put(replace(member, name=fresh.name))
        self.running.add(fresh.name)

    def put(self, member: Listed) -> None:
        self.listed = [member if one.id == member.id else one for one in self.listed]

    def member(self, member_id: int) -> Listed:
        for member in self.listed:
            if member.id == member_id:
                return member
        raise EtcdError("etcdserver: member not found")

    def require_quorum(self) -> None:
        if not self.has_quorum():
            raise Unavailable("etcdserver: request timed out")


class Model:
    """Stands for `Wire`: the calls go to the model."""

    etcd: Etcd

    def __init__(self, endpoints: Sequence[str], *, tls: Any = None) -> None:
        self.endpoints = tuple(endpoints)

    def call(self, method: Any, request: Any, *, timeout_s: float) -> Any:
        return self.etcd.call(method, request, self.endpoints[0])

    def follow(self, endpoints: Sequence[str]) -> None:
        self.endpoints = tuple(endpoints)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True, scope="module")
def on_the_model() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(membership, "Wire", Model)
        patch.setattr(membership, "_PAUSE_S", 0.0)
        yield


def cluster(trouble: float = 0.0, seed: int = 0) -> tuple[Etcd, Membership]:
    Model.etcd = Etcd(random.Random(seed), trouble)
    return Model.etcd, Membership({name: f"{name}:1" for name in ("m1", "m2", "m3")})


def lose(etcd: Etcd, members: Membership, name: str) -> None:
    etcd.running.discard(name)
    members.lost(name)


def names(listed: Sequence[Listed]) -> set[tuple[str, bool]]:
    return {(member.name, member.learner) for member in listed}


def test_a_replacement_takes_four_steps() -> None:
    etcd, members = cluster()
    lose(etcd, members, "m2")
    members.replace(spec("m4"), etcd.start)
    assert etcd.changes == ["-m2", "+m4", "^m4"]
    assert members.living == {"m1": "m1:1", "m3": "m3:1", "m4": "m4:1"}


@given(seed=st.integers(0, 2**32), trouble=st.floats(0, 0.4))
def test_lost_requests_and_answers_change_nothing(seed: int, trouble: float) -> None:
    etcd, members = cluster(trouble, seed)
    etcd.refusals = etcd.chance.randrange(4)
    lose(etcd, members, "m2")
    members.replace(spec("m4"), etcd.start)
    assert names(etcd.listed) == {("m1", False), ("m3", False), ("m4", False)}
    assert etcd.changes == ["-m2", "+m4", "^m4"], "each step once"


class Mortal:
    """A fresh member, and the moment in its youth at which it dies, if it does."""

    def __init__(self, etcd: Etcd, number: int) -> None:
        self.spec = spec(f"m{number}")
        self._etcd = etcd
        self._fate = etcd.chance.choice(["lives", "never starts", "dies at once", "dies later"])

    def start(self, as_told: MemberSpec) -> None:
        if self._fate == "never starts":
            raise PoolError("no room")
        self._etcd.start(as_told)
        if self._fate == "dies at once":
            self.end()

    def check(self) -> None:
        if not self.lives:
            raise PoolError("it has died")
        if self._fate == "dies later" and self._etcd.chance.random() < 0.5:
            self.end()

    @property
    def lives(self) -> bool:
        return self.spec.name in self._etcd.running

    def end(self) -> None:
        self._etcd.running.discard(self.spec.name)


@given(seed=st.integers(0, 2**32), trouble=st.floats(0, 0.4))
def test_whatever_an_attempt_dies_of_the_next_one_ends_well(seed: int, trouble: float) -> None:
    etcd, members = cluster(trouble, seed)
    lose(etcd, members, "m2")
    for number in range(4, 100):
        fresh = Mortal(etcd, number)
        try:
            members.replace(fresh.spec, fresh.start, check=fresh.check)
        except PoolError:
            fresh.end()
        if fresh.lives:
            break
        members.lost(fresh.spec.name)
    assert len(etcd.listed) == 3
    assert all(member.name in etcd.running and not member.learner for member in etcd.listed)


def test_a_member_that_has_died_gets_no_vote() -> None:
    etcd, members = cluster()
    lose(etcd, members, "m2")

    def check() -> None:
        raise PoolError("it has died")

    with pytest.raises(PoolError, match="it has died"):
        members.replace(spec("m4"), etcd.start, check=check)
    assert etcd.changes == ["-m2", "+m4", "-m4"]
    assert "m4" not in members.living


def test_a_majority_that_is_lost_for_good_is_told_from_one_that_does_not_answer() -> None:
    etcd, members = cluster()
    lose(etcd, members, "m2")
    etcd.running.discard("m3")  # it may come back: nobody has said that it is lost
    with pytest.raises(PoolError, match="could not join in time: etcdserver: request timed out"):
        members.replace(spec("m4"), etcd.start, timeout_s=0.05)
    members.lost("m3")
    with pytest.raises(QuorumLost, match="1 of the cluster's 3 members left"):
        members.replace(spec("m5"), etcd.start)
    assert etcd.changes == []
    lose(etcd, members, "m1")
    with pytest.raises(QuorumLost, match="0 of the cluster's 3 members left"):
        members.replace(spec("m6"), etcd.start)


def test_a_majority_that_is_lost_while_we_wait_ends_the_wait() -> None:
    etcd, members = cluster()
    lose(etcd, members, "m2")

    def start(fresh: MemberSpec) -> None:
        lose(etcd, members, "m3")

    with pytest.raises(QuorumLost, match="1 of the cluster's 2 members left"):
        members.replace(spec("m4"), start)


def test_a_closed_membership_changes_nothing() -> None:
    etcd, members = cluster()
    lose(etcd, members, "m2")
    members.close()
    with pytest.raises(PoolError, match="called off"):
        members.replace(spec("m4"), etcd.start)
    assert etcd.changes == []
