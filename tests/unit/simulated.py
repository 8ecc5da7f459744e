"""Programs for the simulator, one per collection, and what must be true of their histories."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from skyward_etcd.collections.barrier import Barrier
from skyward_etcd.collections.claim import Claim
from skyward_etcd.collections.counter import Counter
from skyward_etcd.collections.dict import ABSENT, Dict
from skyward_etcd.collections.lock import Hold, Lock
from skyward_etcd.collections.queue import Queue
from skyward_etcd.collections.set import Set
from skyward_etcd.errors import BrokenBarrier, HoldLost, SkywardEtcdError, Unavailable
from skyward_etcd.ops import kv
from skyward_etcd.testing import linearizability as lin
from skyward_etcd.testing.simulator import Faults, Process, Simulation

SEEDS = int(os.environ.get("SKYWARD_ETCD_SEEDS", "20"))
"""Histories per collection: 20 in `make test`, more by `make test-simulation`."""

LOSSY = Faults(refused=0.03, lost_request=0.03, late_request=0.04, lost_reply=0.06, stale_read=0.3, broken_stream=0.1)
CRUEL = replace(LOSSY, compaction=0.02, pause=0.02, expiry=0.02, death=0.01, cancellation=0.05)

FULL = replace(LOSSY, no_space=0.2)

Program = Callable[[Simulation, Process], Coroutine[Any, Any, None]]


def run(simulation: Simulation) -> None:
    """Run the programs, and raise what one of them has raised."""
    try:
        simulation.run()
    finally:
        for task in simulation.tasks:
            if task.error is not None:
                raise task.error


@dataclass(frozen=True)
class Scenario:
    """What every process runs, how often at once, and how the history is judged."""

    program: Program
    judge: Callable[[Simulation], lin.Verdict]
    finale: Program | None = None
    processes: int = 3
    tasks: int = 2
    faults: Faults = CRUEL
    at_once: int | None = None
    """How many calls a process has under way before others travel together; ``None``: a number of the seed's."""

    def play(self, seed: int) -> lin.Verdict:
        with Simulation(seed, faults=self.faults) as simulation:
            simulation.at_once = self.at_once or simulation.at_once
            for number in range(self.processes):
                process = simulation.process(f"p{number}")
                for task in range(self.tasks):
                    simulation.spawn(process, self.program(simulation, process), f"task{task}")
            simulation.run()
            simulation.settle()
            if self.finale is not None:
                simulation.faults = Faults()
                last = simulation.process("last")
                simulation.spawn(last, self.finale(simulation, last), "finale")
                simulation.run()
            return self.judge(simulation)


async def attempt(running: Awaitable[Any]) -> None:
    """Run an operation whose failure is no failure of the test: the history has it."""
    with contextlib.suppress(SkywardEtcdError):
        await running


async def now_and_then_rest(simulation: Simulation) -> None:
    if simulation.rng.random() < 0.3:
        await simulation.sleep(simulation.rng.uniform(0.0, 0.01))


# ---- counter


async def count(simulation: Simulation, process: Process) -> None:
    counter = Counter(process.as_session(), "c", consistency="strong")
    for _ in range(6):
        n, choice = simulation.rng.choice((1, 1, 2, 5)), simulation.rng.random()
        if choice < 0.5:
            await attempt(simulation.record(process, "increment", (n,), counter.increment_async(n)))
        elif choice < 0.7:
            await attempt(simulation.record(process, "decrement", (n,), counter.decrement_async(n)))
        elif choice < 0.85:
            await attempt(simulation.record(process, "value", (), counter.value_async()))
        else:
            await attempt(simulation.record(process, "reset", (10 * n,), counter.reset_async(10 * n)))
        await now_and_then_rest(simulation)


async def read_total(simulation: Simulation, process: Process) -> None:
    counter = Counter(process.as_session(), "c", consistency="strong")
    await simulation.record(process, "value", (), counter.value_async())


COUNTER = Scenario(count, lambda simulation: lin.check(lin.CounterModel(), simulation.recorded()), read_total)


# ---- dict and set


async def use_dict(simulation: Simulation, process: Process) -> None:
    entries = Dict(process.as_session(), "d", consistency="strong")
    for step in range(8):
        key, value = simulation.rng.choice("ab"), f"{process.name}.{step}.{simulation.rng.randrange(100)}"
        call: str
        arguments: tuple[Any, ...]
        running: Coroutine[Any, Any, Any]
        match simulation.rng.randrange(7):
            case 0 | 1:
                call, arguments, running = "set", (key, value), entries.set_async(key, value)
            case 2:
                call, arguments, running = "get", (key, None), entries.get_async(key)
            case 3:
                call, arguments, running = "pop", (key, None), entries.pop_async(key)
            case 4:
                call, arguments, running = "setdefault", (key, value), entries.setdefault_async(key, value)
            case 5:
                call, arguments, running = "delete", (key,), entries.delete_async(key)
            case _:
                expected = ABSENT if simulation.rng.random() < 0.5 else await _peek(entries, key)
                call, arguments = "compare_and_set", (key, expected, value)
                running = entries.compare_and_set_async(key, expected, value)
        await attempt(simulation.record(process, call, arguments, running))
        await now_and_then_rest(simulation)


