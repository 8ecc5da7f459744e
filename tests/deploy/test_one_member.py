"""The overlay for development, started: one member, its workers, its snapshots and its restoration."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import skyward_etcd as sky
from tests.deploy.manifests import overlay, with_restoration
from tests.deploy.sandbox import Sandbox, start, until, worker_command


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    manifests = with_restoration(overlay("dev"), "dev")
    with Sandbox(manifests, tmp_path_factory.mktemp("dev")) as sandbox:
        start(sandbox, "etcd-0")
        yield sandbox


def connected(sandbox: Sandbox) -> sky.Connection:
    return sky.connect([f"{sandbox.address('etcd-0')}:2379"])


def snapshots(sandbox: Sandbox) -> list[Path]:
    return sorted(sandbox.claim("etcd-snapshots").glob("*.db"))


def told(sandbox: Sandbox, *, at: int, snapshot: str = "latest") -> None:
    """Say what to restore, as ``kubectl create configmap`` does."""
    sandbox.manifests.get("ConfigMap", "etcd-restore")["data"] = {"AT": str(at), "SNAPSHOT": snapshot}


def test_the_probes_say_that_it_is_well(sandbox: Sandbox) -> None:
    assert sandbox.probe("etcd-0", "startupProbe") == 200
    assert sandbox.probe("etcd-0", "livenessProbe") == 200


def test_workers_of_both_kinds_share_the_work(sandbox: Sandbox) -> None:
    with connected(sandbox) as cluster:
        cluster.queue("tasks").put_many(range(12))
        batch, service = (sandbox.start(name, command=worker_command()) for name in ("batch", "service-0"))
        assert (batch.wait(40), service.wait(40)) == (0, 0), batch.said + service.said
        assert cluster.counter("done").value == 12
        assert (batch.said + service.said).count("task ") == 12


@pytest.mark.parametrize(("name", "rank"), [("service-1", "rank 1 of 3"), ("batch", "rank 0 of 4")])
def test_a_worker_knows_its_rank_and_goes_when_it_is_told(sandbox: Sandbox, name: str, rank: str) -> None:
    if worker_command() is not None:
        pytest.skip("NO `skyward-etcd run` HERE: the workers' own command did not run")
    with connected(sandbox) as cluster:
        cluster.queue("tasks").put("the only one")
    worker = sandbox.start(name)
    until(lambda: "the only one" in worker.said or worker.code is not None)
    worker.signal(signal.SIGTERM)  # while it waits for another
    assert worker.wait(30) == 143, worker.said
    assert rank in worker.said


def test_a_worker_that_cannot_be_run_says_so_by_its_exit_code(sandbox: Sandbox) -> None:
    if worker_command() is not None:
        pytest.skip("NO `skyward-etcd run` HERE: the workers' own command did not run")
    worker = sandbox.run("batch", command=["skyward-etcd", "run", "worker:no_such_function"])
    assert worker.code == 2, worker.said


def test_a_container_can_do_nothing_but_its_work(sandbox: Sandbox) -> None:
    """So that what else is shown here is shown of commands without privileges, as on Kubernetes."""
    tried = "id -u; touch /usr/x; touch /scripts/x; grep CapEff /proc/self/status; cat /etc/shadow; touch /scratch/x"
    said = sandbox.run("etcd-snapshot", command=["sh", "-c", tried]).said
    assert said.startswith("65532\n")
    assert said.count("Read-only file system") == 2
    assert "CapEff:\t0000000000000000" in said
    assert "/etc/shadow: No such file" in said
    assert "/scratch/x" not in said


def test_a_snapshot_is_proved_before_it_has_its_name(sandbox: Sandbox) -> None:
    done = sandbox.run("etcd-snapshot")
    assert done.code == 0, done.said
    assert "restored for trial" in done.said
    assert snapshots(sandbox)
    assert not list(sandbox.claim("etcd-snapshots").glob(".new*"))


def test_no_more_snapshots_are_kept_than_were_asked_for(sandbox: Sandbox) -> None:
    pod = sandbox.pod("etcd-snapshot")
    keep = int(sandbox.manifests.environment(pod, pod.containers[0])["KEEP"])
    place = sandbox.claim("etcd-snapshots")
    for number in range(keep + 5):
        for end in ("", ".sha256"):
            (place / f"etcd-20200101T0000{number:02}Z-1.db{end}").touch()
    done = sandbox.run("etcd-snapshot")
    assert done.code == 0, done.said
    assert len(snapshots(sandbox)) == len(list(place.glob("*.sha256"))) == keep
    for path in place.glob("etcd-2020*"):
        path.unlink()


def test_the_drill_restores_the_newest_snapshot(sandbox: Sandbox) -> None:
    with connected(sandbox) as cluster:
        cluster.dict("drilled")["x"] = 1
    assert sandbox.run("etcd-snapshot").code == 0
    done = sandbox.run("etcd-drill")
    assert done.code == 0, done.said
    assert f"{snapshots(sandbox)[-1].name}, " in done.said
    assert "keys restored and readable" in done.said


def test_the_drill_fails_with_a_snapshot_that_is_damaged_or_old(sandbox: Sandbox) -> None:
    assert sandbox.run("etcd-snapshot").code == 0
    newest = snapshots(sandbox)[-1]
    good = newest.read_bytes()
    middle = len(good) // 2
    newest.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    done = sandbox.run("etcd-drill")
    assert done.code == 1, done.said
    assert "is not what was saved" in done.said
    newest.write_bytes(good)
    os.utime(newest, (time.time() - 86400, time.time() - 86400))
    done = sandbox.run("etcd-drill")
    assert done.code == 1, done.said
    assert "are snapshots taken?" in done.said


def test_a_restored_member_has_the_snapshot_and_gives_no_token_twice(sandbox: Sandbox) -> None:
    with connected(sandbox) as cluster:
        cluster.dict("state")["x"] = "before"
        assert sandbox.run("etcd-snapshot").code == 0
        cluster.dict("state")["x"] = "after"
        with cluster.lock("held") as hold:
            token = hold.token
    told(sandbox, at=int(time.time()))
    refused = sandbox.run("restore-etcd-0")
    assert refused.code == 1, refused.said
    assert "stop it first" in refused.said

    for restored in range(2):  # the second time from the same snapshot
        assert sandbox.stop("etcd-0") == 0
        told(sandbox, at=int(time.time()) + restored)
        done = sandbox.run("restore-etcd-0")
        assert done.code == 0, done.said
        assert "already" in sandbox.run("restore-etcd-0").said
        start(sandbox, "etcd-0")
        with connected(sandbox) as cluster:
            assert cluster.dict("state", consistency="strong")["x"] == "before"
            with cluster.lock("held") as hold:
                assert hold.token > token
                token = hold.token


@pytest.mark.parametrize(
    ("at", "snapshot", "said"),
    [
        ("", "latest", "AT is seconds since 1970"),
        ("yesterday", "latest", "AT is seconds since 1970"),
        ("0", "latest", "is not after the snapshot's revision"),
        ("1764300000", "etcd-none.db", "no snapshot 'etcd-none.db'"),
    ],
)
def test_a_restoration_that_cannot_be_meant_is_refused(sandbox: Sandbox, at: str, snapshot: str, said: str) -> None:
    sandbox.stop("etcd-0")
    sandbox.manifests.get("ConfigMap", "etcd-restore")["data"] = {"AT": at, "SNAPSHOT": snapshot}
    done = sandbox.run("restore-etcd-0")
    assert done.code == 2, done.said
    assert said in done.said
    start(sandbox, "etcd-0")
