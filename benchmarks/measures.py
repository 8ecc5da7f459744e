"""What is run to get the figures: for each measurement a function from a `Bench` to a contest.

Contestants: ``ours``; ``stub``, the bare RPC on grpcio; ``wire``, the same on our own transport; ``textbook``, etcd's
recipe. Everything is synthetic and on this machine.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import skyward_etcd as sky
from benchmarks.bare import OurWire, Rpcs, Stub, absent, cpu_seconds, delete, end_of, kv_requests, put
from benchmarks.harness import Contest, Fleet, Job, Timing, interleaved, merged, timed, timed_threads
from benchmarks.textbook import TextbookCounter, TextbookMutex, TextbookQueue
from skyward_etcd.cluster.bootstrap import LocalCluster
from skyward_etcd.wire import messages as pb

__all__ = ["Bench", "Measure"]

VALUE = "x" * 100
"""What is written where the measurement does not say: 100 bytes."""

NAMESPACE = "benchmarks"

Endpoints = tuple[str, ...]
Operation = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Measure:
    """A measurement with its arguments. Equal ones are taken once a run, however many targets look at them."""

    function: Callable[..., Contest]
    arguments: tuple[Hashable, ...] = ()


_LONG = "long queues"


class Bench:
    """The clusters, sessions and workers of one run, each started when it is first needed; for ``with``."""

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick
        self._names = itertools.count()
        self._taken: dict[Measure, Contest] = {}
        self._clusters: dict[tuple[int, str], LocalCluster] = {}
        self._long: dict[int, sky.Queue] = {}
        self._open = contextlib.ExitStack()
        self.fleet = Fleet()

    def pick(self, full: int, quick: int) -> int:
        """Return the first, or in a quick run the second."""
        return quick if self.quick else full

    @property
    def repeats(self) -> int:
        """How often each contestant has its turn."""
        return self.pick(7, 3)

    @property
    def window_s(self) -> float:
        """How long one repeat of an aggregate rate lasts."""
        return 1.0 if not self.quick else 0.3

    def take(self, measure: Measure) -> Contest:
        """Take a measurement, or return it if it has been taken."""
        if measure not in self._taken:
            self._taken[measure] = measure.function(self, *measure.arguments)
        return self._taken[measure]

    def has_taken(self, measure: Measure) -> bool:
        """Tell whether a measurement has been taken."""
        return measure in self._taken

    def fresh(self) -> str:
        """Return a name that nothing has yet."""
        return f"n{next(self._names)}"

    def task(self) -> Task:
        """Return one for the workers, on the cluster of three, with a name that is new."""
        return Task(self.endpoints(), self.fresh())

    def endpoints(self, members: int = 3, *, apart: str = "") -> Endpoints:
        """Return the addresses of an ephemeral cluster of so many members.

        What fills a cluster, and what must not stand back for that, has one ``apart``: a million keys slow all else.
        """
        if (members, apart) not in self._clusters:
            self._clusters[members, apart] = self._open.enter_context(LocalCluster(members))
        return tuple(self._clusters[members, apart].endpoints)

    def in_turn(self, contestants: Mapping[str, Callable[[], Timing]]) -> Contest:
        """Let each run in turn, and note what that costs the members."""
        return interleaved({name: partial(self.priced, run) for name, run in contestants.items()}, self.repeats)

    def priced(self, run: Callable[[], Timing]) -> Timing:
        """Run something, and note what it costs the members."""
        running = [endpoint for cluster in self._clusters.values() for endpoint in cluster.endpoints]
        before = cpu_seconds(running)
        timing = run()
        return replace(timing, members_cpu=cpu_seconds(running) - before)

    def session(self, members: int = 3) -> sky.Connection:
        """Return this process's session there."""
        return session(self.endpoints(members))

    def stub(self, members: int = 3) -> Stub:
        """Return this process's bare stub, to the member that the session asks too."""
        return stub(self.endpoints(members)[0])

    def long_queue(self, waiting: int) -> sky.Queue:
        """Return the queue of this run in which so many items wait. Who takes one puts one first."""
        if waiting not in self._long:
            self._long[waiting] = session(self.endpoints(apart=_LONG)).queue(self.fresh())
            _fill(self._long[waiting], waiting)
        return self._long[waiting]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.fleet.kill()
        while _opened:
            _opened.pop().close()
        session.cache_clear()
        stub.cache_clear()
        self._open.close()


