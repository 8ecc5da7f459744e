"""Every example runs as a user runs it, checks itself, and says what it should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

SAYS = {
    "async_worker": r"\d+ and \d+ pages were fetched",
    "cache": r"had to compute 20 of 20, then one had to compute 10 of 30\n.*\[0, 0\]",
    "checkpoint": r"the best is of node \d, step \d+: 0\.\d+, token \d+",
    "claims": r"29 tasks were finished, and \[13\] failed 3 times",
    "deduplicate": r"together 60, each once",
    "demo": r"(?s)100% of the files are counted.*merged with token.*gives the same [\d,]+ totals",
    "epoch_barrier": r"(?s)epoch 5: I was here first.*first at the barrier, by node: \[\d, \d, \d\]",
    "etcdctl": r'dict/settings/\["layer",2\]  \[256,128\]',
    "progress": r"(?s)20%.*100% of all steps.*together 200",
    "work_queue": r"the slow node did \d+ tasks",
}
"""A part of what each example prints."""


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=55, check=False)
    assert ran.returncode == 0, ran.stderr
    assert re.search(SAYS[name], ran.stdout), ran.stdout
