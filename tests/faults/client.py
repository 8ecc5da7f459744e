"""A client process of the fault lab: two sessions under load, one blocking and one of asyncio, until stdin ends.

Its settings come on the command line. Each operation goes to stdout as soon as it has ended, so that those
of a process that is killed are known too.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import pickle
import sys
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import IO, Any

from skyward_etcd.active import Connection
from skyward_etcd.collections.base import Consistency
from skyward_etcd.config import Limits
from skyward_etcd.errors import SkywardEtcdError
from skyward_etcd.session.session import Session
from skyward_etcd.testing.history import Operation
from skyward_etcd.testing.recorder import Recorder
from tests.faults.load import KINDS, Load
from tests.integration.helpers import Calls

LIMITS = Limits(call_s=1.5, ttl_s=5.0, calls_at_once=1)
"""Shorter than usual, so that what waits for them does not wait for long; and one call at a time, so that what the
tasks and threads of a process do travels together wherever it may."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client is told; plain data."""

    name: str
    endpoints: tuple[str, ...]
    namespace: str
    parties: int
    seed: int
    kinds: tuple[str, ...] = KINDS
    reads: Consistency = "strong"
    holds: str = ""
    """Instead of load: hold the lock of this name until a line comes on stdin, then say whether it is still valid."""


def text_of(thing: Settings | Operation) -> str:
    """Return settings or an operation as text without a break."""
    return base64.b64encode(pickle.dumps(thing)).decode()


def tell(operation: Operation) -> None:
    """Pass on an operation, in one line."""
    sys.stdout.write(text_of(operation) + "\n")
    sys.stdout.flush()


def told(lines: IO[str]) -> Iterator[Operation]:
    """Return the operations that a client tells, as they come."""
    for line in lines:
        if line.endswith("\n"):  # else it was killed on the way
            yield pickle.loads(base64.b64decode(line))


async def put_load(settings: Settings) -> None:
    """Work until stdin ends."""
    async with contextlib.AsyncExitStack() as stack:
        loads: list[Load] = []
        for face in ("blocking", "asyncio"):
            session = await stack.enter_async_context(_opened(settings))
            calls = Calls(blocking=face == "blocking")
            name = f"{settings.name} {face}"
            options: dict[str, Any] = {"parties": settings.parties, "seed": settings.seed, "reads": settings.reads}
            loads.append(Load(Connection(session), calls, name, Recorder(tell), kinds=settings.kinds, **options))
        working = asyncio.gather(*(load.run() for load in loads))
        ending = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
        for load in loads:
            load.stop()
        await working


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncGenerator[Session]:
    session = await Session(settings.endpoints, namespace=settings.namespace, limits=LIMITS).open_async()
    try:
        yield session
    finally:
        await session.close_async()


def hold(settings: Settings) -> None:
    """Hold the lock, and give it up when a line comes."""
    recorder = Recorder(tell)
    process = f"lock {settings.name}"
    with Session(settings.endpoints, namespace=settings.namespace, limits=LIMITS) as session:
        lock = Connection(session).lock(settings.holds)
        held = recorder.call(process, "acquire", (), lock.acquire)
        sys.stdin.readline()
        recorder.call(f"valid {settings.name}", "valid", (), lambda: held.valid)
        with contextlib.suppress(SkywardEtcdError):
            recorder.call(process, "release", (held.token,), held.release)


def main() -> None:
    """Do what the settings on the command line say."""
    settings: Settings = pickle.loads(base64.b64decode(sys.argv[1]))
    if settings.holds:
        hold(settings)
    else:
        asyncio.run(put_load(settings))