_opened: list[sky.Connection | Stub] = []


@functools.cache
def session(endpoints: Endpoints) -> sky.Connection:
    """Return this process's session at these endpoints, the first of them preferred."""
    connection = sky.connect(endpoints, namespace=NAMESPACE)
    _opened.append(connection)
    return connection


@functools.cache
def stub(endpoint: str) -> Stub:
    """Return this process's bare stub there."""
    bare = Stub(endpoint)
    _opened.append(bare)
    return bare


def from_member(endpoints: Endpoints, number: int) -> Endpoints:
    """Return the endpoints with another one first for each number: so workers spread over the members."""
    at = number % len(endpoints)
    return endpoints[at:] + endpoints[:at]


# ---- one caller, one operation


def _one_thread(bench: Bench, ours: Operation, bare: Callable[[Rpcs], Operation]) -> Contest:
    """One member, one thread. ``wire`` is the stub's RPC on our own transport: what our layers add to it shows."""
    with contextlib.closing(OurWire(bench.endpoints(1)[0])) as wire:
        operations = {"ours": ours, "stub": bare(bench.stub(1)), "wire": bare(wire)}
        for operation in operations.values():
            timed(operation, 20)  # the first use of a name asks more
        times = bench.pick(300, 100)
        runs = {name: partial(bench.priced, partial(timed, each, times)) for name, each in operations.items()}
        return interleaved(runs, bench.pick(21, 9))


def dict_read(bench: Bench, consistency: sky.Consistency) -> Contest:
    """``d[k]``, beside a Range of one key."""
    entries, key = bench.session(1).dict(bench.fresh(), consistency=consistency), f"/stub/{bench.fresh()}".encode()
    entries["key"] = VALUE
    bench.stub(1).put(pb.PutRequest(key=key, value=VALUE.encode()))

    def bare(rpcs: Rpcs) -> Operation:
        serializable = consistency == "eventual"

        def read() -> str:
            return rpcs.range(pb.RangeRequest(key=key, serializable=serializable)).kvs[0].value.decode()

        return read

    return _one_thread(bench, lambda: entries["key"], bare)


def dict_write(bench: Bench) -> Contest:
    """``d[k] = v``, beside a Put."""
    entries, key = bench.session(1).dict(bench.fresh()), f"/stub/{bench.fresh()}".encode()

    def bare(rpcs: Rpcs) -> Operation:
        return lambda: rpcs.put(pb.PutRequest(key=key, value=VALUE.encode()))

    return _one_thread(bench, lambda: entries.set("key", VALUE), bare)


def _read_beside(bench: Bench, members: int, value: str) -> Contest:
    """A strong read of one entry, beside a Range."""
    entries, key = bench.session(members).dict(bench.fresh(), consistency="strong"), f"/stub/{bench.fresh()}".encode()
    entries["key"] = value
    bench.stub(members).put(pb.PutRequest(key=key, value=value.encode()))
    bare = partial(bench.stub(members).range, pb.RangeRequest(key=key))
    return _in_turn(bench, {"ours": partial(entries.get, "key"), "stub": bare})


def _write_beside(bench: Bench, members: int, value: str) -> Contest:
    """A write of one entry, beside a Put."""
    entries, key = bench.session(members).dict(bench.fresh()), f"/stub/{bench.fresh()}".encode()
    bare = partial(bench.stub(members).put, pb.PutRequest(key=key, value=value.encode()))
    return _in_turn(bench, {"ours": partial(entries.set, "key", value), "stub": bare})


def _in_turn(bench: Bench, operations: dict[str, Operation]) -> Contest:
    for operation in operations.values():
        timed(operation, 5)
    times = bench.pick(100, 30)
    return bench.in_turn({name: partial(timed, each, times) for name, each in operations.items()})


def read_of_members(bench: Bench, members: int) -> Contest:
    """Strong reads, with so many members."""
    return _read_beside(bench, members, VALUE)


