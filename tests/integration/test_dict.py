"""A dict that all nodes share: each entry by itself, exactly once, and never older than what a session has seen."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import enum
import threading
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.collections.dict import ABSENT
from skyward_etcd.errors import CorruptValue, UnsupportedType, ValueTooLarge
from tests.integration.conftest import Opener
from tests.integration.helpers import Calls, LossyWire, Scripts, in_threads, said, sent_by, stored

LEVELS: list[Any] = ["eventual", "strong"]
BIG = "x" * 1_000_000


class Color(enum.Enum):
    """What only a pickle can carry."""

    RED = 1


async def test_what_was_set_is_there(sky: Connection, calls: Calls) -> None:
    for level in LEVELS:
        d = calls(sky.dict(f"d {level}", consistency=level))
        assert await d.get("x") is None
        assert await d.get("x", 7) == 7
        await d.set("x", {"loss": 0.25})
        assert await d.get("x") == {"loss": 0.25}
        assert await d.contains("x")
        assert not await d.contains("y")
        await d.set("x", "again")
        assert await d.get("x", 7) == "again"


async def test_a_stored_none_is_a_value(sky: Connection, calls: Calls) -> None:
    d = calls(sky.dict("d"))
    await d.set("k", None)
    assert await d.get("k", "default") is None
    assert await d.contains("k")
    assert await d.setdefault("k", "default") is None
    assert not await d.compare_and_set("k", ABSENT, 1)
    assert await d.compare_and_set("k", None, 1)
    await d.set("k", None)
    assert await d.items() == [("k", None)]
    assert await d.pop("k", "default") is None
    assert await d.pop("k", "default") == "default"


async def test_delete_and_pop_say_whether_there_was_an_entry(sky: Connection, calls: Calls) -> None:
    d = calls(sky.dict("d"))
    await d.update(a=1, b=2)
    assert await d.delete("a")
    assert not await d.delete("a")
    assert await d.pop("b") == 2
    assert await d.pop("b") is None
    assert await d.size() == 0


async def test_setdefault_keeps_what_is_there(sky: Connection, calls: Calls) -> None:
    d = calls(sky.dict("d"))
    assert await d.setdefault("x", [1, (2,)]) == [1, (2,)]
    assert await d.setdefault("x", "other") == [1, (2,)]
    assert await d.setdefault("y") is None
    assert await d.contains("y")


async def test_compare_and_set_compares_as_python_does(sky: Connection, calls: Calls) -> None:
    d = calls(sky.dict("d"))
    assert not await d.compare_and_set("x", 0, 1)
    assert await d.compare_and_set("x", ABSENT, 1)
    assert not await d.compare_and_set("x", ABSENT, 2)
    assert not await d.compare_and_set("x", 2, 3)
    assert await d.compare_and_set("x", 1.0, 2)
    assert await d.get("x") == 2
    await d.set("y", {1, 2})
    assert await d.compare_and_set("y", {2, 1}, "done")


async def test_update_takes_a_mapping_pairs_and_keywords(sky: Connection, calls: Calls) -> None:
    d = calls(sky.dict("d"))
    await d.update({"a": 1, 2: "b"})
    await d.update([("c", 3), ("a", 4)], e=5)
    await d.update()
    assert dict(await d.items()) == {"a": 4, 2: "b", "c": 3, "e": 5}
    assert sorted(map(str, await d.keys())) == ["2", "a", "c", "e"]
    assert sorted(map(str, await d.values())) == ["3", "4", "5", "b"]


async def test_update_of_many_takes_few_round_trips(solo: Connection, calls: Calls) -> None:
    for level in LEVELS:
        d = calls(solo.dict(f"d {level}", consistency=level))
        assert await d.size() == 0
        sent = sent_by(solo)
        await d.update({number: str(number) for number in range(1000)})
        assert sent == ["Txn"] * 10
        assert dict(await d.items()) == {number: str(number) for number in range(1000)}
        await d.clear()
        assert await d.size() == 0


async def test_keys_that_are_equal_are_one_entry(sky: Connection, calls: Calls) -> None:
    d = calls(sky.dict("d"))
    await d.update({1: "int"})
    await d.set(1.0, "float")
    await d.set(True, "bool")
    assert await d.size() == 1
    assert await d.get(1) == "bool"
    await d.set(decimal.Decimal("0.5"), "half")
    assert await d.get(0.5) == "half"
    await d.set(("a", 1), "tuple")
    assert await d.get(("a", True)) == "tuple"
    assert not await d.contains("1")


async def test_keys_come_back_as_what_they_were(sky: Connection, calls: Calls) -> None:
    d = calls(sky.dict("d"))
    keys = [
        *("text", "", "ü/ö %2F\n\0", 42, -1, 2.5, None, b"bytes", (1, ("a", b"b")), frozenset({1, 2})),
        *(uuid.UUID(int=7), dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "k" * 200),
    ]
    await d.update({key: repr(key) for key in keys})
    found = dict(await d.items())
    assert found == {key: repr(key) for key in keys}
    assert {(type(key), repr(key)) for key in found} == {(type(key), repr(key)) for key in keys}


async def test_values_come_back_as_what_they_were(sky: Connection, calls: Calls) -> None:
    d = calls(sky.dict("d"))
    values: list[Any] = [
        *(None, True, 0, -1, 2**100, 0.1, float("inf"), "", "ü", b"\0\1", [], {}, (), (1, [2, (3,)]), {1: "a", "b": 2}),
        *({1, 2}, frozenset(), dt.timedelta(1), decimal.Decimal("1.10"), uuid.UUID(int=1)),
    ]
    for value in values:
        await d.set("k", value)
        found = await d.get("k")
        assert found == value
        assert type(found) is type(value)


async def test_what_was_read_is_a_copy(sky: Connection, calls: Calls) -> None:
    d = calls(sky.dict("d"))
    mine = [1]
    assert await d.setdefault("k", mine) == [1]
    (await d.setdefault("k", mine)).append(2)
    mine.append(3)
    assert await d.get("k") == [1]


async def test_numpy_arrays_travel_without_pickle(solo: Connection, calls: Calls) -> None:
    numpy = pytest.importorskip("numpy")
    d = calls(solo.dict("d"))
    array = numpy.arange(12, dtype="float32").reshape(3, 4)
    await d.set("a", array)
    found = await d.get("a")
    assert found.dtype == array.dtype
    assert (found == array).all()
    assert await d.compare_and_set("a", array, 1)


async def test_clear_removes_this_dict_only(sky: Connection, calls: Calls) -> None:
    d, other = calls(sky.dict("d")), calls(sky.dict("d2"))
    await d.update({number: number for number in range(150)})
    await other.set("x", 1)
    await d.clear()
    assert await d.items() == []
    assert await other.items() == [("x", 1)]


def test_it_reads_like_a_python_dict(sky: Connection) -> None:
    for level in LEVELS:
        d = sky.dict(f"d {level}", consistency=level)
        assert not d
        d["a"] = 1
        d["b"] = None
        assert d
        assert (d["a"], d["b"], len(d), "a" in d, "z" in d) == (1, None, 2, True, False)
        assert list(d) == d.keys() == ["a", "b"]
        assert d.values() == [1, None]
        del d["b"]
        with pytest.raises(KeyError, match="b"):
            d["b"]
        with pytest.raises(KeyError, match="b"):
            del d["b"]
        assert level in repr(d)


async def test_it_is_iterated_without_blocking_the_loop(sky: Connection) -> None:
    d = sky.dict("d")
    await d.update_async(a=1, b=2)
    assert [key async for key in d] == ["a", "b"]


def test_many_entries_are_read_as_they_were_at_one_moment(solo: Connection, another: Opener) -> None:
    """More entries than one page of a range: a writer moves a token back and forth, and every reading has it once."""
    d, writer = solo.dict("d"), another(solo).dict("d")
    d.update(dict.fromkeys(range(10_500), ""))
    d.set(0, "token")
    stop = threading.Event()

    def move() -> None:
        while not stop.is_set():
            writer.update({0: "", 10_499: "token"})
            writer.update({0: "token", 10_499: ""})

    thread = threading.Thread(target=move)
    thread.start()
    try:
        for _ in range(3):
            assert d.values().count("token") == 1
        assert len(d) == 10_500
    finally:
        stop.set()
        thread.join()


# ---- limits and bad input


async def test_a_value_up_to_the_limit_is_stored(sky: Connection, calls: Calls) -> None:
    d = calls(sky.dict("d"))
    await d.set("k", BIG)
    assert await d.get("k") == BIG
    await d.update(dict.fromkeys(range(6), BIG[:300_000]))
    assert await d.size() == 7
    assert await d.pop("k") == BIG


@pytest.mark.parametrize("level", LEVELS)
async def test_bad_input_is_refused_before_anything_is_sent(solo: Connection, calls: Calls, level: Any) -> None:
    d = calls(solo.dict("d", consistency=level))
    sent = sent_by(solo)
    writes: list[Callable[[Any], Awaitable[Any]]] = [
        lambda value: d.set("k", value),
        lambda value: d.setdefault("k", value),
        lambda value: d.compare_and_set("k", ABSENT, value),
        lambda value: d.update({"good": 1, "k": value}),
    ]
    for write in writes:
        with pytest.raises(UnsupportedType):
            await write(object())
        with pytest.raises(ValueTooLarge):
            await write(BIG + BIG)
    unhashable: list[Any] = [[], {}, {1}, object()]
    for key in unhashable:
        for use in (d.get, d.pop, d.delete, d.contains, d.setdefault):
            with pytest.raises(TypeError):
                await use(key)
        with pytest.raises(TypeError):
            await d.set(key, 1)
    assert sent == []
    assert stored(solo) == []


def test_only_two_levels_of_consistency_exist(solo: Connection) -> None:
    for wrong in ("linearizable", "", 1, True):
        with pytest.raises(ValueError, match="eventual"):
            solo.dict("d", consistency=wrong)  # type: ignore[arg-type]


async def test_a_pickle_needs_the_secret(one_member: LocalCluster, opened: Opener, calls: Calls) -> None:
    ours = opened(one_member.endpoints, secret=b"s" * 32)
    d = calls(ours.dict("d"))
    await d.set("color", Color.RED)
    assert await d.get("color") is Color.RED
    with pytest.raises(UnsupportedType, match="secret"):
        await calls(opened(one_member.endpoints).dict("d")).get("color")
    with pytest.raises(CorruptValue):
        await calls(opened(one_member.endpoints, secret=b"t" * 32).dict("d")).get("color")


async def test_a_pop_that_cannot_read_the_value_leaves_it_there(
    one_member: LocalCluster, opened: Opener, calls: Calls
) -> None:
    ours = calls(opened(one_member.endpoints, secret=b"s" * 32).dict("d", consistency="strong"))
    await ours.set("color", Color.RED)
    with pytest.raises(CorruptValue):
        await calls(opened(one_member.endpoints, secret=b"t" * 32).dict("d")).pop("color")
    assert await ours.pop("color") is Color.RED


# ---- what a session sees


@pytest.mark.parametrize("level", LEVELS)
async def test_own_writes_are_seen_at_every_member(trio: Connection, calls: Calls, level: Any) -> None:
    wire = trio._session().wire
    d = calls(trio.dict("d", consistency=level))
    for number in range(60):
        await d.set("k", number)
        wire.switch(wire.endpoint)
        assert await d.get("k") == number
        wire.switch(wire.endpoint)
        assert await d.contains("k")
        assert await d.items() == [("k", number)]


async def test_a_reader_never_goes_back_in_time(trio: Connection, another: Opener, calls: Calls) -> None:
    writer = another(trio)
    wire = trio._session().wire
    d = calls(trio.dict("d"))
    stop = threading.Event()

    def write() -> None:
        for number in range(100_000):
            if stop.is_set():
                return
            writer.dict("d")["k"] = number

    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen: list[int] = []
        for _ in range(150):
            seen.append(await d.get("k", -1))
            wire.switch(wire.endpoint)
    finally:
        stop.set()
        thread.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 5


async def test_a_strong_handle_sees_what_others_wrote_before(trio: Connection, another: Opener, calls: Calls) -> None:
    endpoints = trio._session().endpoints
    reader = another(trio, endpoints=[*endpoints[1:], endpoints[0]])
    ours, theirs = calls(trio.dict("d")), calls(reader.dict("d", consistency="strong"))
    for number in range(60):
        await ours.set("k", number)
        assert await theirs.get("k") == number
        assert await theirs.items() == [("k", number)]


# ---- many at once


async def test_of_many_that_pop_one_gets_the_value(sky: Connection, another: Opener, calls: Calls) -> None:
    dicts = [calls(sky.dict("d")), calls(sky.dict("d")), calls(another(sky).dict("d"))]
    for number in range(5):
        await dicts[0].set("k", number)
        got = await asyncio.gather(*[d.pop("k", "nothing") for d in dicts])
        assert sorted(map(str, got)) == [str(number), "nothing", "nothing"]


async def test_of_many_that_compare_and_set_one_wins(sky: Connection, another: Opener, calls: Calls) -> None:
    d, theirs = calls(sky.dict("d")), calls(another(sky).dict("d"))
    await d.set("k", 0)
    for number in range(5):
        tries = [one.compare_and_set("k", number, number + 1) for one in (d, theirs, d, theirs)]
        assert sum(await asyncio.gather(*tries)) == 1
    assert await d.get("k") == 5


def test_compare_and_set_in_processes_loses_no_step(solo: Connection, scripts: Scripts) -> None:
    code = """
        with sky.connect():
            d = sky.dict("d", consistency="strong")
            d.setdefault("n", 0)
            steps = 0
            while steps < 30:
                there = d["n"]
                steps += d.compare_and_set("n", there, there + 1)
    """
    running = [scripts.start(solo, code) for _ in range(2)]
    for process in running:
        said(process)
    assert solo.dict("d")["n"] == 60


# ---- lost answers


@pytest.mark.parametrize("level", LEVELS)
async def test_when_answers_are_lost_each_entry_is_popped_once(solo: Connection, calls: Calls, level: Any) -> None:
    d = calls(solo.dict("d", consistency=level))
    await d.update({number: number for number in range(40)})
    lossy = LossyWire(solo._session(), seed=11)

    async def pop_all(start: int) -> list[Any]:
        return [await d.pop((start + number) % 40) for number in range(40)]

    got = await asyncio.gather(pop_all(0), pop_all(20))
    assert sorted(value for values in got for value in values if value is not None) == list(range(40))
    assert lossy.lost > 10


async def test_when_answers_are_lost_one_wins_setdefault_and_compare_and_set(solo: Connection, calls: Calls) -> None:
    d = calls(solo.dict("d"))
    lossy = LossyWire(solo._session(), seed=12)

    async def race(me: int) -> tuple[list[Any], list[bool]]:
        defaults = [await d.setdefault(("s", number), (me, number)) for number in range(12)]
        return defaults, [await d.compare_and_set(("c", number), ABSENT, me) for number in range(12)]

    results = await asyncio.gather(*[race(me) for me in range(3)])
    assert len({tuple(defaults) for defaults, _ in results}) == 1
    for number, wins in enumerate(zip(*[wins for _, wins in results], strict=True)):
        assert sum(wins) == 1
        assert await d.get(("c", number)) == wins.index(True)
    assert lossy.lost > 10


def test_when_answers_are_lost_no_step_of_compare_and_set_is_lost_or_doubled(solo: Connection) -> None:
    d = solo.dict("d")
    d["n"] = 0
    LossyWire(solo._session(), seed=13)

    def step(_: int) -> None:
        steps = 0
        while steps < 8:
            there = d["n"]
            steps += d.compare_and_set("n", there, there + 1)

    in_threads(3, step)
    assert d["n"] == 24