async def _peek(entries: Dict, key: str) -> Any:
    try:
        return await entries.get_async(key, "nothing")
    except SkywardEtcdError:
        return "nothing"


async def read_dict(simulation: Simulation, process: Process) -> None:
    entries = Dict(process.as_session(), "d", consistency="strong")
    for key in "ab":
        await simulation.record(process, "get", (key, None), entries.get_async(key))


DICT = Scenario(use_dict, lambda simulation: lin.check(lin.DictModel(), simulation.recorded()), read_dict)


async def use_set(simulation: Simulation, process: Process) -> None:
    members = Set(process.as_session(), "s", consistency="strong")
    for _ in range(8):
        value = simulation.rng.choice("ab")
        match simulation.rng.randrange(5):
            case 0 | 1:
                call, running = "add", members.add_async(value)
            case 2 | 3:
                call, running = "discard", members.discard_async(value)
            case _:
                call, running = "contains", members.contains_async(value)
        await attempt(simulation.record(process, call, (value,), running))
        await now_and_then_rest(simulation)


async def read_set(simulation: Simulation, process: Process) -> None:
    members = Set(process.as_session(), "s", consistency="strong")
    for value in "ab":
        await simulation.record(process, "contains", (value,), members.contains_async(value))


SET = Scenario(use_set, lambda simulation: lin.check(lin.SetModel(), simulation.recorded()), read_set)


# ---- what a process keeps near


async def use_near_cache(simulation: Simulation, process: Process) -> None:
    entries = Dict(process.as_session(), "d", near_cache=True)
    _note_changes(simulation, entries)
    for step in range(12):
        key, value = simulation.rng.choice("ab"), f"{process.name}.{step}.{simulation.rng.randrange(10**9)}"
        match simulation.rng.randrange(8):
            case 0:
                await attempt(simulation.record(process, "set", (key, value), _set(simulation, entries, key, value)))
            case 1:
                await attempt(simulation.record(process, "delete", (key,), entries.delete_async(key)))
            case _:
                await attempt(simulation.record(process, "get", (key,), entries.get_async(key)))
        await simulation.sleep(simulation.rng.choice((0.0, 0.001, 0.1, 5.0)))


async def _set(simulation: Simulation, entries: Dict, key: str, value: str) -> None:
    await entries.set_async(key, value)
    simulation.scratch.setdefault("done", {})[value] = simulation.etcd.revision


def _note_changes(simulation: Simulation, entries: Dict) -> None:
    """Write down, once, at which revision each value of each key was there; ``None``: it was removed."""
    if "changes" in simulation.scratch:
        return
    changes: list[tuple[str, Any, int]] = []
    simulation.scratch["changes"] = changes

    def note(revision: int, events: Sequence[kv.Event]) -> None:
        for event in events:
            if event.kv.key.startswith(entries._prefix):
                key = json.loads(event.kv.key.removeprefix(entries._prefix))
                changes.append((key, None if kv.is_delete(event) else json.loads(event.kv.value), revision))

    simulation.etcd.on_events.append(note)


async def read_near_caches(simulation: Simulation, _: Process) -> None:
    """Once all is quiet, everybody reads what is there."""
    survivors = [process for process in simulation.processes if process.is_alive]

    async def look(process: Process) -> None:
        await simulation.sleep(40.0)
        entries = Dict(process.as_session(), "d", near_cache=True)
        for key in "aabb":
            value = await simulation.record(process, "get", (key,), entries.get_async(key))
            there = [value for changed, value, _ in simulation.scratch["changes"] if changed == key]
            assert value == (there[-1] if there else None), f"{process.name} has {key}={value} for ever"

    for process in survivors:
        simulation.spawn(process, look(process), "look")