def write_to_members(bench: Bench, members: int) -> Contest:
    """Writes, with so many members."""
    return _write_beside(bench, members, VALUE)


def read_of_bytes(bench: Bench, size: int) -> Contest:
    """Strong reads of a value of so many bytes, with three members."""
    return _read_beside(bench, 3, _of(size))


def write_of_bytes(bench: Bench, size: int) -> Contest:
    """Writes of a value of so many bytes, with three members."""
    return _write_beside(bench, 3, _of(size))


def _of(size: int) -> str:
    """Return a text that takes so many bytes in etcd, with its quotes."""
    return "x" * (size - 2)


def set_add(bench: Bench) -> Contest:
    """``s.add(m)`` of a new member, beside a transaction that puts an absent key (without our proof that it did)."""
    members, numbers, prefix = bench.session(1).set(bench.fresh()), itertools.count(), f"/stub/{bench.fresh()}/"

    def bare(rpcs: Rpcs) -> Operation:
        def add() -> bool:
            key = f"{prefix}{next(numbers)}".encode()
            return rpcs.txn(pb.TxnRequest(compare=[absent(key)], success=[put(key)])).succeeded

        return add

    return _one_thread(bench, lambda: members.add(next(numbers)), bare)


# ---- aggregate rates: many worker processes, each with a session of its own


Maker = Callable[[Endpoints, str, int], Operation]
"""Makes a worker's operation, from the endpoints (its own member first), a name, and the worker's number."""


@dataclass(frozen=True, slots=True)
class Task:
    """Where a worker works, and on what; sent to it."""

    endpoints: Endpoints
    name: str

    def operation(self, make: Maker, number: int) -> Operation:
        """Make a worker's operation, and do it once: the first use of a name asks more."""
        operation = make(from_member(self.endpoints, number), self.name, number)
        operation()
        return operation


def loop(make: Maker, task: Task, times: int | None, seconds: float, number: int) -> Callable[[], Timing]:
    """Let a worker repeat its operation."""
    return partial(timed, task.operation(make, number), times, seconds=seconds)


def _side_by_side(bench: Bench, workers: int, makers: dict[str, Callable[[Endpoints, str, int], Operation]]) -> Contest:
    """Let each contestant's workers do their operation for the same time, on a name that is new each time."""

    def run(make: Maker) -> Timing:
        return merged(bench.fleet.run(partial(loop, make, bench.task(), None, bench.window_s), workers))

    return bench.in_turn({name: partial(run, make) for name, make in makers.items()})


def ours_increment(where: Endpoints, name: str, _: int) -> Operation:
    return session(where).counter(name).increment


def textbook_increment(where: Endpoints, name: str, _: int) -> Operation:
    return TextbookCounter(stub(where[0]), name).increment


def stub_write(where: Endpoints, name: str, number: int) -> Operation:
    key = f"/stub/{name}/{number}".encode()
    return partial(stub(where[0]).put, pb.PutRequest(key=key, value=VALUE.encode()))


def counter(bench: Bench, workers: int) -> Contest:
    """All workers increment one counter; the stub puts a key of each worker's own, which contends for nothing."""
    return _side_by_side(bench, workers, {"ours": ours_increment, "textbook": textbook_increment, "stub": stub_write})


def ours_read(where: Endpoints, name: str, _: int) -> Operation:
    entries = session(where).dict(name, consistency="strong")
    entries["key"] = VALUE
    return partial(entries.get, "key")


def stub_read(where: Endpoints, name: str, _: int) -> Operation:
    key = f"/stub/{name}".encode()
    stub(where[0]).put(pb.PutRequest(key=key, value=VALUE.encode()))
    return partial(stub(where[0]).range, pb.RangeRequest(key=key))


def ours_write(where: Endpoints, name: str, number: int) -> Operation:
    return partial(session(where).dict(name).set, number, VALUE)


def dict_reads(bench: Bench, workers: int) -> Contest:
    """All workers read one entry of a strong dict."""
    return _side_by_side(bench, workers, {"ours": ours_read, "stub": stub_read})


