"""Group commit: calls that come while others are under way travel together when one of those ends.

Nothing waits for company: while fewer than `Limits.calls_at_once` are under way a call goes at once, and alone. Which
calls may travel together, and as what, is :mod:`skyward_etcd.ops.merge`'s. What each is told is what it would be told
alone: a lost answer is lost to each of them, and each finds out by its own proof whether it was applied; what etcd
refuses is sent again one by one, for it refuses before it applies anything.

On threads one of those that wait is woken to send for all. The batch of an event loop is a task of its own, so that
whoever is cancelled takes nobody's answer along. The calls of a loop and those of threads never wait for each other.
Nobody waits longer than its own call may take, whatever has become of the one who should have sent it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from skyward_etcd.errors import SkywardEtcdError, Unavailable
from skyward_etcd.ops.effects import Call
from skyward_etcd.ops.merge import Batch, Footprint, footprint, may_be_merged
from skyward_etcd.wire.client import Wire

__all__ = ["Merging"]


class Merging:
    """A session's way to etcd, for threads and for the tasks of event loops."""

    def __init__(self, wire: Wire, *, at_once: int) -> None:
        self._wire = wire
        self._at_once = at_once
        self._senders: set[int] = set()
        """The threads that have a call under way. One more than there should be does no harm, so nothing is locked."""
        self._waiting: deque[_Parked] = deque()
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}

    def call(self, call: Call, *, timeout_s: float) -> Any:
        """Make one attempt, alone or with others, and return the reply.

        Raises:
            Unavailable: no answer.
            EtcdError: etcd refused.
        """
        if not may_be_merged(call):
            return self._wire.call(call.method, call.request, timeout_s=timeout_s)
        thread = threading.get_ident()
        # A signal's handler may call in the middle of its thread's own call, which it must not wait for.
        if len(self._senders) >= self._at_once and thread not in self._senders:
            its = footprint(call)
            if its is not None:
                return self._wait(_Parked(call, its, timeout_s, thread))
        try:
            self._senders.add(thread)
            return self._wire.call(call.method, call.request, timeout_s=timeout_s)
        finally:
            self._senders.discard(thread)
            self._pass_on()

    async def call_async(self, call: Call, *, timeout_s: float) -> Any:
        """`call`, without blocking the event loop."""
        if not may_be_merged(call):
            return await self._wire.call_async(call.method, call.request, timeout_s=timeout_s)
        loop = self._loops.get(asyncio.get_running_loop()) or self._of_this_loop()
        return await loop.call(call, timeout_s)

    def close(self) -> None:
        """Fail what is under way, what waits, and what comes."""
        self._wire.close()

    def _of_this_loop(self) -> _Loop:
        for loop in list(self._loops):  # at once: other threads add theirs
            if loop.is_closed():
                self._loops.pop(loop, None)
        return self._loops.setdefault(asyncio.get_running_loop(), _Loop(self._wire, self._at_once))

    def _wait(self, mine: _Parked) -> Any:
        """Wait for an answer, or to be the one who sends."""
        try:
            self._waiting.append(mine)
            if len(self._senders) < self._at_once:  # who had one under way may have looked before this was in
                self._pass_on()
            if not mine.parked.acquire(timeout=max(0.0, mine.left_s())):
                raise Unavailable("no answer in time", maybe_applied=mine.take(_GONE) == _GOES_ALONG)
            if mine.take(_GONE) == _LEADS:
                self._lead(mine)
        finally:
            if mine.take(_GONE) == _LEADS:
                self._senders.discard(mine.thread)
                self._pass_on()
        if mine.answer is None:
            return self._wire.call(mine.call.method, mine.call.request, timeout_s=max(0.0, mine.left_s()))
        return _given(mine.answer)

    def _pass_on(self) -> None:
        """Have the one who has waited longest send what waits."""
        while self._waiting:
            try:
                first = self._waiting.popleft()
            except IndexError:  # another thread was quicker
                return
            if first.take(_LEADS) == _LEADS:
                self._senders.add(first.thread)
                first.parked.release()
                return

    def _lead(self, first: _Parked) -> None:
        """Send what waits, and hand out the answers."""
        along: list[_Parked] = [first]
        batch = Batch()
        batch.add(first.call, first.footprint)
        answers: Sequence[Any] = ()
        try:
            self._gather(batch, along)
            sent = batch.as_call()
            left_s = max(each.left_s() for each in along)
            answers = batch.answers(self._wire.call(sent.method, sent.request, timeout_s=max(0.0, left_s)))
        except SkywardEtcdError as error:
            answers = batch.told(error)
        finally:
            if not answers:  # Ctrl-C in the thread that sends for all
                answers = [Unavailable("the thread that had sent it was interrupted") for _ in along]
            for each, answer in zip(along, answers, strict=True):
                each.answer = answer
                if each is not first:
                    each.parked.release()

    def _gather(self, batch: Batch, along: list[_Parked]) -> None:
        later: list[_Parked] = []
        try:
            while self._waiting and not batch.is_full:
                try:
                    other = self._waiting.popleft()
                except IndexError:  # another thread was quicker
                    return
                if not batch.fits(other.footprint):
                    later.append(other)
                elif other.take(_GOES_ALONG) == _GOES_ALONG:
                    along.append(other)
                    batch.add(other.call, other.footprint)
        finally:
            self._waiting.extendleft(reversed(later))


