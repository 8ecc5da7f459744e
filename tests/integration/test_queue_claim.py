"""A queue that loses no work: an item whose worker fails or dies is at its old place again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from typing import Any

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.collections.claim import Claim
from skyward_etcd.errors import CorruptValue, HoldLost, NotConnected, NotHeld, WrongKind
from skyward_etcd.ops import kv
from skyward_etcd.wire.client import Wire
from skyward_etcd.wire.methods import RANGE
from tests.integration.conftest import Opener
from tests.integration.helpers import (
    Calls,
    LossyWire,
    Scripts,
    flat,
    in_threads,
    next_line,
    revoke_lease,
    said,
    sent_by,
    stored,
    until,
    watchers,
)


async def test_an_acknowledged_item_is_gone(sky: Connection, another: Opener, calls: Calls) -> None:
    q, theirs = calls(sky.queue("q")), calls(another(sky).queue("q"))
    await q.put_many(["a", "b"])
    job = await q.claim()
    assert (job.value, job.deliveries, job.valid) == ("a", 1, True)
    assert (await theirs.size(), await theirs.claimed()) == (1, 1)
    await calls(job).ack()
    assert not job.valid
    assert (await theirs.size(), await theirs.claimed()) == (1, 0)
    assert [(await theirs.claim()).value, await theirs.claim(timeout=0)] == ["b", None]


async def test_nobody_else_gets_a_claimed_item(sky: Connection, another: Opener, calls: Calls) -> None:
    q, theirs = calls(sky.queue("q")), calls(another(sky).queue("q"))
    await q.put_many(range(5))
    jobs = [await q.claim(), await theirs.claim()]
    assert [job.value for job in jobs] == [0, 1]
    assert await theirs.get() == 2
    assert await q.get_many(5) == [3, 4]
    assert await q.empty()
    assert await theirs.get(timeout=0) is None
    assert await q.claim(timeout=0.02) is None
    for job in jobs:
        await calls(job).ack()
    assert stored(sky, "queue/q/items/") == stored(sky, "queue/q/claims/") == stored(sky, "queue/q/deliveries/") == []


async def test_a_released_item_is_the_oldest_again(sky: Connection, another: Opener, calls: Calls) -> None:
    q, theirs = calls(sky.queue("q")), calls(another(sky).queue("q"))
    await q.put_many(range(100))
    for number in range(100, 170):  # several pages
        await q.put(number)
    jobs = [await q.claim() for _ in range(90)]
    assert [await theirs.get() for _ in range(3)] == [90, 91, 92]
    await calls(jobs[5]).release()
    again = await theirs.claim()
    assert (again.value, again.deliveries) == (5, 2)
    await calls(jobs[3]).release()
    await calls(jobs[4]).release()
    assert [await theirs.get(), (await q.claim()).value, await theirs.get()] == [3, 4, 93]
    await calls(again).release()
    last = await q.claim()
    assert (last.value, last.deliveries) == (5, 3)


async def test_a_block_acknowledges_or_gives_back(sky: Connection) -> None:
    q = sky.queue("q")
    await q.put_many_async(["sync", "async"])

    def block(*, fails: bool) -> None:
        with q.claim() as job:
            assert job.value == "sync"
            if fails:
                raise ZeroDivisionError

    async def block_async(*, fails: bool) -> None:
        async with await q.claim_async() as job:
            assert job.value == "async"
            if fails:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(block, fails=True)
    assert await q.size_async() == 2
    await asyncio.to_thread(block, fails=False)
    with pytest.raises(ZeroDivisionError):
        await block_async(fails=True)
    assert await q.size_async() == 1
    await block_async(fails=False)
    assert (await q.size_async(), await q.claimed_async()) == (0, 0)


async def test_a_block_may_decide_by_itself(solo: Connection) -> None:
    q = solo.queue("q")
    await q.put_async("x")
    async with await q.claim_async() as job:
        await job.release_async()
    assert await q.size_async() == 1
    async with await q.claim_async() as job:
        await job.ack_async()
        with pytest.raises(NotHeld, match="before"):
            await job.ack_async()
        with pytest.raises(NotHeld, match="before"):
            await job.release_async()
    assert (await q.size_async(), await q.claimed_async()) == (0, 0)


async def test_operators_see_who_has_what(solo: Connection, another: Opener, calls: Calls) -> None:
    q = calls(solo.queue("q"))
    await q.put("x")
    await calls(await q.claim()).release()
    job = await calls(another(solo).queue("q")).claim()
    (key,) = stored(solo, "queue/q/claims/")
    wire, root = solo._session().wire, solo._session().layout.root
    shown = json.loads(_read(wire, root + key.encode()))
    assert shown.pop("since").endswith("Z")
    assert shown == {"node": solo._session().node, "pid": os.getpid(), "deliveries": 2}
    assert job.deliveries == 2


# ---- lost claims


async def test_the_ack_of_a_lost_claim_is_refused_and_removes_nothing(
    sky: Connection, another: Opener, calls: Calls
) -> None:
    q, theirs = calls(sky.queue("q")), calls(another(sky).queue("q"))
    await q.put_many(["a", "b"])
    jobs = [await q.claim(), await q.claim()]
    revoke_lease(sky)
    held = await theirs.claim()
    assert (held.value, held.deliveries) == ("a", 2)
    with pytest.raises(HoldLost, match="TTL"):
        await calls(jobs[0]).ack()
    await calls(jobs[1]).release()  # it has come back already
    assert not jobs[0].valid
    assert not jobs[1].valid
    assert (await theirs.claimed(), await theirs.size()) == (1, 1)
    await calls(held).ack()
    assert await q.get() == "b"


async def test_a_block_that_lost_its_claim_says_so(sky: Connection) -> None:
    q = sky.queue("q")
    await q.put_async("x")

    async def lose(*, fails: bool) -> None:
        async with await q.claim_async():
            revoke_lease(sky)
            if fails:
                raise ZeroDivisionError

    with pytest.raises(HoldLost):
        await lose(fails=False)
    with pytest.raises(ZeroDivisionError):  # says more
        await lose(fails=True)
    assert await q.get_async() == "x"


async def test_the_work_of_a_killed_process_comes_back_within_its_ttl(
    solo: Connection, scripts: Scripts, calls: Calls
) -> None:
    q = calls(solo.queue("q"))
    await q.put_many(["first", "second"])
    worker = scripts.start(
        solo,
        """
        with limited(ttl_s=5) as conn:
            job = conn.queue("q").claim()
            print(job.value, flush=True)
            signal.pause()
        """,
    )
    assert next_line(worker) == "first"
    assert await q.get() == "second"
    assert await q.claim(timeout=0) is None
    worker.send_signal(signal.SIGKILL)
    began = time.monotonic()
    job = await q.claim(timeout=20)
    assert (job.value, job.deliveries) == ("first", 2)
    assert time.monotonic() - began < 10
    await calls(job).ack()


async def test_closing_a_session_gives_its_work_back_at_once(sky: Connection, another: Opener, calls: Calls) -> None:
    q, other = calls(sky.queue("q")), another(sky)
    await q.put("x")
    job = await calls(other.queue("q")).claim()
    waiting = asyncio.ensure_future(q.claim(timeout=20))
    await until(lambda: watchers(sky) == 1)
    other._session().close()
    again = await asyncio.wait_for(waiting, 3)
    assert (again.value, again.deliveries) == ("x", 2)
    assert not job.valid
    with pytest.raises(NotConnected):
        await calls(job).ack()


async def test_clear_removes_what_is_claimed_too(sky: Connection, calls: Calls) -> None:
    q = calls(sky.queue("q"))
    await q.put_many(range(3))
    job = await q.claim()
    await q.clear()
    assert (await q.size(), await q.claimed()) == (0, 0)
    with pytest.raises(HoldLost, match="cleared"):
        await calls(job).ack()


async def test_what_cannot_be_read_can_be_acknowledged(solo: Connection, opened: Opener, calls: Calls) -> None:
    session = solo._session()
    signing = opened(list(session.endpoints), namespace=session.layout.namespace, secret=b"their secret" * 2)
    reading = opened(list(session.endpoints), namespace=session.layout.namespace, secret=b"our secret" * 2)
    await signing.queue("q").put_async(Strange())
    with pytest.raises(CorruptValue):
        async with await reading.queue("q").claim_async() as job:
            assert job.value
    async with await reading.queue("q").claim_async() as job:
        assert job.deliveries == 2
    assert await calls(reading.queue("q")).empty()


class Strange:
    """No data: it has to be pickled."""


# ---- waiting


async def test_a_waiting_claim_is_woken_by_what_is_put_and_what_is_given_back(
    sky: Connection, another: Opener, calls: Calls
) -> None:
    q, theirs = calls(sky.queue("q")), calls(another(sky).queue("q"))
    for returns in (False, True, True):
        jobs = [await theirs.claim()] if returns else []
        waiting = asyncio.ensure_future(q.claim(timeout=20))
        await until(lambda: watchers(sky) == 1)
        began = time.perf_counter()
        if jobs:
            await calls(jobs[0]).release()
        else:
            await theirs.put("x")
        mine = await waiting
        assert time.perf_counter() - began < 5
        assert mine.value == "x"
        await calls(mine).release()
    assert watchers(sky) == 0


async def test_a_waiting_claim_is_woken_when_a_lease_ends(sky: Connection, another: Opener, calls: Calls) -> None:
    q, other = calls(sky.queue("q")), another(sky)
    await q.put("x")
    await other.queue("q").claim_async()
    waiting = asyncio.ensure_future(q.claim(timeout=20))
    await until(lambda: watchers(sky) == 1)
    revoke_lease(other)
    assert (await asyncio.wait_for(waiting, 3)).value == "x"
    assert watchers(sky) == 0


async def test_a_waiting_get_is_woken_by_what_comes_back(sky: Connection, another: Opener, calls: Calls) -> None:
    q, other = calls(sky.queue("q")), another(sky)
    for lost in (False, True):
        await q.put("x")
        job = await other.queue("q").claim_async()
        waiting = asyncio.ensure_future(q.get(timeout=20))
        await until(lambda: watchers(sky) == 1)
        if lost:
            revoke_lease(other)
        else:
            await job.release_async()
        assert await asyncio.wait_for(waiting, 3) == "x"


async def test_a_claim_in_vain_asks_nothing_while_it_waits_and_leaves_nothing(
    solo: Connection, another: Opener, calls: Calls
) -> None:
    q = calls(solo.queue("q"))
    await q.put("x")
    job = await calls(another(solo).queue("q")).claim()
    waiting = asyncio.ensure_future(q.claim(timeout=0.3))
    await until(lambda: watchers(solo) == 1)
    await asyncio.sleep(0.1)
    sent = sent_by(solo)
    assert await waiting is None
    assert len(sent) <= 3, "it polls"
    assert watchers(solo) == 0
    assert await q.claimed() == 1
    assert job.valid


async def test_a_claim_cancelled_at_any_moment_keeps_no_item(solo: Connection) -> None:
    q, luck, done = solo.queue("q"), random.Random(3), list[Any]()
    await q.put_many_async(range(60))
    for _ in range(60):
        waiting = asyncio.create_task(q.claim_async())
        await asyncio.sleep(luck.random() * 0.003)
        waiting.cancel()
        await asyncio.wait([waiting])
        if not waiting.cancelled():
            await waiting.result().ack_async()
            done.append(waiting.result().value)
    while len(done) < 60 and (job := await q.claim_async(timeout=5)) is not None:
        done.append(job.value)
        await job.ack_async()
    assert sorted(done) == list(range(60))
    assert (await q.size_async(), await q.claimed_async()) == (0, 0)


# ---- many at once


def test_eight_threads_finish_each_item_once_though_they_often_fail(solo: Connection) -> None:
    q = solo.queue("q")
    q.put_many(range(120))

    def work(me: int) -> list[int]:
        luck, done = random.Random(me), list[int]()
        while (job := q.claim(timeout=0)) is not None or q.claimed():
            if job is None:
                continue
            if luck.random() < 0.3:
                job.release()
            else:
                job.ack()
                done.append(job.value)
        return done

    assert sorted(flat(in_threads(8, work))) == list(range(120))
    assert (len(q), q.claimed()) == (0, 0)


def test_workers_that_are_killed_lose_no_work(trio: Connection, scripts: Scripts) -> None:
    worker = """
        with limited(ttl_s=5) as conn:
            q, done = conn.queue("q"), conn.dict("done", consistency="strong")
            while (job := q.claim(timeout=12)) is not None:
                if int(sys.argv[1]) and job.value >= 20 * int(sys.argv[1]):
                    print("at work", flush=True)
                    signal.pause()
                with job:
                    done[job.value] = done.get(job.value, 0) + 1
    """
    q = trio.queue("q")
    q.put_many(range(60))
    doomed = [scripts.start(trio, worker, name) for name in (1, 2)]
    for process in doomed:
        assert next_line(process) == "at work"
        process.send_signal(signal.SIGKILL)
    said(scripts.start(trio, worker, 0), timeout_s=50)
    assert sorted(trio.dict("done").items()) == [(number, 1) for number in range(60)]
    assert (len(q), q.claimed()) == (0, 0)


async def test_when_answers_are_lost_no_work_is_lost_or_done_twice(solo: Connection, calls: Calls) -> None:
    q, luck = calls(solo.queue("q")), random.Random(5)
    lossy = LossyWire(solo._session(), seed=43)
    done: list[int] = []

    async def work() -> None:
        while len(done) < 40:
            job = await q.claim(timeout=1)
            if job is None:
                continue
            if luck.random() < 0.2:
                await calls(job).release()
            else:
                await calls(job).ack()
                done.append(job.value)

    await q.put_many(range(40))
    await asyncio.gather(work(), work(), work())
    assert sorted(done) == list(range(40))
    assert await q.claimed() == 0
    assert lossy.lost > 20


async def test_claims_cost_one_round_trip_however_many_are_claimed(
    solo: Connection, another: Opener, calls: Calls
) -> None:
    q, theirs = calls(solo.queue("q")), another(solo).queue("q")
    await q.put_many(range(700))
    held = [await theirs.claim_async() for _ in range(300)]
    await calls(await q.claim()).ack()
    sent = sent_by(solo)
    for number in range(301, 401):
        job = await q.claim()
        assert job.value == number
        await calls(job).ack()
    assert len(sent) <= 200 + 2 * 4, "more than one for a claim, one for an ack, and a look at each page"
    assert all(job.valid for job in held)


# ---- dead letters


async def test_what_was_delivered_too_often_goes_to_the_dead_ones(
    sky: Connection, another: Opener, calls: Calls
) -> None:
    q, theirs = sky.queue("q", max_deliveries=2), another(sky).queue("q", max_deliveries=2)
    await q.put_many_async(["poison", "good"])
    for handle in (q, theirs):
        job = await calls(handle).claim()
        assert job.value == "poison"
        await calls(job).release()
    assert await calls(theirs).get() == "good"
    assert await calls(q).claim(timeout=0) is None
    assert await calls(theirs.dead).get(timeout=10) == "poison"
    assert sky.queue("q.dead").name == q.dead.name
    assert await calls(q).size() == 0
    assert stored(sky, "queue/q/items/") == stored(sky, "queue/q/deliveries/") == []


async def test_what_kills_its_workers_goes_to_the_dead_ones(sky: Connection, another: Opener, calls: Calls) -> None:
    q, other = sky.queue("q", max_deliveries=1), another(sky)
    await q.put_many_async([("poison", 1), "good"])
    await other.queue("q", max_deliveries=1).claim_async()
    waiting = asyncio.ensure_future(calls(q).get_many(2, timeout=20))
    assert await waiting == ["good"]
    revoke_lease(other)
    assert await calls(q).claim(timeout=0.05) is None
    job = await calls(q.dead).claim(timeout=10)
    assert job.value == ("poison", 1)
    await calls(job).ack()


async def test_an_item_that_is_claimed_for_the_last_time_is_not_buried(solo: Connection, another: Opener) -> None:
    q, theirs = solo.queue("q", max_deliveries=1), another(solo).queue("q", max_deliveries=1)
    await q.put_async("x")
    job = await q.claim_async()
    assert await theirs.claim_async(timeout=0) is None
    await solo._session().run_async(theirs._bury(job.item))
    assert await q.claimed_async() == 1
    await job.ack_async()
    assert await q.dead.empty_async()


async def test_all_must_say_the_same_of_a_queue(solo: Connection, another: Opener, calls: Calls) -> None:
    await solo.queue("q", max_deliveries=3).put_async("x")
    with pytest.raises(ValueError, match="max_deliveries=3"):
        await calls(another(solo).queue("q")).get(timeout=0)
    with pytest.raises(ValueError, match="max_deliveries=3"):
        await calls(another(solo).queue("q", max_deliveries=4)).claim(timeout=0)
    for wrong, error in ((0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="max_deliveries"):
            solo.queue("other", max_deliveries=wrong)  # type: ignore[arg-type]
    await solo.lock("taken.dead").acquire_async()
    with pytest.raises(WrongKind, match=r"taken\.dead"):
        await calls(solo.queue("taken", max_deliveries=1)).put("x")


async def test_bad_timeouts_are_refused(solo: Connection, calls: Calls) -> None:
    for timeout, error in ((-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="timeout"):
            await calls(solo.queue("q")).claim(timeout=timeout)


def test_a_claim_shows_its_state(solo: Connection) -> None:
    q = solo.queue("q")
    q.put("x")
    job = q.claim()
    assert isinstance(job, Claim)
    assert repr(job) == "<claim of an item of queue 'q', delivery 1, valid>"
    job.ack()
    assert repr(job) == "<claim of an item of queue 'q', delivery 1, over>"


def _read(wire: Wire, key: bytes) -> bytes:
    return bytes(wire.call(RANGE, kv.read(key), timeout_s=3.0).kvs[0].value)
