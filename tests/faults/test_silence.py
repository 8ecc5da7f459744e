"""A member that falls silent, or has lost its leader, is left within seconds: by who calls, and by who waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any

import pytest

from skyward_etcd.active import Connection
from skyward_etcd.session.session import Session
from skyward_etcd.testing.faults import FaultLab
from tests.faults.conftest import KIND
from tests.integration.conftest import BINARIES, usable
from tests.integration.helpers import Calls, until, watchers

LEFT_WITHIN_S = 4.0
"""3 s are promised, of silence or for a request; then the next member has to be reached, by a busy machine."""


def _part_from_its_peers(lab: FaultLab, victim: str) -> None:
    lab.split([victim], [name for name in lab.members if name != victim])


FAULTS: Mapping[str, Callable[[FaultLab, str], None]] = {
    "cut off": FaultLab.cut_off,
    "stopped": FaultLab.pause,
    "without its peers": _part_from_its_peers,
    "deaf to the client": lambda lab, victim: lab.network.lose(["c1"], [victim]),
    "mute to the client": lambda lab, victim: lab.network.lose([victim], ["c1"]),
}
QUICK = {("cut off", "leader"), ("stopped", "follower"), ("without its peers", "follower")}
CASES = [
    pytest.param(
        label,
        fault,
        role,
        marks=() if (fault, role) in QUICK and number == 0 else pytest.mark.slow,
        id=f"{label}-{role} {fault}",
    )
    for number, label in enumerate(BINARIES)
    for fault in FAULTS
    for role in ("leader", "follower")
]


class Face:
    """A session whose first member is the one that will fall silent, and the kind of calls that are made through it."""

    def __init__(self, number: int, sky: Connection) -> None:
        self.queue, self.lock, self.barrier = f"queue {number}", f"lock {number}", f"barrier {number}"
        self.sky = sky
        self.calls = Calls(blocking=number == 0)

    def waits(self) -> list[Awaitable[Any]]:
        """Wait for an item, a lock and a barrier."""
        calls, sky = self.calls, self.sky
        return [
            calls(sky.queue(self.queue)).get(timeout=60),
            calls(sky.lock(self.lock)).acquire(timeout=60),
            calls(sky.barrier(self.barrier, n=2)).wait(timeout=60),
        ]


@contextlib.contextmanager
def sessions(lab: FaultLab, victim: str) -> Generator[tuple[list[Face], Connection]]:
    """Open a session for each kind of calls, on the victim first, and another that never goes there."""
    others = [name for name in lab.members if name != victim]
    with lab.inside("c1"), contextlib.ExitStack() as stack:

        def opened(members: Sequence[str]) -> Connection:
            session = Session(lab.endpoints("c1", members), namespace="silence")
            return Connection(stack.enter_context(session))

        yield [Face(number, opened([victim, *others])) for number in range(2)], opened(others)


@pytest.mark.parametrize(("label", "fault", "role"), CASES)
async def test_who_calls_or_waits_at_a_member_that_falls_silent_goes_on_at_another(
    label: str, fault: str, role: str
) -> None:
    with FaultLab(kind=KIND, etcd=usable(label)) as lab:
        lab.require_healthy()
        victim = lab.leader() if role == "leader" else lab.follower()
        with sessions(lab, victim) as (faces, elsewhere):
            holds = [await elsewhere.lock(face.lock).acquire_async() for face in faces]
            for face in faces:
                await face.calls(face.sky.counter("c")).increment()
            waiting = [asyncio.create_task(_end_of(wait)) for face in faces for wait in face.waits()]
            await until(lambda: all(watchers(face.sky) >= 3 for face in faces))

            FAULTS[fault](lab, victim)
            began = time.monotonic()
            calls = [face.calls(face.sky.counter("c")).increment() for face in faces]
            calling = [asyncio.create_task(_end_of(call)) for call in calls]
            for face, hold in zip(faces, holds, strict=True):
                await elsewhere.queue(face.queue).put_async("late")
                await hold.release_async()
                await elsewhere.barrier(face.barrier, n=2).wait_async(timeout=60)
            happened = time.monotonic()  # where the leader fell silent, that took an election

            ended = await asyncio.gather(*waiting, *calling)
            last = max(ended)
            assert last - began < LEFT_WITHIN_S or last - happened < 1.0, [each - began for each in (happened, *ended)]
            lab.resume(victim)
            lab.heal()
            for face in faces:
                face.calls.close()


async def _end_of(call: Awaitable[Any]) -> float:
    await call
    return time.monotonic()
