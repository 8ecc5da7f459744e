"""What an operation that nobody answers says of itself, where more than its last request counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from skyward_etcd.collections.lock import Lock
from skyward_etcd.collections.queue import Queue
from skyward_etcd.errors import HoldLost, Unavailable
from skyward_etcd.testing.simulator import Faults, Process, Simulation

NOBODY = Faults(refused=1.0)


async def held(process: Process) -> Any:
    return await Lock(process.as_session(), "l").acquire_async()


async def claimed(process: Process) -> Any:
    queue = Queue(process.as_session(), "q")
    await queue.put_async("x")
    return await queue.claim_async()


@pytest.mark.parametrize(("prepare", "ends"), [(held, "release"), (claimed, "ack"), (claimed, "release")])
def test_what_is_tried_again_in_the_background_may_have_been_applied(prepare: Callable[..., Any], ends: str) -> None:
    caught: list[Unavailable] = []
    with Simulation(1, faults=Faults()) as simulation:
        process = simulation.process("p")

        async def program() -> None:
            thing = await prepare(process)
            simulation.faults = NOBODY
            try:
                await getattr(thing, f"{ends}_async")()
            except Unavailable as error:
                caught.append(error)
            simulation.faults = Faults()

        simulation.spawn(process, program(), "program")
        simulation.run()
        simulation.settle()
        left = simulation.etcd.dump(b"/skyward/sim/")
    assert [error.maybe_applied for error in caught] == [True]
    assert not [key for key in left if b"sim/lock/" in key or b"/claims/" in key]


@pytest.mark.parametrize(
    ("first_try", "lease_ends", "is_lost"),
    [
        (Faults(lost_reply=1.0), False, False),
        (Faults(lost_request=1.0), False, False),
        (Faults(lost_request=1.0), True, True),
        (Faults(lost_reply=1.0), True, True),  # it was in time, which nobody can know
    ],
)
def test_a_release_in_doubt_is_one_only_while_the_lease_lives(
    first_try: Faults,
    lease_ends: bool,  # noqa: FBT001 - a parameter of the test
    is_lost: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    ended: list[str] = []
    with Simulation(1, faults=Faults()) as simulation:
        process = simulation.process("p")

        async def program() -> None:
            hold = await held(process)
            simulation.faults = first_try
            simulation.spawn(process, meanwhile(), "meanwhile")
            try:
                await hold.release_async()
            except HoldLost:
                ended.append("lost")
            else:
                ended.append("released")

        async def meanwhile() -> None:
            await simulation.sleep(0.3)
            if lease_ends:
                process.lose_lease()
            simulation.faults = Faults()

        simulation.spawn(process, program(), "program")
        simulation.run()
    assert ended == ["lost" if is_lost else "released"]