def dict_writes(bench: Bench, workers: int) -> Contest:
    """Each worker writes an entry of its own in one dict."""
    return _side_by_side(bench, workers, {"ours": ours_write, "stub": stub_write})


def ours_put(where: Endpoints, name: str, _: int) -> Operation:
    return partial(session(where).queue(name).put, VALUE)


def stub_put(where: Endpoints, name: str, number: int) -> Operation:
    numbers, bare = itertools.count(), stub(where[0])
    return lambda: bare.put(pb.PutRequest(key=_item(name, number, next(numbers)), value=VALUE.encode()))


def textbook_put(where: Endpoints, name: str, _: int) -> Operation:
    return partial(TextbookQueue(stub(where[0]), name).put, VALUE)


def queue_put(bench: Bench, workers: int) -> Contest:
    """All workers put into one queue; the stub puts a new key each time."""
    return _side_by_side(bench, workers, {"ours": ours_put, "stub": stub_put, "textbook": textbook_put})


def ours_get(where: Endpoints, name: str, _: int) -> Operation:
    return _taking(session(where).queue(name))


def stub_delete(where: Endpoints, name: str, number: int) -> Operation:
    numbers, bare = itertools.count(), stub(where[0])
    return lambda: bare.delete_range(pb.DeleteRangeRequest(key=_item(name, number, next(numbers)), prev_kv=True))


def queue_get(bench: Bench, workers: int) -> Contest:
    """All workers get from one queue; the stub deletes keys that are there, each its own. Counted: requests a get."""
    times = bench.pick(300, 100)

    def run(make: Maker, fill: Callable[[str], None]) -> Timing:
        task = bench.task()
        fill(task.name)
        before = kv_requests(bench.endpoints())
        timing = bench.priced(lambda: merged(bench.fleet.run(partial(loop, make, task, times, 60.0), workers)))
        return replace(timing, counted=(kv_requests(bench.endpoints()) - before) / len(timing.latencies))

    def fill_ours(name: str) -> None:
        bench.session().queue(name).put_many([VALUE] * (workers * (times + 1)))  # one more each: the warm-up

    def fill_stub(name: str) -> None:
        keys = [_item(name, worker, number) for worker in range(workers) for number in range(times + 1)]
        for start in range(0, len(keys), 100):
            bench.stub().txn(pb.TxnRequest(success=[put(key, VALUE.encode()) for key in keys[start : start + 100]]))

    return interleaved(
        {"ours": partial(run, ours_get, fill_ours), "stub": partial(run, stub_delete, fill_stub)}, bench.repeats
    )


def _item(name: str, worker: int, number: int) -> bytes:
    return f"/stub/{name}/{worker}/{number}".encode()


_NOTHING = object()


def _taking(items: sky.Queue) -> Operation:
    def take() -> None:
        if items.get(timeout=30, default=_NOTHING) is _NOTHING:  # 0 would give up where a member is silent for 3 s
            raise RuntimeError(f"{items!r} is empty: the measurement did not put enough")

    return take


# ---- 32 threads of one process


def ours_merged(task: Task, threads: int, seconds: float, _: int) -> Callable[[], Timing]:
    totals: list[int] = []
    increment = task.operation(ours_increment, 0)

    def run() -> Timing:
        timing = timed_threads(lambda: totals.append(increment()), threads, seconds)
        return replace(timing, counted=len(totals) - len(set(totals)))

    return run


def bare_merged(make: Maker, task: Task, threads: int, seconds: float, number: int) -> Callable[[], Timing]:
    return partial(timed_threads, task.operation(make, number), threads, seconds)


def counter_threads(bench: Bench, threads: int) -> Contest:
    """So many threads of one process increment one counter. Counted: totals that two of them got."""

    def run(job: Callable[..., Callable[[], Timing]]) -> Timing:
        return bench.fleet.run(partial(job, bench.task(), threads, bench.window_s), 1)[0]

    return bench.in_turn(
        {
            "ours": partial(run, ours_merged),
            "textbook": partial(run, partial(bare_merged, textbook_increment)),
            "stub": partial(run, partial(bare_merged, stub_write)),
        }
    )


# ---- long queues, many items


