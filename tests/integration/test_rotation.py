"""Certificates that are replaced while programs run: nobody is started anew, and nothing that is held is lost."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from skyward_etcd.active import Connection, Tls, connect
from skyward_etcd.cluster import private, tls
from skyward_etcd.cluster.binary import inspect
from skyward_etcd.cluster.member import MemberSpec
from skyward_etcd.config import Limits
from skyward_etcd.errors import Unavailable
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Wire
from tests.integration.conftest import any_usable, usable
from tests.integration.helpers import Calls, until
from tests.integration.secured import Cluster


@dataclass
class Files:
    """What `connect` is given: a client's files, as an operator keeps them."""

    directory: Path

    def put(self, *, ca: bytes | None = None, identity: Tls | None = None) -> None:
        """Replace some of them, each at once and as a whole."""
        if ca:
            private.write(self.directory / "ca.crt", ca)
        if identity:
            assert identity.certificate
            assert identity.key
            private.write(self.directory / "tls.key", identity.key)
            private.write(self.directory / "tls.crt", identity.certificate)

    def tls(self) -> Tls:
        return Tls.of_files(*(self.directory / name for name in ("ca.crt", "tls.crt", "tls.key")))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with closing(Cluster(any_usable(), tmp_path)) as made:
        yield made


@pytest.fixture
def files(tmp_path: Path, cluster: Cluster) -> Files:
    made = Files(private.directory(tmp_path / "client"))
    made.put(ca=cluster.authorities.clients.certificate, identity=cluster.client)
    return made


def ask(endpoint: str, shown: Tls) -> None:
    """Read over a connection of its own."""
    with closing(Wire((endpoint,), tls=shown)) as wire:
        wire.call(methods.RANGE, pb.RangeRequest(key=b"k"), timeout_s=3.0)


def is_let_in(endpoint: str, shown: Tls) -> bool:
    with suppress(Unavailable):
        ask(endpoint, shown)
        return True
    return False


def drop_connections(connection: Connection) -> None:
    """End the connections of a session's calls, so that the next one makes another. Lease and watches keep theirs."""
    wire = connection.session.wire
    with wire._lock:
        channels, wire._channels = wire._channels, {}
    for channel in channels.values():
        channel.close()


async def test_a_certificate_that_runs_out_is_replaced_under_a_session(
    cluster: Cluster, files: Files, calls: Calls
) -> None:
    spec = cluster.found()
    files.put(identity=cluster.authorities.client("short", lifetime=dt.timedelta(seconds=6)))
    shown = files.tls()
    with connect([spec.endpoint], tls=shown) as sky:
        counter = calls(sky.counter("c"))
        assert await counter.increment() == 1
        with sky.lock("l") as hold:
            await until(lambda: not is_let_in(spec.endpoint, shown))
            assert await counter.increment() == 2, "a connection that is there stays"
            with pytest.raises(Unavailable, match="certificate"):
                ask(spec.endpoint, shown)
            files.put(identity=cluster.client)
            ask(spec.endpoint, shown)
            drop_connections(sky)
            assert await counter.increment() == 3
            assert hold.valid
    assert not hold.valid


def test_a_member_takes_new_certificates_without_a_restart(cluster: Cluster, files: Files) -> None:
    spec = cluster.found()
    pid = cluster.members[spec.name].pid
    with connect([spec.endpoint], tls=files.tls()) as sky:
        sky.counter("c").increment()
        renew(cluster, spec, lifetime=dt.timedelta(seconds=6))
        ask(spec.endpoint, cluster.client)
        deadline = time.monotonic() + 10.0
        while is_let_in(spec.endpoint, cluster.client):
            assert time.monotonic() < deadline
        with pytest.raises(Unavailable, match="the member's certificate has expired: renew it"):
            ask(spec.endpoint, cluster.client)
        assert sky.counter("c").increment() == 2
        renew(cluster, spec)
        ask(spec.endpoint, cluster.client)
        drop_connections(sky)
        assert sky.counter("c").increment() == 3
    assert cluster.members[spec.name].pid == pid


