"""A cluster that lets nobody in without a certificate, grown from one member, as on the machines of a cloud."""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skyward_etcd.active import connect
from skyward_etcd.cluster import recovery, tls
from skyward_etcd.cluster.binary import Etcd, inspect
from skyward_etcd.cluster.bootstrap import free_ports
from skyward_etcd.cluster.member import Member, MemberSpec
from skyward_etcd.cluster.membership import Membership, hand_over
from skyward_etcd.errors import Unavailable
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Tls, Wire
from tests.integration.conftest import BINARIES, usable


class Cluster:
    """Members of this test's own, under authorities of their own."""

    def __init__(self, etcd: Path, directory: Path) -> None:
        self.authorities = tls.make()
        self.client = self.authorities.client("test")
        self.members: dict[str, Member] = {}
        self._etcd = Etcd(etcd, inspect(etcd) or (0, 0, 0), "test")
        self._directory = directory
        self._numbers = itertools.count(1)

    def fresh(self) -> MemberSpec:
        name = f"m{next(self._numbers)}"
        client, peer, health = free_ports(3)
        return MemberSpec(
            name,
            self._directory / name,
            f"https://127.0.0.1:{client}",
            f"https://127.0.0.1:{peer}",
            {},
            "test_tls",
            state="existing",
            files=tls.write(self.authorities, self._directory / f"{name}-tls", name, ["127.0.0.1"]),
            health_url=f"http://127.0.0.1:{health}",
        )

    def found(self) -> None:
        """Start the first member."""
        spec = self.fresh()
        self.start(replace(spec, state="new", initial_cluster={spec.name: spec.peer_url}, grows=True))

    def start(self, spec: MemberSpec) -> None:
        member = self.members[spec.name] = Member(self._etcd, spec)
        member.start()
        member.wait_ready()

    def membership(self, size: int) -> Membership:
        return Membership(
            {name: member.spec.endpoint for name, member in self.members.items()}, size=size, tls=self.client
        )

    def grow(self, size: int) -> None:
        with closing(self.membership(size)) as membership:
            while len(self.members) < size:
                membership.replace(self.fresh(), self.start)

    def listed(self) -> list[str]:
        reply: Any = self.ask(methods.MEMBER_LIST, pb.MemberListRequest(linearizable=True))
        assert not any(member.isLearner for member in reply.members)
        return sorted(member.name for member in reply.members)

    def ask(self, method: Any, request: Any, *, shown: Tls | None = None, endpoint: str = "") -> Any:
        endpoints = (endpoint,) if endpoint else tuple(member.spec.endpoint for member in self.members.values())
        with closing(Wire(endpoints, tls=shown or self.client)) as wire:
            return wire.call(method, request, timeout_s=3.0)

    def close(self) -> None:
        for member in self.members.values():
            member.kill()


@pytest.fixture(params=BINARIES)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    with closing(Cluster(usable(request.param), tmp_path)) as made:
        made.found()
        yield made


def test_a_cluster_grows_from_one_to_three_and_shrinks_again(cluster: Cluster) -> None:
    with connect([cluster.members["m1"].spec.endpoint], tls=cluster.client) as sky:
        counter = sky.counter("c", consistency="strong")
        counter.increment()
        cluster.grow(3)
        assert cluster.listed() == ["m1", "m2", "m3"]
        assert counter.increment() == 2
        with closing(cluster.membership(1)) as membership:
            for name in ("m3", "m2"):
                leaving = cluster.members.pop(name)
                hand_over(leaving.spec.endpoint, tls=cluster.client)
                membership.remove(name)
                membership.remove(name)  # it is off the list: nothing more to do
                leaving.stop()
        assert cluster.listed() == ["m1"]
        assert counter.increment() == 3


def strangers(cluster: Cluster) -> Iterator[tuple[str, Tls]]:
    ours, theirs = cluster.authorities, tls.make().client("stranger")
    yield "no certificate", Tls(ours.clients.certificate)
    yield "another's certificate", Tls(ours.clients.certificate, theirs.certificate, theirs.key)
    yield "another's authority", theirs


def test_nobody_is_let_in_without_a_certificate(cluster: Cluster) -> None:
    put = pb.PutRequest(key=b"k", value=b"v")
    for who, shown in strangers(cluster):
        assert not is_let_in(cluster, put, shown), who
    assert is_let_in(cluster, put, cluster.client)


def is_let_in(cluster: Cluster, request: Any, shown: Tls) -> bool:
    try:
        cluster.ask(methods.PUT, request, shown=shown)
    except Unavailable:
        return False
    return True


def test_a_client_is_not_let_in_where_members_talk_to_each_other(cluster: Cluster) -> None:
    """With one authority for both, any worker could pass for a member."""
    peer = cluster.members["m1"].spec.peer_url.removeprefix("https://")
    context = cluster.client.context
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # whoever is there: is it glad to see us?
    host, _, port = peer.rpartition(":")
    said = b""
    with (
        suppress(ssl.SSLError, ConnectionError),
        context.wrap_socket(socket.create_connection((host, int(port)), timeout=5)) as connection,
    ):
        connection.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        said = connection.recv(1024)
    assert said == b"", "etcd has answered"


def test_its_data_can_be_saved_and_restored_where_the_majority_is_lost(cluster: Cluster, tmp_path: Path) -> None:
    cluster.ask(methods.PUT, pb.PutRequest(key=b"k", value=b"v"))
    etcd, only = cluster.members["m1"].etcd, cluster.members["m1"]
    assert recovery.newest([only.spec.endpoint], tls=cluster.client) == only.spec.endpoint
    recovery.save(etcd, only.spec.endpoint, tmp_path / "snapshot", files=only.spec.files)
    only.kill()
    fresh = cluster.fresh()
    fresh = replace(fresh, state="new", initial_cluster={fresh.name: fresh.peer_url}, token="another")
    recovery.restore(etcd, tmp_path / "snapshot", fresh)
    cluster.start(fresh)
    assert cluster.ask(methods.RANGE, pb.RangeRequest(key=b"k"), endpoint=fresh.endpoint).kvs[0].value == b"v"


def test_keys_are_written_where_only_we_can_read_them_and_shown_nowhere(cluster: Cluster) -> None:
    files = cluster.members["m1"].spec.files
    assert files is not None
    assert [path.stat().st_mode & 0o777 for path in files.directory.glob("*.key")] == [0o600, 0o600]
    assert "PRIVATE" not in f"{cluster.authorities!r} {cluster.client!r}"
