"""What each operation costs, counted on the wire, against the table of docs/architecture.md.

A wrong row fails, and so do an operation without a row and a row that nobody brings about.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from skyward_etcd.active import Connection, connect
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.collections.barrier import Barrier
from skyward_etcd.collections.base import Consistency
from skyward_etcd.collections.claim import Claim
from skyward_etcd.collections.counter import Counter
from skyward_etcd.collections.dict import ABSENT, Dict
from skyward_etcd.collections.lock import Hold, Lock
from skyward_etcd.collections.queue import Queue
from skyward_etcd.collections.set import Set
from skyward_etcd.errors import BrokenBarrier, LockTimeout
from skyward_etcd.ops.effects import Await, Operation
from skyward_etcd.session.session import Session
from skyward_etcd.wire import messages as pb

DOCUMENT = Path(__file__).parents[2] / "docs" / "architecture.md"

CLASSES: Mapping[str, type] = {
    "dict": Dict, "set": Set, "counter": Counter, "queue": Queue, "claim": Claim, "barrier": Barrier, "lock": Lock,
    "hold": Hold,
}  # fmt: skip

ASKS_NOBODY = {"hold.valid", "hold.guard", "claim.valid", "claim.value", "claim.end", "queue.dead"}

PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Requests answered, and watches confirmed, until an operation is done."""

    requests: int
    watches: int


@dataclass(frozen=True, slots=True)
class Row:
    """What tells a row of the table from the others."""

    operation: str
    when: str = ""

    @property
    def kind(self) -> str:
        return self.operation.partition(".")[0]

    @property
    def method(self) -> str:
        return self.operation.partition(".")[2]

    def __str__(self) -> str:
        return f"{self.operation}, {self.when}" if self.when else self.operation


@functools.cache
def table() -> dict[Row, Cost]:
    """Read the lines ``| `dict.size` (`len(d)`) | when | requests | watches |`` of the document."""
    rows: dict[Row, Cost] = {}
    section = DOCUMENT.read_text().partition("## Round trips")[2].partition("\n## ")[0]
    for line in re.findall(r"^\|(.*)\|$", section, re.MULTILINE):
        operations, when, requests, watches = (cell.strip() for cell in line.split("|"))
        for operation in re.findall(rf"`((?:{'|'.join(CLASSES)})\.\w+)`", operations):
            assert Row(operation, when) not in rows, f"two rows for {operation}, {when}"
            rows[Row(operation, when)] = Cost(int(requests), int(watches))
    return rows


# ---- how each row comes about


class World:
    """One session's collections, under names that another session uses too."""

    def __init__(self, connection: Connection, consistency: Consistency) -> None:
        self.connection = connection
        self.dict = connection.dict(f"dict, {consistency}", consistency=consistency)
        self.set = connection.set(f"set, {consistency}", consistency=consistency)
        self.counter = connection.counter(f"counter, {consistency}", consistency=consistency)
        self.queue = connection.queue("queue")
        self.jobs = connection.queue("jobs")
        self.claim: Claim | None = None
        self.barrier = connection.barrier("barrier", n=2)
        self.lock = connection.lock("lock")
        self.hold: Hold | None = None
        self.company: threading.Thread | None = None

    def wait_in_a_thread(self) -> None:
        """Be somebody who waits at the barrier."""

        def wait() -> None:
            with contextlib.suppress(BrokenBarrier):
                self.barrier.wait(PATIENCE_S)

        self.company = threading.Thread(target=wait)
        self.company.start()
        until(lambda: self.barrier.waiting() == 1)

    def join(self) -> None:
        assert self.company
        self.company.join(PATIENCE_S)

    def take_job(self) -> None:
        self.claim = self.jobs.claim()

    def end_job(self) -> None:
        assert self.claim
        self.claim.ack()

    def take_lock(self) -> None:
        self.hold = self.lock.acquire()

    def release(self) -> None:
        assert self.hold
        self.hold.release()


Step = Callable[[World, World], object]


def nothing(_ours: World, _theirs: World) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Act:
    """The call, what is so before it, what the rest of the world does once it waits, and what is tidied up."""

    args: tuple[Any, ...] = ()
    before: Step = nothing
    first: str = ""
    """A call of the same handle by the same thread or task, not counted."""
    meanwhile: Step | None = None
    after: Step = nothing
    on: Callable[[World, World], Any] | None = None
    """Makes the handle, if it is not the world's own."""
    raises: type[Exception] | None = None