def queue_length(bench: Bench, full: int, quick: int) -> Contest:
    """Get from a queue that stays at its length: what is got was put before, untimed."""
    where, name = bench.endpoints(apart=_LONG), bench.fresh()
    long, short = bench.long_queue(bench.pick(full, quick)), session(where).queue(bench.fresh())
    _fill(short, 10)
    put_key, delete_key = (make(where, name, 0) for make in (stub_put, stub_delete))
    times = bench.pick(200, 60)
    for items in (long, short):
        timed(_taking(items), 20, before=partial(items.put, VALUE))
    return interleaved(
        {
            "ours": partial(timed, _taking(long), times, before=partial(long.put, VALUE)),
            "ours at 10": partial(timed, _taking(short), times, before=partial(short.put, VALUE)),
            "stub": partial(timed, delete_key, times, before=put_key),
        },
        bench.repeats,
    )


def queue_get_at(bench: Bench, waiting: int) -> Contest:
    """Get from a queue in which so many items wait."""
    return queue_length(bench, waiting, waiting)


def queue_textbook(bench: Bench, waiting: int) -> Contest:
    """Get from a long queue, ours and the recipe's."""
    where = bench.endpoints(apart=_LONG)
    ours, recipe = bench.long_queue(waiting), TextbookQueue(stub(where[0]), bench.fresh())
    _fill(recipe, waiting)
    timed(_taking(ours), 20, before=partial(ours.put, VALUE))
    return interleaved(
        {
            "ours": partial(timed, _taking(ours), bench.pick(200, 60), before=partial(ours.put, VALUE)),
            "textbook": partial(timed, recipe.get, bench.pick(5, 2)),
            "stub": partial(timed, stub_write(where, bench.fresh(), 0), bench.pick(200, 60)),
        },
        bench.repeats,
    )


