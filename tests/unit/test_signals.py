"""One signal wakes threads and tasks alike, whenever it is set."""

from __future__ import annotations

import asyncio
import threading
import time

from skyward_etcd.session.signals import Signal, wait, wait_async


def test_a_signal_that_is_set_does_not_block() -> None:
    signal = Signal()
    signal.set()
    assert wait((signal,), None)


def test_a_wait_that_is_over_says_so() -> None:
    assert not wait((Signal(),), 0.01)


def test_another_thread_wakes_a_thread() -> None:
    signal = Signal()
    threading.Timer(0.02, signal.set).start()
    assert wait((Signal(), signal), 5)


def test_a_signal_set_twice_at_once_wakes_once() -> None:
    first, second = Signal(), Signal()

    def both() -> None:
        first.set()
        second.set()

    threading.Timer(0.02, both).start()
    assert wait((first, second), 5)
    assert wait((first, second), 0)


def test_a_cleared_signal_blocks_again() -> None:
    signal = Signal()
    signal.set()
    signal.clear()
    assert not wait((signal,), 0)


async def test_another_thread_wakes_a_task() -> None:
    signal = Signal()
    threading.Timer(0.02, signal.set).start()
    assert await wait_async((signal,), 5)


async def test_the_loop_goes_on_while_a_task_waits() -> None:
    signal = Signal()
    waiting = asyncio.create_task(wait_async((signal,), 5))
    await asyncio.sleep(0.01)
    signal.set()
    assert await waiting


async def test_a_cancelled_wait_leaves_no_waker_behind() -> None:
    signal = Signal()
    waiting = asyncio.create_task(wait_async((signal,), None))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait((waiting,))
    signal.set()
    assert not signal._wakers


def test_setting_a_signal_after_its_loop_has_closed_is_harmless() -> None:
    signal = Signal()

    async def arm() -> None:
        signal.arm(lambda: None)

    asyncio.run(arm())
    signal.set()


def test_many_waiters_are_all_woken() -> None:
    signal = Signal()
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(wait((signal,), 5))) for _ in range(20)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 5
    while len(signal._wakers) < 20 and time.monotonic() < deadline:
        time.sleep(0.001)
    signal.set()
    for thread in threads:
        thread.join()
    assert woken == [True] * 20
