"""What an operation that nobody answers says of itself, where more than its last request counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from skyward_etcd.collections.lock import Lock
from skyward_etcd.collections.queue import Queue
from skyward_etcd.errors import Unavailable
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
