"""A cluster that lets nobody in without a certificate, grown from one member, as on the machines of a cloud."""

from __future__ import annotations

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
from skyward_etcd.cluster.membership import hand_over
from skyward_etcd.errors import Unavailable
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Tls
from tests.integration.conftest import BINARIES, usable
from tests.integration.secured import Cluster


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
    assert recovery.newest([only.spec.endpoint], tls=cluster.client)[0] == only.spec.endpoint
    recovery.save(only.spec.endpoint, tmp_path / "snapshot", tls=cluster.client)
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
