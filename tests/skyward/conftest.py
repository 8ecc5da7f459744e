"""Real pools of Skyward's on this machine: `make test-skyward` runs these tests; elsewhere they say why they do not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LAB = os.environ.get("SKYLAB", "")
SCRIPTS = os.environ.get("SKYLAB_SCRIPTS", "")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave modules alone that could not even be imported: `test_lab.py` says why."""
    outside = not is_inside()
    return True if outside and collection_path.name.startswith("test_") and collection_path.stem != "test_lab" else None


def is_inside() -> bool:
    """Tell whether this process is in the lab: it has Skyward, and its network is the lab's."""
    return bool(LAB and SCRIPTS) and importlib.util.find_spec("skyward") is not None


@contextmanager
def pool_of(nodes: Any, *, executor: str = "thread", concurrency: int = 1, **more: Any) -> Generator[Any]:
    """Open a pool with our plugin, on a daemon of its own in this process."""
    import skyward as sky

    from skyward_etcd.plugin import Etcd

    database = Path(LAB, "home", f"{os.getpid()}-{time.monotonic_ns()}.sqlite")
    try:
        with sky.Compute(
            provider=sky.Container(binary=str(Path(SCRIPTS, "nsdocker"))),
            nodes=nodes,
            cpus=1,
            memory_gb=1,
            image=sky.Image(python="3.12"),
            database=database,
            console=False,
            plugins=[Etcd()],
            executor=sky.Executor(executor, concurrency=concurrency),
            **more,
        ) as pool:
            _await_its_daemon(pool, nodes)
            yield pool
    finally:
        for file in database.parent.glob(f"{database.name}*"):
            file.unlink()


def _await_its_daemon(pool: Any, nodes: int) -> None:
    """Skyward's daemon does not see its own cluster for a while, now and then: that is not what we test."""
    from skyward.core.errors import SkywardError

    from tests.skyward.functions import hello

    def is_well() -> bool:
        try:
            return len(hello() @ pool) == nodes
        except SkywardError:
            return False

    until(is_well, 150.0)


def nsdocker(*arguments: str) -> str:
    """Do what a cloud's console does."""
    done = subprocess.run([Path(SCRIPTS, "nsdocker"), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def kill_node(node: str) -> None:
    """Take a node away without a word to anybody."""
    nsdocker("rm", "-f", node)


def until(condition: Callable[[], object], timeout: float = 60.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.2)
