"""A barrier that all nodes share: a generation passes as a whole or is broken for all, at once."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable
from typing import Any

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.errors import BrokenBarrier, NotConnected, WrongKind
from tests.integration.conftest import Opener
from tests.integration.helpers import (
    Calls,
    LossyWire,
    Scripts,
    in_threads,
    keys_under,
    next_line,
    revoke_lease,
    said,
    sent_by,
    stored,
    until,
    watchers,
)


async def test_all_pass_when_the_last_one_comes(sky: Connection, another: Opener, calls: Calls) -> None:
    ours, theirs = sky.barrier("b", n=3), another(sky).barrier("b", n=3)
    waiting = [asyncio.ensure_future(calls(barrier).wait(timeout=20)) for barrier in (ours, theirs)]
    await until(lambda: ours.waiting() == 2)
    await asyncio.sleep(0.02)
    assert not any(task.done() for task in waiting)
    last = await calls(theirs).wait(timeout=20)
    assert last == 2
    assert sorted(await asyncio.gather(*waiting)) == [0, 1]
    assert await calls(ours).waiting() == 0
    assert stored(sky) == ["barrier/b/gate"]
    assert watchers(sky) == 0


async def test_generations_follow_each_other(sky: Connection, another: Opener, calls: Calls) -> None:
    """Nobody is a generation ahead: before anyone begins the next, all have ended this one's work."""
    barriers = [sky.barrier("b", n=3), sky.barrier("b", n=3), another(sky).barrier("b", n=3)]
    arrived = [0] * 3

    async def take_part(me: int) -> list[int]:
        ranks: list[int] = []
        for generation in range(1, 9):
            arrived[me] = generation
            ranks.append(await calls(barriers[me]).wait(timeout=20))
            assert min(arrived) >= generation
        return ranks

    ranks = await asyncio.gather(*[take_part(me) for me in range(3)])
    assert [sorted(of_one) for of_one in zip(*ranks, strict=True)] == [[0, 1, 2]] * 8


async def test_a_barrier_of_one_is_open(sky: Connection, calls: Calls) -> None:
    barrier = calls(sky.barrier("b", n=1))
    assert [await barrier.wait(timeout=5) for _ in range(5)] == [0] * 5


def test_threads_are_participants_of_their_own(solo: Connection) -> None:
    barrier = solo.barrier("b", n=8)
    ranks = in_threads(8, lambda _: [barrier.wait(timeout=20) for _ in range(10)])
    assert [sorted(of_one) for of_one in zip(*ranks, strict=True)] == [list(range(8))] * 10


async def test_more_callers_than_participants_make_more_generations(sky: Connection, calls: Calls) -> None:
    waiting = [calls(sky.barrier("b", n=2)).wait(timeout=20) for _ in range(8)]
    assert sorted(await asyncio.gather(*map(_task, waiting))) == [0] * 4 + [1] * 4


async def _task(waiting: Awaitable[Any]) -> Any:
    return await waiting


def test_processes_meet(trio: Connection, scripts: Scripts) -> None:
    code = """
        with sky.connect():
            barrier = sky.barrier("b", n=3)
            for _ in range(10):
                print(barrier.wait(timeout=30))
    """
    running = [scripts.start(trio, code) for _ in range(3)]
    ranks = [map(int, said(process)) for process in running]
    assert [sorted(of_one) for of_one in zip(*ranks, strict=True)] == [[0, 1, 2]] * 10


async def test_who_waits_is_let_go_at_once(solo: Connection, another: Opener, calls: Calls) -> None:
    ours, theirs = solo.barrier("b", n=2), another(solo).barrier("b", n=2)
    delays: list[float] = []
    for _ in range(7):
        waiting = asyncio.ensure_future(calls(ours).wait(timeout=20))
        await until(lambda: theirs.waiting() == 1)
        began = time.perf_counter()
        await theirs.wait_async(timeout=20)
        await waiting
        delays.append(time.perf_counter() - began)
    assert sorted(delays)[3] < 0.05, delays


# ---- broken


