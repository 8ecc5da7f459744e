"""The recipes for other engines run where the engine is installed; elsewhere they say that they did not."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from skyward_etcd.cluster.bootstrap import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ENGINES = Path(__file__).parents[2] / "examples" / "engines"


@pytest.mark.parametrize(
    ("name", "package", "says"),
    [
        ("on_dask", "distributed", r"totals: \[1, 2, 3, .* 12\], best score 6"),
        ("on_ray", "ray", r"tasks by worker: \[\d+, \d+, \d+\], together 30"),
    ],
)
def test_a_recipe_runs(name: str, package: str, says: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"NO {package.upper()}: its recipe did not run. `make test-engines` installs it")
    with LocalCluster(3) as cluster:
        ran = subprocess.run(
            [sys.executable, str(ENGINES / f"{name}.py")],
            cwd=tmp_path,
            env={
                **os.environ,
                "HOME": str(tmp_path),  # where Ray leaves a token
                "RAY_USAGE_STATS_ENABLED": "0",
                "SKYWARD_ETCD_ENDPOINTS": ",".join(cluster.endpoints),
            },
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    assert re.search(says, ran.stdout), ran.stdout
