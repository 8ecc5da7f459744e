"""A cluster of one member for the samples, started once a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from skyward_etcd.cluster.bootstrap import LocalCluster


@pytest.fixture(scope="session")
def endpoints() -> Iterator[list[str]]:
    with LocalCluster(1) as cluster:
        yield cluster.endpoints
