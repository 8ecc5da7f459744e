"""Members that die are replaced, one after the other, on real clusters: nothing acknowledged is lost."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.cluster import bootstrap
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.cluster.member import Member, MemberSpec
from skyward_etcd.cluster.membership import Membership, hand_over
from skyward_etcd.errors import PoolError, QuorumLost, Unavailable
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Wire
from tests.integration.conftest import BINARIES, Opener, any_usable, usable


class Cluster:
    """A cluster of this test's own whose members die and are replaced."""

    def __init__(self, etcd: Path, directory: Path, size: int = 3) -> None:
        self._directory = directory
        self._founders = LocalCluster(size, etcd=etcd)
        self._founders.start()
        self.members = {member.spec.name: member for member in self._founders.members}
        self.membership = Membership({name: member.spec.endpoint for name, member in self.members.items()})
        self._numbers = itertools.count(size + 1)

    def fresh(self) -> MemberSpec:
        founder = self._founders.members[0].spec
        return bootstrap.newcomer(f"m{next(self._numbers)}", self._directory, founder.token, founder.sockets)

    def kill(self, name: str) -> None:
        """Take a member away with its disk, as the loss of its machine would."""
        self.members.pop(name).kill()
        self.membership.lost(name)

    def start(self, spec: MemberSpec) -> None:
        member = self.members[spec.name] = Member(self._founders.members[0].etcd, spec)
        member.start()

    def replace(self, fresh: MemberSpec | None = None, **options: Any) -> None:
        self.membership.replace(fresh or self.fresh(), self.start, **options)

    def leader(self) -> str:
        """The name of the member that leads."""
        while True:
            for name, member in self.members.items():
                with suppress(Unavailable):
                    status: Any = ask(member.spec.endpoint, methods.STATUS, pb.StatusRequest())
                    if status.leader == status.header.member_id:
                        return name

    def listed(self) -> list[tuple[str, bool]]:
        """Name, and whether it is a learner, of each member that the cluster lists."""
        endpoint = next(iter(self.members.values())).spec.endpoint
        ask(endpoint, methods.RANGE, pb.RangeRequest(key=b"any"))
        reply: Any = ask(endpoint, methods.MEMBER_LIST, pb.MemberListRequest(linearizable=True))
        return sorted((member.name, member.isLearner) for member in reply.members)

    def close(self) -> None:
        self.membership.close()
        for member in self.members.values():
            member.kill()
        self._founders.stop()


def ask(endpoint: str, method: Any, request: Any) -> Any:
    wire = Wire((endpoint,))
    try:
        return wire.call(method, request, timeout_s=3.0)
    finally:
        wire.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    with ExitStack() as stack:

        def cluster(etcd: Path | None = None, size: int = 3) -> Cluster:
            made = Cluster(etcd or any_usable(), tmp_path, size)
            stack.callback(made.close)
            return made

        yield cluster


@pytest.fixture(params=BINARIES)
def cluster(request: pytest.FixtureRequest, make: Callable[..., Cluster]) -> Cluster:
    """Three members, on every binary."""
    return make(usable(request.param))


def well(cluster: Cluster) -> bool:
    """Whether all members that the cluster lists vote, run, and know each other."""
    assert cluster.listed() == sorted((name, False) for name in cluster.members)
    return all(member.ready() for member in cluster.members.values())


