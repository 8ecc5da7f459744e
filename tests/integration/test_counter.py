"""A counter that all nodes share: every increment counts exactly once, and no two return the same total."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.errors import CorruptValue
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from tests.integration.conftest import Opener
from tests.integration.helpers import (
    Calls,
    LossyWire,
    Scripts,
    flat,
    in_threads,
    revoke_lease,
    said,
    sent_by,
    stored,
)

LEVELS: list[Any] = ["eventual", "strong"]


async def test_increment_and_decrement_return_the_new_total(sky: Connection, calls: Calls) -> None:
    for level in LEVELS:
        c = calls(sky.counter(f"c {level}", consistency=level))
        assert await c.value() == 0
        assert await c.increment() == 1
        assert await c.increment(10) == 11
        assert await c.decrement() == 10
        assert await c.decrement(20) == -10
        assert await c.increment(0) == -10
        assert await c.value() == -10
        assert await c.increment(10**30) == 10**30 - 10


async def test_reset_sets_the_total(sky: Connection, another: Opener, calls: Calls) -> None:
    c, theirs = calls(sky.counter("c")), calls(another(sky).counter("c"))
    await c.increment(5)
    await theirs.increment(5)
    await c.reset(100)
    assert await theirs.increment() == 101
    assert await c.increment() == 102
    await theirs.reset()
    assert await c.increment() == 1
    await c.reset(-3)
    assert await c.value() == -3


def test_it_reads_like_a_number(sky: Connection) -> None:
    c = sky.counter("c")
    c.increment(3)
    assert (c.value, int(c), c.get()) == (3, 3, 3)
    assert "c" in repr(c)


async def test_bad_amounts_are_refused_before_anything_is_sent(solo: Connection, calls: Calls) -> None:
    c = calls(solo.counter("c"))
    sent = sent_by(solo)
    for wrong in (1.5, "1", None):
        for use in (c.increment, c.decrement, c.reset):
            with pytest.raises(TypeError):
                await use(wrong)
    assert sent == []
    assert stored(solo) == []


async def test_an_increment_takes_one_round_trip(solo: Connection, calls: Calls) -> None:
    c = calls(solo.counter("c"))
    await c.increment()
    sent = sent_by(solo)
    await c.increment()
    await c.decrement()
    assert sent == ["Txn", "Txn"]


async def test_totals_are_unique_and_exact(sky: Connection, another: Opener, calls: Calls) -> None:
    counters = [sky.counter("c"), sky.counter("c"), another(sky).counter("c")]

    async def count(c: Any) -> list[int]:
        return [await c.increment() for _ in range(15)]

    totals = flat(await asyncio.gather(*[count(calls(c)) for c in counters]))
    assert sorted(totals) == list(range(1, 46))
    assert await calls(counters[0]).value() == 45


def test_eight_threads_count_exactly(solo: Connection) -> None:
    c = solo.counter("c")
    totals = in_threads(8, lambda _: [c.increment() for _ in range(100)])
    assert sorted(flat(totals)) == list(range(1, 801))
    assert all(mine == sorted(mine) for mine in totals)
    assert c.value == 800


def test_processes_with_threads_count_exactly(trio: Connection, scripts: Scripts) -> None:
    code = """
        with sky.connect():
            c = sky.counter("c")
            def count():
                for _ in range(60):
                    totals.append(c.increment())
            totals = []
            threads = [threading.Thread(target=count) for _ in range(3)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            print(*totals, sep="\\n")
    """
    running = [scripts.start(trio, code) for _ in range(3)]
    totals = flat(map(int, said(process)) for process in running)
    assert sorted(totals) == list(range(1, 541))
    assert trio.counter("c", consistency="strong").value == 540


async def test_own_increments_are_seen_at_every_member(trio: Connection, calls: Calls) -> None:
    wire = trio._session().wire
    c = calls(trio.counter("c"))
    for number in range(1, 61):
        assert await c.increment() == number
        wire.switch(wire.endpoint)
        assert await c.value() == number


async def test_what_ended_sessions_counted_stays_and_their_shards_do_not(solo: Connection, another: Opener) -> None:
    for _ in range(40):
        other = another(solo)
        other.counter("c").increment(2)
        other._session().close()
    c = solo.counter("c")
    assert c.increment() == 81
    assert len(stored(solo, "counter/c/shards/")) < 40
    assert c.increment() == 82
    assert another(solo).counter("c").increment() == 83
    assert c.value == 83


async def test_it_goes_on_counting_when_the_lease_is_lost(sky: Connection, another: Opener, calls: Calls) -> None:
    c = calls(sky.counter("c"))
    assert await c.increment(5) == 5
    revoke_lease(sky)
    assert await c.increment() == 6
    assert await calls(another(sky).counter("c")).increment() == 7
    assert await c.increment() == 8


def test_when_answers_are_lost_totals_are_exact(solo: Connection, another: Opener) -> None:
    second = another(solo)
    lossy = [LossyWire(solo._session(), seed=31), LossyWire(second._session(), seed=32)]

    def count(me: int) -> list[int]:
        c = (solo, second)[me % 2].counter("c")
        return [c.increment() for _ in range(15)]

    assert sorted(flat(in_threads(4, count))) == list(range(1, 61))
    assert min(wire.lost for wire in lossy) > 3


async def test_when_answers_are_lost_tasks_count_exactly(solo: Connection) -> None:
    c = solo.counter("c")
    lossy = LossyWire(solo._session(), seed=33)

    async def count() -> list[int]:
        return [await c.increment_async() for _ in range(10)]

    assert sorted(flat(await asyncio.gather(*[count() for _ in range(4)]))) == list(range(1, 41))
    assert lossy.lost > 2


def test_when_answers_are_lost_a_reset_takes_no_later_increment_with_it(solo: Connection, another: Opener) -> None:
    """Each reset is to a number far above all others: what was counted since is the distance from it."""
    second = another(solo)
    for session in (solo, second):
        LossyWire(session._session(), seed=34)
    c, theirs = solo.counter("c"), second.counter("c")
    for number in range(1, 9):
        c.reset(1000 * number)
        counted = in_threads(2, lambda me: [(c, theirs)[me].increment() for _ in range(3)])
        assert sorted(flat(counted)) == [1000 * number + step for step in range(1, 7)]


async def test_a_cancelled_increment_does_not_disturb_the_others(solo: Connection) -> None:
    """Increments of a process travel together: who was cancelled may have been counted, and nobody else is troubled."""
    c = solo.counter("c")
    await c.increment_async()
    unsure = 0
    for number in range(30):
        tasks = [asyncio.create_task(c.increment_async()) for _ in range(4)]
        await asyncio.sleep(0.0002 * (number % 10))
        tasks[number % 4].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for task, result in zip(tasks, results, strict=True):
            unsure += task is tasks[number % 4] and isinstance(result, asyncio.CancelledError)
            assert task is tasks[number % 4] or isinstance(result, int), repr(result)
    counted = await c.value_async()
    assert 1 + 120 - unsure <= counted <= 1 + 120
    assert await c.increment_async() == counted + 1


def test_what_no_counter_has_written_is_told_apart(solo: Connection) -> None:
    session = solo._session()
    key = session.layout.collection("counter", "c") + b"base"
    session.wire.call(methods.PUT, pb.PutRequest(key=key, value=b"by hand"), timeout_s=3)
    with pytest.raises(CorruptValue, match="by hand"):
        solo.counter("c").increment()
