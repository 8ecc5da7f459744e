"""A copy of the data of members that are about to go: the newest is kept, and none that nobody wants any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyward_etcd.cluster import recovery
from skyward_etcd.errors import Unavailable
from skyward_etcd.plugin import copies
from skyward_etcd.plugin.copies import Copies, Copy
from skyward_etcd.plugin.shared import Cluster

HERE = Cluster(1, "here", {"m1": "a:1", "m2": "b:1"}, b"secret", None)


class Members:
    """The members of a cluster, as far as a copy asks anything of them."""

    def __init__(self) -> None:
        self.revision = 5
        self.gives = threading.Event()
        self.gives.set()
        self.fails = False
        self.saved = 0

    def newest(self, endpoints: Any, **_: Any) -> tuple[str, int]:
        assert set(endpoints) == {"a:1", "b:1"}
        return "a:1", self.revision

    def save(self, endpoint: str, file: Path, **_: Any) -> int:
        data = f"{endpoint} at {self.revision}"
        assert self.gives.wait(10)
        if self.fails:
            raise Unavailable("it is gone", maybe_applied=False)
        written = file.write_text(data)
        self.saved += 1
        return written


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> Members:
    made = Members()
    monkeypatch.setattr(recovery, "newest", made.newest)
    monkeypatch.setattr(recovery, "save", made.save)
    monkeypatch.setattr(copies, "_REST_S", 0.0)
    return made


@pytest.fixture
def kept(tmp_path: Path) -> Copies:
    return Copies(tmp_path / "copy")


def until(kept: Copies, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        kept.begin(HERE, None)
        time.sleep(0.001)


def test_the_newest_is_kept_and_made_once(members: Members, kept: Copies) -> None:
    until(kept, lambda: kept.of(HERE) == Copy("here", "a:1", 5))
    members.revision = 6
    until(kept, lambda: kept.of(HERE) == Copy("here", "a:1", 6))
    assert kept.file.read_text() == "a:1 at 6"
    members.revision = 4  # who had more is gone
    for _ in range(20):
        kept.begin(HERE, None)
        time.sleep(0.001)
    assert kept.of(HERE) == Copy("here", "a:1", 6)
    assert members.saved == 2
    assert kept.of(Cluster(2, "another", {}, b"", None)) is None


def test_what_was_copied_before_stays_where_the_next_copy_fails(members: Members, kept: Copies) -> None:
    until(kept, lambda: kept.of(HERE) is not None)
    members.revision, members.fails = 6, True
    for _ in range(20):
        kept.begin(HERE, None)
        time.sleep(0.001)
    assert kept.of(HERE) == Copy("here", "a:1", 5)
    assert [file.name for file in kept.file.parent.iterdir()] == ["copy"]


def test_a_copy_that_nobody_wants_any_more_is_not_kept(members: Members, kept: Copies) -> None:
    members.gives.clear()
    kept.begin(HERE, None)
    kept.drop()
    members.gives.set()
    deadline = time.monotonic() + 10
    while not members.saved:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    kept.drop()
    assert kept.of(HERE) is None
    assert list(kept.file.parent.iterdir()) == []


def test_what_a_process_that_was_killed_has_left_is_removed(kept: Copies) -> None:
    for name in ("copy", ".copy.draft.x8f", "access.json"):
        (kept.file.parent / name).touch()
    kept.drop()
    assert [file.name for file in kept.file.parent.iterdir()] == ["access.json"]