def _fill(items: sky.Queue | TextbookQueue, count: int) -> None:
    """Put many items, from four threads."""
    parts = [[VALUE] * (count // 4 + (part < count % 4)) for part in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(items.put_many, parts))


def queue_many(bench: Bench) -> Contest:
    """``put_many`` and ``get_many`` of 960 items, one caller; the stub: transactions of 48 puts."""
    items, many, each = bench.session().queue(bench.fresh()), 960, 48
    bare, prefix = bench.stub(), f"/stub/{bench.fresh()}/"
    writes = [put(f"{prefix}{number}".encode(), VALUE.encode()) for number in range(each)]
    calls = bench.pick(10, 3)

    def stub_many() -> None:
        for _ in range(many // each):
            bare.txn(pb.TxnRequest(success=writes))

    def get_many() -> None:
        if len(items.get_many(many, timeout=0)) != many:
            raise RuntimeError("get_many got less than was put")

    def run(operation: Operation) -> Timing:
        return replace(timed(operation, calls), items=calls * many)

    items.put_many([VALUE] * many)
    get_many()
    return bench.in_turn(
        {
            "put_many": partial(run, partial(items.put_many, [VALUE] * many)),
            "get_many": partial(run, get_many),
            "stub": partial(run, stub_many),
        }
    )


# ---- waking up who waits

_PAUSE_S = {"ours": 0.02, "textbook": 0.15}
"""So long after one item the next comes: then the other process waits again, of which the recipe takes longer."""


def wake(who: str, task: Task, rounds: int, number: int) -> Callable[[], list[float]]:
    """Worker 0 puts, worker 1 waits; each returns the moments, of the puts' beginnings and the gets' ends."""
    where = from_member(task.endpoints, number)
    items = session(where).queue(task.name) if who == "ours" else TextbookQueue(stub(where[0]), task.name)

    def put_all() -> list[float]:
        moments: list[float] = []
        for _ in range(rounds):
            time.sleep(_PAUSE_S[who])
            moments.append(time.monotonic())
            items.put("item")
        return moments

    def get_all() -> list[float]:
        moments: list[float] = []
        for _ in range(rounds):
            items.get()
            moments.append(time.monotonic())
        return moments

    if number == 0:
        items.put("warm-up")
        return put_all
    items.get()
    return get_all


def wake_up(bench: Bench) -> Contest:
    """From the beginning of a put to the end of another process's waiting get, in turn with the round trip of a Put."""

    def run(who: str, rounds: int) -> Timing:
        puts, gets = bench.fleet.run(partial(wake, who, bench.task(), rounds), 2)
        latencies = tuple(got - put for put, got in zip(puts, gets, strict=True))
        return Timing(latencies)

    return interleaved(
        {
            "ours": partial(run, "ours", bench.pick(50, 20)),
            "stub": _round_trips(bench, 50),
            "textbook": partial(run, "textbook", bench.pick(20, 5)),
        },
        bench.repeats,
    )


def waiters(bench: Bench, count: int) -> Contest:
    """Many threads wait for an item, one is put. Counted: what etcd was asked meanwhile, beside the put itself."""
    endpoints, items, done = bench.endpoints(), bench.session().queue(bench.fresh()), threading.Semaphore(0)
    items.put("warm-up")
    items.get()

    def wait() -> None:
        items.get()
        done.release()

    def quiet() -> int:
        """Return the number of requests once nobody has made one for a moment: then all are waiting."""
        before = -1
        while (now := kv_requests(endpoints)) != before:
            before = now
            time.sleep(0.2)
        return now

    with ThreadPoolExecutor(2 * count) as pool:

        def one() -> Timing:
            pool.submit(wait)  # in the place of the one that got its item the last time
            before, began = quiet(), time.monotonic()
            items.put("item")
            done.acquire()
            latency = time.monotonic() - began
            return Timing((latency,), counted=quiet() - before - 1)

        for _ in range(count - 1):
            pool.submit(wait)
        try:
            return interleaved({"ours": one}, bench.repeats)
        finally:
            items.put_many(["end"] * (count - 1))


def _round_trips(bench: Bench, times: int) -> Callable[[], Timing]:
    return partial(timed, stub_write(bench.endpoints(), bench.fresh(), 0), times)


# ---- lock


def lock_alone(bench: Bench) -> Contest:
    """Acquire and release a lock that nobody else wants. Counted: requests at etcd for each pair."""
    ours, recipe = bench.session().lock(bench.fresh()), TextbookMutex(bench.stub(), bench.fresh())
    bare, key = bench.stub(), f"/stub/{bench.fresh()}".encode()
    times = bench.pick(200, 60)

    def our_pair() -> None:
        ours.acquire().release()

    def textbook_pair() -> None:
        recipe.acquire()
        recipe.release()

    def stub_pair() -> None:
        bare.txn(pb.TxnRequest(compare=[absent(key)], success=[put(key)]))
        bare.txn(pb.TxnRequest(success=[delete(key)]))

    def run(pair: Operation) -> Timing:
        before = kv_requests(bench.endpoints())
        timing = timed(pair, times)
        return replace(timing, counted=(kv_requests(bench.endpoints()) - before) / times)

    for pair in (our_pair, textbook_pair, stub_pair):
        timed(pair, 10)
    return interleaved(
        {
            "ours": partial(run, our_pair),
            "stub": partial(run, stub_pair),
            "textbook": partial(run, textbook_pair),
        },
        bench.repeats,
    )


_HOLD_S = 0.005


def contend(who: str, task: Task, seconds: float, number: int) -> Callable[[], list[Held]]:
    """Take turns with the others; return from when to when one held it."""
    where = from_member(task.endpoints, number)
    if who == "ours":
        session(where).lock(f"{task.name} {number}").acquire().release()  # the session and its lease are there now
        lock: sky.Lock | TextbookMutex = session(where).lock(task.name)
    else:
        lock = TextbookMutex(stub(where[0]), task.name)

    def run() -> list[Held]:
        held: list[Held] = []
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            lock.acquire()
            since = time.monotonic()
            time.sleep(_HOLD_S)
            held.append(Held(since, time.monotonic()))
            lock.release()
        return held

    return run


@dataclass(frozen=True, slots=True, order=True)
class Held:
    """From the end of an acquire to the beginning of its release."""

    since: float
    until: float


def handovers(all_held: Sequence[Sequence[Held]]) -> Timing:
    """Return the times from each release to the next acquire."""
    held = sorted(itertools.chain.from_iterable(all_held))
    gaps = tuple(after.since - before.until for before, after in itertools.pairwise(held))
    return Timing(gaps)


def lock_handover(bench: Bench, contenders: int) -> Contest:
    """From the beginning of a release to the end of the next one's acquire, with so many processes in the queue."""

    def run(who: str) -> Timing:
        job: Job[list[Held]] = partial(contend, who, bench.task(), 2 * bench.window_s)
        return handovers(bench.fleet.run(job, contenders))

    return interleaved(
        {"ours": partial(run, "ours"), "stub": _round_trips(bench, 50), "textbook": partial(run, "textbook")},
        bench.pick(5, 2),
    )


# ---- barrier


def meet(task: Task, parties: int, threads: int, rounds: int, number: int) -> Callable[[], list[list[Held]]]:
    """Wait at the barrier, on several threads; return when each called and when it was let go, round by round."""
    meeting = session(from_member(task.endpoints, number)).barrier(task.name, n=parties)

    def one(thread: int) -> list[Held]:
        waits: list[Held] = []
        for _ in range(rounds):
            if number == thread == 0:
                time.sleep(_LAST_S)  # the last to come, when all others wait
            since = time.monotonic()
            meeting.wait(60)
            waits.append(Held(since, time.monotonic()))
        return waits

    def run() -> list[list[Held]]:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, range(threads)))

    return run


_LAST_S = 0.3


def barrier(bench: Bench, processes: int, threads: int) -> Contest:
    """From the last arrival to the moment at which the last participant goes on."""
    rounds = bench.pick(10, 3)

    def run(processes: int, threads: int) -> Timing:
        job = partial(meet, bench.task(), processes * threads, threads, rounds + 1)
        waits: list[list[Held]] = [each for worker in bench.fleet.run(job, processes) for each in worker]
        by_round = list(zip(*waits, strict=True))[1:]  # in the first one they get to know each other
        releases = [max(each.until for each in a) - max(each.since for each in a) for a in by_round]
        return Timing(tuple(releases))

    return interleaved(
        {
            "ours": partial(run, processes, threads),
            "ours, 2": partial(run, 2, 1),
            "stub": _round_trips(bench, 50),
        },
        bench.pick(5, 2),
    )


def barrier_of(bench: Bench, participants: int) -> Contest:
    """Let so many meet: threads of two to eight processes."""
    processes = min(8, participants)
    return barrier(bench, processes, participants // processes)


# ---- many entries


def dict_update(bench: Bench) -> Contest:
    """``update`` of 1,000 entries, beside one put each."""
    entries, count, single = bench.session().dict(bench.fresh()), 1_000, bench.pick(1_000, 200)
    many = {f"key{number}": VALUE for number in range(count)}
    numbers = itertools.cycle(range(count))
    entries.update(many)
    return interleaved(
        {
            "update": lambda: replace(timed(lambda: entries.update(many), 1), items=count),
            "one by one": lambda: timed(lambda: entries.set(f"key{next(numbers)}", VALUE), single),
            "stub": _round_trips(bench, single),
        },
        bench.repeats,
    )


def dict_items(bench: Bench, count: int) -> Contest:
    """``items()`` of a large dict, beside Ranges of 10,000 keys each."""
    entries, prefix = bench.session().dict(bench.fresh()), f"/stub/{bench.fresh()}/".encode()
    entries.update({number: number for number in range(count)})
    for start in range(0, count, 100):
        writes = [put(prefix + str(number).encode(), str(number).encode()) for number in range(start, start + 100)]
        bench.stub().txn(pb.TxnRequest(success=writes))

    def ours() -> None:
        if len(entries.items()) != count:
            raise RuntimeError("items() has not returned all entries")

    def bare() -> None:
        start, more = prefix, True
        while more:
            page = bench.stub().range(pb.RangeRequest(key=start, range_end=end_of(prefix), limit=10_000))
            start, more = page.kvs[-1].key + b"\0", page.more

    return bench.in_turn({"ours": partial(timed, ours, 1), "stub": partial(timed, bare, 1)})
