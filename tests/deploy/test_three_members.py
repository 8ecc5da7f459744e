"""The overlay for production, started: three members under TLS, with certificates that were made by hand."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import skyward_etcd as sky
from skyward_etcd.active import Tls
from tests.deploy.certified import certified, client_tls
from tests.deploy.checks import faults
from tests.deploy.manifests import Manifests, dig, with_restoration
from tests.deploy.sandbox import Sandbox, free_network, ready, start, tools, until, worker_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MEMBERS = ("etcd-0", "etcd-1", "etcd-2")


@pytest.fixture(scope="module")
def network() -> str:
    tools()
    return free_network()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("production")


@pytest.fixture(scope="module")
def production(network: str, directory: Path) -> Manifests:
    return certified("production", directory, network)


@pytest.fixture(scope="module")
def pem(production: Manifests, directory: Path) -> Path:
    return directory / "pem"


@pytest.fixture(scope="module")
def sandbox(production: Manifests, network: str, directory: Path) -> Iterator[Sandbox]:
    with Sandbox(with_restoration(production, "production"), directory, network=network) as sandbox:
        start(sandbox, *MEMBERS)
        yield sandbox


@pytest.fixture(scope="module")
def tls(pem: Path) -> Tls:
    return client_tls(pem)


@pytest.fixture
def cluster(sandbox: Sandbox, tls: Tls) -> Iterator[sky.Connection]:
    with sky.connect([f"https://{sandbox.address(name)}:2379" for name in MEMBERS], tls=tls) as connection:
        yield connection


def listed(sandbox: Sandbox) -> dict[str, str]:
    """Return the ids of the members by their names."""
    said = sandbox.etcdctl("member", "list").stdout
    return {line.split(", ")[2]: line.split(", ")[0] for line in said.splitlines() if line.count(", ") == 5}


def leader(sandbox: Sandbox) -> str:
    """Return the pod that leads."""
    for name in MEMBERS:
        said = sandbox.etcdctl("endpoint", "status", at=name).stdout
        if said.split(", ")[4:5] == ["true"]:
            return name
    raise AssertionError("nobody leads")


def bootstrap(sandbox: Sandbox, **data: str) -> None:
    """Change the ConfigMap that members read when they start, as ``kubectl patch`` does."""
    there = sandbox.manifests.get("ConfigMap", "etcd-bootstrap")["data"]
    there.update({name.replace("_", "-"): value for name, value in data.items()})


def test_the_overlay_with_own_certificates_has_no_faults(production: Manifests) -> None:
    assert faults(production) == []


def test_workers_reach_the_members_with_what_their_pod_has(sandbox: Sandbox, cluster: sky.Connection) -> None:
    cluster.queue("tasks").put_many(range(12))
    workers = [sandbox.start(f"service-{i}", command=worker_command()) for i in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0], [worker.said for worker in workers]
    assert cluster.counter("done").value == 12


@pytest.mark.parametrize(
    ("name", "port", "welcome"),
    [
        ("client", 2379, True),
        ("upkeep", 2379, True),
        ("peer", 2379, False),
        (None, 2379, False),
        ("peer", 2380, True),
        ("client", 2380, False),
        ("server", 2380, False),
        (None, 2380, False),
    ],
)
def test_a_certificate_is_good_for_one_port(
    sandbox: Sandbox, pem: Path, name: str | None, port: int, *, welcome: bool
) -> None:
    context = ssl.create_default_context(cafile=pem / ("client-ca.crt" if port == 2379 else "peer-ca.crt"))
    context.check_hostname = False  # a peer's certificate has names only, and this is an address
    if name:
        context.load_cert_chain(pem / f"{name}.crt", pem / f"{name}.key")
    assert answers(context, sandbox.address("etcd-0"), port) is welcome


def answers(context: ssl.SSLContext, host: str, port: int) -> bool:
    """Tell whether a member answers; in TLS 1.3 it judges our certificate after the handshake."""
    try:
        with socket.create_connection((host, port)) as plain, context.wrap_socket(plain) as secured:
            secured.settimeout(5.0)
            secured.sendall(b"GET /version HTTP/1.0\r\n\r\n")
            return secured.recv(64).startswith(b"HTTP/1.0 200")
    except OSError:
        return False


def test_without_tls_nothing_is_said(sandbox: Sandbox) -> None:
    with socket.create_connection((sandbox.address("etcd-0"), 2379)) as plain:
        plain.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        assert b"etcdserver" not in plain.recv(1024)


def test_the_leader_hands_its_lead_over_when_it_is_stopped(sandbox: Sandbox, cluster: sky.Connection) -> None:
    gone, ids = leader(sandbox), listed(sandbox)
    cluster.dict("kept")["x"] = 1
    sandbox.stop(gone)
    cluster.dict("kept")["y"] = 2
    assert leader(sandbox) != gone
    start(sandbox, gone)
    assert listed(sandbox) == ids
    assert dict(cluster.dict("kept", consistency="strong").items()) == {"x": 1, "y": 2}


def test_without_a_quorum_those_that_are_left_live_and_are_not_ready(sandbox: Sandbox) -> None:
    sandbox.kill("etcd-1")
    sandbox.kill("etcd-2")
    until(lambda: sandbox.probe("etcd-0", "readinessProbe") == 503)
    assert sandbox.probe("etcd-0", "livenessProbe") == 200
    assert sandbox.probe("etcd-0", "startupProbe") == 200
    assert sandbox.ask("etcd-0", "/health", "metrics") == 503  # which is why it is no liveness probe
    start(sandbox, "etcd-1", "etcd-2")
    ready(sandbox, *MEMBERS)


def test_defragmentation_takes_one_member_after_the_other_and_the_leader_last(
    sandbox: Sandbox, cluster: sky.Connection
) -> None:
    for _ in range(4):
        cluster.dict("large").update({str(i): "x" * 100_000 for i in range(40)})
    revision = int(sandbox.etcdctl("get", "x", "--write-out=fields").stdout.partition('"Revision" : ')[2].split()[0])
    assert sandbox.etcdctl("compact", str(revision), "--physical").returncode == 0

    def all_is_compacted() -> bool:
        cluster.counter("writes").increment()  # what compaction frees is counted as free by the next write
        return all(each["dbSizeInUse"] < 6_000_000 < each["dbSize"] for each in statuses(sandbox))

    until(all_is_compacted)
    assert left_alone(sandbox)  # some megabytes are not worth the pause
    dig(sandbox.pod("etcd-defrag").containers, ["upkeep", "env", "DEFRAG_FROM_BYTES"])["value"] = "1000000"
    led = leader(sandbox)
    done = sandbox.run("etcd-defrag")
    assert done.code == 0, done.said
    lines = [line for line in done.said.splitlines() if "before," in line]
    assert len(lines) == 3
    assert led in lines[-1]
    for line in lines:
        before, now = re.findall(r"(\d+) bytes before, (\d+) now", line)[0]
        assert int(now) < int(before)
    assert leader(sandbox) != led
    dig(sandbox.pod("etcd-defrag").containers, ["upkeep", "env", "DEFRAG_FROM_BYTES"])["value"] = "3000000"
    assert left_alone(sandbox)  # there are as many bytes, but in use


def statuses(sandbox: Sandbox) -> list[dict[str, int]]:
    """Return what each member says of itself."""
    return [each["Status"] for each in json.loads(sandbox.etcdctl("endpoint", "status", "--write-out=json").stdout)]


def left_alone(sandbox: Sandbox) -> bool:
    """Tell whether the defragmentation finds nothing to do."""
    done = sandbox.run("etcd-defrag")
    assert done.code == 0, done.said
    return done.said.count("left as it is") == 3


def test_nothing_is_defragmented_while_a_member_is_away(sandbox: Sandbox) -> None:
    sandbox.kill("etcd-2")
    done = sandbox.run("etcd-defrag")
    assert done.code == 1, done.said
    assert "nothing is defragmented" in done.said
    start(sandbox, "etcd-2")


def test_a_member_whose_disk_is_lost_is_replaced(sandbox: Sandbox, cluster: sky.Connection, tls: Tls) -> None:
    cluster.dict("kept")["z"] = 3
    ids = listed(sandbox)
    lose(sandbox, "etcd-1")
    forgetful = sandbox.start("etcd-1")  # without the guard, etcd itself refuses, as long as it reaches the others
    assert forgetful.wait(30) != 0
    assert "has already been bootstrapped" in forgetful.said
    bootstrap(sandbox, empty_disk="refused")  # as it is to be once a cluster runs
    lose(sandbox, "etcd-1")
    guard = sandbox.before("etcd-1")
    assert guard.code == 1, guard.said
    assert "replace the member" in guard.said

    bootstrap(sandbox, replace="etcd-1")
    job = sandbox.start("etcd-replace")
    until(lambda: "is a learner" in job.said or job.code is not None)
    assert job.code is None, job.said
    bootstrap(sandbox, initial_cluster_state="existing")
    lose(sandbox, "etcd-1")
    sandbox.start("etcd-1")
    assert job.wait(60) == 0, job.said
    bootstrap(sandbox, initial_cluster_state="new")
    ready(sandbox, *MEMBERS)

    now = listed(sandbox)
    assert now.keys() == ids.keys()
    assert [name for name in MEMBERS if now[name] != ids[name]] == ["etcd-1"]
    with sky.connect([f"https://{sandbox.address('etcd-1')}:2379"], tls=tls) as alone:
        assert alone.dict("kept")["z"] == 3
    sandbox.stop("etcd-1")
    start(sandbox, "etcd-1")  # and the guard lets it


def test_a_member_that_is_well_is_not_replaced(sandbox: Sandbox) -> None:
    bootstrap(sandbox, replace="etcd-2")
    done = sandbox.run("etcd-replace")
    assert done.code == 2, done.said
    assert "etcd-2 is well" in done.said
    bootstrap(sandbox, replace="")
    assert sandbox.run("etcd-replace").code == 2


def test_no_member_is_removed_while_another_is_away(sandbox: Sandbox) -> None:
    ids = listed(sandbox)
    bootstrap(sandbox, replace="etcd-1")
    sandbox.kill("etcd-1")
    sandbox.kill("etcd-2")
    done = sandbox.run("etcd-replace")
    assert done.code == 1, done.said
    assert "could cost the majority" in done.said
    start(sandbox, "etcd-1", "etcd-2")
    assert listed(sandbox) == ids


def test_a_cluster_is_restored_from_a_snapshot(sandbox: Sandbox, cluster: sky.Connection, tls: Tls) -> None:
    cluster.dict("restored")["x"] = "before"
    done = sandbox.run("etcd-snapshot")
    assert done.code == 0, done.said
    cluster.dict("restored")["x"] = "after"
    with cluster.lock("held") as hold:
        token = hold.token
    old = listed(sandbox)
    for name in MEMBERS:
        sandbox.stop(name)
    told = {"AT": str(int(time.time())), "SNAPSHOT": "latest"}
    sandbox.manifests.get("ConfigMap", "etcd-restore")["data"] = told
    for number, name in enumerate(MEMBERS):
        done = sandbox.run(f"restore-etcd-{number}")
        assert done.code == 0, done.said
        assert name in done.said
    start(sandbox, *MEMBERS)

    assert not set(listed(sandbox).values()) & set(old.values())  # another cluster, which no old member can disturb
    with sky.connect([f"https://{sandbox.address(name)}:2379" for name in MEMBERS], tls=tls) as fresh:
        assert fresh.dict("restored", consistency="strong")["x"] == "before"
        with fresh.lock("held", timeout=30) as hold:
            assert hold.token > token
    done = sandbox.run("etcd-drill", timeout=60)
    assert done.code == 0, done.said


def lose(sandbox: Sandbox, name: str) -> None:
    """Lose a member with its disk."""
    sandbox.kill(name)
    shutil.rmtree(sandbox.claim(f"data-{name}"))
