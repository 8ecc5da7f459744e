"""Exactly once, on a real cluster whose connections are cut after the bytes of a request have passed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.session.session import Session
from skyward_etcd.testing.proxy import Faults, Proxy
from skyward_etcd.testing.recorder import Recorder
from tests.faults.load import KINDS, Load
from tests.faults.naive import PLANTED, with_naive
from tests.faults.verdict import Committed, Histories, judge, read_at_the_end, violations
from tests.integration.helpers import Calls, until

SHARE = 0.1
SESSIONS = (("blocking 1", True), ("blocking 2", True), ("asyncio 1", False), ("asyncio 2", False))


@pytest.fixture
def proxies(three_members: LocalCluster) -> Iterator[list[Proxy]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(Proxy(endpoint, seed=number)) for number, endpoint in enumerate(three_members.endpoints)
        ]


@pytest.mark.parametrize("seed", [1, 2])
async def test_lost_answers_neither_lose_nor_double_anything(
    seed: int, proxies: list[Proxy], three_members: LocalCluster
) -> None:
    committed = from_now(three_members.endpoints, f"once-{seed}")
    histories = await under_cuts(proxies, f"once-{seed}", seed=seed)

    found = await asyncio.to_thread(verdicts, three_members.endpoints, f"once-{seed}", histories, committed)
    assert not found, "\n\n".join(found) + f"\n{histories}"
    unknown = {each.call for each in histories.unknown()}
    assert unknown <= {"get", "claim"}, "every member answers all the time: only who is in a hurry may have to give up"


@pytest.mark.parametrize("kind", PLANTED)
async def test_a_naive_retry_is_caught(kind: str, proxies: list[Proxy], three_members: LocalCluster) -> None:
    namespace = f"naive-{kind}"
    committed = from_now(three_members.endpoints, namespace)
    histories = await under_cuts(proxies, namespace, seed=1, naive=kind)

    found = await asyncio.to_thread(verdicts, three_members.endpoints, namespace, histories, committed)
    assert [violation.partition(":")[0] for violation in found] == [kind], f"{found}\n{histories}"


async def under_cuts(
    proxies: list[Proxy],
    namespace: str,
    *,
    seed: int,
    naive: str | None = None,
    hits: int = 100,
) -> Histories:
    """Put load on all collections until so many answers were lost, and return what was seen."""
    histories = Histories()
    recorder = Recorder(histories.add)
    behind = [proxy.endpoint for proxy in proxies]
    async with contextlib.AsyncExitStack() as stack:
        loads: list[Load] = []
        kinds = KINDS if naive is None else (naive,)
        for number, (name, blocking) in enumerate(SESSIONS):
            # Each prefers another member, as the nodes of a pool do.
            at = number % len(behind)
            session = await Session([*behind[at:], *behind[:at]], namespace=namespace).open_async()
            stack.push_async_callback(session.close_async)
            calls = Calls(blocking=blocking)
            stack.callback(calls.close)
            sky = Connection(session) if naive is None else with_naive(naive, session)
            loads.append(Load(sky, calls, name, recorder, parties=len(SESSIONS), seed=seed, kinds=kinds))
        for proxy in proxies:
            proxy.break_(Faults(cuts_after_request=SHARE))
        working = asyncio.gather(*(load.run() for load in loads))
        await until(lambda: working.done() or sum(proxy.lost_replies for proxy in proxies) >= hits, within_s=50.0)
        for load in loads:
            load.stop()
        await working
        for proxy in proxies:
            proxy.heal()
    lost = sum(proxy.lost_replies for proxy in proxies)
    assert lost >= hits, f"only {lost} answers were lost: the test has not tested"
    return histories


def from_now(endpoints: list[str], namespace: str) -> Committed:
    """Return etcd's history of the queue, to be read from now on."""
    committed = Committed()
    committed.skip(Session(endpoints, namespace=namespace))
    return committed


def verdicts(endpoints: list[str], namespace: str, histories: Histories, committed: Committed) -> list[str]:
    """Read the end state past the proxies, and return what is wrong."""
    with Session(endpoints, namespace=namespace) as session:
        read_at_the_end(Connection(session), histories)
        committed.read(session)
    return violations(judge(histories, committed, parties=len(SESSIONS)))
