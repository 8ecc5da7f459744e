"""Cases that other libraries of this kind got wrong, each with where it was told; here they hold."""

from __future__ import annotations

import asyncio

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.errors import HoldLost, LockTimeout, NotHeld
from skyward_etcd.testing.proxy import Faults, Proxy
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from tests.integration.conftest import Opener
from tests.integration.helpers import Calls, are_live, revoke_lease, stored, until, watchers, without_a_stream


async def test_a_block_is_never_entered_without_the_lock(sky: Connection, another: Opener) -> None:
    """etcd3 0.12 runs the block of ``with lock`` also where ``acquire`` has given up."""
    async with another(sky).lock("l"):
        with pytest.raises(LockTimeout), sky.lock("l", timeout=0.05):
            pytest.fail("entered")
        with pytest.raises(LockTimeout):
            async with sky.lock("l", timeout=0.05):
                pytest.fail("entered")


async def test_a_waiter_whose_lease_expired_does_not_get_the_lock_by_its_old_place(
    sky: Connection, another: Opener, calls: Calls
) -> None:
    """Etcd's issues 9921 (an expired waiter is granted the lock) and 19597 (it learns of its end only at its turn)."""
    waiter, later = another(sky), another(sky)
    hold = await sky.lock("l").acquire_async()
    first = asyncio.ensure_future(calls(waiter.lock("l")).acquire(timeout=20))
    await until(lambda: len(stored(sky, "lock/l/")) == 2)
    second = asyncio.ensure_future(calls(later.lock("l")).acquire(timeout=20))
    await until(lambda: len(stored(sky, "lock/l/")) == 3)
    expired = revoke_lease(waiter)
    await waiter.set("s").add_async("now its session notices")
    await until(lambda: len(stored(sky, "lock/l/")) == 3 and not any(expired in key for key in stored(sky, "lock/l/")))
    await hold.release_async()
    theirs = await second
    assert theirs.valid
    assert not first.done()
    await theirs.release_async()
    mine = await first
    assert mine.valid
    assert mine.token > theirs.token
    await mine.release_async()


@pytest.mark.parametrize("compacts", [False, True], ids=["missed", "missed and compacted"])
async def test_a_missed_deletion_does_not_deadlock(
    solo: Connection,
    another: Opener,
    calls: Calls,
    compacts: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Issue 1107 of etcd3: a waiter that missed the DELETE waits for ever; 9715 of etcd: its key stays in the way."""
    holder = another(solo)
    hold = await holder.lock("l").acquire_async()
    waiting = asyncio.ensure_future(calls(solo.lock("l")).acquire(timeout=20))
    await until(lambda: watchers(solo) == 1 and are_live(solo))
    with without_a_stream(solo):
        await hold.release_async()
        await holder.set("s").add_async("something later")
        if compacts:
            session = holder._session()
            session.wire.call(methods.COMPACT, pb.CompactionRequest(revision=session.seen), timeout_s=3)
    mine = await asyncio.wait_for(waiting, 10)
    assert mine.valid
    await mine.release_async()
    assert stored(solo, "lock/") == []


async def test_a_get_whose_reply_is_lost_loses_no_item(
    one_member: LocalCluster, solo: Connection, opened: Opener, calls: Calls
) -> None:
    """Issue 8360 of Hazelcast: an item that was taken as the connection broke is nobody's."""
    with Proxy(one_member.endpoints[0]) as proxy:
        sky = opened([proxy.endpoint], namespace=solo._session().layout.namespace)
        await sky.queue("q").put_many_async(["known", "first", "second"])
        assert await calls(sky.queue("q")).get(timeout=5) == "known"  # and what comes next: a get is one request now
        proxy.break_(Faults(cuts_after_request=1.0))
        getting = asyncio.ensure_future(calls(sky.queue("q")).get(timeout=20))
        await until(lambda: len(stored(solo, "queue/q/items/")) == 1)
        proxy.heal()
        assert await getting == "first"
        assert await solo.queue("q").get_async(timeout=5) == "second"
        sky._session().close()


async def test_two_handles_of_one_process_exclude_each_other(sky: Connection, calls: Calls) -> None:
    """Two mutexes of etcd's Go client on one session share a key (its pull request 5199): both believe to hold it."""
    one, other = sky.lock("l"), sky.lock("l")
    hold = await calls(one).acquire()
    with pytest.raises(LockTimeout):
        await calls(other).acquire(timeout=0.05)
    waiting = asyncio.ensure_future(calls(other).acquire(timeout=20))
    await until(lambda: len(stored(sky, "lock/l/")) == 2)
    await hold.release_async()
    await (await waiting).release_async()


async def test_to_release_twice_or_anothers_hold_frees_nobody(sky: Connection, another: Opener, calls: Calls) -> None:
    """Issue 291 of kazoo: a second release ends what another acquire believes to hold."""
    lock, other = sky.lock("l"), another(sky).lock("l")
    hold = await lock.acquire_async()
    with pytest.raises(NotHeld):
        await calls(other).release()
    await hold.release_async()
    theirs = await other.acquire_async(timeout=5)
    for again in (hold.release_async, lock.release_async):
        with pytest.raises(NotHeld):
            await again()
    assert theirs.valid
    assert len(stored(sky, "lock/l/")) == 1
    revoke_lease(sky)  # nor does a hold that was lost
    await theirs.release_async()
    lost = await lock.acquire_async(timeout=5)
    revoke_lease(sky)
    after = await other.acquire_async(timeout=5)
    with pytest.raises(HoldLost):
        await lost.release_async()
    assert after.valid
    await after.release_async()