def has_entry(ours: World, _theirs: World) -> None:
    ours.dict.set("k", 1)


def has_100_entries(ours: World, _theirs: World) -> None:
    ours.dict.clear()
    ours.dict.update(dict.fromkeys(range(100), 1))


def has_250_entries(ours: World, _theirs: World) -> None:
    ours.dict.update(dict.fromkeys(range(250), 1))


def has_no_entry(ours: World, _theirs: World) -> None:
    ours.dict.pop("k")


def has_member(ours: World, _theirs: World) -> None:
    ours.set.add("m")


def has_items(ours: World, _theirs: World) -> None:
    ours.queue.clear()
    ours.queue.put_many(range(4))  # together, and so in one page
    assert ours.queue.get() == 0


def has_an_item_seen_in_passing(ours: World, theirs: World) -> None:
    has_items(ours, theirs)
    theirs.queue.put(4)
    assert ours.queue.get_many(3) == [1, 2, 3]


def has_items_since_the_last_look(ours: World, theirs: World) -> None:
    has_items(ours, theirs)
    assert ours.queue.get_many(3) == [1, 2, 3]
    theirs.queue.put(0)
    while theirs.queue._tail.page != ours.queue._front.page:
        assert ours.queue.get() == 0
        theirs.queue.put(0)


def has_items_in_the_next_page(ours: World, theirs: World) -> None:
    has_items_since_the_last_look(ours, theirs)
    while ours.queue.get() == 0 and theirs.queue._tail.page == ours.queue._front.page:
        theirs.queue.put(0)
    theirs.queue.put(0)


def has_no_items(ours: World, _theirs: World) -> None:
    ours.queue.clear()
    assert ours.queue.get(timeout=0) is None


def has_jobs(ours: World, _theirs: World) -> None:
    ours.jobs.clear()
    ours.jobs.put_many(range(8))  # together, and so in one page
    ours.take_job()
    ours.end_job()


def has_a_job(ours: World, theirs: World) -> None:
    has_jobs(ours, theirs)
    ours.take_job()


def has_jobs_after_claimed_ones(ours: World, theirs: World) -> None:
    has_jobs(ours, theirs)
    for _ in range(3):
        theirs.take_job()
    ours.take_job()
    ours.end_job()


def has_a_job_that_came_back(ours: World, theirs: World) -> None:
    has_jobs(ours, theirs)
    theirs.take_job()
    ours.take_job()
    assert theirs.claim
    theirs.claim.release()


def has_no_jobs(ours: World, _theirs: World) -> None:
    ours.jobs.clear()
    assert ours.jobs.claim(timeout=0) is None


def lends_a_job(ours: World, theirs: World) -> None:
    while True:
        has_no_jobs(ours, theirs)
        page = theirs.jobs._tail.page
        theirs.jobs.put(1)
        theirs.take_job()
        if theirs.jobs._tail.page == page:
            return
        theirs.end_job()  # it was the last of its page, after which one has to look for the next


def gives_back(_ours: World, theirs: World) -> None:
    assert theirs.claim
    theirs.claim.release()


def the_jobs(ours: World, _theirs: World) -> Queue:
    return ours.jobs


names = (f"name {number}" for number in itertools.count())


def nobody_knows(ours: World, _theirs: World) -> Dict:
    return ours.connection.dict(next(names))


def others_know(ours: World, theirs: World) -> Dict:
    name = next(names)
    theirs.connection.dict(name).set("k", 1)
    return ours.connection.dict(name)


def kept_by_nobody(ours: World, _theirs: World) -> Dict:
    name = next(names)
    ours.connection.dict(name).set("k", 1)
    return ours.connection.dict(name, near_cache=True)


def kept_near(ours: World, theirs: World) -> Dict:
    entries = kept_by_nobody(ours, theirs)
    entries.get("k")
    return entries


Acts = Iterator[tuple[Row, Act]]