def judge_near_cache(simulation: Simulation) -> lin.Verdict:
    """No process reads what is older than what it has read or written, and nothing is written after its end."""
    failed = _failed(simulation)
    if failed:
        return lin.Verdict(ok=False, reason=failed)
    changes: list[tuple[str, Any, int]] = simulation.scratch.get("changes", [])
    for key, value, revision in changes:
        if revision > simulation.scratch.get("done", {}).get(value, math.inf):
            return lin.Verdict(ok=False, reason=f"{key}={value} came back at revision {revision}")
    known: list[tuple[lin.Operation, int]] = []
    for operation in sorted(simulation.recorded(), key=lambda each: each.invoked):
        if operation.returned is None or operation.call == "delete":
            continue
        key = operation.arguments[0]
        value = operation.arguments[1] if operation.call == "set" else operation.result
        oldest = max((revision for other, revision in known if _is_before(other, operation)), default=0)
        # An eventual write may have been applied more than once before it returned.
        possible = [at for changed, there, at in changes if (changed, there) == (key, value) and at >= oldest]
        if value is None and not oldest:
            possible = [0]  # before anybody wrote
        if not possible:
            return lin.Verdict(ok=False, reason=f"{operation} is older than revision {oldest}")
        known.append((operation, min(possible)))
    return lin.Verdict(ok=True, reason="")


def _is_before(other: lin.Operation, operation: lin.Operation) -> bool:
    """Tell whether a process had an answer about a key before it asked again."""
    has_ended = other.returned is not None and other.returned < operation.invoked
    return has_ended and (other.process, other.arguments[0]) == (operation.process, operation.arguments[0])


NEAR_CACHE = Scenario(use_near_cache, judge_near_cache, read_near_caches)


# ---- queue


async def use_queue(simulation: Simulation, process: Process) -> None:
    queue = Queue(process.as_session(), "q")
    for step in range(6):
        item = f"{process.name}.{simulation.rng.randrange(10**9)}.{step}"
        match simulation.rng.randrange(7):
            case 0 | 1:
                await attempt(simulation.record(process, "put", (item,), queue.put_async(item)))
            case 2:
                items = (f"{item}a", f"{item}b")
                await attempt(simulation.record(process, "put_many", (items,), queue.put_many_async(items)))
            case 3:
                await attempt(simulation.record(process, "get", (), queue.get_async(0, lin.EMPTY)))
            case 4 | 5:
                timeout = simulation.rng.uniform(0.0, 20.0)
                await attempt(simulation.record(process, "get", (), queue.get_async(timeout, lin.EMPTY)))
            case _:
                await attempt(simulation.record(process, "get_many", (2,), queue.get_many_async(2, 0)))
        await now_and_then_rest(simulation)


async def drain(simulation: Simulation, process: Process) -> None:
    queue = Queue(process.as_session(), "q")
    while await simulation.record(process, "get", (), queue.get_async(0, lin.EMPTY)) is not lin.EMPTY:
        pass


def judge_queue(simulation: Simulation) -> lin.Verdict:
    """First in, first out, by the revisions of the puts; what was drained at the end is in the history too."""
    revisions = _revisions(simulation)
    if revisions is None:
        unknown = [operation for operation in simulation.recorded() if operation.is_unknown]
        return judge_returns(simulation, riddles=2 * sum(operation.call != "put" for operation in unknown))
    return lin.check_queue_by_revision(map(_as_taken, simulation.recorded()), revisions)


def _as_taken(operation: lin.Operation) -> lin.Operation:
    """Read a ``get_many`` as one for as many as it got: it may return less than there was when etcd fails meanwhile."""
    if operation.call != "get_many" or operation.is_unknown:
        return operation
    return replace(operation, arguments=(len(operation.result),))


def _revisions(simulation: Simulation) -> dict[Any, int] | None:
    """Return when each item was put, those of one transaction by name; ``None`` if one was given back, to the end."""
    puts = [
        event.kv
        for event in simulation.etcd.events(b"/skyward/sim/queue/q/items/", b"/skyward/sim/queue/q/items0", 1)
        if event.type == event.PUT
    ]
    order = sorted(puts, key=lambda put: (put.mod_revision, put.key))
    revisions = {json.loads(put.value): place for place, put in enumerate(order)}
    return revisions if len(revisions) == len(order) else None


def judge_returns(simulation: Simulation, *, riddles: int = 0) -> lin.Verdict:
    """Nothing acknowledged is lost, but for what gets of unknown outcome may have taken; nothing is there twice."""
    got, put = list[Any](), set[Any]()
    for operation in lin.one_by_one(simulation.recorded()):
        if operation.call == "put" and not operation.is_unknown:
            put.add(operation.arguments[0])
        elif operation.call == "get" and not operation.is_unknown and operation.result is not lin.EMPTY:
            got.append(operation.result)
    twice, lost = len(got) - len(set(got)), put - set(got)
    wrong = f"lost {lost} with {riddles} riddles, {twice} twice" if twice or len(lost) > riddles else ""
    return lin.Verdict(ok=not wrong, reason=wrong or "nothing lost, nothing twice")


# The revision check wants the whole history: no compaction. A cancelled get gives its item back to the end.
QUEUE = Scenario(use_queue, judge_queue, drain, faults=replace(CRUEL, compaction=0.0, cancellation=0.0))


