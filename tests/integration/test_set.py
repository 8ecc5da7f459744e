"""A set that all nodes share: of all who add or discard a member, exactly one is told that it did."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.errors import ValueTooLarge
from tests.integration.conftest import Opener
from tests.integration.helpers import Calls, LossyWire, Scripts, flat, said, sent_by, stored


async def test_add_and_discard_say_whether_they_changed_anything(sky: Connection, calls: Calls) -> None:
    s = calls(sky.set("s"))
    assert await s.add("a")
    assert not await s.add("a")
    assert await s.contains("a")
    assert await s.discard("a")
    assert not await s.discard("a")
    assert not await s.contains("a")


async def test_members_that_are_equal_are_one(sky: Connection, calls: Calls) -> None:
    s = calls(sky.set("s"))
    assert await s.add(1)
    assert not await s.add(1.0)
    assert not await s.add(True)
    assert await s.contains(1.0)
    assert await s.size() == 1
    assert not await s.contains("1")


async def test_members_come_back_as_what_they_were(sky: Connection, calls: Calls) -> None:
    s = calls(sky.set("s", consistency="strong"))
    members = {"", "ü/ö", 42, 2.5, None, b"bytes", (1, ("a", None)), frozenset({1, "a"}), uuid.UUID(int=1), "x" * 200}
    await s.update(members, [42, "twice", "twice"])
    assert set(await s.members()) == members | {"twice"}
    assert await s.size() == len(members) + 1


async def test_an_add_that_changes_nothing_writes_nothing(solo: Connection, calls: Calls) -> None:
    s = calls(solo.set("s"))
    await s.add("a")
    before = solo._session().seen
    assert not await s.add("a")
    assert not await s.discard("b")
    assert await s.contains("a")
    assert solo._session().seen == before


async def test_update_of_many_takes_few_round_trips(solo: Connection, calls: Calls) -> None:
    s = calls(solo.set("s"))
    await s.add(7)
    sent = sent_by(solo)
    await s.update(range(250), range(100, 300))
    assert sent == ["Txn"] * 3
    assert sorted(await s.members()) == list(range(300))
    await s.clear()
    assert await s.size() == 0


def test_it_reads_like_a_python_set(sky: Connection) -> None:
    s = sky.set("s")
    assert not s
    assert s.add("a")
    s.update("bc")
    assert s
    assert ("a" in s, "z" in s, len(s), sorted(s)) == (True, False, 3, ["a", "b", "c"])
    s.clear()
    assert list(s) == []


async def test_it_is_iterated_without_blocking_the_loop(sky: Connection) -> None:
    s = sky.set("s")
    await s.update_async("ab")
    assert sorted([member async for member in s]) == ["a", "b"]


async def test_bad_members_are_refused_before_anything_is_sent(solo: Connection, calls: Calls) -> None:
    s = calls(solo.set("s"))
    sent = sent_by(solo)
    unhashable: list[Any] = [[], {}, {1}, object()]
    for wrong in unhashable:
        for use in (s.add, s.discard, s.contains):
            with pytest.raises(TypeError):
                await use(wrong)
        with pytest.raises(TypeError):
            await s.update(["good", wrong])
    with pytest.raises(ValueTooLarge):
        await s.add("x" * 100_000)
    assert sent == []
    assert stored(solo) == []


async def test_of_many_that_add_one_is_told_that_it_did(sky: Connection, another: Opener, calls: Calls) -> None:
    sets = [calls(sky.set("s")), calls(another(sky).set("s"))] * 2
    for number in range(5):
        assert sum(await asyncio.gather(*[s.add(number) for s in sets])) == 1
    for number in range(5):
        assert sum(await asyncio.gather(*[s.discard(number) for s in sets])) == 1


def test_processes_that_share_out_work_by_a_set_do_each_piece_once(solo: Connection, scripts: Scripts) -> None:
    code = """
        with sky.connect():
            seen = sky.set("seen")
            for number in range(150):
                if seen.add(number):
                    print(number)
    """
    running = [scripts.start(solo, code) for _ in range(3)]
    assert sorted(map(int, flat(said(process) for process in running))) == list(range(150))


async def test_own_adds_are_seen_at_every_member(trio: Connection, calls: Calls) -> None:
    wire = trio._session().wire
    s = calls(trio.set("s"))
    for number in range(40):
        await s.add(number)
        wire.switch(wire.endpoint)
        assert await s.contains(number)
        assert await s.size() == number + 1


async def test_when_answers_are_lost_one_is_told_that_it_added(solo: Connection, calls: Calls) -> None:
    s = calls(solo.set("s"))
    lossy = LossyWire(solo._session(), seed=21)

    async def add_all() -> list[bool]:
        return [await s.add(number) for number in range(25)]

    async def discard_all() -> list[bool]:
        return [await s.discard(number) for number in range(25)]

    added = await asyncio.gather(*[add_all() for _ in range(3)])
    assert [sum(each) for each in zip(*added, strict=True)] == [1] * 25
    discarded = await asyncio.gather(*[discard_all() for _ in range(3)])
    assert [sum(each) for each in zip(*discarded, strict=True)] == [1] * 25
    assert lossy.lost > 20