async def test_a_timeout_breaks_it_for_the_others_now(sky: Connection, another: Opener, calls: Calls) -> None:
    ours, theirs = sky.barrier("b", n=4), another(sky).barrier("b", n=4)
    patient = [asyncio.ensure_future(calls(barrier).wait(timeout=30)) for barrier in (ours, theirs)]
    await until(lambda: ours.waiting() == 2)
    began = time.monotonic()
    with pytest.raises(BrokenBarrier, match="'b'"):
        await calls(ours).wait(timeout=0.02)
    for waiting in patient:
        with pytest.raises(BrokenBarrier):
            await waiting
    assert time.monotonic() - began < 5
    assert stored(sky) == ["barrier/b/gate"]


async def test_the_generation_after_a_broken_one_is_fresh(sky: Connection, another: Opener, calls: Calls) -> None:
    ours, theirs = sky.barrier("b", n=2), another(sky).barrier("b", n=2)
    for _ in range(3):
        with pytest.raises(BrokenBarrier):
            await calls(ours).wait(timeout=0.02)
        assert sorted(await asyncio.gather(*[_task(calls(one).wait(timeout=20)) for one in (ours, theirs)])) == [0, 1]
    assert watchers(sky) == 0


async def test_a_cancelled_participant_breaks_it_for_the_others(sky: Connection, calls: Calls) -> None:
    barrier = sky.barrier("b", n=3)
    patient = asyncio.ensure_future(calls(barrier).wait(timeout=30))
    leaving = asyncio.create_task(barrier.wait_async())
    await until(lambda: barrier.waiting() == 2)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    with pytest.raises(BrokenBarrier):
        await asyncio.wait_for(patient, 5)
    await until(lambda: stored(sky) == ["barrier/b/gate"])
    assert watchers(sky) == 0


async def test_a_participant_cancelled_at_any_moment_is_never_counted_again(solo: Connection) -> None:
    barrier = solo.barrier("b", n=2)
    for number in range(25):
        leaving = asyncio.create_task(barrier.wait_async())
        await asyncio.sleep(0.0002 * number)
        leaving.cancel()
        await asyncio.wait([leaving])
        await until(lambda: barrier.waiting() == 0)
    with pytest.raises(BrokenBarrier):
        await barrier.wait_async(timeout=0.05)


async def test_reset_breaks_the_generation_that_waits(sky: Connection, another: Opener, calls: Calls) -> None:
    barrier = calls(sky.barrier("b", n=2))
    await barrier.reset()
    waiting = asyncio.ensure_future(barrier.wait(timeout=20))
    await until(lambda: sky.barrier("b", n=2).waiting() == 1)
    await calls(another(sky).barrier("b", n=2)).reset()
    with pytest.raises(BrokenBarrier):
        await waiting


async def test_what_comes_after_a_cancelled_wait_belongs_to_the_next_generation(sky: Connection) -> None:
    barrier = sky.barrier("b", n=2)
    for _ in range(10):
        cancelled = asyncio.ensure_future(barrier.wait_async())
        await until(lambda: sky.barrier("b", n=2).waiting() == 1)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        both = [barrier.wait_async(timeout=20) for _ in range(2)]
        assert sorted(await asyncio.gather(*both)) == [0, 1]


async def test_an_abort_turns_away_who_waits_and_who_comes_until_a_reset(
    sky: Connection, another: Opener, calls: Calls
) -> None:
    ours, theirs = calls(sky.barrier("b", n=2)), calls(another(sky).barrier("b", n=2))
    waiting = asyncio.ensure_future(ours.wait(timeout=20))
    await until(lambda: sky.barrier("b", n=2).waiting() == 1)
    await theirs.abort()
    with pytest.raises(BrokenBarrier):
        await waiting
    await theirs.abort()
    for barrier in (ours, theirs):
        with pytest.raises(BrokenBarrier, match="reset"):
            await barrier.wait(timeout=20)
    await ours.reset()
    assert sorted(await asyncio.gather(ours.wait(timeout=20), theirs.wait(timeout=20))) == [0, 1]


async def test_a_killed_process_breaks_it_for_the_others(solo: Connection, scripts: Scripts, calls: Calls) -> None:
    participant = scripts.start(
        solo,
        """
        with limited(ttl_s=5) as conn:
            print("here", flush=True)
            conn.barrier("b", n=3).wait()
        """,
    )
    assert next_line(participant) == "here"
    barrier = solo.barrier("b", n=3)
    waiting = asyncio.ensure_future(calls(barrier).wait(timeout=60))
    await until(lambda: barrier.waiting() == 2)
    participant.send_signal(signal.SIGKILL)
    with pytest.raises(BrokenBarrier):
        await asyncio.wait_for(waiting, 15)