def of_a_dict() -> Acts:
    yield Row("dict.get"), Act(("k",))
    yield Row("dict.get", "nobody has used the name before"), Act(("k",), on=nobody_knows)
    yield Row("dict.get", "this process has not used the name before"), Act(("k",), on=others_know)
    yield Row("dict.get", "with a near-cache, for the first time"), Act(("k",), on=kept_by_nobody)
    yield Row("dict.get", "with a near-cache, again"), Act(("k",), on=kept_near)
    for method in ("set", "put"):
        yield Row(f"dict.{method}"), Act(("k", 1))
    for method in ("delete", "remove", "pop"):
        yield Row(f"dict.{method}"), Act(("k",), before=has_entry)
    yield Row("dict.contains"), Act(("k",))
    yield Row("dict.setdefault"), Act(("k", 1), before=has_no_entry)
    yield Row("dict.compare_and_set"), Act(("k", ABSENT, 1), before=has_no_entry)
    yield Row("dict.compare_and_set", "equal, but written differently"), Act(("k", 1.0, 2), before=has_entry)
    for entries in (100, 250):
        yield Row("dict.update", f"{entries} entries"), Act((dict.fromkeys(range(entries), 1),))
    for method in ("size", "keys", "clear"):
        yield Row(f"dict.{method}"), Act(before=has_entry)
    for method in ("values", "items"):
        yield Row(f"dict.{method}", "up to 100 entries"), Act(before=has_100_entries)
        yield Row(f"dict.{method}", "250 entries"), Act(before=has_250_entries)


def of_a_set() -> Acts:
    yield Row("set.add"), Act(("m",))
    for method in ("discard", "remove", "contains"):
        yield Row(f"set.{method}"), Act(("m",), before=has_member)
    for members in (100, 250):
        yield Row("set.update", f"{members} members"), Act((range(members),))
    for method in ("size", "members", "items", "clear"):
        yield Row(f"set.{method}"), Act(before=has_member)


def of_a_counter() -> Acts:
    for method in ("increment", "decrement", "add"):
        yield Row(f"counter.{method}"), Act()
    yield (
        Row("counter.increment", "the session's first after a reset"),
        Act(before=lambda ours, _: ours.counter.reset()),
    )
    for method in ("value", "get", "reset"):
        yield Row(f"counter.{method}"), Act()


def of_a_queue() -> Acts:
    for method in ("put", "offer"):
        yield Row(f"queue.{method}"), Act((1,))
    for items in (48, 100):
        yield Row("queue.put_many", f"{items} items"), Act((range(items),))
    for method in ("get", "poll"):
        yield Row(f"queue.{method}"), Act(before=has_items)
        yield Row(f"queue.{method}", "there is nothing, `timeout=0`"), Act((0,), before=has_no_items)
    yield Row("queue.get", "of what came before the last known one was taken"), Act(before=has_an_item_seen_in_passing)
    yield Row("queue.get", "of what has come since the last look"), Act(before=has_items_since_the_last_look)
    yield Row("queue.get", "the first of the next page"), Act(before=has_items_in_the_next_page)
    yield (
        Row("queue.get", "waits until somebody puts (one of them after the put)"),
        Act((PATIENCE_S,), before=has_no_items, meanwhile=lambda _, theirs: theirs.queue.put(1)),
    )
    yield Row("queue.get_many", "up to 48 items of a page"), Act((3,), before=has_items)
    for method in ("empty", "size", "clear"):
        yield Row(f"queue.{method}"), Act(before=has_items)


def of_claims() -> Acts:
    yield Row("queue.claim"), Act(before=has_jobs, on=the_jobs)
    yield Row("queue.claim", "older items are claimed"), Act(before=has_jobs_after_claimed_ones, on=the_jobs)
    yield Row("queue.get", "older items are claimed"), Act(before=has_jobs_after_claimed_ones, on=the_jobs)
    yield Row("queue.claim", "another has given an item back"), Act(before=has_a_job_that_came_back, on=the_jobs)
    yield Row("queue.claim", "there is nothing, `timeout=0`"), Act((0,), before=has_no_jobs, on=the_jobs)
    yield (
        Row("queue.claim", "waits until somebody puts (one of them after the put)"),
        Act((PATIENCE_S,), before=has_no_jobs, on=the_jobs, meanwhile=lambda _, theirs: theirs.jobs.put(1)),
    )
    yield (
        Row("queue.claim", "waits until somebody gives back (two of them after that)"),
        Act((PATIENCE_S,), before=lends_a_job, on=the_jobs, meanwhile=gives_back),
    )
    yield Row("queue.claimed"), Act(before=has_jobs, on=the_jobs)
    for method in ("ack", "release"):
        yield Row(f"claim.{method}"), Act(before=has_a_job)


