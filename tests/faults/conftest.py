"""What the fault tests share: the lab on the network to be had, and the clusters of the integration tier."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from skyward_etcd.testing.faults import FaultLab
from skyward_etcd.testing.network import why_no_namespaces
from tests.integration.conftest import clusters, three_members

__all__ = ["clusters", "three_members"]

KIND = os.environ.get("SKYWARD_ETCD_TEST_NETWORK") or None
"""``namespaces`` or ``proxies``, to have these and no others."""


def pytest_report_header() -> str:
    if KIND == "proxies":
        return "faults: TCP PROXIES, as SKYWARD_ETCD_TEST_NETWORK says"
    missing = why_no_namespaces()
    return f"faults: TCP PROXIES, NO NETWORK NAMESPACES: {missing}" if missing else "faults: network namespaces"


@pytest.fixture
def lab() -> Iterator[FaultLab]:
    with FaultLab(kind=KIND) as running:
        yield running