async def test_a_participant_whose_session_ends_breaks_it_for_the_others(
    sky: Connection, another: Opener, calls: Calls
) -> None:
    other = another(sky)
    barrier = sky.barrier("b", n=3)
    waiting = asyncio.ensure_future(calls(barrier).wait(timeout=30))
    leaving = asyncio.ensure_future(calls(other.barrier("b", n=3)).wait(timeout=30))
    await until(lambda: barrier.waiting() == 2)
    other._session().close()
    with pytest.raises((BrokenBarrier, NotConnected)):
        await asyncio.wait_for(leaving, 5)
    with pytest.raises(BrokenBarrier):
        await asyncio.wait_for(waiting, 5)


async def test_a_session_that_only_looks_may_end(sky: Connection, another: Opener, calls: Calls) -> None:
    barrier = sky.barrier("b", n=2)
    waiting = asyncio.ensure_future(calls(barrier).wait(timeout=20))
    await until(lambda: barrier.waiting() == 1)
    for _ in range(3):
        bystander = another(sky)
        await bystander.set("s").add_async(1)
        bystander._session().close()
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert await barrier.wait_async(timeout=5) == 1
    assert await waiting == 0


async def test_who_lost_its_lease_breaks_it_and_can_wait_again(sky: Connection, another: Opener, calls: Calls) -> None:
    ours, other = sky.barrier("b", n=2), another(sky)
    waiting = asyncio.ensure_future(calls(other.barrier("b", n=2)).wait(timeout=20))
    await until(lambda: ours.waiting() == 1)
    revoke_lease(other)
    with pytest.raises(BrokenBarrier):
        await asyncio.wait_for(waiting, 5)
    again = [calls(ours).wait(timeout=5), calls(other.barrier("b", n=2)).wait(timeout=5)]
    assert sorted(await asyncio.gather(*map(_task, again))) == [0, 1]


async def test_a_lease_lost_before_the_wait_does_not_matter(sky: Connection, calls: Calls) -> None:
    barrier = calls(sky.barrier("b", n=1))
    await barrier.wait(timeout=5)
    revoke_lease(sky)
    assert await barrier.wait(timeout=5) == 0
    assert len(keys_under(sky._session(), "sessions/")) == 1


# ---- bad input


async def test_bad_input_is_refused_before_anything_is_sent(solo: Connection, calls: Calls) -> None:
    sent = sent_by(solo)
    for wrong, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError), ("2", TypeError)):
        with pytest.raises(error, match="barrier 'b': n is"):
            solo.barrier("b", n=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="n=4"):
        solo.barrier("b")
    for timeout, error in ((-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="timeout"):
            await calls(solo.barrier("b", n=2)).wait(timeout=timeout)
    assert sent == []
    assert stored(solo) == []


async def test_two_barriers_of_one_name_must_agree_on_n(sky: Connection, another: Opener, calls: Calls) -> None:
    assert await calls(sky.barrier("b", n=1)).wait(timeout=5) == 0
    for session in (sky, another(sky)):
        for use in ("wait", "waiting", "reset"):
            with pytest.raises(ValueError, match="n=1"):
                await getattr(calls(session.barrier("b", n=2)), use)()
    assert await calls(sky.barrier("b", parties=1)).wait(timeout=5) == 0
    with pytest.raises(WrongKind, match="barrier"):
        await calls(sky.lock("b")).acquire()


# ---- lost answers


async def test_when_answers_are_lost_all_pass_every_generation(solo: Connection, another: Opener, calls: Calls) -> None:
    sessions = [solo, another(solo), solo]
    lossy = [LossyWire(session._session(), seed=61) for session in sessions[:2]]
    arrived = [0] * 3

    async def take_part(me: int) -> list[int]:
        ranks: list[int] = []
        for generation in range(1, 7):
            arrived[me] = generation
            ranks.append(await calls(sessions[me].barrier("b", n=3)).wait(timeout=30))
            assert min(arrived) >= generation
        return ranks

    ranks = await asyncio.gather(*[take_part(me) for me in range(3)])
    assert [sorted(of_one) for of_one in zip(*ranks, strict=True)] == [[0, 1, 2]] * 6
    assert sum(wire.lost for wire in lossy) > 5