async def hand_over(simulation: Simulation, process: Process) -> None:
    """One process puts, the others wait for as long as it takes: an item that nobody is told of keeps them for ever."""
    queue = Queue(process.as_session(), "q")
    for step in range(12 if process is simulation.processes[0] else 6):
        if process is simulation.processes[0]:
            await simulation.sleep(simulation.rng.uniform(0.0, 3.0))
            await simulation.record(process, "put", ((simulation.rng.random(), step),), queue.put_async(step))
        else:
            await simulation.record(process, "get", (), queue.get_async())


def judge_handing_over(simulation: Simulation) -> lin.Verdict:
    wrong = _failed(simulation)
    return lin.Verdict(ok=not wrong, reason=wrong or "everybody got what was put")


# The answer of a get that is lost, and compacted too, takes its item with it: no answer is lost here. Nor is a lease,
# by a long pause: it makes whoever waits look again, and so would hide that somebody was not told.
WAITED_FOR_QUEUE = Scenario(
    hand_over, judge_handing_over, faults=Faults(refused=0.1, broken_stream=0.5, compaction=0.5)
)
CANCELLED_QUEUE = Scenario(use_queue, judge_returns, drain, faults=replace(LOSSY, cancellation=0.5))


# ---- queue, claimed


class Work:
    """What became of each item of a queue, as its workers saw it."""

    def __init__(self) -> None:
        self.put: set[str] = set()
        """Acknowledged puts."""
        self.jobs: dict[str, Claim] = {}
        """Who believes to have each item."""
        self.newest: dict[str, Claim] = {}
        """The last claim of each item."""
        self.done: dict[str, str] = {}
        """Items that are gone: acknowledged or got."""
        self.maybe_done: set[tuple[str, int]] = set()
        """Items whose acknowledgement has an unknown outcome, and by which claim."""
        self.riddles = 0
        """Gets of unknown outcome, each of which may have taken an item."""
        self.wrong: list[str] = []

    def begin(self, job: Claim) -> None:
        """Take note of a claim: all others who believe to have this item must be wrong in their own eyes too."""
        item = str(job.value)
        other, last = self.jobs.get(item), self.newest.get(item)
        if item in self.done and job.valid:
            self.wrong.append(f"{item} was claimed after it was {self.done[item]}")
        if job.valid and other is not None and other.valid:
            self.wrong.append(f"{item} is claimed twice at once: {other} and {job}")
        again = last is not None and last.item == job.item and last.token < job.token
        if last is not None and again and last.deliveries >= job.deliveries:
            self.wrong.append(f"{item}: {job} follows {last}")
        if last is None or last.token < job.token:
            self.newest[item] = job
        self.jobs[item] = job

    def finish(self, item: str, how: str) -> None:
        """Take note that an item is gone, once."""
        if item in self.done:
            self.wrong.append(f"{item} was {how} after it was {self.done[item]}")
        self.done[item] = how


def _work(simulation: Simulation) -> Work:
    work: Work = simulation.scratch.setdefault("work", Work())
    return work


async def use_claims(simulation: Simulation, process: Process, *, most: int | None = None) -> None:
    queue, work = Queue(process.as_session(), "q", max_deliveries=most), _work(simulation)
    for step in range(8):
        item = f"{process.name}.{simulation.rng.randrange(10**9)}.{step}"
        match simulation.rng.randrange(8):
            case 0 | 1:
                with contextlib.suppress(SkywardEtcdError):
                    await queue.put_async(item)
                    work.put.add(item)
            case 2:
                items = {f"{item}a", f"{item}b", f"{item}c"}
                with contextlib.suppress(SkywardEtcdError):
                    await queue.put_many_async(sorted(items))
                    work.put |= items
            case 3:
                await _get_some(simulation, queue, work)
            case _:
                await _claim_one(simulation, queue, work, simulation.rng.choice((0.0, 0.0, 1.0, 20.0)))
        await now_and_then_rest(simulation)


async def _get_some(simulation: Simulation, queue: Queue, work: Work) -> None:
    n = simulation.rng.choice((1, 1, 3))
    work.riddles += n
    with contextlib.suppress(SkywardEtcdError):
        got = await queue.get_many_async(n, 0)
        work.riddles -= n
        for item in got:
            work.finish(str(item), "got")


async def _claim_one(simulation: Simulation, queue: Queue, work: Work, timeout: float) -> None:
    with contextlib.suppress(SkywardEtcdError):
        job = await queue.claim_async(timeout)
        if job is not None:
            await _work_on(simulation, work, job)


class Unfinished(Exception):
    """Ends a block whose item shall come back."""


