"""How each release is told to restore: from 3.6 on with its revisions moved on, which those before cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from skyward_etcd.cluster.bootstrap import plan
from skyward_etcd.cluster.recovery import restore_flags


@pytest.mark.parametrize(
    ("version", "bumps"), [((3, 4, 23), False), ((3, 5, 30), False), ((3, 6, 0), True), ((3, 7, 1), True)]
)
def test_revisions_are_moved_on_where_the_release_can(
    version: tuple[int, int, int], *, bumps: bool, tmp_path: Path
) -> None:
    flags = restore_flags(version, plan(3, tmp_path)[0])
    assert ("--mark-compacted" in flags) is bumps
    assert any(flag.startswith("--bump-revision=1000000000") for flag in flags) is bumps
    assert f"--data-dir={tmp_path}/m1/data" in flags
