"""The command against real clusters: what it shows, what it changes, and what its exit codes tell."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from skyward_etcd.active import Connection
from skyward_etcd.cli import output
from skyward_etcd.cli.main import main
from skyward_etcd.cluster.binary import Verdict, grade, inspect
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.config import Limits
from skyward_etcd.errors import BrokenBarrier, HoldLost
from tests.integration.conftest import BINARIES, Opener, usable
from tests.integration.helpers import keys_under

SECRET = b"a secret of enough bytes"


@dataclass
class Command:
    """`skyward-etcd`, at one cluster and namespace."""

    endpoints: Sequence[str]
    namespace: str

    def __call__(self, *arguments: str, code: int = 0, input: str | None = None, **env: str) -> Result:
        environment = {
            "SKYWARD_ETCD_ENDPOINTS": ",".join(self.endpoints),
            "SKYWARD_ETCD_NAMESPACE": self.namespace,
            **env,
        }
        done = CliRunner().invoke(main, arguments, input=input, env=environment)
        assert done.exit_code == code, f"{arguments} ended with {done.exit_code}: {done.output} {done.exception!r}"
        return done

    def json(self, *arguments: str, **options: Any) -> Any:
        """Return what it says with --json."""
        return json.loads(self(*arguments, "--json", **options).stdout)


@pytest.fixture
def command(sky: Connection) -> Command:
    return Command(sky.endpoints, sky.session.layout.namespace)


# ---- looking


def test_status_tells_members_and_processes(sky: Connection, command: Command) -> None:
    sky.counter("c").increment()
    said = command.json("status")
    assert said["has_leader"]
    roles = [member["role"] for member in said["members"]]
    assert sorted(roles) == ["follower"] * (len(roles) - 1) + ["leader"]
    assert len(roles) == len(sky.endpoints)
    assert all(0 <= member["lag"] < 100 and member["quota_bytes"] == 2 << 30 for member in said["members"])
    assert [each["session"] for each in said["processes"]] == [sky.session.id]
    assert f":{os.getpid()}" in command("status").stdout


def test_a_look_opens_no_session(sky: Connection, command: Command) -> None:
    sky.dict("d")["k"] = 1
    before = keys_under(sky.session)
    for look in (("status",), ("ls",), ("ls", "--exact"), ("show", "dict", "d"), ("doctor",), ("export",)):
        command(*look)
    assert keys_under(sky.session) == before


def test_ls_lists_every_kind(sky: Connection, command: Command) -> None:
    sky.dict("d").update(dict.fromkeys(range(250), "x" * 100))
    sky.set("s").add("m")
    sky.queue("q/1").put_many(range(3))
    with sky.lock("l"):
        listed = {(each["kind"], each["name"]): each for each in command.json("ls")["collections"]}
    assert {key: each["entries"] for key, each in listed.items()} == {
        ("dict", "d"): 250,
        ("set", "s"): 1,
        ("queue", "q/1"): 3,
        ("lock", "l"): 1,
    }
    exact = {each["name"]: each for each in command.json("ls", "--exact")["collections"]}
    assert (listed["dict", "d"]["is_exact"], exact["d"]["is_exact"]) == (False, True)
    assert 0.5 < listed["dict", "d"]["bytes"] / exact["d"]["bytes"] < 2
    assert "q/1" in command("ls").stdout


def test_show_pages_through_a_large_dict(sky: Connection, command: Command) -> None:
    sky.dict("d").update(dict.fromkeys(range(1200), "x" * 10000))
    shown = command.json("show", "dict", "d", "--limit", "1100")
    assert (shown["count"], len({key for key, _ in shown["entries"]})) == (1200, 1100)
    assert "… 1,197 more" in command("show", "dict", "d", "--limit", "3").stdout


def test_show_never_loads_a_pickle(sky: Connection, opened: Opener, command: Command) -> None:
    signing = opened(list(sky.endpoints), namespace=command.namespace, secret=SECRET)
    signing.dict("d")["k"] = Explosive()
    shown = command("show", "dict", "d", SKYWARD_ETCD_SECRET=SECRET.decode())
    assert "<signed pickle" in shown.stdout


class Explosive:
    def __reduce__(self) -> Any:
        return pytest.fail, ("it was loaded",)


def test_show_tells_who_has_a_lock_and_who_is_missing_at_a_barrier(
    sky: Connection, another: Opener, command: Command
) -> None:
    other = another(sky)
    other.counter("c").increment()
    hold = sky.lock("l").acquire()
    lock = command.json("show", "lock", "l")
    assert (lock["holder"]["token"], lock["holder"]["who"]["pid"]) == (hold.token, os.getpid())
    assert 0 < lock["lease_s"] <= 15
    assert "holds it" in command("show", "lock", "l").stdout

    def wait() -> None:
        with pytest.raises(BrokenBarrier):
            sky.barrier("b", n=2).wait()

    waiting = threading.Thread(target=wait)
    waiting.start()
    patiently(sky.barrier("b", n=2).waiting)
    barrier = command.json("show", "barrier", "b")
    assert (barrier["n"], barrier["missing"]) == (2, 1)
    assert [each["session"] for each in barrier["waiting"]] == [sky.session.id]
    assert [each["session"] for each in barrier["absent"]] == [other.session.id]
    sky.barrier("b", n=2).abort()
    waiting.join()
    hold.release()
    assert "free" in command("show", "lock", "l").stdout


def patiently(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_show_tells_what_a_queue_has(sky: Connection, command: Command) -> None:
    jobs = sky.queue("q", max_deliveries=1)
    jobs.put_many(["a", "b", "c"])
    jobs.claim().release()
    patiently(jobs.dead.size)
    job = jobs.claim()
    shown = command.json("show", "queue", "q")
    assert (shown["waiting"], shown["claimed"], shown["dead"], shown["max_deliveries"]) == (1, 1, 1, 1)
    assert [item["value"]["value"] for item in shown["items"]] == ["b", "c"]
    assert shown["items"][0]["claimed_by"]["session"] == sky.session.id
    job.ack()


def test_watch_tells_each_change(sky: Connection, command: Command) -> None:
    sky.dict("d")["a"] = 0
    said: list[Result] = []
    watching = threading.Thread(target=lambda: said.append(command("watch", "dict", "d", "--count", "3", "--json")))
    watching.start()
    number = 0
    while watching.is_alive():  # it may not watch yet: go on until it has seen enough
        number += 1
        sky.dict("d")["a"] = number
        del sky.dict("d")["a"]
        watching.join(0.05)
    lines = [json.loads(line) for line in said[0].stdout.splitlines()]
    assert len(lines) == 3
    assert {line["type"] for line in lines} == {"put", "delete"}
    assert {line["key"] for line in lines} == {'"a"'}


def test_top_tells_what_changes(sky: Connection, command: Command) -> None:
    sky.queue("q").put_many(range(3))
    looks = [
        json.loads(line) for line in command("top", "--json", "--count", "2", "--every", "0.2").stdout.splitlines()
    ]
    assert [look["collections"][0]["entries"] for look in looks] == [3, 3]
    assert "writes/s" in command("top", "--count", "2", "--every", "0.2").stdout


def test_bench_measures_and_leaves_nothing(sky: Connection, command: Command) -> None:
    found = {each["what"]: each for each in command.json("bench", "--seconds", "0.3")}
    assert set(found) == {"round trip", "get", "put"}
    assert all(0 < each["p50_s"] <= each["p99_s"] <= each["longest_s"] for each in found.values())
    assert keys_under(sky.session) == [f"sessions/{sky.session.id}"]


def test_tables_have_lines_where_rich_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    output.table(("name", "n"), [("plain", 1_000)])
    plain = capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    output.table(("name", "n"), [("[bold]lined", 1_000)])
    lined = capsys.readouterr().out
    assert plain.splitlines() == ["NAME       N", "plain  1,000"]
    assert "┃" in lined
    assert "[bold]lined" in lined
    assert "1,000" in lined


# ---- changing


def test_a_broken_lock_is_lost_to_its_holder(sky: Connection, opened: Opener, command: Command) -> None:
    holder = opened(list(sky.endpoints), namespace=command.namespace, limits=Limits(ttl_s=5.0))
    hold = holder.lock("l").acquire()
    best = hold.guard(holder.dict("best"))
    best["loss"] = 1
    command("lock", "break", "l", input="n\n", code=1)
    assert hold.valid
    given_on: list[bool] = []

    def take_over() -> None:
        with sky.lock("l"):
            given_on.append(hold.valid)
            sky.dict("best")["loss"] = 2

    waiting = threading.Thread(target=take_over)
    waiting.start()
    (ended,) = command.json("lock", "break", "l", "--yes")["ended"]
    assert (ended["locks"], ended["waited_s"]) == (1, 5.0)
    waiting.join()
    assert given_on == [False]
    with pytest.raises(HoldLost):
        best["loss"] = 1
    with pytest.raises(HoldLost):
        hold.release()
    assert sky.dict("best", consistency="strong")["loss"] == 2


def test_a_lock_can_be_given_on_at_once(sky: Connection, another: Opener, command: Command) -> None:
    hold = another(sky).lock("l").acquire()
    started = time.monotonic()
    command("lock", "break", "l", "--yes", "--now")
    with sky.lock("l", timeout=3):
        assert time.monotonic() - started < 5
    with pytest.raises(HoldLost):
        hold.release()
    command("lock", "break", "l", "--yes", code=1)


def test_dead_items_are_requeued_and_purged(sky: Connection, command: Command) -> None:
    jobs = sky.queue("q", max_deliveries=1)
    jobs.put_many(["a", "b"])
    for _ in range(2):
        jobs.claim().release()
    patiently(lambda: jobs.dead.size() == 2)
    assert command.json("queue", "requeue", "q", "--most", "1") == {"requeued": 1}
    assert command.json("queue", "requeue", "q") == {"requeued": 1}
    assert sorted(jobs.get_many(9, timeout=0)) == ["a", "b"]
    jobs.put_many("xyz")
    assert command.json("queue", "purge", "q", "--yes") == {"removed": 3}
    assert jobs.empty()


def test_claimed_items_come_back_from_a_node_that_hangs(sky: Connection, opened: Opener, command: Command) -> None:
    worker = opened(list(sky.endpoints), namespace=command.namespace, limits=Limits(ttl_s=5.0))
    worker.queue("q").put("x")
    claim = worker.queue("q").claim()
    assert command.json("queue", "requeue", "q", "--claimed", "--node", "nobody", "--yes") == {"ended": []}
    (ended,) = command.json("queue", "requeue", "q", "--claimed", "--node", worker.session.node, "--yes")["ended"]
    assert ended["claims"] == 1
    assert not claim.valid
    again = sky.queue("q").claim(timeout=5)
    assert again is not None
    assert (again.value, again.deliveries) == ("x", 2)
    with pytest.raises(HoldLost):
        claim.ack()
    again.ack()


def test_rm_leaves_what_is_in_use_alone(sky: Connection, command: Command) -> None:
    with sky.lock("l"):
        assert "in use" in command("rm", "lock", "l", "--yes", code=1).stderr
    command("rm", "lock", "l", "--yes")
    sky.dict("d").update(a=1)
    command("rm", "dict", "d", input="n\n", code=1)
    assert command.json("rm", "dict", "d", "--yes") == {"removed": 1}
    assert command.json("ls")["collections"] == []
    assert "skyward-etcd ls" in command("show", "dict", "d", code=1).stderr


# ---- export, import, snapshot, restore


def test_an_export_is_imported_elsewhere(sky: Connection, opened: Opener, command: Command, tmp_path: Path) -> None:
    signing = opened(list(sky.endpoints), namespace=command.namespace, secret=SECRET)
    elsewhere = Command(sky.endpoints, f"{command.namespace}-2")
    other = opened(list(sky.endpoints), namespace=elsewhere.namespace, secret=SECRET)
    entries = {"a": 1, ("b", 2): b"bytes", "c": [1.5, None, {"x": "ü"}], "d": Limits()}
    signing.dict("d").update(entries)
    signing.queue("q").put_many(range(300))
    signing.queue("q").claim()
    signing.set("s").update(range(120))
    signing.counter("c").increment(41)
    file = tmp_path / "export.jsonl"
    command("export", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "secret" in elsewhere("import", str(file), code=1).stderr  # to sign anew
    for kind, name in (("dict", "d"), ("counter", "c")):
        elsewhere("rm", kind, name, "--yes")
    elsewhere("import", str(file), SKYWARD_ETCD_SECRET=SECRET.decode())
    assert dict(other.dict("d").items()) == entries
    assert other.queue("q").get_many(400, timeout=0) == list(range(300))
    assert set(other.set("s")) == set(range(120))
    assert other.counter("c").value == 41
    assert "--merge" in elsewhere("import", str(file), code=1, SKYWARD_ETCD_SECRET=SECRET.decode()).stderr
    elsewhere("import", str(file), "--merge", SKYWARD_ETCD_SECRET=SECRET.decode())
    assert other.counter("c").value == 82
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]))
    assert "not whole" in elsewhere("import", str(file), "--merge", code=1, SKYWARD_ETCD_SECRET=SECRET.decode()).stderr
    assert len(command("export", "--only", "counter", "c").stdout.splitlines()) == 4


def sound() -> list[str]:
    """The binaries that may restart from their disks."""
    return [
        label
        for label, path in BINARIES.items()
        if path and grade(inspect(path) or (0, 0, 0), durable=True).verdict is not Verdict.REFUSED
    ]


@pytest.fixture
def durable_etcd(monkeypatch: pytest.MonkeyPatch) -> Path:
    if not sound():
        pytest.skip("NO ETCD THAT MAY RESTART FROM ITS DISK: this test did not run. `make fetch-debian` brings one")
    path = usable(sound()[0])
    monkeypatch.setenv("SKYWARD_ETCD_BINARY", str(path))
    return path


def test_a_snapshot_is_restored_as_another_cluster(durable_etcd: Path, opened: Opener, tmp_path: Path) -> None:
    file, directory = tmp_path / "snapshot", tmp_path / "restored"
    with LocalCluster(1, etcd=durable_etcd) as cluster:
        sky = opened(cluster.endpoints, namespace="n")
        sky.dict("d").update(a=1)
        token = sky.lock("l").acquire().token
        command = Command(cluster.endpoints, "n")
        assert command.json("snapshot", str(file))["bytes"] == file.stat().st_size
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        sky.close()
    command("restore", str(file), str(directory), "--members", "3")
    assert "holds a cluster" in command("restore", str(file), str(directory), code=1).stderr
    with LocalCluster(3, etcd=durable_etcd, durable=directory) as cluster:
        sky = opened(cluster.endpoints, namespace="n")
        assert sky.dict("d")["a"] == 1
        hold = sky.lock("l").acquire(timeout=5)
        assert hold.token > token + 10**11
        hold.release()
        sky.close()


def test_what_is_no_snapshot_is_not_restored(durable_etcd: Path, tmp_path: Path) -> None:
    file, directory = tmp_path / "snapshot", tmp_path / "restored"
    command = Command(["127.0.0.1:1"], "n")
    for content in (b"", b"x" * 100, os.urandom(5000)):
        file.write_bytes(content)
        assert "no snapshot" in command("restore", str(file), str(directory), code=1).stderr
        assert not (directory / "cluster.json").exists()


# ---- exit codes


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("ls", "--timeout", "0.5"), 75),
        (("status",), 75),
        (("snapshot", "nowhere"), 75),
        (("doctor",), 1),
        (("ls", "--endpoints", "nonsense"), 2),
        (("ls", "--user", "x"), 2),
        (("show", "heap", "x"), 2),
        (("ls", "--ca", "nowhere.pem"), 2),
    ],
)
def test_an_exit_code_tells_what_may_be_tried_again(arguments: tuple[str, ...], code: int) -> None:
    Command(["127.0.0.1:1"], "n")(*arguments, code=code)


def test_no_endpoints_is_wrong_usage() -> None:
    done = CliRunner().invoke(main, ["ls"], env={"SKYWARD_ETCD_ENDPOINTS": ""})
    assert (done.exit_code, "SKYWARD_ETCD_ENDPOINTS" in done.stderr) == (2, True)


def test_a_survivor_is_looked_at_without_a_majority(opened: Opener) -> None:
    with LocalCluster(3, etcd=usable(next(label for label, path in BINARIES.items() if path))) as cluster:
        sky = opened(cluster.endpoints, namespace="n")
        sky.dict("d")["a"] = 1
        sky.queue("q").put("x")
        command = Command(cluster.endpoints, "n")
        command("ls")
        sky.close()
        for member in cluster.members[:2]:
            member.kill()
        command("ls", "--timeout", "1", code=75)
        assert len(command.json("ls", "--stale")["collections"]) == 2
        assert command.json("show", "dict", "d", "--stale")["entries"] == [['"a"', {"value": 1}]]
        said = command.json("status", code=75)
        assert [member["role"] for member in said["members"]].count("down") == 2
