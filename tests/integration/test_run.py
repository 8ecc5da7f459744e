"""`skyward-etcd run`, the process of a pod: who it is, how it waits, how it goes, and what its exit code tells."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.cluster import bootstrap
from skyward_etcd.cluster.bootstrap import LocalCluster
from tests.integration.conftest import any_usable
from tests.integration.helpers import keys_under, next_line

MODULE = """
    import asyncio, sys, time
    import skyward_etcd as sky

    class Nested:
        @staticmethod
        def work(*given):
            info = sky.instance_info()
            print(info.node, info.total_nodes, *given, list(sky.shard(range(8))), flush=True)
            sky.counter("ran").increment()

    async def coroutine():
        print("coroutine", await sky.counter("ran").increment_async(), flush=True)

    def fails():
        raise ValueError("on purpose")

    def loses_the_cluster():
        raise sky.Unavailable("no answer")

    def leaves(code):
        sys.exit(int(code))

    def holds():
        job = sky.queue("q").claim()
        with job, sky.lock("l") as hold:
            print("holds", hold.token, flush=True)
            time.sleep(120)

    async def holds_too():
        async with sky.lock("l") as hold:
            print("holds", hold.token, flush=True)
            await asyncio.sleep(120)

    def waits():
        print("waits", flush=True)
        sky.lock("l").acquire()

    def clings():
        hold = sky.lock("l").acquire()
        print("holds", hold.token, flush=True)
        while True:
            try:
                time.sleep(120)
            except BaseException:
                pass

    number = 7
"""

Runner = Callable[..., subprocess.Popen[str]]

pytestmark = pytest.mark.timeout(150)  # each starts a program or two


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    """Return a function that starts the command in a directory with a module ``job``; what still runs is ended."""
    (tmp_path / "job.py").write_text(textwrap.dedent(MODULE))
    started: list[subprocess.Popen[str]] = []

    def start(beside: Connection | Sequence[str], *arguments: str, **env: str) -> subprocess.Popen[str]:
        where = beside.endpoints if isinstance(beside, Connection) else beside
        namespace = beside.session.layout.namespace if isinstance(beside, Connection) else "n"
        process = subprocess.Popen(
            [sys.executable, "-c", "from skyward_etcd.cli import main; main()", "run", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "SKYWARD_ETCD_ENDPOINTS": ",".join(where),
                "SKYWARD_ETCD_NAMESPACE": namespace,
                **env,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    """Wait for the end with this code; return what it said."""
    out, complaints = process.communicate(timeout=90)
    assert process.returncode == code, f"{process.returncode}: {out} {complaints}"
    return out, complaints


def test_a_function_runs_as_its_rank(solo: Connection, runner: Runner) -> None:
    index = {"JOB_COMPLETION_INDEX": "1", "SKYWARD_ETCD_SIZE": "4"}
    out, complaints = ended(runner(solo, "job:Nested.work", "a", "--b", **index), 0)
    assert (out, complaints) == ("1 4 a --b [1, 5]\n", "")
    assert ended(runner(solo, "job:coroutine"), 0)[0] == "coroutine 2\n"
    assert keys_under(solo.session, "sessions/") == [f"sessions/{solo.session.id}"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("job:fails",), 1, "on purpose"),
        (("job:leaves", "7"), 7, ""),
        (("job:loses_the_cluster",), 75, "no answer"),
        (("job:nothing",), 2, "nothing"),
        (("job:number",), 2, "cannot be called"),
        (("nojob:main",), 2, "nojob"),
        (("job",), 2, "module:function"),
    ],
)
def test_the_exit_code_tells_what_may_be_tried_again(
    solo: Connection, runner: Runner, arguments: tuple[str, ...], code: int, says: str
) -> None:
    assert says in ended(runner(solo, *arguments), code)[1]


def test_an_unknown_place_is_not_tried_again(solo: Connection, runner: Runner) -> None:
    assert "SKYWARD_ETCD_SIZE" in ended(runner(solo, "job:fails", JOB_COMPLETION_INDEX="1"), 2)[1]


@pytest.mark.parametrize("function", ["holds", "holds_too", "clings"])
def test_sigterm_hands_back_locks_and_claims(solo: Connection, runner: Runner, function: str) -> None:
    solo.queue("q").put("x")
    process = runner(solo, f"job:{function}", "--grace", "1")
    token = int(next_line(process).removeprefix("holds "))
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    with solo.lock("l", timeout=10) as hold:
        assert time.monotonic() - started < 5.0  # its lease has 15 s
        assert hold.token > token
    ended(process, 143)
    job = solo.queue("q").claim(timeout=0)
    assert job is not None
    job.ack()


def test_sigterm_ends_a_wait(solo: Connection, runner: Runner) -> None:
    with solo.lock("l"):
        process = runner(solo, "job:waits")
        assert next_line(process) == "waits"
        while len([key for key in keys_under(solo.session) if key.startswith("lock/l/")]) < 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        ended(process, 143)
        assert len([key for key in keys_under(solo.session) if key.startswith("lock/l/")]) == 1


def test_ctrl_c_is_told_from_the_rest(solo: Connection, runner: Runner) -> None:
    process = runner(solo, "job:holds_too")
    next_line(process)
    process.send_signal(signal.SIGINT)
    ended(process, 130)


def test_it_waits_for_a_cluster_that_comes(tmp_path: Path, runner: Runner) -> None:
    spec = bootstrap.plan(1, tmp_path / "cluster")[0]
    process = runner([spec.endpoint], "job:coroutine", "--wait", "60")
    assert process.stderr
    assert "waiting for the cluster" in process.stderr.readline()
    from skyward_etcd.cluster.binary import Etcd, inspect
    from skyward_etcd.cluster.member import Member

    member = Member(Etcd(any_usable(), inspect(any_usable()) or (0, 0, 0), "test"), spec)
    try:
        member.start()
        assert ended(process, 0)[0] == "coroutine 1\n"
    finally:
        member.kill()


def test_it_gives_up_on_a_cluster_that_does_not_come(runner: Runner) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        process = runner([f"127.0.0.1:{nobody.getsockname()[1]}"], "job:fails", "--wait", "1")
        assert "gave up" in ended(process, 75)[1]


def test_wrong_credentials_are_not_tried_again(runner: Runner) -> None:
    with LocalCluster(1, etcd=any_usable()) as cluster:
        etcdctl = str(any_usable().with_name("etcdctl"))
        for line in ("user add root:secret", "user grant-role root root", "auth enable"):
            command = [etcdctl, f"--endpoints={cluster.endpoints[0]}", *line.split()]
            subprocess.run(command, env={"ETCDCTL_API": "3"}, capture_output=True, check=True)
        process = runner(cluster.endpoints, "job:fails", SKYWARD_ETCD_USER="root", SKYWARD_ETCD_PASSWORD="wrong")
        complaints = ended(process, 2)[1]
        assert "wrong" not in complaints.replace("wrong user", "")
