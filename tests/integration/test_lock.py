"""A lock that all nodes share: fair, never entered without being held, and never granted to who gave up."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.collections.lock import Hold
from skyward_etcd.config import Limits
from skyward_etcd.errors import HoldLost, LockTimeout, NotConnected, NotHeld
from skyward_etcd.session.session import Session
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Wire
from tests.integration.conftest import Opener
from tests.integration.helpers import (
    Calls,
    LossyWire,
    Scripts,
    in_threads,
    next_line,
    revoke_lease,
    said,
    sent_by,
    stored,
    until,
    watchers,
)


async def test_it_is_held_from_acquire_to_release(sky: Connection, calls: Calls) -> None:
    lock = calls(sky.lock("l"))
    hold: Hold = await lock.acquire()
    assert hold.valid
    assert len(stored(sky, "lock/l/")) == 1
    await lock.release()
    assert not hold.valid
    assert stored(sky) == []


async def test_tokens_only_grow(sky: Connection, another: Opener, calls: Calls) -> None:
    tokens: list[int] = []
    for lock in [calls(sky.lock("l")), calls(another(sky).lock("l"))] * 3:
        tokens.append((await lock.acquire()).token)
        await lock.release()
    assert tokens == sorted(set(tokens))


async def test_a_timeout_ends_the_wait_and_it_is_never_granted_later(
    sky: Connection, another: Opener, calls: Calls
) -> None:
    holder, waiter = calls(sky.lock("l")), calls(another(sky).lock("l"))
    await holder.acquire()
    for timeout in (0, 0.05):
        with pytest.raises(LockTimeout, match="'l'"):
            await waiter.acquire(timeout=timeout)
    await until(lambda: len(stored(sky, "lock/l/")) == 1)
    assert watchers(sky) == 0
    await holder.release()
    assert stored(sky) == []
    await holder.acquire(timeout=0)
    await holder.release()


async def test_the_handle_has_a_timeout_of_its_own(sky: Connection, calls: Calls) -> None:
    hold = await sky.lock("l").acquire_async()
    impatient = calls(sky.lock("l", timeout=0.03))
    began = time.monotonic()
    with pytest.raises(LockTimeout):
        await impatient.acquire()
    with pytest.raises(LockTimeout):
        await impatient.acquire(timeout=0.03)
    assert time.monotonic() - began < 10
    await hold.release_async()
    await impatient.acquire()
    await impatient.release()


async def test_a_block_is_never_entered_without_the_lock(sky: Connection) -> None:
    async with sky.lock("l") as hold:
        assert hold.valid
        with pytest.raises(LockTimeout):
            async with sky.lock("l", timeout=0.03):
                pytest.fail("entered")
    with sky.lock("l") as hold:
        assert "valid" in repr(hold)
    assert "released" in repr(hold)


async def test_a_block_that_fails_releases(sky: Connection) -> None:
    with pytest.raises(ZeroDivisionError), sky.lock("l"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        async with sky.lock("l"):
            raise ZeroDivisionError
    assert stored(sky) == []


async def test_only_who_holds_it_can_release_it(sky: Connection, another: Opener, calls: Calls) -> None:
    lock = sky.lock("l")
    hold = await lock.acquire_async()
    for other in (lock, sky.lock("l"), another(sky).lock("l")):
        with pytest.raises(NotHeld):
            await asyncio.create_task(_release(calls(other)))
    assert hold.valid
    assert len(stored(sky, "lock/l/")) == 1
    await lock.release_async()
    with pytest.raises(NotHeld):
        await lock.release_async()
    with pytest.raises(NotHeld):
        await hold.release_async()


async def _release(lock: Any) -> None:
    await lock.release()


def test_the_hold_can_be_released_by_another_thread(sky: Connection) -> None:
    hold = sky.lock("l").acquire()
    thread = threading.Thread(target=hold.release)
    thread.start()
    thread.join()
    assert not hold.valid
    assert stored(sky) == []


async def test_bad_input_is_refused_before_anything_is_sent(solo: Connection, calls: Calls) -> None:
    sent = sent_by(solo)
    wrong: list[tuple[Any, type[Exception]]]
    wrong = [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)]
    for timeout, error in wrong:
        with pytest.raises(error, match="timeout"):
            solo.lock("l", timeout=timeout)
        with pytest.raises(error, match="timeout"):
            await calls(solo.lock("l")).acquire(timeout=timeout)
    with pytest.raises(NotHeld):
        await calls(solo.lock("l")).release()
    assert sent == []
    assert stored(solo) == []


async def test_acquire_and_release_take_one_round_trip_each(solo: Connection, calls: Calls) -> None:
    lock = calls(solo.lock("l"))
    await lock.acquire()
    await lock.release()
    sent = sent_by(solo)
    await lock.acquire()
    await lock.release()
    assert sent == ["Txn", "Txn"]


# ---- in turn


async def test_it_is_granted_in_the_order_in_which_they_came(sky: Connection, another: Opener, calls: Calls) -> None:
    sessions, order, tasks = [sky, another(sky)], list[int](), list[asyncio.Task[None]]()
    hold = await sky.lock("l").acquire_async()

    async def enter(me: int) -> None:
        lock = calls(sessions[me % 2].lock("l"))
        await lock.acquire(timeout=20)
        order.append(me)
        await lock.release()

    for me in range(6):
        tasks.append(asyncio.create_task(enter(me)))
        await until(partial(_has_contenders, sky, me + 2))
    await hold.release_async()
    await asyncio.gather(*tasks)
    assert order == list(range(6))
    assert stored(sky) == []


async def test_a_waiter_that_gives_up_lets_the_next_one_move_up(sky: Connection, calls: Calls) -> None:
    hold = await sky.lock("l").acquire_async()
    first = asyncio.ensure_future(calls(sky.lock("l")).acquire(timeout=0.3))
    await until(lambda: len(stored(sky, "lock/l/")) == 2)
    second = asyncio.create_task(_acquire_and_release(calls(sky.lock("l"))))
    await until(lambda: len(stored(sky, "lock/l/")) == 3)
    with pytest.raises(LockTimeout):
        await first
    await until(lambda: len(stored(sky, "lock/l/")) == 2)
    assert not second.done()
    await hold.release_async()
    await asyncio.wait_for(second, 5)
    assert stored(sky) == []


async def _acquire_and_release(lock: Any) -> int:
    hold = await lock.acquire(timeout=20)
    await lock.release()
    return int(hold.token)


async def test_a_cancelled_waiter_leaves_the_queue(sky: Connection) -> None:
    hold = await sky.lock("l").acquire_async()
    waiting = asyncio.create_task(sky.lock("l").acquire_async())
    await until(lambda: len(stored(sky, "lock/l/")) == 2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: len(stored(sky, "lock/l/")) == 1)
    assert watchers(sky) == 0
    await hold.release_async()


async def test_an_acquire_cancelled_at_any_moment_leaves_no_hold(solo: Connection) -> None:
    for number in range(40):
        trying = asyncio.create_task(solo.lock("l").acquire_async())
        await asyncio.sleep(0.0001 * number)
        trying.cancel()
        await asyncio.wait([trying])
        if not trying.cancelled():
            await trying.result().release_async()
    await until(lambda: stored(solo) == [])


async def test_it_is_handed_over_at_once(solo: Connection, another: Opener, calls: Calls) -> None:
    sessions, delays = [solo, another(solo)], list[float]()
    hold = await solo.lock("l").acquire_async()
    for number in range(7):
        waiting = asyncio.ensure_future(calls(sessions[(number + 1) % 2].lock("l")).acquire(timeout=20))
        await until(lambda: sum(map(watchers, sessions)) == 1)
        released = time.perf_counter()
        await hold.release_async()
        hold = await waiting
        delays.append(time.perf_counter() - released)
    await hold.release_async()
    assert max(delays) < 5, "it was not told, and looked again"


# ---- exclusion


def test_threads_of_one_process_exclude_each_other(solo: Connection) -> None:
    inside, most, entered = [0], [0], [0]

    def enter(me: int) -> None:
        lock = solo.lock("l")
        for _ in range(6):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                entered[0] += 1
                inside[0] -= 1

    in_threads(6, enter)
    assert (most[0], entered[0]) == (1, 36)
    assert stored(solo) == []


async def test_one_handle_shared_by_tasks_excludes_them(sky: Connection) -> None:
    lock, inside, most = sky.lock("l"), 0, 0

    async def enter() -> None:
        nonlocal inside, most
        for _ in range(3):
            async with lock:
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

    await asyncio.gather(*[enter() for _ in range(5)])
    assert most == 1
    assert stored(sky) == []


def test_processes_exclude_each_other(trio: Connection, scripts: Scripts) -> None:
    code = """
        with sky.connect():
            d = sky.dict("d", consistency="strong")
            for _ in range(25):
                with sky.lock("l", timeout=30):
                    d["n"] = d.get("n", 0) + 1
    """
    for process in [scripts.start(trio, code) for _ in range(3)]:
        said(process)
    assert trio.dict("d", consistency="strong")["n"] == 75
    assert stored(trio, "lock/") == []


def test_what_was_written_under_the_lock_is_seen_by_the_next_holder(trio: Connection, another: Opener) -> None:
    """Also through an eventual handle: whoever acquires has seen a revision after the last holder's writes."""
    sessions = [trio, another(trio), another(trio)]
    for turn, session in enumerate(sessions):
        wire = session._session().wire
        for _ in range(turn):
            wire.switch(wire.endpoint)

    def count(me: int) -> None:
        d = sessions[me].dict("d")
        for _ in range(15):
            with sessions[me].lock("l"):
                d["n"] = d.get("n", 0) + 1

    in_threads(3, count)
    assert trio.dict("d", consistency="strong")["n"] == 45