async def _work_on(simulation: Simulation, work: Work, job: Claim) -> None:
    item = str(job.value)
    work.begin(job)
    try:
        async with job:
            await simulation.sleep(simulation.rng.choice((0.0, 0.01, 0.1, 1.0)))
            if simulation.rng.random() < 0.25:
                raise Unfinished
            work.maybe_done.add((item, job.token))
        work.finish(item, "acknowledged")
    except HoldLost:
        work.maybe_done.discard((item, job.token))
    except Unfinished:
        pass
    finally:
        if work.jobs.get(item) is job:
            del work.jobs[item]


async def work_off(simulation: Simulation, process: Process, *, most: int | None = None) -> None:
    """Claim what is left: all of it is to be had, as everybody else has ended. What was tried too often, is dead."""
    queue, work = Queue(process.as_session(), "q", max_deliveries=most), _work(simulation)
    if claimed := await queue.claimed_async():
        work.wrong.append(f"{claimed} are claimed, and nobody is left")
    left, buried = await queue.size_async(), await queue.dead.size_async()
    while (job := await queue.claim_async(0)) is not None:
        work.begin(job)
        await job.ack_async()
        work.finish(str(job.value), "acknowledged")
        left -= 1
    await simulation.sleep(5.0)
    left -= await queue.dead.size_async() - buried
    for item in await queue.dead.get_many_async(1000, 0):
        work.finish(str(item), "buried")
    if left:
        work.wrong.append(f"{left} more were counted than there were")
    if rest := simulation.etcd.dump(b"/skyward/sim/queue/q/deliveries/"):
        work.wrong.append(f"left over: {rest}")


def judge_claims(simulation: Simulation, *, most: int | None = None) -> lin.Verdict:
    """Nothing lost, nothing done twice, never two at one item; and the oldest first, as etcd saw it."""
    work = _work(simulation)
    wrong = [*work.wrong, *_passed_over(simulation, most), _failed(simulation)]
    if most is not None and any(job.deliveries > most for job in work.newest.values()):
        wrong.append(f"delivered too often: {work.newest}")
    lost = work.put - set(work.done) - {item for item, _ in work.maybe_done}
    if len(lost) > work.riddles:
        wrong.append(f"lost {lost} with {work.riddles} riddles")
    reason = "\n".join(filter(None, wrong))
    return lin.Verdict(ok=not reason, reason=reason or "nothing lost, nothing twice, in order")


def _passed_over(simulation: Simulation, most: int | None) -> Iterator[str]:
    """Say which items were picked while an older one was free, at that very revision, whoever was told of it.

    An item that goes unclaimed was got (or buried, if it comes to the dead ones); a claim that comes was made.
    """
    free: dict[bytes, int] = {}
    claimed: dict[bytes, int] = {}
    tried: dict[bytes, int] = {}
    values: dict[bytes, bytes] = {}
    done: set[bytes] = set()
    events = simulation.etcd.events(b"/skyward/sim/queue/q.dead/", b"/skyward/sim/queue/q0", 1)
    for revision, together in itertools.groupby(events, key=lambda event: event.kv.mod_revision):
        now = _Moment(together)
        # What travels together happens at one revision: some may be buried while others are got, or done.
        buried = {name for name in now.gone if values[name] in now.buried}
        got = now.gone - set(claimed) - buried
        picked = got | {name for name in now.claimed if name not in claimed}
        able = [name for name in free if most is None or tried.get(name, 0) < most]
        oldest = sorted(able, key=lambda name: (free[name], name))[: len(picked)]
        if picked != set(oldest):
            yield f"at {revision} {sorted(picked)} was picked, and the oldest was {oldest}"
        if any(tried.get(name, 0) < (most or 0) for name in buried):
            yield f"at {revision} {sorted(buried)} was buried alive"
        done |= {values[name] for name in now.gone if name in claimed}
        if again := {name for name, value in now.values.items() if name not in values and value in done}:
            yield f"at {revision} {sorted(again)} came, and that was claimed at another place before"
        values |= now.values
        tried |= now.tried
        claimed |= {name: free.pop(name) for name in picked - now.gone if name in free}
        free |= {name: claimed.pop(name) for name in now.ended if name in claimed}
        free |= {name: age for name, age in now.there.items() if name not in claimed}
        for name in now.gone:
            free.pop(name, None)


