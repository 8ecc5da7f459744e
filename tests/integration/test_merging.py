"""Calls of many threads and tasks travel together on real etcd, and nobody can tell."""

from __future__ import annotations

import asyncio

from skyward_etcd.active import Connection
from tests.integration.helpers import Calls, LossyWire, sent_by

PARTICIPANTS = 40
ROUNDS = 5


async def test_many_calls_travel_together_and_each_has_its_own_outcome(solo: Connection, calls: Calls) -> None:
    entries, members = calls(solo.dict("d", consistency="strong")), calls(solo.set("s"))
    jobs = calls(solo.queue("q"))
    await entries.set("ready", True)
    await asyncio.gather(members.add("ready"), jobs.put("ready"))
    sent = sent_by(solo)

    async def participate(me: int) -> list[object]:
        outcomes: list[object] = []
        for number in range(ROUNDS):
            await entries.set(f"{me}", number)
            outcomes += [await entries.get(f"{me}"), await members.add(number), await entries.setdefault("one", me)]
        await jobs.put(me)
        return outcomes

    outcomes = await asyncio.gather(*map(participate, range(PARTICIPANTS)))
    assert [each[::3] for each in outcomes] == [list(range(ROUNDS))] * PARTICIPANTS, "who writes reads what it wrote"
    added = [each[1::3] for each in outcomes]
    assert [sum(1 for each in added if each[number]) for number in range(ROUNDS)] == [1] * ROUNDS, "one was the first"
    assert len({each[2] for each in outcomes}) == 1, "all agree on who was first"
    assert len(sent) < PARTICIPANTS * (ROUNDS * 4 + 1) / 1.5
    assert set(await solo.queue("q").get_many_async(PARTICIPANTS + 1)) == {"ready", *range(PARTICIPANTS)}


async def test_when_answers_of_many_are_lost_nothing_is_lost_or_done_twice(solo: Connection, calls: Calls) -> None:
    total, entries = calls(solo.counter("c", consistency="strong")), calls(solo.dict("d", consistency="strong"))
    members = calls(solo.set("s"))
    await total.increment()
    await entries.set("ready", True)
    await members.add("ready")
    lossy = LossyWire(solo._session(), seed=71)

    async def participate(me: int) -> list[bool]:
        for number in range(ROUNDS):
            await total.increment()
            await entries.set(f"{me}", number)
        return [await members.add(f"{me}"), await members.add(f"{me}")]

    added = await asyncio.gather(*map(participate, range(PARTICIPANTS)))
    assert added == [[True, False]] * PARTICIPANTS
    assert await total.value() == 1 + PARTICIPANTS * ROUNDS
    assert [await entries.get(f"{me}") for me in range(PARTICIPANTS)] == [ROUNDS - 1] * PARTICIPANTS
    assert lossy.lost > 20
