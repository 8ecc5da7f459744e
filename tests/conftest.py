"""What every test of this project gets: the marker of its tier, a time limit, and a check that it leaves no process."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("no deadline", deadline=None)  # this machine may have other work to do
hypothesis.settings.load_profile("no deadline")

TIERS = ("integration", "faults", "interop", "examples", "deploy", "skyward")
"""Folders of tests that are markers too, so that ``-m integration`` means the folder wherever it is asked."""

MARK = "SKYWARD_ETCD_TEST_RUN"
"""Set in the environment of this run, and so of all that it starts: tells its processes from those of another run."""


def pytest_configure() -> None:
    """Let what the tests start hear of Ctrl-C: a shell starts its background jobs deaf to it, and they pass that on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for tier in TIERS:
            if tier in item.path.relative_to(Path(__file__).parent).parts:
                item.add_marker(tier)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    run = f"{MARK}={uuid.uuid4().hex}"
    os.environ[MARK] = run.partition("=")[2]
    yield
    deadline = time.monotonic() + 10.0
    while (left := started_by(run)) and time.monotonic() < deadline:
        time.sleep(0.05)  # etcd writes its last snapshot after a SIGTERM
    if left:
        pytest.fail("the tests left processes running:\n" + "\n".join(left))


def started_by(run: str) -> list[str]:
    """List the processes other than this one whose environment carries the mark (none where there is no /proc)."""
    return [
        f"{process.name}: {_read(process / 'cmdline').replace(chr(0), ' ')}"
        for process in Path("/proc").glob("[0-9]*")
        if process.name != str(os.getpid()) and run in _read(process / "environ").split("\0")
    ]


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # it ended meanwhile, or is another user's
        return ""
