"""A queue that all nodes share: each item to exactly one consumer, in the order in which the puts were committed."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from functools import partial
from typing import Any

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.errors import NotConnected, UnsupportedType, ValueTooLarge
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
    until,
    watchers,
)

NOTHING = object()


async def test_items_come_out_in_the_order_in_which_they_were_put(sky: Connection, calls: Calls) -> None:
    q = calls(sky.queue("q"))
    for number in range(20):
        await q.put(number)
    await q.put_many(range(20, 200))
    assert await q.size() == 200
    assert [await q.get() for _ in range(100)] == list(range(100))
    assert await q.get_many(60) == list(range(100, 160))
    assert await q.get_many(1000) == list(range(160, 200))
    assert await q.empty()
    assert await q.size() == 0


async def test_puts_of_several_sessions_keep_their_order(sky: Connection, another: Opener, calls: Calls) -> None:
    queues = [calls(sky.queue("q")), calls(another(sky).queue("q")), calls(sky.queue("q"))]
    for number in range(150):  # more than a page of each
        await queues[number % 3].put(number)
    assert [await queues[number % 2].get() for number in range(150)] == list(range(150))


async def test_a_get_that_finds_nothing_returns_the_default(sky: Connection, calls: Calls) -> None:
    q = calls(sky.queue("q"))
    assert await q.get(timeout=0) is None
    assert await q.get(timeout=0.02) is None
    assert await q.get(timeout=0.02, default=NOTHING) is NOTHING
    assert await q.get_many(3, timeout=0.02) == []
    assert await q.poll() is None
    assert watchers(sky) == 0
    assert stored(sky) == []


async def test_a_stored_none_is_an_item(sky: Connection, calls: Calls) -> None:
    q = calls(sky.queue("q"))
    await q.put_many([None, None])
    assert await q.get(timeout=0, default=NOTHING) is None
    assert await q.get_many(5) == [None]
    assert await q.get(timeout=0, default=NOTHING) is NOTHING


async def test_items_come_back_as_what_they_were(sky: Connection, calls: Calls) -> None:
    q = calls(sky.queue("q"))
    items = [None, True, 1, 1.0, "ü", b"\0", (1, [2]), {1: {2}}, "x" * 1_000_000, {"path": "a/b", "n": 3}]
    await q.put_many(items)
    found = await q.get_many(len(items))
    assert found == items
    assert list(map(type, found)) == list(map(type, items))


async def test_clear_removes_all_items_and_the_queue_goes_on(sky: Connection, another: Opener, calls: Calls) -> None:
    q, theirs = calls(sky.queue("q")), calls(another(sky).queue("q"))
    await q.put_many(range(100))
    assert await theirs.get() == 0
    await q.clear()
    assert await theirs.empty()
    assert await theirs.get(timeout=0) is None
    await theirs.put("new")
    assert await q.size() == 1
    assert await q.get() == "new"


def test_it_has_a_length_and_a_truth(sky: Connection) -> None:
    q = sky.queue("q")
    assert not q
    q.offer("a")
    assert q
    assert (len(q), q.poll(), len(q)) == (1, "a", 0)


async def test_bad_input_is_refused_before_anything_is_sent(solo: Connection, calls: Calls) -> None:
    q = calls(solo.queue("q"))
    sent = sent_by(solo)
    error: type[Exception]
    for wrong, error in ((object(), UnsupportedType), ("x" * 2_000_000, ValueTooLarge)):
        with pytest.raises(error):
            await q.put(wrong)
        with pytest.raises(error):
            await q.put_many(["good", wrong])
    for timeout, error in ((-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="timeout"):
            await q.get(timeout=timeout)
        with pytest.raises(error, match="timeout"):
            await q.get_many(1, timeout=timeout)
    for count, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="n is"):
            await q.get_many(count)
    assert sent == []
    assert stored(solo) == []


async def test_put_and_get_take_one_round_trip_at_any_length(solo: Connection, calls: Calls) -> None:
    q = calls(solo.queue("q"))
    for length in (10, 2000):
        await q.put_many(range(length))
        await q.get()
        sent = sent_by(solo)
        for _ in range(9):
            await q.get()
        await q.put("x")
        assert len(sent) <= 11, "more than one round trip, apart from a look for the next page"
        await q.clear()
        await q.empty()


# ---- waiting


async def test_a_waiting_get_is_woken_at_once_and_asks_nothing_meanwhile(
    solo: Connection, another: Opener, calls: Calls
) -> None:
    q, producer = calls(solo.queue("q")), another(solo).queue("q")
    await q.get(timeout=0.01)
    delays: list[float] = []
    for number in range(7):
        waiting = asyncio.ensure_future(q.get(timeout=20))
        await until(lambda: watchers(solo) == 1)
        sent = sent_by(solo)
        await asyncio.sleep(0.15 if number == 0 else 0.02)
        assert len(sent) <= 2, "it polls"
        began = time.perf_counter()
        await producer.put_async(number)
        assert await waiting == number
        delays.append(time.perf_counter() - began)
    assert max(delays) < 5, "it was not told, and looked again"
    assert watchers(solo) == 0


async def test_waiters_of_a_process_get_items_in_the_order_in_which_they_came(sky: Connection, calls: Calls) -> None:
    q, waiting = calls(sky.queue("q")), list[asyncio.Task[Any]]()
    for number in range(4):
        waiting.append(asyncio.create_task(q.get(timeout=20)))
        await until(partial(_wait_idly, sky, number + 1))
    for number in range(4):
        await sky.queue("q").put_async(number)
        await asyncio.wait(waiting[number:], return_when=asyncio.FIRST_COMPLETED)
    assert await asyncio.gather(*waiting) == [0, 1, 2, 3]


async def test_every_waiter_gets_an_item_of_a_bunch(sky: Connection, another: Opener, calls: Calls) -> None:
    queues = [sky.queue("q"), another(sky).queue("q")]
    waiting = [asyncio.create_task(calls(queues[number % 2]).get(timeout=20)) for number in range(8)]
    await until(lambda: watchers(sky) == 4)
    await queues[0].put_many_async(range(8))
    assert sorted(await asyncio.gather(*waiting)) == list(range(8))
    assert stored(sky, "queue/q/items/") == []


async def test_a_cancelled_wait_leaves_nothing_and_the_item_to_others(sky: Connection) -> None:
    q = sky.queue("q")
    waiting = [asyncio.create_task(q.get_async()) for _ in range(3)]
    await until(lambda: watchers(sky) == 3)
    waiting[0].cancel()
    waiting[1].cancel()
    await asyncio.wait(waiting[:2])
    assert watchers(sky) == 1
    await q.put_async("x")
    assert await waiting[2] == "x"
    assert watchers(sky) == 0


async def test_a_get_cancelled_at_any_moment_takes_no_item_away(solo: Connection) -> None:
    q, luck = solo.queue("q"), random.Random(1)
    await q.get_async(timeout=0.01)
    got: list[Any] = []
    for number in range(120):
        await q.put_async(number)
        waiting = asyncio.create_task(q.get_async())
        await asyncio.sleep(luck.random() * 0.003)
        waiting.cancel()
        await asyncio.wait([waiting])
        if not waiting.cancelled():
            got.append(waiting.result())
    while len(got) < 120 and (more := await q.get_many_async(120, timeout=5)):
        got += more  # what a cancelled get had taken comes back from the background
    assert sorted(got) == list(range(120))
    assert await q.get_async(timeout=0.05) is None


async def test_a_waiter_cancelled_as_it_is_woken_leaves_the_item_to_the_next(solo: Connection, another: Opener) -> None:
    """An item is handed to one waiter of the process. If that one is cancelled just then, the next must hear of it."""
    q, producer, luck = solo.queue("q"), another(solo).queue("q"), random.Random(2)
    await q.get_async(timeout=0.01)
    for number in range(40):
        first = asyncio.create_task(q.get_async())
        await until(lambda: watchers(solo) == 1)
        second = asyncio.create_task(q.get_async())
        await until(lambda: watchers(solo) == 2)
        await producer.put_async(number)
        await asyncio.sleep(luck.random() * 0.002)
        first.cancel()
        await asyncio.wait([first])
        if not first.cancelled():
            assert first.result() == number
            await producer.put_async(number)
        async with asyncio.timeout(5):
            assert await second == number


async def test_closing_the_session_ends_a_wait(solo: Connection, another: Opener, calls: Calls) -> None:
    other = another(solo)
    waiting = asyncio.ensure_future(calls(other.queue("q")).get())
    await until(lambda: watchers(other) == 1)
    other._session().close()
    with pytest.raises(NotConnected, match="closed"):
        await asyncio.wait_for(waiting, 5)


# ---- many at once


def test_processes_that_share_a_queue_lose_and_double_nothing(trio: Connection, scripts: Scripts) -> None:
    producer = """
        with sky.connect():
            q = sky.queue("q")
            for number in range(120):
                q.put([int(sys.argv[1]), number])
    """
    consumer = """
        with sky.connect():
            q = sky.queue("q")
            while (item := q.get(timeout=20)) is not None:
                print(*item)
    """
    consumers = [scripts.start(trio, consumer) for _ in range(2)]
    producers = [scripts.start(trio, producer, name) for name in range(2)]
    for process in producers:
        said(process)
    trio.queue("q").put_many([None] * 2)
    got = [[tuple(map(int, line.split())) for line in said(process)] for process in consumers]
    assert sorted(flat(got)) == [(name, number) for name in range(2) for number in range(120)]
    for name in range(2):
        for mine in got:
            numbers = [number for producer, number in mine if producer == name]
            assert numbers == sorted(numbers)


def test_what_was_put_before_comes_out_before(trio: Connection, another: Opener) -> None:
    """Linearizable: of two puts that did not overlap, the first comes out first, whoever made them."""
    sessions = [trio, another(trio), another(trio)]
    clock = time.perf_counter

    def put(me: int) -> list[tuple[float, float, tuple[int, int]]]:
        q = sessions[me % 3].queue("q")
        times: list[tuple[float, float, tuple[int, int]]] = []
        for number in range(60):
            began = clock()
            q.put((me, number))
            times.append((began, clock(), (me, number)))
        return times

    puts = flat(in_threads(6, put))
    place = {item: number for number, item in enumerate(trio.queue("q").get_many(10_000))}
    assert len(place) == 360
    puts.sort(key=lambda times: place[times[2]])
    latest_start = 0.0
    for began, ended, item in puts:
        assert ended > latest_start, f"{item} was put before one that came out earlier"
        latest_start = max(latest_start, began)


def test_eight_threads_take_each_item_once(solo: Connection) -> None:
    q = solo.queue("q")
    q.put_many(range(400))
    got = in_threads(8, lambda _: [q.get() for _ in range(50)])
    assert sorted(flat(got)) == list(range(400))
    assert all(mine == sorted(mine) for mine in got)


def test_a_producer_and_a_waiting_consumer_in_one_process_keep_up(solo: Connection) -> None:
    q, got = solo.queue("q"), list[int]()
    consumer = threading.Thread(target=lambda: got.extend(iter(q.get, "end")))
    consumer.start()
    for number in range(200):
        q.put(number)
    q.put("end")
    consumer.join()
    assert got == list(range(200))


async def test_it_goes_on_when_the_lease_is_lost(sky: Connection, calls: Calls) -> None:
    q = calls(sky.queue("q"))
    await q.put("before")
    await q.get_many(1)
    await q.put(1)
    revoke_lease(sky)
    await q.put(2)
    revoke_lease(sky)
    assert await q.get() == 1
    assert await q.get() == 2


# ---- lost answers


async def test_when_answers_are_lost_no_item_is_lost_or_doubled(solo: Connection, calls: Calls) -> None:
    queues = [calls(solo.queue("q")), calls(solo.queue("q"))]
    lossy = LossyWire(solo._session(), seed=41)

    async def put(me: int) -> None:
        for number in range(20):
            await queues[me].put((me, number))

    async def get(me: int) -> list[Any]:
        return [await queues[me].get(timeout=30) for _ in range(20)]

    *_, first, second = await asyncio.gather(put(0), put(1), get(0), get(1))
    assert sorted(first + second) == [(me, number) for me in range(2) for number in range(20)]
    assert await queues[0].empty()
    assert lossy.lost > 20


async def test_when_answers_are_lost_many_items_keep_their_order(solo: Connection, calls: Calls) -> None:
    q = calls(solo.queue("q"))
    LossyWire(solo._session(), seed=42)
    await q.put_many(range(300))
    got: list[int] = []
    while len(got) < 300:
        got += await q.get_many(random.Random(len(got)).randint(1, 90), timeout=0)
    assert got == list(range(300))


def _wait_idly(sky: Connection, number: int) -> bool:
    """Tell whether so many wait for an item and have nothing more to ask: who has come may still be looking."""
    watches = list(sky._session().hub._watches._watches.values())
    return sum(bool(each._wakers) for watch in watches if b"/items/" in watch.key for each in watch.watchers) == number
