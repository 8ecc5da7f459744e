"""A session: kept alive, lost and begun anew, closed without a trace, at home on whichever member answers."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psutil
import pytest

from skyward_etcd.active import Connection, connect
from skyward_etcd.cluster.bootstrap import LocalCluster, free_ports
from skyward_etcd.cluster.member import Member
from skyward_etcd.config import Limits
from skyward_etcd.errors import BrokenBarrier, EtcdError, LockTimeout, NotConnected, OutcomeUnknown, Unavailable
from skyward_etcd.session.session import Session
from skyward_etcd.wire import messages as pb
from skyward_etcd.wire import methods
from skyward_etcd.wire.client import Wire
from tests.integration.conftest import BINARIES, Clusters, Opener, any_usable
from tests.integration.helpers import (
    Calls,
    Scripts,
    are_live,
    keys_under,
    next_line,
    questions,
    revoke_lease,
    said,
    stored,
    until,
    watchers,
    without_a_stream,
)


async def use_everything(sky: Connection, calls: Calls, *, lock: str = "l") -> None:
    """Do something with a collection of each kind."""
    await calls(sky.dict("d")).set("k", 1)
    await calls(sky.dict("strong", consistency="strong")).set("k", 1)
    await calls(sky.set("s")).add(time.monotonic_ns())
    await calls(sky.counter("c")).increment()
    q = calls(sky.queue("q"))
    await q.put("item")
    assert await q.get(timeout=5) == "item"
    assert await q.get(timeout=0.001) is None
    of_all = calls(sky.lock(lock))
    await of_all.acquire(timeout=5)
    await of_all.release()
    assert await calls(sky.barrier("b", n=1)).wait(timeout=5) == 0


# ---- coming and going


async def test_a_closed_session_leaves_only_what_was_stored(
    one_member: LocalCluster, opened: Opener, calls: Calls
) -> None:
    sky = opened(one_member.endpoints)
    await use_everything(sky, calls)
    session = sky._session()
    assert [key.partition("/")[0] for key in keys_under(session, "s")].count("sessions") == 1
    assert keys_under(session, f"slots/{session.id}/")
    await sky.lock("held").acquire_async()
    session.close()
    session.close()
    assert keys_under(session, "sessions/") == keys_under(session, "slots/") == keys_under(session, "lock/") == []
    assert not [thread.name for thread in threading.enumerate() if _is_of(thread, session)]
    for use in (sky.dict("d").get, sky.queue("q").put):
        with pytest.raises(NotConnected, match="closed"):
            use("k")


def _is_of(thread: threading.Thread, session: Session) -> bool:
    return thread in (session._keeper._thread, session.hub._thread) and thread.is_alive()


@pytest.mark.parametrize("step", range(4), ids=["before it asks", "granted", "before it says so", "there"])
def test_a_session_closed_as_it_opens_leaves_nothing(one_member: LocalCluster, step: int) -> None:
    session = Session(one_member.endpoints, namespace="closed as it opens")
    before = leases(one_member)
    is_closed = close_at(session, step)
    session.join()
    assert is_closed.wait(10)
    assert keys_under(session, "sessions/") == []
    assert leases(one_member) <= before


def close_at(session: Session, step: int) -> threading.Event:
    """Have the session closed when it comes to a step on the way to its lease; the event tells that it is done."""
    keeper, steps, is_closed = session._keeper, itertools.count(), threading.Event()
    call = keeper._call

    def close() -> None:
        session.close()
        is_closed.set()

    def maybe_close() -> None:
        if next(steps) == step:
            threading.Thread(target=close, daemon=True).start()
            while not keeper._closed:
                time.sleep(0.001)

    def call_and_close(method: Any, request: Any) -> Any:
        maybe_close()
        reply = call(method, request)
        maybe_close()
        return reply

    keeper._call = call_and_close  # type: ignore[method-assign]
    return is_closed


def leases(cluster: LocalCluster) -> set[int]:
    """Return all leases of a cluster."""
    wire = Wire(cluster.endpoints)
    found = wire.call(methods.LEASE_LEASES, pb.LeaseLeasesRequest(), timeout_s=3).leases
    wire.close()
    return {lease.ID for lease in found}


def test_it_says_who_is_there(solo: Connection) -> None:
    session = solo._session()
    wire = Wire(session.endpoints)
    found = wire.call(methods.RANGE, pb.RangeRequest(key=session.layout.session(session.id)), timeout_s=3).kvs[0]
    wire.close()
    who = json.loads(found.value)
    assert set(who) >= {"node", "pid", "started"}
    assert found.lease == int(session.id, 16)


def test_connect_takes_endpoints_from_where_it_is_told(
    one_member: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SKYWARD_ETCD_ENDPOINTS", raising=False)
    with pytest.raises(NotConnected, match="SKYWARD_ETCD_ENDPOINTS"):
        connect()
    monkeypatch.setenv("SKYWARD_ETCD_ENDPOINTS", f" {one_member.endpoints[0]} , ")
    monkeypatch.setenv("SKYWARD_ETCD_NAMESPACE", "from the environment")
    with connect() as sky:
        assert sky._session().layout.namespace == "from the environment"
        assert sky.set("s").add(time.monotonic_ns())


def test_bad_settings_are_refused() -> None:
    wrong: list[Sequence[str]] = ["127.0.0.1:2379", [], ()]
    for endpoints in wrong:
        with pytest.raises(ValueError, match="endpoints"):
            Session(endpoints)
    with pytest.raises(ValueError, match="ttl_s"):
        Session(["127.0.0.1:2379"], limits=Limits(ttl_s=4.9))
    with pytest.raises(ValueError, match="namespace"):
        Session(["127.0.0.1:2379"], namespace="")
    with pytest.raises(ValueError, match="secret"):
        Session(["127.0.0.1:2379"], secret=b"short")


async def test_where_nobody_answers_it_says_so_in_time(calls: Calls) -> None:
    endpoint = f"127.0.0.1:{free_ports(1)[0]}"
    session = Session([endpoint], limits=Limits(call_s=0.2, operation_s=0.5))
    began = time.monotonic()
    with pytest.raises(Unavailable, match=endpoint):
        await calls(session).open()
    with pytest.raises(Unavailable, match=endpoint):
        await calls(Connection(session).dict("d")).get("k")
    assert time.monotonic() - began < 5
    session.close()


async def test_a_dead_endpoint_among_others_does_no_harm(
    one_member: LocalCluster, opened: Opener, calls: Calls
) -> None:
    dead = [f"127.0.0.1:{port}" for port in free_ports(2)]
    began = time.monotonic()
    await use_everything(opened([*dead, *one_member.endpoints]), calls)
    assert time.monotonic() - began < 10


# ---- the lease


async def test_the_lease_is_kept_alive(solo: Connection, another: Opener) -> None:
    session = another(solo, limits=Limits(ttl_s=5))._session()
    identity = session.identity
    assert identity is not None
    began = identity.valid_until
    await until(lambda: identity.valid_until > began, within_s=4)
    assert session.identity is identity


async def test_everything_goes_on_when_the_lease_is_lost(sky: Connection, calls: Calls) -> None:
    await use_everything(sky, calls)
    for _ in range(2):
        before = revoke_lease(sky)
        await use_everything(sky, calls)
        assert sky._session().id not in (before, "")
    assert await calls(sky.counter("c")).value() == 3
    assert await calls(sky.set("s")).size() == 3


async def test_a_lost_lease_is_noticed_by_itself(solo: Connection, another: Opener) -> None:
    session = another(solo, limits=Limits(ttl_s=5))._session()
    lost = session.identity
    before = revoke_lease(Connection(session))
    assert lost is not None
    await until(lambda: lost.lost.is_set() and session.id not in (before, ""), within_s=4)
    assert not lost.is_valid()


# ---- the watch stream


async def test_few_watches_stay_open(solo: Connection) -> None:
    for number in range(80):
        assert solo.queue(f"q{number}").get(timeout=0.0001) is None
    assert watchers(solo) == 0
    assert len(solo._session().hub._watches._watches) <= 64


async def test_a_broken_stream_hides_nothing(solo: Connection, another: Opener, calls: Calls) -> None:
    producer = another(solo)
    hub = solo._session().hub
    for number in range(5):
        waiting = asyncio.ensure_future(calls(solo.queue("q")).get(timeout=20))
        await until(lambda: watchers(solo) == 1 and are_live(solo))
        assert hub._stream is not None
        hub._stream.cancel()
        await producer.queue("q").put_async(number)
        assert await asyncio.wait_for(waiting, 5) == number


async def test_a_stream_that_missed_what_is_compacted_hides_nothing(
    solo: Connection, another: Opener, calls: Calls
) -> None:
    producer = another(solo)
    waiting = asyncio.ensure_future(calls(solo.queue("q")).get(timeout=20))
    await until(lambda: watchers(solo) == 1 and are_live(solo))
    with without_a_stream(solo):
        await producer.queue("q").put_async("x")
        await producer.set("other").add_async("y")
        session = producer._session()
        session.wire.call(methods.COMPACT, pb.CompactionRequest(revision=session.seen), timeout_s=3)
    assert await asyncio.wait_for(waiting, 10) == "x"


async def test_a_refused_watch_fails_its_own_watcher_and_nobody_else(sky: Connection, calls: Calls) -> None:
    hub = sky._session().hub
    waiting = asyncio.ensure_future(calls(sky.queue("q")).get(timeout=20))
    await until(lambda: watchers(sky) == 1 and are_live(sky))
    stream, refused = hub._stream, hub.open(b"b", b"a")
    await until(refused.live.is_set)
    with pytest.raises(EtcdError, match="range is empty"):
        refused.check()
    await sky.queue("q").put_async("x")
    assert await asyncio.wait_for(waiting, 5) == "x"
    assert hub._stream is stream


async def test_a_process_that_takes_no_more_items_is_not_sent_them_any_more(solo: Connection, another: Opener) -> None:
    assert await solo.queue("q").get_async(timeout=0.01) is None
    hub = solo._session().hub
    await until(lambda: are_live(solo))
    await another(solo).queue("q").put_many_async([bytes(50_000)] * 2)
    await until(lambda: not any(b"/items/" in each.key for each in list(hub._watches._watches.values())))
    assert len(await solo.queue("q").get_many_async(2, timeout=5)) == 2


async def test_a_blocking_wait_on_a_loops_thread_is_not_kept_waiting_by_the_loops_tasks(
    solo: Connection, another: Opener
) -> None:
    """The task came first, but it cannot take what it is told of before the blocking call returns."""
    q, producer = solo.queue("q"), another(solo).queue("q")
    task = asyncio.create_task(q.get_async(timeout=20))
    await until(lambda: watchers(solo) >= 1 and are_live(solo))
    putting = threading.Timer(0.2, producer.put, args=("for the call",))
    putting.start()
    began = time.monotonic()
    assert q.get(timeout=10) == "for the call"
    assert time.monotonic() - began < 5
    putting.join()
    await producer.put_async("for the task")
    assert await asyncio.wait_for(task, 5) == "for the task"


# ---- members


async def test_who_waits_outlives_the_leader(opened: Opener, calls: Calls) -> None:
    """A get, an acquire and a barrier wait are under way, and writes go on, while the leader is killed."""
    with LocalCluster(3, etcd=any_usable()) as cluster:
        leader = leader_of(cluster)
        endpoints = [leader.spec.endpoint, *(each for each in cluster.endpoints if each != leader.spec.endpoint)]
        ours, theirs = opened(endpoints), opened(endpoints[::-1])
        hold = await theirs.lock("l").acquire_async()
        waits = [
            calls(ours.queue("q")).get(timeout=40),
            calls(ours.lock("l")).acquire(timeout=40),
            calls(ours.barrier("b", n=2)).wait(timeout=40),
        ]
        waiting = [asyncio.create_task(_await(wait)) for wait in waits]
        await until(lambda: watchers(ours) >= 3)
        counting = [asyncio.create_task(_count(calls(each.counter("c")))) for each in (ours, theirs)]
        await asyncio.sleep(0.1)
        leader.kill()
        totals = await asyncio.gather(*counting)
        assert sorted(totals[0] + totals[1]) == list(range(1, 201))
        await theirs.queue("q").put_async("late")
        await hold.release_async()
        assert await theirs.barrier("b", n=2).wait_async(timeout=20) == 1
        item, mine, rank = await asyncio.gather(*waiting)
        assert (item, rank) == ("late", 0)
        assert mine.valid
        assert mine.token > hold.token
        ours._session().close()
        theirs._session().close()


async def _await(wait: Any) -> Any:
    return await wait


async def _count(counter: Any) -> list[int]:
    return [await counter.increment() for _ in range(100)]


def leader_of(cluster: LocalCluster) -> Member:
    """Return the member that leads."""
    for member in cluster.members:
        wire = Wire([member.spec.endpoint])
        status = wire.call(methods.STATUS, pb.StatusRequest(), timeout_s=3.0)
        wire.close()
        if status.leader == status.header.member_id:
            return member
    raise AssertionError("no member leads")


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_a_session_that_waits_for_long_keeps_its_stream_and_asks_once_a_second(
    clusters: Clusters, opened: Opener, calls: Calls
) -> None:
    """Of a client that it takes for too talkative, etcd ends the connection."""
    everywhere = [opened(clusters.get(label, 3).endpoints) for label in BINARIES]
    waiting = [asyncio.create_task(_await(calls(sky.queue("q")).get(timeout=60))) for sky in everywhere]
    await until(lambda: all(watchers(sky) and are_live(sky) for sky in everywhere))
    streams = [sky._session().hub._stream for sky in everywhere]
    await asyncio.sleep(30)
    assert [sky._session().hub._stream for sky in everywhere] == streams
    assert all(stream is not None and 20 <= questions(stream) <= 30 for stream in streams)
    for sky in everywhere:
        await sky.queue("q").put_async("late")
    assert await asyncio.gather(*waiting) == ["late"] * len(everywhere)


# ---- nobody answers

QUICK = Limits(call_s=0.5)


async def wait_everywhere(sky: Connection, calls: Calls) -> None:
    """Wait for an item, a lock and a barrier, 1 s each, and see that it ends in time, with an error that says so."""
    began = time.monotonic()
    waits = (
        calls(sky.queue("q")).get(timeout=1.0),
        calls(sky.lock("l")).acquire(timeout=1.0),
        calls(sky.barrier("b", n=2)).wait(timeout=1.0),
    )
    ended = await asyncio.gather(*(asyncio.create_task(_await(wait)) for wait in waits), return_exceptions=True)
    assert all(isinstance(each, (Unavailable, OutcomeUnknown, LockTimeout)) for each in ended), ended
    assert time.monotonic() - began < 1.0 + QUICK.call_s + 4.0


@pytest.fixture
def mute(opened: Opener) -> Iterator[tuple[LocalCluster, Connection]]:
    """A cluster of one member that a test may stop, and a session on it."""
    with LocalCluster(1, etcd=any_usable()) as cluster:
        sky = opened(cluster.endpoints, limits=QUICK)
        yield cluster, sky
        cluster.members[0].send_signal(signal.SIGCONT)
        sky._session().close()


async def stop(member: Member) -> None:
    """Stop a member's process; one that runs on several processors stops a moment after the signal."""
    member.send_signal(signal.SIGSTOP)
    await until(lambda: psutil.Process(member.pid).status() == psutil.STATUS_STOPPED)