class _Moment:
    """What happened to a queue in one revision, by the items' names."""

    def __init__(self, events: Iterable[kv.Event]) -> None:
        self.gone, self.ended, self.claimed = set[bytes](), set[bytes](), set[bytes]()
        self.there, self.tried = dict[bytes, int](), dict[bytes, int]()
        self.values: dict[bytes, bytes] = {}
        self.buried = set[bytes]()
        """What came to the dead ones."""
        for event in events:
            queue, _, rest = event.kv.key.removeprefix(b"/skyward/sim/queue/").partition(b"/")
            what, _, name = rest.partition(b"/")
            match what, kv.is_delete(event):
                case b"items", is_delete if queue == b"q.dead":
                    self.buried |= set() if is_delete else {event.kv.value}
                case b"items", True:
                    self.gone.add(name)
                case b"items", False:
                    self.there[name] = event.kv.create_revision
                    self.values[name] = event.kv.value
                case b"claims", True:
                    self.ended.add(name)
                case b"claims", False:
                    self.claimed.add(name)
                case b"deliveries", False:
                    self.tried[name] = event.kv.version
                case _:
                    pass  # of the pages, or of what was returned


# The judge reads the whole history: no compaction. Of a lease that ends before its time no holder can know.
CLAIMS = Scenario(
    use_claims, judge_claims, work_off, faults=replace(CRUEL, compaction=0.0, expiry=0.0, pause=0.05, death=0.02)
)


DEAD_LETTERS = replace(
    CLAIMS,
    program=partial(use_claims, most=2),
    judge=partial(judge_claims, most=2),
    finale=partial(work_off, most=2),
)


async def wait_for_claims(simulation: Simulation, process: Process) -> None:
    """One process puts, and claims in vain; the others work: a return of which nobody is told keeps them for ever."""
    queue = Queue(process.as_session(), "q")
    if process is simulation.processes[0]:
        for step in range(2):
            await simulation.sleep(simulation.rng.uniform(0.0, 3.0))
            await queue.put_many_async(range(3 * step, 3 * step + 3))
            with contextlib.suppress(Unavailable):  # not in time
                job = await queue.claim_async(0.0)
                await simulation.sleep(simulation.rng.uniform(0.0, 20.0))
                if simulation.rng.random() < 0.3:
                    process.lose_lease()
                elif job is not None:
                    await job.release_async()
        return
    done = 0
    while done < 3:
        job = await queue.claim_async()
        await simulation.sleep(simulation.rng.choice((0.0, 0.1, 3.0)))
        if simulation.rng.random() < 0.5:
            await job.release_async()
            continue
        with contextlib.suppress(HoldLost):
            await job.ack_async()
            done += 1


# A compaction, and a lost lease, make whoever waits look again: they would hide that somebody was not told.
CLAIMS_WAITED_FOR = Scenario(wait_for_claims, judge_handing_over, faults=Faults(refused=0.1, broken_stream=0.3))


# ---- lock


async def use_lock(simulation: Simulation, process: Process) -> None:
    lock = Lock(process.as_session(), "l")
    for _ in range(4):
        try:
            hold = await lock.acquire_async(simulation.rng.choice((0.0, 1.0, 30.0, None)))
        except SkywardEtcdError:
            continue
        _enter(simulation, hold)
        try:
            await simulation.sleep(simulation.rng.choice((0.0, 0.01, 1.0)))
        finally:
            _leave(simulation, hold)
            await attempt(hold.release_async())


def _enter(simulation: Simulation, hold: Hold) -> None:
    """Note who believes to hold the lock: all others who believe so must be wrong in their own eyes too."""
    inside: dict[int, Hold] = simulation.scratch.setdefault("inside", {})
    others = [other for other in inside.values() if other.valid]
    if hold.valid and others:
        simulation.scratch["wrong"] = f"{hold} entered while {others} were inside"
    if hold.token <= simulation.scratch.get("newest", 0) and hold.valid:
        simulation.scratch["wrong"] = f"{hold} is older than {simulation.scratch['newest']}"
    simulation.scratch["newest"] = max(hold.token, simulation.scratch.get("newest", 0))
    inside[hold.token] = hold


def _leave(simulation: Simulation, hold: Hold) -> None:
    simulation.scratch["inside"].pop(hold.token, None)


async def take_lock(simulation: Simulation, process: Process) -> None:
    """Nothing of those who died, timed out or were cancelled keeps the next one out."""
    hold = await Lock(process.as_session(), "l").acquire_async(5.0)
    await hold.release_async()


def judge_lock(simulation: Simulation) -> lin.Verdict:
    wrong = simulation.scratch.get("wrong") or _failed(simulation)
    return lin.Verdict(ok=not wrong, reason=wrong or "never two at once")


# A lease that etcd ends before its time is nothing that a holder can know of.
LOCK = Scenario(use_lock, judge_lock, take_lock, faults=replace(CRUEL, expiry=0.0))


# ---- what is written through a hold


