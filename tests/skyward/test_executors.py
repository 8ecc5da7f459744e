"""Functions in child processes: each child has a session of its own, and waits with all others at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.skyward.conftest import pool_of
from tests.skyward.functions import ours, session, use_all
from tests.skyward.test_pool import check

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
NODES, EACH = 2, 2


@pytest.fixture(scope="module", params=["process", "loky"])
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    with pool_of(NODES, executor=request.param, concurrency=EACH) as opened:
        yield opened


def everywhere(pool: Any, call: Any) -> list[Any]:
    """Run as many calls at once as the pool has places."""
    import skyward as sky

    return list(pool.gather(sky.gather(*(call for _ in range(NODES * EACH)))))


def test_all_six_collections_agree_between_all_children(pool: Any) -> None:
    """Each of them waits at a barrier, at the same time."""
    check(everywhere(pool, use_all("children", NODES * EACH)), NODES * EACH)


def test_each_child_has_a_session_of_its_own(pool: Any) -> None:
    said = [one for _ in range(3) for one in everywhere(pool, session())]
    processes = {(pid, identity) for pid, identity, _ in said}
    assert len({identity for _, identity in processes}) == len(processes), "two processes share one"
    assert len(processes) >= NODES


def test_our_own_api_is_on_the_same_collections(pool: Any) -> None:
    assert [is_same for _, is_same, _ in ours("both") @ pool] == [True] * NODES