@pytest.mark.parametrize("when", ["first use", "later use", "waiting"])
async def test_a_wait_in_an_outage_ends_one_request_after_its_time(
    mute: tuple[LocalCluster, Connection], calls: Calls, when: str
) -> None:
    cluster, sky = mute
    if when != "first use":
        hold = await sky.lock("l").acquire_async()
        if when == "later use":
            await hold.release_async()
            assert await sky.queue("q").get_async(timeout=0.01) is None
            with pytest.raises(BrokenBarrier):
                await sky.barrier("b", n=2).wait_async(timeout=0.01)
    if when != "waiting":
        await stop(cluster.members[0])
    waiting = asyncio.create_task(wait_everywhere(sky, calls))
    if when == "waiting":
        await until(lambda: watchers(sky) >= 3 and are_live(sky))
        await stop(cluster.members[0])
    await waiting
    cluster.members[0].send_signal(signal.SIGCONT)
    assert await calls(sky.lock("other")).acquire(timeout=10)


async def test_a_wait_where_nobody_is_ends_in_its_time(calls: Calls) -> None:
    session = Session([f"127.0.0.1:{free_ports(1)[0]}"], limits=QUICK)
    await wait_everywhere(Connection(session), calls)
    session.close()


async def test_a_session_closed_under_calls_that_are_under_way_ends_them(
    mute: tuple[LocalCluster, Connection], calls: Calls
) -> None:
    cluster, sky = mute
    session = sky._session()
    hold = await sky.lock("l").acquire_async()
    await use_everything(Connection(session), calls, lock="another")
    await stop(cluster.members[0])
    under_way = [
        asyncio.create_task(_await(call))
        for _ in range(5)
        for call in (
            calls(sky.dict("d")).get("k"),
            calls(sky.dict("strong", consistency="strong")).set("k", 2),
            calls(sky.counter("c")).increment(),
            calls(sky.queue("q")).put("item"),
            calls(sky.queue("q")).get(),
            calls(sky.lock("l")).acquire(),
            calls(sky.barrier("b", n=20)).wait(),
        )
    ]
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await calls(session).close()
    assert time.monotonic() - began < 8
    ended = await asyncio.wait_for(asyncio.gather(*under_way, return_exceptions=True), 5)
    assert {type(each) for each in ended} <= {NotConnected, OutcomeUnknown, Unavailable}, ended
    assert not [thread.name for thread in threading.enumerate() if _is_of(thread, session)]
    assert not hold.valid