async def write_under_lock(simulation: Simulation, process: Process) -> None:
    """Hold the lock for longer than a lease may last, and write on and on: the token, and which write it was."""
    session = process.as_session()
    for _ in range(3):
        try:
            hold = await Lock(session, "l").acquire_async(simulation.rng.choice((30.0, None)))
        except SkywardEtcdError:
            continue
        simulation.scratch.setdefault("holds", []).append(hold.key)
        entries, counter = hold.guard(Dict(session, "d")), hold.guard(Counter(session, "c"))
        for step in range(3):
            written = [hold.token, step]
            await _note(simulation, "writes", written, entries.set_async("best", written))
            await _note(simulation, "counts", written, counter.increment_async())
            await simulation.sleep(simulation.rng.choice((0.0, 0.01, 3.0)))
        await attempt(hold.release_async())


async def _note(simulation: Simulation, where: str, what: Any, running: Awaitable[Any]) -> None:
    """Note how a write has ended; the one of a task that ends with it stays in doubt."""
    outcomes: list[list[Any]] = simulation.scratch.setdefault(where, [])
    outcome = [what, "in doubt"]
    outcomes.append(outcome)
    try:
        await running
        outcome[1] = "done"
    except HoldLost:
        outcome[1] = "refused"
    except SkywardEtcdError:
        pass


def judge_guarded(simulation: Simulation) -> lin.Verdict:
    """Nobody writes after a later holder has; what was refused is not there, what was acknowledged is, once."""
    scratch = simulation.scratch
    stored = [json.loads(event.kv.value) for event in simulation.etcd.events(*_under("dict/d"), 1)]
    writes = scratch.get("writes", [])
    wrong = _failed(simulation)
    if [token for token, _ in stored] != sorted(token for token, _ in stored):
        wrong = f"a holder wrote after a later one: {stored}"
    for what, outcome in writes:
        if (outcome, stored.count(what)) not in (("done", 1), ("refused", 0), ("in doubt", 0), ("in doubt", 1)):
            wrong = f"{what} was {outcome}, and is there {stored.count(what)} times"
    ends = [outcome for _, outcome in scratch.get("counts", [])]
    total = sum(int(shard.decode()) for shard in simulation.etcd.dump(b"/skyward/sim/counter/c/").values())
    if not ends.count("done") <= total <= ends.count("done") + ends.count("in doubt"):
        wrong = f"counted {total}: {ends}"
    never_first = set(scratch.get("holds", [])) - _first_in_line(simulation)
    if never_first:
        wrong = f"{never_first} entered and was never first in line"
    return lin.Verdict(ok=not wrong, reason=wrong or "only holders wrote")


def _first_in_line(simulation: Simulation) -> set[bytes]:
    """Return each key of the lock that was the oldest at some moment."""
    firsts, line = set[bytes](), dict[bytes, int]()
    events = simulation.etcd.events(*_under("lock/l"), 1)
    for _, at_once in itertools.groupby(events, key=lambda event: event.kv.mod_revision):
        for event in at_once:
            if event.type == event.PUT:
                line[event.kv.key] = event.kv.create_revision
            else:
                line.pop(event.kv.key, None)
        if line:
            firsts.add(min(line, key=lambda key: line[key]))
    return firsts


def _under(collection: str) -> tuple[bytes, bytes]:
    prefix = f"/skyward/sim/{collection}".encode()
    return prefix + b"/", prefix + b"0"


GUARDED = Scenario(
    write_under_lock, judge_guarded, take_lock, tasks=1, faults=replace(CRUEL, compaction=0.0, expiry=0.15, pause=0.1)
)


# ---- barrier


async def use_barrier(simulation: Simulation, process: Process) -> None:
    barrier = Barrier(process.as_session(), "b", 3)
    for _ in range(4):
        simulation.scratch["arrived"] = simulation.scratch.get("arrived", 0) + 1
        try:
            rank = await barrier.wait_async(simulation.rng.choice((5.0, 30.0, 60.0)))
        except BrokenBarrier:
            continue
        except SkywardEtcdError:
            continue
        passed: list[int] = simulation.scratch.setdefault("passed", [])
        passed.append(rank)
        if len(passed) > simulation.scratch["arrived"]:
            simulation.scratch["wrong"] = "more have passed than arrived"
        await now_and_then_rest(simulation)


def judge_barrier(simulation: Simulation) -> lin.Verdict:
    """Without deaths and lost replies all or none of a generation pass, and their ranks differ."""
    passed: list[int] = simulation.scratch.get("passed", [])
    wrong = simulation.scratch.get("wrong") or _failed(simulation)
    if not wrong and any(rank not in range(3) for rank in passed):
        wrong = f"ranks {passed}"
    return lin.Verdict(ok=not wrong, reason=wrong or "all or none")