# ---- losing it


async def test_a_hold_whose_lease_is_gone_is_lost(sky: Connection, another: Opener, calls: Calls) -> None:
    lock = calls(sky.lock("l"))
    hold: Hold = await lock.acquire()
    revoke_lease(sky)
    after = await another(sky).lock("l").acquire_async(timeout=5)
    assert after.token > hold.token
    with pytest.raises(HoldLost, match="lease"):
        await lock.release()
    assert after.valid
    assert len(stored(sky, "lock/l/")) == 1
    await after.release_async()
    assert (await lock.acquire(timeout=5)).token > after.token
    await lock.release()


async def test_a_block_whose_hold_was_lost_says_so_unless_it_failed_itself(sky: Connection) -> None:
    with pytest.raises(HoldLost), sky.lock("l"):
        revoke_lease(sky)
    await sky.set("s").add_async(1)  # the session notices, and becomes another
    with pytest.raises(HoldLost):
        async with sky.lock("l"):
            revoke_lease(sky)
    await sky.set("s").add_async(2)
    with pytest.raises(ZeroDivisionError), sky.lock("l"):  # noqa: PT012 - the hold has to be lost inside
        revoke_lease(sky)
        raise ZeroDivisionError


async def test_the_holder_finds_out_by_itself_that_it_lost_the_lock(
    solo: Connection, another: Opener, calls: Calls
) -> None:
    quick = another(solo, limits=Limits(ttl_s=5))
    hold = await calls(quick.lock("l")).acquire()
    revoke_lease(quick)
    await until(lambda: not hold.valid, within_s=4)
    assert "lost" in repr(hold)


