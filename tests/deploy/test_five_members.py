"""The overlay for spot machines, started: five members of which two are taken away, and workers that run to the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import skyward_etcd as sky
from tests.deploy.certified import certified, client_tls
from tests.deploy.sandbox import Sandbox, free_network, start, tools, worker_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MEMBERS = tuple(f"etcd-{i}" for i in range(5))


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    tools()
    network = free_network()
    with Sandbox(certified("spot", tmp_path, network), tmp_path, network=network) as sandbox:
        start(sandbox, *MEMBERS)
        yield sandbox


def test_two_of_five_members_and_a_worker_may_go(sandbox: Sandbox, tmp_path: Path) -> None:
    endpoints = [f"https://{sandbox.address(name)}:2379" for name in MEMBERS]
    with sky.connect(endpoints, tls=client_tls(tmp_path / "pem")) as cluster:
        cluster.queue("tasks").put_many(range(12))
        sandbox.kill("etcd-1")
        sandbox.kill("etcd-3")
        first = sandbox.start("batch", command=worker_command())
        assert first.wait(60) == 0, first.said
        assert cluster.counter("done").value == 12
        start(sandbox, "etcd-1", "etcd-3")