# ---- the end of the interpreter

ENDINGS = {
    "with an open session": """
        conn = sky.connect(); conn.__enter__()
        sky.counter("c").increment()
    """,
    "with threads that wait": """
        conn = sky.connect(); conn.__enter__()
        sky.lock("l").acquire()
        for wait in (sky.queue("q").get, sky.lock("l").acquire, sky.barrier("b", n=2).wait):
            threading.Thread(target=wait, daemon=True).start()
        while sum(len(watch.watchers) for watch in [*conn._session().hub._watches._watches.values()]) < 4:
            time.sleep(0.01)
    """,
    "with threads at work": """
        conn = sky.connect(); conn.__enter__()
        rounds = collections.Counter()
        def count(number):
            while True:
                with sky.lock(f"l{number % 2}"):
                    rounds[number] = sky.counter("c").increment()
        for number in range(4):
            threading.Thread(target=count, args=(number,), daemon=True).start()
        while len(rounds) < 4:
            time.sleep(0.01)
    """,
    "with a loop in a thread": """
        conn = sky.connect(); conn.__enter__()
        begun = threading.Event()
        async def count():
            while True:
                await sky.counter("c").increment_async()
        async def main():
            waiting = [asyncio.create_task(each) for each in (sky.queue("q").get_async(), count(), count())]
            await sky.counter("c").increment_async()
            begun.set()
            await sky.barrier("b", n=2).wait_async()
        threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
        begun.wait()
    """,
    "with a thread that is joined at the very end": """
        waiting = threading.Thread(target=lambda: sky.queue("q").get(), daemon=True)
        atexit.unregister(session._at_exit)  # handlers run in the reverse order
        atexit.register(waiting.join)
        atexit.register(session._at_exit)
        conn = sky.connect(); conn.__enter__()
        waiting.start()
        while not conn._session().hub._watches._watches:
            time.sleep(0.01)
    """,
    "after asyncio": """
        conn = sky.connect(); conn.__enter__()
        async def main():
            await sky.counter("c").increment_async()
            waiting = asyncio.create_task(sky.queue("q").get_async())
            await asyncio.sleep(0.05)
        asyncio.run(main())
    """,
    "from within the block": """
        with sky.connect():
            asyncio.run(sky.counter("c").increment_async())
            sky.queue("q").get(timeout=0.01)
            print("end", flush=True)
            sys.exit(0)
    """,
    "by Ctrl-C in a wait": """
        with sky.connect() as conn:
            print("ready", flush=True)
            try:
                sky.queue("q").get()
            except KeyboardInterrupt:
                print("interrupted", len(conn._session().hub._watches._idle) == 2)
    """,
    "by Ctrl-C in an acquire": """
        with sky.connect() as conn:
            hold = sky.lock("l").acquire()
            print("ready", flush=True)
            try:
                sky.lock("l").acquire()
            except KeyboardInterrupt:
                hold.release()
                sky.lock("l").acquire(timeout=5)
                print("interrupted True")
    """,
    "by Ctrl-C in an asyncio wait": """
        async def main():
            print("ready", flush=True)
            await sky.queue("q").get_async()
        with sky.connect() as conn:
            try:
                asyncio.run(main())
            except KeyboardInterrupt:
                print("interrupted", len(conn._session().hub._watches._idle) == 2)
    """,
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_program_ends_quietly_and_leaves_nothing(solo: Connection, scripts: Scripts, ending: str) -> None:
    program = scripts.start(solo, ENDINGS[ending] + "\n    print('end', flush=True)\n".replace("    ", "    " * 2))
    if "Ctrl-C" in ending:
        assert next_line(program) == "ready"
        await until(lambda: keys_under(solo._session(), "meta/"))
        await asyncio.sleep(0.1)
        program.send_signal(signal.SIGINT)
        assert next_line(program) == "interrupted True"
    assert next_line(program) == "end"
    said(program, timeout_s=10)
    assert keys_under(solo._session(), "sessions/") == [f"sessions/{solo._session().id}"]
    assert [key for key in stored(solo) if not key.startswith(("counter/", "barrier/b/gate"))] == []


AT_WORK = """
    import itertools
    with sky.connect() as conn:
        print("ready", flush=True)
        for number in itertools.count():
            sky.dict("d", consistency="strong")["k"] = number
            with sky.lock("l"):
                sky.counter("c").increment()
            sky.queue("q").put(number)
            sky.queue("q").get(timeout=5)
            sky.queue("jobs").put(number)
            with sky.queue("jobs").claim():
                sky.set("s").add(number)
            sky.barrier("b", n=1).wait()
"""
IN_A_LOOP = """
    import itertools
    async def main():
        print("ready", flush=True)
        for number in itertools.count():
            async with sky.lock("l"):
                await sky.counter("c").increment_async()
            await sky.queue("q").put_async(number)
            await sky.queue("q").get_async(timeout=5)
            await sky.queue("jobs").put_async(number)
            async with await sky.queue("jobs").claim_async():
                await sky.set("s").add_async(number)
    with sky.connect() as conn:
        asyncio.run(main())
"""


@pytest.mark.parametrize("work", [AT_WORK, IN_A_LOOP], ids=["blocking", "asyncio"])
@pytest.mark.parametrize("seed", range(4))
async def test_ctrl_c_at_any_moment_ends_a_program_and_leaves_nothing(
    solo: Connection, scripts: Scripts, work: str, seed: int
) -> None:
    program = scripts.start(solo, work)
    assert next_line(program) == "ready"
    await asyncio.sleep(random.Random(seed).uniform(0.0, 0.3))
    program.send_signal(signal.SIGINT)
    out, complaints = program.communicate(timeout=10)
    assert program.returncode == -signal.SIGINT, out
    assert complaints.rstrip().endswith("KeyboardInterrupt"), complaints
    assert complaints.count("Traceback") == complaints.count("During handling") + 1, complaints
    assert keys_under(solo._session(), "sessions/") == [f"sessions/{solo._session().id}"]
    held = [key for key in stored(solo) if key.startswith(("lock/", "queue/jobs/claims/"))]
    assert not held