def of_a_barrier() -> Acts:
    yield (
        Row("barrier.wait", "others are still to come"),
        Act((PATIENCE_S,), meanwhile=lambda _, theirs: theirs.barrier.wait(PATIENCE_S)),
    )
    yield (
        Row("barrier.wait", "the last to come"),
        Act((PATIENCE_S,), before=lambda _, theirs: theirs.wait_in_a_thread(), after=lambda _, theirs: theirs.join()),
    )
    yield Row("barrier.wait", "nobody comes in time"), Act((0.05,), raises=BrokenBarrier)
    yield Row("barrier.waiting"), Act()
    yield Row("barrier.reset", "nobody waits"), Act()
    yield Row("barrier.abort"), Act(after=lambda ours, _: ours.barrier.reset())
    yield (
        Row("barrier.reset", "somebody waits"),
        Act(before=lambda _, theirs: theirs.wait_in_a_thread(), after=lambda _, theirs: theirs.join()),
    )


def guarded(kind: str) -> Callable[[World, World], Any]:
    """Make the handle through a hold."""

    def handle(ours: World, _theirs: World) -> Any:
        assert ours.hold
        return ours.hold.guard(getattr(ours, kind))

    return handle


def of_a_hold() -> Acts:
    for operation, args in (("dict.set", ("k", 1)), ("set.add", (1,)), ("counter.increment", ())):
        yield (
            Row(operation, "through a hold's `guard`"),
            Act(
                args,
                before=lambda ours, _: ours.take_lock(),
                on=guarded(operation.partition(".")[0]),
                after=lambda ours, _: ours.release(),
            ),
        )
    yield Row("hold.release"), Act(before=lambda ours, _: ours.take_lock())
    yield (
        Row("hold.wait_lost"),
        Act((0.01,), before=lambda ours, _: ours.take_lock(), after=lambda ours, _: ours.release()),
    )


def of_a_lock() -> Acts:
    yield Row("lock.acquire"), Act(after=lambda ours, _: ours.release())
    yield (
        Row("lock.acquire", "waits until its turn has come"),
        Act(
            (PATIENCE_S,),
            before=lambda _, theirs: theirs.take_lock(),
            meanwhile=lambda _, theirs: theirs.release(),
            after=lambda ours, _: ours.release(),
        ),
    )
    yield (
        Row("lock.acquire", "not in time (its place is given back in the background)"),
        Act(
            (0.05,),
            before=lambda _, theirs: theirs.take_lock(),
            after=lambda _, theirs: theirs.release(),
            raises=LockTimeout,
        ),
    )
    yield Row("lock.release"), Act(first="acquire")


ACTS = {
    row: act
    for acts in (of_a_dict, of_a_set, of_a_counter, of_a_queue, of_claims, of_a_barrier, of_a_lock, of_a_hold)
    for row, act in acts()
}


# ---- counting


measured: ContextVar[bool] = ContextVar("measured", default=False)
"""Set in the thread or task of the operation: what the session does in the background is not its cost."""


class Meter:
    """Counts what an operation asks of etcd, and tells when it waits."""

    def __init__(self, session: Session, patch: pytest.MonkeyPatch) -> None:
        self.waits = threading.Event()
        self._requests = self._watches = 0
        wire, hub, watches = session.wire, session.hub, session.hub._watches
        run, run_async, call, call_async, watch = session.run, session.run_async, wire.call, wire.call_async, hub.open

        def counted_call(method: Any, request: Any, **options: Any) -> Any:
            self._requests += measured.get()
            check_writes(request)
            return call(method, request, **options)

        async def counted_call_async(method: Any, request: Any, **options: Any) -> Any:
            self._requests += measured.get()
            check_writes(request)
            return await call_async(method, request, **options)

        def counted_watch(*args: Any, **options: Any) -> Any:
            known = set(watches._watches)
            watching = watch(*args, **options)
            self._watches += len(set(watches._watches) - known)
            return watching

        def observed_run(operation: Operation[Any]) -> Any:
            return run(self._observe(operation))

        async def observed_run_async(operation: Operation[Any]) -> Any:
            return await run_async(self._observe(operation))

        patch.setattr(wire, "call", counted_call)
        patch.setattr(wire, "call_async", counted_call_async)
        patch.setattr(hub, "open", counted_watch)
        patch.setattr(session, "run", observed_run)
        patch.setattr(session, "run_async", observed_run_async)

    def start(self) -> None:
        measured.set(True)
        self.waits.clear()
        self._requests = self._watches = 0

    @property
    def cost(self) -> Cost:
        return Cost(self._requests, self._watches)

    def _observe(self, operation: Operation[Any]) -> Operation[Any]:
        try:
            effect = next(operation)
            while True:
                if isinstance(effect, Await):
                    self.waits.set()
                try:
                    result = yield effect
                except BaseException as error:  # noqa: BLE001  the operation's to handle
                    effect = operation.throw(error)
                else:
                    effect = operation.send(result)
        except StopIteration as stop:
            return stop.value