async def test_a_waiter_that_lost_its_lease_queues_up_again(sky: Connection, another: Opener, calls: Calls) -> None:
    other = another(sky, limits=Limits(ttl_s=5))
    hold = await sky.lock("l").acquire_async()
    waiting = asyncio.ensure_future(calls(other.lock("l")).acquire(timeout=20))
    await until(lambda: len(stored(sky, "lock/l/")) == 2)
    before = revoke_lease(other)
    await until(lambda: len(stored(sky, "lock/l/")) == 2)
    await hold.release_async()
    mine: Hold = await waiting
    assert mine.valid
    assert other._session().id != before
    await mine.release_async()


async def test_a_lost_hold_does_not_release_the_next_one(sky: Connection) -> None:
    lock = sky.lock("l")
    lost = await lock.acquire_async()
    revoke_lease(sky)
    hold = await lock.acquire_async(timeout=5)
    with pytest.raises(HoldLost):
        await lost.release_async()
    assert hold.valid
    assert len(stored(sky, "lock/l/")) == 1
    await lock.release_async()
    assert stored(sky) == []


async def test_the_lock_of_a_killed_process_is_freed(solo: Connection, scripts: Scripts) -> None:
    holder = scripts.start(
        solo,
        """
        with limited(ttl_s=5) as conn:
            conn.lock("l").acquire()
            print("held", flush=True)
            signal.pause()
        """,
    )
    assert next_line(holder) == "held"
    with pytest.raises(LockTimeout):
        await solo.lock("l").acquire_async(timeout=0)
    holder.send_signal(signal.SIGKILL)
    hold = await solo.lock("l").acquire_async(timeout=15)
    await hold.release_async()


