"""Calls of many threads and tasks, that travel together when one of those under way ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import pytest

from skyward_etcd.errors import EtcdError, SkywardEtcdError, Unavailable
from skyward_etcd.ops import kv
from skyward_etcd.ops.effects import Call
from skyward_etcd.session.merging import Merging
from skyward_etcd.testing.model import ModelEtcd
from skyward_etcd.wire.methods import RANGE, TXN

LONG_S = 20.0


class SlowEtcd:
    """A wire to a model of etcd, on which calls wait until they are let through."""

    def __init__(self) -> None:
        self.etcd = ModelEtcd()
        self.sent: list[Call] = []
        self.limits_s: list[float] = []
        self.lost: SkywardEtcdError | None = None
        """What the next calls end with, applied or not."""
        self.open = threading.Event()
        self._lock = threading.Lock()

    def call(self, method: Any, request: Any, *, timeout_s: float) -> Any:
        self._note(Call(method, request), timeout_s)
        if not self.open.wait(timeout_s):
            raise Unavailable("no answer in time")
        return self._answer(method, request)

    async def call_async(self, method: Any, request: Any, *, timeout_s: float) -> Any:
        self._note(Call(method, request), timeout_s)
        deadline = time.monotonic() + timeout_s
        await asyncio.sleep(0)
        while not self.open.is_set():
            await asyncio.sleep(0.001)
            if time.monotonic() > deadline:
                raise Unavailable("no answer in time")
        return self._answer(method, request)

    def _note(self, call: Call, timeout_s: float) -> None:
        with self._lock:
            self.sent.append(call)
            self.limits_s.append(timeout_s)

    def _answer(self, method: Any, request: Any) -> Any:
        with self._lock:
            if self.lost is not None:
                raise self.lost
            return self.etcd.call(method, request)

    def close(self) -> None: ...

    @property
    def sizes(self) -> list[int]:
        """How many calls travelled in each request: a lone one has compares, or is no transaction."""
        return [1 if call.method is RANGE or call.request.compare else len(call.request.success) for call in self.sent]


@pytest.fixture
def wire() -> SlowEtcd:
    return SlowEtcd()


@pytest.fixture
def merging(wire: SlowEtcd) -> Merging:
    return Merging(cast(Any, wire), at_once=1)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as pool:
        yield pool


def read(key: bytes) -> Call:
    return Call(RANGE, kv.read(key))


def write(key: bytes, value: bytes = b"1") -> Call:
    return Call(TXN, kv.txn((kv.absent(key),), (kv.put(key, value),), (kv.get(key),)))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def begin(
    merging: Merging, threads: ThreadPoolExecutor, calls: list[Call], timeout_s: float = LONG_S
) -> list[Future[Any]]:
    """Begin calls, each in a thread, so that the first is under way and the others wait in this order."""
    futures: list[Future[Any]] = []
    for call in calls:
        futures.append(threads.submit(merging.call, call, timeout_s=timeout_s))
        until(lambda: len(merging._senders) + len(merging._waiting) == len(futures))
    return futures


# ---- threads


def test_a_call_that_finds_nobody_goes_at_once_as_it_is(wire: SlowEtcd, merging: Merging) -> None:
    wire.open.set()
    call = write(b"a")
    assert merging.call(call, timeout_s=1).succeeded
    assert wire.sent == [call]
    assert wire.limits_s == [1]


def test_what_waits_travels_together_and_each_gets_its_own_answer(
    wire: SlowEtcd, merging: Merging, threads: ThreadPoolExecutor
) -> None:
    writes = begin(merging, threads, [write(b"%d" % number, b"of %d" % number) for number in range(20)])
    wire.open.set()
    assert all(future.result(LONG_S).succeeded for future in writes)
    reads = [threads.submit(merging.call, read(b"%d" % number), timeout_s=LONG_S) for number in range(20)]
    assert [future.result(LONG_S).kvs[0].value for future in reads] == [b"of %d" % number for number in range(20)]
    assert wire.sizes[:2] == [1, 19]


def test_what_depends_on_what_goes_with_the_next(wire: SlowEtcd, merging: Merging, threads: ThreadPoolExecutor) -> None:
    calls = begin(
        merging, threads, [read(b"x"), write(b"a", b"first"), write(b"b"), write(b"a", b"second"), read(b"a")]
    )
    wire.open.set()
    assert [call.result(LONG_S).succeeded for call in calls[1:4]] == [True, True, False]
    assert calls[4].result(LONG_S).kvs[0].value == b"first"
    assert wire.sizes == [1, 2, 1, 1]


def test_as_many_are_under_way_as_may_be(wire: SlowEtcd, threads: ThreadPoolExecutor) -> None:
    merging = Merging(cast(Any, wire), at_once=3)
    calls = begin(merging, threads, [read(b"%d" % number) for number in range(10)])
    assert len(wire.sent) == 3
    wire.open.set()
    for call in calls:
        call.result(LONG_S)
    assert sum(wire.sizes) == 10
    assert max(wire.sizes) > 1


def test_what_etcd_refuses_is_sent_again_one_by_one(
    wire: SlowEtcd, merging: Merging, threads: ThreadPoolExecutor
) -> None:
    on_no_lease = Call(TXN, kv.txn((), (kv.put(b"b", lease=99), kv.put(b"c", lease=99))))
    first, good, bad = begin(merging, threads, [read(b"x"), write(b"a"), on_no_lease])
    wire.open.set()
    assert first.result(LONG_S)
    assert good.result(LONG_S).succeeded
    with pytest.raises(EtcdError):
        bad.result(LONG_S)
    assert wire.sizes == [1, 2, 1, 2]


def test_a_lost_answer_is_lost_to_each(wire: SlowEtcd, merging: Merging, threads: ThreadPoolExecutor) -> None:
    calls = begin(merging, threads, [write(b"%d" % number) for number in range(4)])
    wire.lost = Unavailable("lost", maybe_applied=True)
    wire.open.set()
    errors = [call.exception(LONG_S) for call in calls]
    assert [isinstance(error, Unavailable) and error.maybe_applied for error in errors] == [True] * 4
    assert len(set(map(id, errors))) == 4


def test_who_waits_too_long_has_certainly_sent_nothing(
    wire: SlowEtcd, merging: Merging, threads: ThreadPoolExecutor
) -> None:
    slow = threads.submit(merging.call, read(b"x"), timeout_s=LONG_S)
    until(lambda: len(wire.sent) == 1)
    with pytest.raises(Unavailable) as lost:
        merging.call(write(b"a"), timeout_s=0.02)
    assert not lost.value.maybe_applied
    wire.open.set()
    slow.result(LONG_S)
    assert merging.call(read(b"a"), timeout_s=1).kvs == []
    assert sum(wire.sizes) == 2


def test_whose_time_is_over_while_others_carry_him_may_have_been_applied(
    wire: SlowEtcd, merging: Merging, threads: ThreadPoolExecutor
) -> None:
    calls = begin(merging, threads, [read(b"x")], timeout_s=0.3)  # which ends without an answer
    calls += [threads.submit(merging.call, write(b"a"), timeout_s=LONG_S)]
    until(lambda: len(merging._waiting) == 1)
    short = threads.submit(merging.call, write(b"b"), timeout_s=0.6)
    lost = short.exception(LONG_S)
    assert isinstance(lost, Unavailable)
    assert lost.maybe_applied
    wire.open.set()
    assert calls[1].result(LONG_S).succeeded
    assert wire.sizes == [1, 2]


def test_ctrl_c_in_the_thread_that_sends_for_all_is_told_to_all(
    wire: SlowEtcd, merging: Merging, threads: ThreadPoolExecutor
) -> None:
    blocked = threads.submit(merging.call, read(b"x"), timeout_s=0.3)
    until(lambda: len(wire.sent) == 1)
    others: list[Future[Any]] = []

    def interrupt() -> None:
        until(lambda: len(merging._waiting) == 1)
        others.extend(threads.submit(merging.call, write(b"%d" % number), timeout_s=LONG_S) for number in range(3))
        until(lambda: len(merging._waiting) == 4)
        _interrupt_when(lambda: len(wire.sent) == 2)

    interrupter = threads.submit(interrupt)
    with pytest.raises(KeyboardInterrupt):
        merging.call(write(b"mine"), timeout_s=LONG_S)
    interrupter.result(LONG_S)
    assert isinstance(blocked.exception(LONG_S), Unavailable)
    for other in others:
        error = other.exception(1.0)
        assert isinstance(error, Unavailable)
        assert error.maybe_applied
    wire.open.set()
    assert merging.call(read(b"y"), timeout_s=1), "nothing stays behind"
    assert not merging._senders


def test_ctrl_c_in_a_thread_that_waits_leaves_the_others_alone(
    wire: SlowEtcd, merging: Merging, threads: ThreadPoolExecutor
) -> None:
    first = threads.submit(merging.call, read(b"x"), timeout_s=LONG_S)
    until(lambda: len(wire.sent) == 1)
    interrupter = threads.submit(_interrupt_when, lambda: len(merging._waiting) == 1)
    with pytest.raises(KeyboardInterrupt):
        merging.call(write(b"mine"), timeout_s=LONG_S)
    interrupter.result(LONG_S)
    other = threads.submit(merging.call, write(b"other"), timeout_s=LONG_S)
    until(lambda: len(merging._waiting) == 2)
    wire.open.set()
    assert first.result(LONG_S)
    assert other.result(LONG_S).succeeded
    assert not merging.call(read(b"mine"), timeout_s=1).kvs


def _interrupt_when(condition: Callable[[], bool]) -> None:
    until(condition)
    time.sleep(0.05)  # a signal that comes just before a wait is heard after it
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_a_signals_handler_does_not_wait_for_the_call_that_it_interrupts(wire: SlowEtcd, merging: Merging) -> None:
    answers: list[Any] = []

    def handle(*_: Any) -> None:
        wire.open.set()
        answers.append(merging.call(write(b"from the handler"), timeout_s=1))

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert merging.call(write(b"mine"), timeout_s=LONG_S).succeeded
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert answers[0].succeeded


# ---- tasks


async def begin_tasks(merging: Merging, calls: list[Call], timeout_s: float = LONG_S) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(merging.call_async(call, timeout_s=timeout_s)) for call in calls]
    await asyncio.sleep(0.01)
    return tasks


async def test_the_calls_of_tasks_travel_together_and_each_gets_its_own_answer(
    wire: SlowEtcd, merging: Merging
) -> None:
    writes = await begin_tasks(merging, [write(b"%d" % number, b"of %d" % number) for number in range(20)])
    wire.open.set()
    assert all(reply.succeeded for reply in await asyncio.gather(*writes))
    reads = await asyncio.gather(*await begin_tasks(merging, [read(b"%d" % number) for number in range(20)]))
    assert [reply.kvs[0].value for reply in reads] == [b"of %d" % number for number in range(20)]
    assert wire.sizes == [1, 19, 1, 19]


async def test_a_cancelled_task_takes_nobodys_answer_along(wire: SlowEtcd, merging: Merging) -> None:
    tasks = await begin_tasks(merging, [read(b"x"), *[write(b"%d" % number) for number in range(4)]])
    tasks[2].cancel()  # it waits
    tasks[0].cancel()  # and the others are sent
    await asyncio.sleep(0.01)
    tasks[1].cancel()  # it is under way with them
    await asyncio.sleep(0.01)
    wire.open.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends[:3]] == [asyncio.CancelledError] * 3
    assert [tasks[3].result().succeeded, tasks[4].result().succeeded] == [True, True]
    assert wire.sizes == [1, 3]


async def test_the_first_that_is_cancelled_lets_those_who_wait_go_on(wire: SlowEtcd, merging: Merging) -> None:
    first, *others = await begin_tasks(merging, [read(b"x"), write(b"a"), write(b"b")])
    first.cancel()
    wire.open.set()
    assert [reply.succeeded for reply in await asyncio.gather(*others)] == [True, True]


async def test_a_lost_answer_is_lost_to_each_task(wire: SlowEtcd, merging: Merging) -> None:
    tasks = await begin_tasks(merging, [write(b"%d" % number) for number in range(4)])
    wire.lost = Unavailable("lost", maybe_applied=False)
    wire.open.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(end, Unavailable) and not end.maybe_applied for end in ends] == [True] * 4


async def test_a_task_that_waits_too_long_has_certainly_sent_nothing(wire: SlowEtcd, merging: Merging) -> None:
    (slow,) = await begin_tasks(merging, [read(b"x")])  # for twenty seconds
    (late,) = await begin_tasks(merging, [write(b"a")], timeout_s=0.1)
    with pytest.raises(Unavailable) as lost:
        await late
    assert not lost.value.maybe_applied
    assert len(wire.sent) == 1
    wire.open.set()
    await slow


async def test_threads_and_tasks_do_not_wait_for_each_other(wire: SlowEtcd, merging: Merging) -> None:
    slow = await begin_tasks(merging, [read(b"x")])
    thread = asyncio.create_task(asyncio.to_thread(merging.call, read(b"y"), timeout_s=LONG_S))
    await asyncio.to_thread(until, lambda: len(wire.sent) == 2)
    wire.open.set()
    await asyncio.gather(*slow, thread)


def test_a_loop_that_is_gone_leaves_nothing(wire: SlowEtcd, merging: Merging) -> None:
    async def leave() -> None:
        await begin_tasks(merging, [read(b"x"), write(b"a"), write(b"b")])

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(leave())
    wire.open.set()
    assert asyncio.run(merging.call_async(read(b"y"), timeout_s=1))
