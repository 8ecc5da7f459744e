"""Every line of docs/etcdctl.md, run by etcd's own tool against the collections that the page talks of."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.errors import BrokenBarrier
from tests.integration.conftest import Opener, any_usable
from tests.integration.helpers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "etcdctl.md").read_text()
BLOCKS = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, list[str]]]:
    """Return each command with what it is said to print."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(BLOCKS).splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        else:
            found[-1][1].append(line)
    return found


@pytest.fixture(scope="module")
def endpoints() -> Iterator[list[str]]:
    with LocalCluster(3, etcd=any_usable()) as cluster:
        yield cluster.endpoints


@pytest.fixture
def filled(endpoints: list[str], opened: Opener) -> Iterator[Connection]:
    sky = opened(endpoints, namespace="default")
    sky.dict("settings").update({"lr": 0.001, "layers": [3]})
    sky.set("labels").update(["cat", "dog"])
    sky.counter("images").increment(42)
    jobs = sky.queue("tasks")
    jobs.put_many(["a", "b"])
    claim = jobs.claim()
    hold = sky.lock("saving").acquire()

    def wait() -> None:
        with pytest.raises(BrokenBarrier):
            sky.barrier("epoch", n=2).wait()

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not sky.barrier("epoch", n=2).waiting():
        pass
    yield sky
    sky.barrier("epoch", n=2).reset()
    waiting.join()
    hold.release()
    claim.ack()


def test_every_line_answers_as_the_page_says(filled: Connection, endpoints: list[str], tmp_path: Path) -> None:
    assert len(commands()) > 20
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ETCD")},
        "PATH": f"{any_usable().parent}{os.pathsep}{os.environ['PATH']}",
        "ETCDCTL_API": "3",
    }
    for command, says in commands():
        one = command.startswith("etcdctl snapshot")  # of one member
        environment["ETCDCTL_ENDPOINTS"] = endpoints[0] if one else ",".join(endpoints)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=Path(endpoints[0].removeprefix("unix://")).parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        said = (done.stdout + done.stderr).splitlines()
        assert done.returncode == 0, f"{command}: {said}"
        if command not in ("etcdctl alarm list", "etcdctl alarm disarm"):
            assert said, command
        for wanted, line in zip(says, said, strict=False):
            assert wanted in ("…", line), f"{command} said {said}"


def test_the_line_that_watches_does(filled: Connection, endpoints: list[str]) -> None:
    (line,) = re.findall(r"^etcdctl watch .*$", PAGE, re.MULTILINE)
    environment = {
        "PATH": f"{any_usable().parent}{os.pathsep}{os.environ['PATH']}",
        "ETCDCTL_API": "3",
        "ETCDCTL_ENDPOINTS": ",".join(endpoints),
    }
    watching = subprocess.Popen(["bash", "-c", f"exec {line}"], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert watching.stdout
        putting = threading.Event()

        def put() -> None:  # again and again: it may not watch yet
            while not putting.wait(0.2):
                filled.queue("tasks").put("seen")

        thread = threading.Thread(target=put)
        thread.start()
        said = [watching.stdout.readline().strip() for _ in range(3)]
        putting.set()
        thread.join()
        assert said[0] == "PUT"
        assert said[1].startswith("/skyward/default/queue/tasks/")
    finally:
        watching.kill()
        watching.communicate()
