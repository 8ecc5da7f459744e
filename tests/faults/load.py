"""Load on all six collections from one session, blocking or asyncio, every call recorded for the checkers.

Each worker does what a program would do with its collection, at random from a seed, until it is told to stop. What goes
wrong on the way (nobody answered, a barrier broke) is part of the history, and the worker goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable, Coroutine
from typing import Any

from skyward_etcd.active import Connection
from skyward_etcd.collections.base import Consistency
from skyward_etcd.collections.dict import ABSENT
from skyward_etcd.errors import NoSpace, SkywardEtcdError
from skyward_etcd.testing.history import EMPTY
from skyward_etcd.testing.recorder import Recorder
from tests.integration.helpers import Both, Calls

KINDS = ("counter", "dict", "set", "queue", "jobs", "lock", "barrier")
"""The six collections, and a queue that is worked on by claims."""
KEYS = ("a", "b", "c", "d")
_NO_SPACE_S = 1.0
"""A pause after a write that was refused for want of space: only an operator can help."""
BARRIER_S = 4.0
"""A wait at the barrier: long beside the load, short beside a test."""


class Load:
    """The workers of one session. ``name`` is unique among all that work on these collections; so are its items.

    ``reads`` is the consistency with which they read: anything but ``strong`` is the known-bad case.
    """

    def __init__(
        self,
        sky: Connection,
        calls: Calls,
        name: str,
        recorder: Recorder,
        *,
        parties: int,
        seed: int,
        reads: Consistency = "strong",
        pause_s: float = 0.01,
        kinds: tuple[str, ...] = KINDS,
    ) -> None:
        self._sky = sky
        self._calls = calls
        self._name = name
        self._recorder = recorder
        self._parties = parties
        self._random = random.Random(f"{seed} {name}")
        self._reads: Consistency = reads
        self._pause_s = pause_s
        self._kinds = kinds
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until `stop`."""
        workers: dict[str, tuple[Callable[[], Coroutine[Any, Any, None]], ...]] = {
            "counter": (self._count,),
            "dict": (self._write,),
            "set": (self._collect,),
            "queue": (self._produce, self._consume),
            "jobs": (self._employ, self._toil),
            "lock": (self._exclude,),
            "barrier": (self._meet,),
        }
        async with asyncio.TaskGroup() as tasks:
            for kind in self._kinds:
                for worker in workers[kind]:
                    tasks.create_task(worker(), name=f"{self._name} {worker.__name__}")

    def stop(self) -> None:
        """Let every worker end after its call."""
        self._stopping.set()

    # ---- the workers

    async def _count(self) -> None:
        counter = self._both(self._sky.counter("counter", consistency=self._reads))
        while await self._goes_on():
            if self._random.random() < 0.7:
                await self._call("counter", "increment", (), counter.increment())
            else:
                await self._call("counter", "value", (), counter.value())

    async def _write(self) -> None:
        strong = self._both(self._sky.dict("dict", consistency="strong"))
        reading = self._both(self._sky.dict("dict", consistency=self._reads))
        seen: dict[str, Any] = {}
        for number in itertools.count():
            if not await self._goes_on():
                return
            key, value = self._random.choice(KEYS), f"{self._name} {number}"
            match self._random.randrange(6):
                case 0 | 1:
                    seen[key] = await self._call("dict", "get", (key, None), reading.get(key, None))
                case 2:
                    await self._call("dict", "set", (key, value), strong.set(key, value))
                case 3:
                    await self._call("dict", "pop", (key, None), strong.pop(key, None))
                case 4:
                    await self._call("dict", "setdefault", (key, value), strong.setdefault(key, value))
                case _:
                    expected = seen.get(key) if seen.get(key) is not None else ABSENT
                    cas = strong.compare_and_set(key, expected, value)
                    await self._call("dict", "compare_and_set", (key, expected, value), cas)

    async def _collect(self) -> None:
        strong = self._both(self._sky.set("set", consistency="strong"))
        reading = self._both(self._sky.set("set", consistency=self._reads))
        while await self._goes_on():
            member = self._random.choice(KEYS)
            call = self._random.choice(("add", "discard", "contains"))
            made = getattr(reading if call == "contains" else strong, call)(member)
            await self._call("set", call, (member,), made)

    async def _produce(self) -> None:
        queue = self._both(self._sky.queue("queue"))
        for number in itertools.count():
            if not await self._goes_on():
                return
            item = f"{self._name} {number}"
            if self._random.random() < 0.2:
                items = [f"{item} {part}" for part in range(3)]
                await self._call("queue", "put_many", (items,), queue.put_many(items))
            else:
                await self._call("queue", "put", (item,), queue.put(item))

    async def _consume(self) -> None:
        queue = self._both(self._sky.queue("queue"))
        while await self._goes_on():
            if self._random.random() < 0.1:
                await self._call("queue", "get_many", (4,), queue.get_many(4, timeout=0))
            else:
                await self._call("queue", "get", (), queue.get(timeout=self._random.choice((0, 0.3)), default=EMPTY))

    async def _employ(self) -> None:
        jobs = self._both(self._sky.queue("jobs"))
        for number in itertools.count():
            if not await self._goes_on():
                return
            item = f"{self._name} {number}"
            await self._call("jobs", "put", (item,), jobs.put(item))

    async def _toil(self) -> None:
        jobs = self._both(self._sky.queue("jobs"))
        while await self._goes_on():
            claimed: list[Any] = []
            await self._call("jobs", "claim", (), _claim(jobs, self._random.choice((0, 0.3)), claimed))
            for job in claimed:
                await self._rest()
                ends = "ack" if self._random.random() < 0.8 else "release"
                await self._call("jobs", ends, (job.value, job.token), getattr(self._both(job), ends)())

    async def _exclude(self) -> None:
        lock = self._both(self._sky.lock("lock"))
        while await self._goes_on():
            hold = await self._call("lock", "acquire", (), lock.acquire(timeout=3.0))
            if hold is not None:
                await self._rest()
                await self._call("lock", "release", (hold.token,), self._both(hold).release())

    async def _meet(self) -> None:
        barrier = self._both(self._sky.barrier("barrier", n=self._parties))
        while await self._goes_on():
            await self._call("barrier", "wait", (), barrier.wait(timeout=BARRIER_S))

    # ---- what they have in common

    def _both(self, collection: object) -> Both:
        return self._calls(collection)

    async def _call(self, kind: str, call: str, arguments: tuple[Any, ...], made: Coroutine[Any, Any, Any]) -> Any:
        """Make one call and record it as one of ``kind``; return nothing if it failed."""
        with contextlib.suppress(SkywardEtcdError):
            try:
                return await self._recorder.call_async(f"{kind} {self._name}", call, arguments, made)
            except NoSpace:
                await asyncio.sleep(_NO_SPACE_S)

    async def _goes_on(self) -> bool:
        await self._rest()
        return not self._stopping.is_set()

    async def _rest(self) -> None:
        """Leave room for the others: the load shall be steady, not the most that there can be."""
        await asyncio.sleep(self._random.random() * 2 * self._pause_s)


async def _claim(jobs: Both, timeout: float, claimed: list[Any]) -> tuple[str, int] | None:
    """Claim an item, put the claim into ``claimed``, and return what a history can tell of it: its value and token."""
    job = await jobs.claim(timeout=timeout)
    if job is None:
        return None
    claimed.append(job)
    return job.value, job.token