class Writer:
    """Writes without end, and remembers what was acknowledged."""

    def __init__(self, connection: Connection) -> None:
        self.acknowledged = 0
        self._dict = connection.dict("written", consistency="strong")
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Return how many writes were acknowledged, once there is one more."""
        self._ends.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.acknowledged

    def _write(self) -> None:
        last = False
        while not last:
            last = self._ends.is_set()
            self._dict[self.acknowledged] = self.acknowledged
            self.acknowledged += 1
            time.sleep(0.002)


def test_three_members_die_one_after_the_other_and_nothing_is_lost(cluster: Cluster, opened: Opener) -> None:
    connection = opened(list(cluster.membership.living.values()))
    writer = Writer(connection)
    for choose in (cluster.leader, lambda: next(iter(cluster.members)), cluster.leader):
        victim = choose()
        cluster.kill(victim)
        began = time.monotonic()
        cluster.replace()
        assert time.monotonic() - began < 15, "five seconds of quiet that etcd wants, and an election"
        connection._session().follow(list(cluster.membership.living.values()))
        assert victim not in cluster.membership.living
        assert well(cluster)
    written = writer.end()
    assert written > 100
    for endpoint in cluster.membership.living.values():
        assert dict(opened([endpoint]).dict("written", consistency="strong").items()) == {n: n for n in range(written)}


def test_two_of_five_die_at_once(make: Callable[..., Cluster]) -> None:
    cluster = make(size=5)
    leader = cluster.leader()
    cluster.kill(leader)
    cluster.kill(next(iter(cluster.members)))
    cluster.replace()
    assert len(cluster.listed()) == 4
    cluster.replace()
    assert len(cluster.listed()) == 5
    assert well(cluster)
    with pytest.raises(PoolError, match="has its 5 members"):
        cluster.replace()


def test_the_answer_of_every_change_is_lost(cluster: Cluster) -> None:
    cluster.kill("m2")
    wire = cluster.membership._wire
    call, lost = wire.call, set[str]()

    def call_and_lose(method: Any, request: Any, *, timeout_s: float) -> Any:
        reply = call(method, request, timeout_s=timeout_s)
        if method.path not in lost:
            lost.add(method.path)
            raise Unavailable("the answer was lost")
        return reply

    wire.call = call_and_lose  # type: ignore[method-assign]
    cluster.replace()
    assert {path.rpartition("/")[2] for path in lost} >= {"MemberRemove", "MemberAdd", "MemberPromote"}
    assert well(cluster)


@pytest.mark.parametrize("started", [False, True])
def test_what_a_coordinator_that_died_has_left_is_cleared(cluster: Cluster, started: bool) -> None:  # noqa: FBT001
    left = cluster.fresh()
    endpoint = cluster.members["m1"].spec.endpoint
    added: Any = None
    while added is None:
        with suppress(Unavailable):  # etcd is not ready for it until five seconds after its start
            added = ask(endpoint, methods.MEMBER_ADD, pb.MemberAddRequest(peerURLs=[left.peer_url], isLearner=True))
    if started:
        peers = {member.name or left.name: member.peerURLs[0] for member in added.members}
        cluster.start(replace(left, initial_cluster=peers))
        cluster.members[left.name].wait_ready()
        cluster.members.pop(left.name).kill()
    cluster.kill("m3")
    cluster.replace()
    assert well(cluster)
    assert [name for name, _ in cluster.listed()] == ["m1", "m2", "m5"]


def test_a_member_that_cannot_start_leaves_the_others_as_they_were(cluster: Cluster) -> None:
    cluster.kill("m1")

    def start(spec: MemberSpec) -> None:
        raise PoolError("no room")

    with pytest.raises(PoolError, match="no room"):
        cluster.membership.replace(cluster.fresh(), start)
    assert cluster.listed() == [("m2", False), ("m3", False)]
    cluster.replace()
    assert well(cluster)


def test_without_a_majority_nothing_is_touched(cluster: Cluster) -> None:
    cluster.kill("m1")
    cluster.kill("m2")
    with pytest.raises(QuorumLost, match="1 of the cluster's 3 members left"):
        cluster.replace()
    (left,) = cluster.members.values()
    reply: Any = ask(left.spec.endpoint, methods.MEMBER_LIST, pb.MemberListRequest(linearizable=False))
    assert sorted(member.name for member in reply.members) == ["m1", "m2", "m3"]


def test_a_member_that_is_told_to_go_hands_over_first(cluster: Cluster, opened: Opener) -> None:
    leader = cluster.leader()
    others = [member.spec.endpoint for name, member in cluster.members.items() if name != leader]
    writer = Writer(opened(others))
    assert hand_over(cluster.members[leader].spec.endpoint)
    assert cluster.leader() != leader
    assert hand_over(cluster.members[leader].spec.endpoint), "it leads no more, and says so"
    term = ask(others[0], methods.STATUS, pb.StatusRequest()).raftTerm
    cluster.members[leader].stop()
    cluster.kill(leader)
    assert writer.end() > 0
    assert ask(others[0], methods.STATUS, pb.StatusRequest()).raftTerm == term, "there was no election"
    cluster.replace()
    assert well(cluster)