def test_the_authority_is_replaced_by_way_of_both(cluster: Cluster, files: Files) -> None:
    """As docs/security.md has it: trust both, renew the members' certificates, then the clients', trust the new one."""
    path = any_usable()
    if inspect(path) in ((3, 5, 0), (3, 5, 1), (3, 5, 2)):
        path = usable("fetched")  # those lose writes over a restart
    cluster = Cluster(path, files.directory.parent / "durable", cluster.authorities)
    with closing(cluster):
        spec = cluster.found(restarts=True, durable=True, grows=False)
        old, new = cluster.authorities.clients, tls.make().clients
        both = old.certificate + new.certificate
        shown = files.tls()
        with connect([spec.endpoint], tls=shown) as sky, sky.lock("l") as hold:
            counter = sky.counter("c")
            assert counter.increment() == 1

            files.put(ca=both)
            trust(cluster, spec, both)
            assert counter.increment() == 2

            renew(cluster, spec, new)
            drop_connections(sky)
            assert counter.increment() == 3
            assert not is_let_in(spec.endpoint, cluster.client), "who trusts the old one only is not to be deceived"

            mine = tls.Authorities(cluster.authorities.peers, new).client("test")
            files.put(identity=mine)
            drop_connections(sky)
            assert counter.increment() == 4

            files.put(ca=new.certificate)
            trust(cluster, spec, new.certificate)
            assert counter.increment() == 5
            assert hold.valid
        stale = Tls(new.certificate, cluster.client.certificate, cluster.client.key)
        assert not is_let_in(spec.endpoint, stale)


def renew(
    cluster: Cluster,
    spec: MemberSpec,
    clients: tls.Authority | None = None,
    lifetime: dt.timedelta = tls.LIFETIME,
) -> None:
    """Replace a running member's certificates, but not whom it trusts."""
    assert spec.files
    ca = spec.files.directory / "client.ca.crt"
    trusted = ca.read_bytes()
    authorities = replace(cluster.authorities, clients=clients or cluster.authorities.clients)
    tls.write(authorities, spec.files.directory, spec.name, ["127.0.0.1"], lifetime=lifetime)
    private.write(ca, trusted)


def trust(cluster: Cluster, spec: MemberSpec, authorities: bytes) -> None:
    """Have a member trust these: the one thing that etcd reads at its start only."""
    assert spec.files
    private.write(spec.files.directory / "client.ca.crt", authorities)
    cluster.members[spec.name].stop()
    cluster.start(spec)


def test_what_does_not_fit_together_is_not_used(
    cluster: Cluster, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    spec = cluster.found()
    shown = files.tls()
    another = cluster.authorities.client("another")
    assert another.certificate
    private.write(files.directory / "tls.crt", another.certificate)  # its key is on the way
    for _ in range(3):
        ask(spec.endpoint, shown)
    assert len([each for each in caplog.records if "not used" in each.message]) == 1
    (files.directory / "ca.crt").unlink()
    ask(spec.endpoint, shown)
    files.put(ca=cluster.authorities.clients.certificate, identity=another)
    ask(spec.endpoint, shown)
    assert shown.latest().certificate == another.certificate


def test_a_link_that_is_switched_is_followed(cluster: Cluster, files: Files) -> None:
    """As Kubernetes replaces a Secret: ``tls.crt -> ..data/tls.crt``, and ``..data`` is switched."""
    spec = cluster.found()
    home = files.directory
    for generation, lifetime in (("1", dt.timedelta(seconds=3)), ("2", tls.LIFETIME)):
        identity = cluster.authorities.client("test", lifetime=lifetime)
        Files(private.directory(home / generation)).put(ca=cluster.authorities.clients.certificate, identity=identity)
    (home / "..data").symlink_to("1")
    names = [home / "..data" / name for name in ("ca.crt", "tls.crt", "tls.key")]
    shown = Tls.of_files(*names)
    deadline = time.monotonic() + 10.0
    while is_let_in(spec.endpoint, shown):
        assert time.monotonic() < deadline
    (home / "next").symlink_to("2")
    os.replace(home / "next", home / "..data")  # noqa: PTH105 - Path.replace would do the same
    ask(spec.endpoint, shown)


def test_a_session_waits_for_the_certificate_that_lets_it_in(cluster: Cluster, files: Files) -> None:
    spec = cluster.found()
    files.put(identity=tls.make().client("stranger"))
    connection = connect([spec.endpoint], tls=files.tls())
    connection.session.limits = Limits(operation_s=1.0)
    with pytest.raises(Unavailable, match="certificate"):
        connection.session.open()
    files.put(identity=cluster.client)
    with connection as sky:
        assert sky.counter("c").increment() == 1
