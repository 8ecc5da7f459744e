"""Skyward's own tests of its collections, as its source distribution has them, on a pool with our plugin."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.skyward.conftest import LAB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]

ON_A_POOL = """
import pytest
import skyward
from skyward.core import compute  # as their own conftest does: pytest-describe traces what its tests import

from tests.skyward.conftest import pool_of

@pytest.fixture(scope="session")
def pool():
    with pool_of(2) as opened:
        yield opened
"""
IN_THIS_PROCESS = """
import pytest
from skyward.shared import codec
from skyward.worker import distributed
from skyward_etcd.active import connect
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.plugin.backend import Backend, Pickles

@pytest.fixture(autouse=True)
def ours():
    secret = b"a secret of more than 16 bytes"
    before = distributed._backend
    with LocalCluster() as cluster, connect(cluster.endpoints, secret=secret) as sky:
        distributed.install(Backend(sky, Pickles(codec.dumps, codec.loads, secret)))
        yield
        assert {"pairs", "models", "sparse"} & names(sky), "they have not used our backend"
        distributed.install(before)

def names(sky):
    from skyward_etcd.wire import messages as pb, methods
    request = pb.RangeRequest(key=b"/skyward/default/meta/", range_end=b"/skyward/default/meta0")
    reply = sky._session().wire.call(methods.RANGE, request, timeout_s=3.0)
    return {found.key.decode().rpartition("/")[2] for found in reply.kvs}
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Skyward's tests, of the version that is installed."""
    version = importlib.metadata.version("skyward")
    kept = Path(LAB, "sdist")
    archive = kept / f"skyward-{version}.tar.gz"
    if not archive.exists():  # `run` gets it, from outside the lab
        pytest.skip(f"NO SOURCE of Skyward {version}: its own tests did not run. Put {archive.name} into {kept}")
    directory = tmp_path_factory.mktemp("skyward")
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    return directory / f"skyward-{version}" / "tests"


@pytest.mark.parametrize(
    ("module", "conftest", "tests"),
    [("test_shared_state.py", ON_A_POOL, 5), ("test_collections.py", IN_THIS_PROCESS, 3)],
    ids=["on a pool", "in this process"],
)
def test_skywards_own_tests_pass(theirs: Path, tmp_path: Path, module: str, conftest: str, tests: int) -> None:
    shutil.copy(theirs / module, tmp_path)
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nmarkers =\n    compute\n    local\n    xdist_group\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", module],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tests} passed" in done.stdout