async def test_closing_the_session_frees_its_locks_and_ends_its_waits(
    sky: Connection, another: Opener, calls: Calls
) -> None:
    other = another(sky)
    await other.lock("held").acquire_async()
    hold = await sky.lock("wanted").acquire_async()
    waiting = asyncio.ensure_future(calls(other.lock("wanted")).acquire())
    await until(lambda: watchers(other) == 1)
    other._session().close()
    with pytest.raises(NotConnected, match="closed"):
        await asyncio.wait_for(waiting, 5)
    assert stored(sky, "lock/held/") == []
    assert len(stored(sky, "lock/wanted/")) == 1
    await hold.release_async()


# ---- what is written through a hold


async def test_what_is_written_through_a_hold_is_written(sky: Connection, calls: Calls) -> None:
    async with sky.lock("l") as hold:
        entries = calls(hold.guard(sky.dict("d")))
        members, counter = calls(hold.guard(sky.set("s"))), calls(hold.guard(sky.counter("c")))
        await entries.set("k", 1)
        await entries.update({str(number): number for number in range(250)})
        assert await entries.compare_and_set("k", 1, 2)
        assert await entries.setdefault("k", 9) == 2
        assert await entries.pop("7") == 7
        assert not await entries.delete("7")
        assert await members.add("m")
        assert not await members.add("m")
        assert [await counter.increment(), await counter.increment(5), await counter.value()] == [1, 6, 6]
        await counter.reset(10)
        assert await counter.increment() == 11
    assert await calls(sky.dict("d")).size() == 250


WRITES: dict[str, Callable[[Connection, Hold, Calls], Awaitable[Any]]] = {
    "dict.set": lambda sky, hold, calls: calls(hold.guard(sky.dict("d"))).set("k", "late"),
    "strong dict.set": lambda sky, hold, calls: calls(hold.guard(sky.dict("d", consistency="strong"))).set("k", "late"),
    "dict.update": lambda sky, hold, calls: calls(hold.guard(sky.dict("d"))).update({"k": "late", "j": "late"}),
    "dict.pop": lambda sky, hold, calls: calls(hold.guard(sky.dict("d"))).pop("k"),
    "dict.compare_and_set": lambda sky, hold, calls: calls(hold.guard(sky.dict("d"))).compare_and_set("k", "new", "x"),
    "dict.clear": lambda sky, hold, calls: calls(hold.guard(sky.dict("d"))).clear(),
    "set.add": lambda sky, hold, calls: calls(hold.guard(sky.set("s"))).add("late"),
    "counter.increment": lambda sky, hold, calls: calls(hold.guard(sky.counter("c"))).increment(),
    "counter.reset": lambda sky, hold, calls: calls(hold.guard(sky.counter("c"))).reset(99),
}


@pytest.mark.parametrize("ending", ["released", "lost"])
@pytest.mark.parametrize("write", WRITES)
async def test_what_is_written_through_a_hold_that_has_ended_is_refused(
    solo: Connection, another: Opener, calls: Calls, write: str, ending: str
) -> None:
    hold: Hold = await calls(solo.lock("l")).acquire()
    await calls(hold.guard(solo.counter("c"))).increment()
    if ending == "lost":
        revoke_lease(solo)
    else:
        await calls(hold).release()
    other = another(solo)
    async with other.lock("l") as theirs:
        await calls(theirs.guard(other.dict("d"))).set("k", "new")
        with pytest.raises(HoldLost, match="nothing was written"):
            await WRITES[write](solo, hold, calls)
        assert await calls(other.dict("d")).items() == [("k", "new")]
        assert await calls(other.set("s")).size() == 0
        assert await calls(other.counter("c")).value() == 1
    assert await calls(solo.counter("c")).increment() == 2