def check_writes(request: Any) -> None:
    """No transaction may be one that only reads: etcd before 3.4.20 and 3.5.5 panics when its client goes (14110)."""
    if isinstance(request, pb.TxnRequest):
        operations = (*request.success, *request.failure)
        assert any(not operation.HasField("request_range") for operation in operations), request


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


class Driver:
    """Does an act in one of the two ways."""

    def __init__(self, meter: Meter, loop: asyncio.AbstractEventLoop, threads: ThreadPoolExecutor) -> None:
        self._meter = meter
        self._loop = loop
        self._threads = threads

    def measure(self, row: Row, act: Act, ours: World, theirs: World, mode: Literal["blocking", "asyncio"]) -> Cost:
        act.before(ours, theirs)
        self._meter.waits.clear()
        handle = act.on(ours, theirs) if act.on else getattr(ours, row.kind)
        future: Future[Any] = (
            self._threads.submit(self._blocking, handle, row, act)
            if mode == "blocking"
            else asyncio.run_coroutine_threadsafe(self._asyncio(handle, row, act), self._loop)
        )
        if act.meanwhile:
            until(lambda: self._meter.waits.is_set() or future.done())
            act.meanwhile(ours, theirs)
        if act.raises:
            with pytest.raises(act.raises):
                future.result(PATIENCE_S)
        elif isinstance(result := future.result(PATIENCE_S), Hold):
            ours.hold = result
        cost = self._meter.cost
        act.after(ours, theirs)
        return cost

    def _blocking(self, handle: Any, row: Row, act: Act) -> Any:
        if act.first:
            getattr(handle, act.first)()
        self._meter.start()
        result = getattr(handle, row.method)
        return result(*act.args) if callable(result) else result

    async def _asyncio(self, handle: Any, row: Row, act: Act) -> Any:
        if act.first:
            await getattr(handle, f"{act.first}_async")()
        self._meter.start()
        return await getattr(handle, f"{row.method}_async")(*act.args)


@pytest.fixture(scope="module")
def connections(one_member: LocalCluster) -> Iterator[tuple[Connection, Connection]]:
    """One member: among several, a member may be behind, and an eventual read is then asked again."""
    with (
        connect(one_member.endpoints, namespace="round-trips") as ours,
        connect(one_member.endpoints, namespace="round-trips") as theirs,
    ):
        yield ours, theirs


@pytest.fixture(scope="module")
def driver(connections: tuple[Connection, Connection]) -> Generator[Driver]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as threads:
        yield Driver(Meter(connections[0]._session(), patch), loop, threads)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def worlds(connections: tuple[Connection, Connection], driver: Driver) -> dict[Consistency, tuple[World, World]]:
    """The collections, made when they are counted already: a handle knows its session's way to run operations."""
    ours, theirs = connections
    levels: tuple[Consistency, ...] = ("eventual", "strong")
    return {level: (World(ours, level), World(theirs, level)) for level in levels}


# ---- the claims


@pytest.mark.parametrize("mode", ["blocking", "asyncio"])
@pytest.mark.parametrize("row", ACTS, ids=str)
def test_an_operation_costs_what_the_table_says(
    row: Row,
    mode: Literal["blocking", "asyncio"],
    driver: Driver,
    worlds: dict[Consistency, tuple[World, World]],
) -> None:
    expected = table().get(row)
    for ours, theirs in worlds.values():
        driver.measure(row, ACTS[row], ours, theirs, mode)  # what only the first use costs
        # What happened at one revision may be told in two pieces, if there is much to do, and looked at twice.
        costs = (driver.measure(row, ACTS[row], ours, theirs, mode) for _ in range(3))
        assert any(cost == expected for cost in costs), f"not {expected} in three tries"


@pytest.mark.parametrize(("kind", "described"), CLASSES.items())
def test_every_operation_has_a_row(kind: str, described: type) -> None:
    operations = {
        f"{kind}.{name}"
        for name in dir(described)
        if not name.startswith("_")
        and not name.endswith("_async")
        and (callable(getattr(described, name)) or isinstance(getattr(described, name), property))
    }
    assert operations - ASKS_NOBODY == {row.operation for row in table() if row.kind == kind}


def test_every_row_is_brought_about() -> None:
    assert set(table()) == set(ACTS)