async def meet(simulation: Simulation, process: Process) -> None:
    """Whatever happened before, three who come now pass, and get different ranks."""
    first = Barrier(process.as_session(), "b", 3)
    ranks: list[int] = []

    async def one() -> None:
        ranks.append(await first.wait_async(30.0))

    others = [simulation.spawn(process, one(), f"other{number}") for number in range(2)]
    await one()
    while any(other.is_pending for other in others):
        await simulation.sleep(0.1)
    if sorted(ranks) != [0, 1, 2]:
        simulation.scratch["wrong"] = f"the last generation's ranks are {ranks}"


BARRIER = Scenario(use_barrier, judge_barrier, meet)


async def abort_in_between(simulation: Simulation, process: Process) -> None:
    """One aborts at some moment; nobody may be left waiting, for ever or for a minute, and nobody passes any more."""
    barrier = Barrier(process.as_session(), "b", 3)
    if process is simulation.processes[0]:
        await simulation.sleep(simulation.rng.uniform(0.0, 0.05))
        await barrier.abort_async()
        simulation.scratch["aborted"] = simulation.now
        return
    with contextlib.suppress(BrokenBarrier, Unavailable):
        while True:
            began = simulation.now
            await barrier.wait_async()
            if began > simulation.scratch.get("aborted", began):
                simulation.scratch["wrong"] = "somebody came after the abort, and passed"


async def reset_and_meet(simulation: Simulation, process: Process) -> None:
    await Barrier(process.as_session(), "b", 3).reset_async()
    await meet(simulation, process)


def judge_abort(simulation: Simulation) -> lin.Verdict:
    wrong = simulation.scratch.get("wrong") or _failed(simulation)
    return lin.Verdict(ok=not wrong, reason=wrong or "everybody was turned away")


ABORTED_BARRIER = Scenario(abort_in_between, judge_abort, reset_and_meet, faults=LOSSY)


async def hurry_through_barrier(simulation: Simulation, process: Process) -> None:
    """Give up about when the others come, so that a generation is broken and completed in the same moment."""
    barrier = Barrier(process.as_session(), "b", 3)
    for _ in range(6):
        try:
            await barrier.wait_async(simulation.rng.choice((0.001, 0.003, 0.01, 5.0)))
        except BrokenBarrier:
            continue
        except Unavailable:  # a message or the stream was too slow for such a time: who knows what it would have said
            simulation.scratch["in doubt"] = True
        simulation.scratch["passed"] = simulation.scratch.get("passed", 0) + 1


def judge_generations(simulation: Simulation) -> lin.Verdict:
    passed = simulation.scratch.get("passed", 0)
    is_odd = passed % 3 and "in doubt" not in simulation.scratch
    wrong = _failed(simulation) or (f"{passed} have passed, by threes" if is_odd else "")
    return lin.Verdict(ok=not wrong, reason=wrong or "all or none")


# Where nobody dies and no answer is lost, what each was told can be added up.
HASTY_BARRIER = Scenario(
    hurry_through_barrier, judge_generations, faults=Faults(stale_read=0.3, broken_stream=0.2, compaction=0.2)
)


def _failed(simulation: Simulation) -> str:
    """Return the unexpected end of a program, if there is one."""
    errors = [task.error for task in simulation.tasks if isinstance(task.error, Exception)]
    return repr(errors[0]) if errors else ""


def together(scenario: Scenario) -> Scenario:
    """Return the scenario with many tasks of a process, whose calls travel together."""
    return replace(scenario, processes=2, tasks=5, at_once=1)


SCENARIOS = {
    "counter": COUNTER,
    "dict": DICT,
    "set": SET,
    "dict that is kept near": NEAR_CACHE,
    "queue": QUEUE,
    "queue with cancelled gets": CANCELLED_QUEUE,
    "queue that is waited for": WAITED_FOR_QUEUE,
    "queue of claims": CLAIMS,
    "queue with dead letters": DEAD_LETTERS,
    "queue of claims that are waited for": CLAIMS_WAITED_FOR,
    "lock": LOCK,
    "lock that guards": GUARDED,
    "barrier": BARRIER,
    "barrier in haste": HASTY_BARRIER,
    "barrier that is aborted": ABORTED_BARRIER,
    "counter of many tasks": together(COUNTER),
    "dict of many tasks": together(DICT),
    "set of many tasks": together(SET),
    "queue of many tasks": together(QUEUE),
    "queue of claims of many tasks": together(CLAIMS),
    "lock of many tasks": together(LOCK),
    "barrier of many tasks": together(BARRIER),
    "counter without space": replace(COUNTER, faults=FULL),
    "dict without space": replace(DICT, faults=FULL),
    "set without space": replace(SET, faults=FULL),
    "queue without space": replace(QUEUE, faults=FULL),
    "lock without space": replace(LOCK, faults=FULL),
}
