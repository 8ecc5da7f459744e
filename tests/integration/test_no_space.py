"""A cluster whose quota is reached: what was refused was not done, and what was done is said to be done."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.cluster import member
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.errors import NoSpace
from tests.integration.conftest import BINARIES, Opener, usable
from tests.integration.helpers import Calls, keys_under

QUOTA_BYTES = 2 << 20
LARGE = "x" * 100_000
"""A value of which the quota holds some twenty."""


@pytest.fixture(params=BINARIES)
def narrow(request: pytest.FixtureRequest, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A session on a cluster that holds little."""
    monkeypatch.setattr(member, "QUOTA_BYTES", QUOTA_BYTES)
    with LocalCluster(1, etcd=usable(request.param)) as cluster:
        sky = opened(cluster.endpoints)
        yield sky
        sky._session().close()


async def test_what_is_answered_with_no_space_was_not_done(narrow: Connection, calls: Calls) -> None:
    """Many at once, so that the write that reaches the quota is among them: etcd applies it, and says `NoSpace`."""
    strong, items, numbers = narrow.dict("d", consistency="strong"), narrow.queue("q"), narrow.set("s")
    done: dict[str, set[int]] = {"dict": set(), "queue": set(), "set": set()}
    totals: list[int] = []
    refused = 0

    async def use(kind: str, number: int) -> None:
        nonlocal refused
        try:
            match kind:
                case "dict":
                    await calls(strong).set(number, LARGE)
                case "queue":
                    await calls(items).put([number, LARGE])
                case "set":
                    await calls(numbers).add(number)
                case _:
                    totals.append(await calls(narrow.counter("c")).increment())
        except NoSpace:
            refused += 1
        else:
            done.get(kind, set()).add(number)

    for number in itertools.count(0, 4):  # etcd looks at its size ten times a second, and may be quick
        kinds = [(kind, one) for kind in (*done, "counter") for one in range(number, number + 4)]
        await asyncio.gather(*(use(*each) for each in kinds))
        if refused:
            break
    assert set(await calls(strong).keys()) == done["dict"]
    stored = keys_under(narrow._session(), "")
    assert sum(key.startswith("queue/q/items/") for key in stored) == len(done["queue"])
    assert sum(key.startswith("set/s/") for key in stored) == len(done["set"])
    assert sorted(totals) == list(range(1, len(totals) + 1))
    assert await calls(narrow.counter("c")).value() == len(totals)