async def test_guarded_and_free_increments_keep_apart(solo: Connection) -> None:
    """They are of one process, and so travel together where they can: what is refused takes nobody along."""
    hold = await solo.lock("l").acquire_async()
    counter, guarded = solo.counter("c"), hold.guard(solo.counter("c"))
    await counter.increment_async()
    mixed = [each.increment_async() for _ in range(20) for each in (counter, guarded)]
    assert sorted(await asyncio.gather(*mixed)) == list(range(2, 42))
    await hold.release_async()
    mixed = [each.increment_async() for _ in range(20) for each in (counter, guarded)]
    totals = await asyncio.gather(*mixed, return_exceptions=True)
    assert sorted(total for total in totals if isinstance(total, int)) == list(range(42, 62))
    assert sum(isinstance(total, HoldLost) for total in totals) == 20


async def test_lost_answers_neither_refuse_nor_double_what_is_guarded(solo: Connection, calls: Calls) -> None:
    async with solo.lock("l") as hold:
        lossy = LossyWire(solo._session(), seed=8)
        counter, members = calls(hold.guard(solo.counter("c"))), calls(hold.guard(solo.set("s")))
        totals = [await counter.increment() for _ in range(20)]
        added = [await members.add(number) for number in range(20)]
    assert totals == list(range(1, 21))
    assert all(added)
    assert lossy.lost > 10


def test_only_what_can_be_guarded_is(solo: Connection) -> None:
    with solo.lock("l") as hold:
        for collection in (solo.queue("q"), solo.barrier("b", n=1), solo.lock("l2")):
            with pytest.raises(TypeError, match="dict, set or counter"):
                hold.guard(collection)


async def test_who_waits_for_the_loss_hears_of_it(solo: Connection, another: Opener, calls: Calls) -> None:
    quick = another(solo, limits=Limits(ttl_s=5))
    hold: Hold = await calls(quick.lock("l")).acquire()
    assert not await calls(hold).wait_lost(timeout=0.01)
    waiting = asyncio.ensure_future(calls(hold).wait_lost(timeout=20))
    revoke_lease(quick)
    assert await asyncio.wait_for(waiting, 10)


async def test_a_thousand_holds_leave_one_lease(solo: Connection) -> None:
    """Acquired and released, cancelled at some moment, or given up in time."""
    session = solo._session()
    before = leases(session)
    lock, names = solo.lock("l"), random.Random(5)
    for turn in range(1000):
        running = asyncio.ensure_future(lock.acquire_async(timeout=0.0001 if turn % 3 == 1 else None))
        if turn % 3 == 2:
            await asyncio.sleep(names.uniform(0, 0.001))
            running.cancel()
        ended = (await asyncio.gather(running, return_exceptions=True))[0]
        if isinstance(ended, Hold):
            await ended.release_async()
    await until(lambda: stored(solo) == [])
    assert leases(session) == before


def leases(session: Session) -> int:
    """Return how many leases the cluster has."""
    wire = Wire(session.endpoints)
    try:
        return len(wire.call(methods.LEASE_LEASES, pb.LeaseLeasesRequest(), timeout_s=3).leases)
    finally:
        wire.close()


# ---- lost answers


async def test_when_answers_are_lost_it_excludes_and_leaks_nothing(
    solo: Connection, another: Opener, calls: Calls
) -> None:
    sessions = [solo, another(solo)]
    lossy = [LossyWire(session._session(), seed=51 + number) for number, session in enumerate(sessions)]
    inside, most, entered, timeouts = 0, 0, 0, 0

    async def enter(me: int) -> None:
        nonlocal inside, most, entered, timeouts
        lock = calls(sessions[me % 2].lock("l"))
        for _ in range(5):
            try:
                hold: Hold = await lock.acquire(timeout=0.2 if me == 0 else None)
            except LockTimeout:
                timeouts += 1
                continue
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            assert hold.valid
            entered += 1
            inside -= 1
            await lock.release()

    await asyncio.gather(*[enter(me) for me in range(4)])
    assert most == 1
    assert entered + timeouts == 20
    assert sum(wire.lost for wire in lossy) > 10
    await until(lambda: stored(solo) == [])


def _has_contenders(sky: Connection, number: int) -> bool:
    return len(stored(sky, "lock/l/")) == number