_LEADS, _GOES_ALONG, _GONE = "leads", "goes along", "gone"


class _Waiting:
    """A call that is not under way yet."""

    __slots__ = ("_deadline", "call", "footprint")

    def __init__(self, call: Call, its: Footprint, timeout_s: float) -> None:
        self.call = call
        self.footprint = its
        self._deadline = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Return the time that it still has."""
        return self._deadline - time.monotonic()


class _Parked(_Waiting):
    """A thread's."""

    __slots__ = ("_part", "answer", "parked", "thread")

    def __init__(self, call: Call, its: Footprint, timeout_s: float, thread: int) -> None:
        super().__init__(call, its, timeout_s)
        self.thread = thread
        self.answer: Any = None
        """A reply, an error, or ``None``: it has to be sent again by itself."""
        self.parked = threading.Lock()
        """Released when there is an answer, or something to do."""
        self.parked.acquire()
        self._part: dict[None, str] = {}

    def take(self, part: str) -> str:
        """Give it a part, unless it has one, and return the one that it has: the first of those who try decides."""
        return self._part.setdefault(None, part)


class _Awaited(_Waiting):
    """A task's."""

    __slots__ = ("answer", "goes_along")

    def __init__(self, call: Call, its: Footprint, timeout_s: float, answer: asyncio.Future[Any]) -> None:
        super().__init__(call, its, timeout_s)
        self.answer = answer
        self.goes_along = False

    def give_up(self) -> None:
        """Wait no longer."""
        if not self.answer.done():
            self.answer.set_result(Unavailable("no answer in time", maybe_applied=self.goes_along))


class _Loop:
    """The calls of one event loop's tasks."""

    def __init__(self, wire: Wire, at_once: int) -> None:
        self._wire = wire
        self._at_once = at_once
        self._under_way = 0
        self._waiting: deque[_Awaited] = deque()
        self._batches: set[asyncio.Task[None]] = set()

    async def call(self, call: Call, timeout_s: float) -> Any:
        """Make one attempt, alone or with others, and return the reply."""
        its = footprint(call) if self._under_way >= self._at_once else None
        if its is None:
            return await self._send_alone(call, timeout_s)
        mine = _Awaited(call, its, timeout_s, asyncio.get_running_loop().create_future())
        self._waiting.append(mine)
        timer = asyncio.get_running_loop().call_later(timeout_s, mine.give_up)
        try:
            answer = await mine.answer
        finally:
            timer.cancel()
        if answer is None:
            return await self._wire.call_async(call.method, call.request, timeout_s=max(0.0, mine.left_s()))
        return _given(answer)

    async def _send_alone(self, call: Call, timeout_s: float) -> Any:
        self._under_way += 1
        try:
            return await self._wire.call_async(call.method, call.request, timeout_s=timeout_s)
        finally:
            self._under_way -= 1
            self._go_on()

    def _go_on(self) -> None:
        """Send what waits, as much as may be under way at once."""
        while self._waiting and self._under_way < self._at_once:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # it was stopped for good under its tasks
                return
            batch, along = self._gathered()
            if along:
                self._under_way += 1
                task = loop.create_task(self._send(batch, along))
                self._batches.add(task)
                task.add_done_callback(self._batches.discard)

    def _gathered(self) -> tuple[Batch, list[_Awaited]]:
        batch = Batch()
        along: list[_Awaited] = []
        later: list[_Awaited] = []
        while self._waiting and not batch.is_full:
            other = self._waiting.popleft()
            if other.answer.done():  # cancelled, or given up
                continue
            if other.left_s() <= 0:
                other.give_up()
            elif batch.takes(other.call, other.footprint):
                other.goes_along = True
                along.append(other)
            else:
                later.append(other)
        self._waiting.extendleft(reversed(later))
        return batch, along

    async def _send(self, batch: Batch, along: list[_Awaited]) -> None:
        answers: Sequence[Any] = ()
        try:
            sent = batch.as_call()
            left_s = max(each.left_s() for each in along)
            answers = batch.answers(await self._wire.call_async(sent.method, sent.request, timeout_s=max(0.0, left_s)))
        except SkywardEtcdError as error:
            answers = batch.told(error)
        finally:
            if not answers:
                answers = [Unavailable("the event loop was about to end") for _ in along]
            for each, answer in zip(along, answers, strict=True):
                if not each.answer.done():
                    each.answer.set_result(answer)
            self._under_way -= 1
            self._go_on()


def _given(answer: Any) -> Any:
    if isinstance(answer, SkywardEtcdError):
        raise answer
    return answer
