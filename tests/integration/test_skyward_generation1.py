"""Skyward's generation 1 with our plugin: its own workers and cluster of actors, our collections in its functions."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from skyward_etcd.cluster.bootstrap import free_ports
from tests.integration.helpers import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

NODES = 3
PYTHON = Path(os.environ.get("SKYWARD1_PYTHON", REPOSITORY / ".venv-skyward-0.10" / "bin" / "python"))


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_functions_find_our_collections_and_a_lost_node_loses_nothing(executor: str, tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.skip(f"NO SKYWARD 0.10 at {PYTHON}: `make test-generation1` installs it, with Python 3.12")
    done = subprocess.run(
        [PYTHON, "-m", "tests.skyward.generation1", str(NODES), executor, str(free_ports(1)[0]), tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    logs = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(tmp_path.glob("*.log")))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    said = {step: result for line in done.stdout.splitlines() for step, result in json.loads(line).items()}
    assert sorted(each.pop("item") for each in said["all"]) == [[number, "item"] for number in range(NODES)]
    expected = {
        "kind": "skyward_etcd.collections.counter",
        "ranks": list(range(NODES)),
        "seen": 1,
        "tally": 2 * NODES,
        "total": 5 * NODES,
        "left": 0,
    }
    assert said["all"] == [expected] * NODES
    assert said["async"] == [3]
    assert said["stream"] == [1, 2, 3]
    assert sorted(name.partition(".")[0] for name in said["members"]) == [str(number) for number in range(NODES)]
    assert said["survivor"] == [2 * NODES + 1]
    assert said["seconds"] < 10
